"""The command line: `i2b-lpo tour | train | train-latents | evaluate | rollout | …`.

A wrong argument or a missing file is one sentence on stderr and exit code 2. torch is imported
only by the commands that need it, so `--help` and `notebooks` answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import i2b_lpo

if TYPE_CHECKING:
    from i2b_lpo.config import RunConfig

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> _Parser:
    parser = _Parser(prog="i2b-lpo", description="Teach and run I²B-LPO, step by step.")
    parser.add_argument("--version", action="version", version=i2b_lpo.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        return sub

    tour = command("tour", "train the bundled policy and write a page of what happened (8 min)")
    train = command("train", "train a policy by GRPO or the whole of I²B-LPO")
    latents = command("train-latents", "train the latents of a policy (10 min for a bundled one)")
    evaluate = command("evaluate", "measure a policy on a task")
    rollout = command("rollout", "sample a policy on questions and show the entropy of each token")
    pretrain = command("pretrain", "teach a tiny policy from random weights (5 min)")
    info = command("info", "say what is installed, bundled and configured")
    notebooks = command("notebooks", "copy the notebooks into a folder")
    tutorials = command("tutorials", "copy exercises, solutions and guides into a folder")
    export = command("export", "write a policy as an ordinary Hugging Face folder with a card")

    outputs = dict.fromkeys((train, latents, evaluate, rollout, pretrain)) | {tour: "runs/tour"}
    for sub, output in outputs.items():
        sub.add_argument("--seed", type=int, default=0, help="source of all randomness (0)")
        sub.add_argument(
            "--output",
            type=Path,
            default=output,
            metavar="DIR",
            required=sub in (train, latents, pretrain),
            help="folder to write to" + (f" ({output})" if output else ""),
        )
    for sub in (tour, train, latents):
        sub.add_argument("--steps", type=_positive, help="optimizer steps (the preset's)")
    for sub in (train, evaluate):
        sub.add_argument(
            "--resume", action="store_true", help="go on with the run in --output that was stopped"
        )
    train.add_argument("--preset", default="tiny", help="settings by name (tiny); see info")
    train.add_argument(
        "--method", default="grpo", choices=("grpo", "i2b-lpo"), help="which method (grpo)"
    )
    train.add_argument(
        "--shard", action="store_true", help="split the weights over torchrun's processes (FSDP2)"
    )
    train.add_argument("--latents", help="folder of train-latents (the bundled policies' own)")
    latents.add_argument("--policy", default="tiny-base", help="the policy to steer (tiny-base)")
    latents.add_argument("--source", help="policy whose rollouts are learnt from (the same)")
    latents.add_argument("--fusion", default="psa", help="psa, input, softmax or residual (psa)")
    latents.add_argument("--objective", default="steer", help="steer or selector (steer)")
    latents.add_argument("--questions", type=_positive, help="train questions (800)")
    train.add_argument("--policy", help="bundled name, folder or hub name (the preset's)")
    for sub in (evaluate, rollout):
        sub.add_argument("--policy", default="tiny-base", help="bundled name, folder or hub name")
        sub.add_argument("--split", default="validation", help="split of the task (validation)")
        sub.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (1.0)")
        sub.add_argument("--top-p", type=float, default=1.0, help="(1.0)")
        sub.add_argument("--max-new-tokens", type=_positive, default=160, help="(160)")
    for sub in (train, latents, evaluate, rollout):
        sub.add_argument(
            "--task",
            default=None if sub is train else "shop",
            help="shop, product, gsm8k, math, math500, aime24, or a .jsonl file",
        )
        sub.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="local copy of a benchmark: a folder with train / test .jsonl",
        )
        sub.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    evaluate.add_argument("--questions", type=_positive, default=150, help="how many (150)")
    evaluate.add_argument("--samples", type=_positive, default=8, help="per question (8)")
    rollout.add_argument("--question", help="your own question of the bundled task")
    rollout.add_argument("--samples", type=_positive, default=1, help="per question (1)")
    rollout.add_argument(
        "--branches", type=_positive, help="fork each rollout and grow this many branches"
    )
    rollout.add_argument(
        "--fusion", default="psa", help="how z enters the branches; none re-samples (psa)"
    )
    pretrain.add_argument(
        "--task", choices=("product", "shop"), default="product", help="the warm-up (product)"
    )
    pretrain.add_argument("--steps", type=_positive, default=1200, help="optimizer steps (1200)")
    info.add_argument("--preset", help="print all settings of this preset")
    for sub in (notebooks, tutorials):
        sub.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("source", help="a run's folder, a bundled name or a policy's folder")
    export.add_argument("folder", type=Path, metavar="DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a bar in a Latin-1 file becomes "?"
        sys.stdout.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    python, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        _COMMANDS[arguments.command](arguments)
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        message = " ".join(str(error).split())  # one line, whatever the message holds
        print(f"i2b-lpo {arguments.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\ni2b-lpo: {str(stopped) or 'stopped.'}", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)
    finally:
        warnings.formatwarning = python
    return 0


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"i2b-lpo: {' '.join(str(message).split())}\n"


def _need_new(folder: Path | None) -> None:
    """Refuse a folder that holds something, so that nothing is lost; before any work is done."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; choose a new folder, or remove it first.")


def _new_folder(folder: Path) -> Path:
    """Create `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tour(arguments: argparse.Namespace) -> None:
    from i2b_lpo.tour import tour

    page = tour(arguments.output, seed=arguments.seed, steps=arguments.steps)
    print(f"\nPage: {page} (open it in a browser)")


def _run_config(arguments: argparse.Namespace) -> RunConfig:
    from i2b_lpo.config import preset

    changes = {
        name: getattr(arguments, name)
        for name in ("policy", "task", "steps", "seed")
        if getattr(arguments, name) is not None
    }
    changes["shard"] = arguments.shard
    config = dataclasses.replace(preset(arguments.preset), **changes)
    config = config.with_method(arguments.method)
    if arguments.latents is not None:
        if not config.branch.samples:
            raise ValueError("--latents acts on branches; add --method i2b-lpo.")
        branch = dataclasses.replace(config.branch, latents=arguments.latents)
        config = dataclasses.replace(config, branch=branch)
    return config


def _train(arguments: argparse.Namespace) -> None:
    config = _run_config(arguments)
    if not arguments.resume:
        _need_new(arguments.output)
    import torch
    from accelerate import PartialState

    from i2b_lpo.policy import load_policy
    from i2b_lpo.sharding import own_device
    from i2b_lpo.tasks import load_task
    from i2b_lpo.train import train

    task = load_task(config.task, path=arguments.data)
    # Small updates would be lost in half-precision weights; on a GPU the passes run in bfloat16.
    device = own_device(arguments.device)
    policy = load_policy(config.policy, device=device, dtype=torch.float32)
    train(config, policy, task, output=arguments.output, resume=arguments.resume)
    PartialState().destroy_process_group()
    print(f"Policy and metrics: {arguments.output}")


def _train_latents(arguments: argparse.Namespace) -> None:
    from i2b_lpo.config import LatentConfig
    from i2b_lpo.policy import load_policy
    from i2b_lpo.steering import latest_version, new_steering, save_steering
    from i2b_lpo.tasks import load_task
    from i2b_lpo.train_latents import collect, steering_report, train_latents

    _need_new(arguments.output)
    names = ("source", "fusion", "objective", "questions", "steps", "seed")
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    config = LatentConfig(**given)
    task = load_task(arguments.task, path=arguments.data)
    policy = load_policy(arguments.policy, device=arguments.device)
    new_steering(policy, d_z=config.d_z, fusion=config.fusion)  # refuses before minutes are spent
    source = load_policy(config.source, device=arguments.device) if config.source else policy
    examples, tokens = collect(source, task, config)
    steering = train_latents(policy, examples, config, version=latest_version(policy) + 1)
    held_out, _ = collect(
        source, task, dataclasses.replace(config, seed=config.seed + 1), split="validation",
        questions=max(20, config.questions // 5),
    )  # fmt: skip
    report = steering_report(steering, policy, held_out, config)
    steering.card.update(rollout_tokens=tokens, validation=report)
    save_steering(steering, arguments.output)
    print(json.dumps(report, indent=2))
    print(f"Latents: {arguments.output}")


def _pretrain(arguments: argparse.Namespace) -> None:
    from i2b_lpo.decode import Sampling
    from i2b_lpo.evaluate import evaluate
    from i2b_lpo.policy import make_policy, save_policy
    from i2b_lpo.pretrain import PretrainConfig, build_model, build_tokenizer, pretrain
    from i2b_lpo.tasks import load_task

    _need_new(arguments.output)
    output = _new_folder(arguments.output)
    config = PretrainConfig(
        shop_share=PretrainConfig.shop_share if arguments.task == "shop" else 0.0,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    # The tokenizer knows the words of both tasks, so that the policy can go on with the other.
    tokenizer = build_tokenizer(PretrainConfig(seed=arguments.seed))
    model = build_model(tokenizer, seed=config.seed)
    pretrain(model, tokenizer, config)
    policy = make_policy(model, tokenizer, name=str(output))
    save_policy(policy, output)
    task = load_task(arguments.task)
    questions = task.questions("validation", 100, seed=0)
    print(evaluate(policy, task, questions, sampling=Sampling(160), seed=arguments.seed)[0])
    print(f"Policy: {output}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from i2b_lpo.config import RolloutConfig
    from i2b_lpo.decode import Sampling
    from i2b_lpo.evaluate import evaluate
    from i2b_lpo.policy import load_policy
    from i2b_lpo.storage import write_text
    from i2b_lpo.tasks import load_task, without_long_prompts
    from i2b_lpo.trace import write_traces

    output, parts = arguments.output, None
    if output is not None:
        parts = output / "unfinished"
        if not arguments.resume:
            _need_new(output)
        elif not parts.is_dir():
            raise ValueError(f"{output} holds no evaluation to go on with; leave out --resume.")
    elif arguments.resume:
        raise ValueError("--resume goes on with what is in --output; name its folder.")
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    task = load_task(arguments.task, path=arguments.data)
    policy = load_policy(arguments.policy, device=arguments.device)
    task = without_long_prompts(
        task,
        lambda question: len(policy.prompt_ids(question.text)),
        max_prompt_tokens=RolloutConfig.max_prompt_tokens,
    )
    questions = task.questions(arguments.split, arguments.questions, seed=arguments.seed)
    try:
        result, traces = evaluate(
            policy, task, questions, sampling=sampling, samples=arguments.samples,
            seed=arguments.seed, parts=parts,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command with --resume goes on." if output else "stopped."
        ) from None
    print(result)
    if output is not None and parts is not None:
        write_traces(output / "traces.jsonl", traces)
        write_text(output / "evaluation.json", json.dumps(result.to_json(), indent=2) + "\n")
        shutil.rmtree(parts)


def _rollout(arguments: argparse.Namespace) -> None:
    import torch

    from i2b_lpo.branching import grow_trees
    from i2b_lpo.config import BranchConfig
    from i2b_lpo.decode import Sampling
    from i2b_lpo.policy import load_policy
    from i2b_lpo.steering import load_steering
    from i2b_lpo.tasks import load_task, own_question
    from i2b_lpo.trace import write_traces

    _need_new(arguments.output)
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    if arguments.question is not None:
        question = own_question(arguments.question)
    else:
        task = load_task(arguments.task, path=arguments.data)
        question = task.questions(arguments.split, 1, seed=arguments.seed)[0]
    policy = load_policy(arguments.policy, device=arguments.device)
    output = _new_folder(arguments.output) if arguments.output else None
    generator = torch.Generator().manual_seed(arguments.seed)
    config = BranchConfig(samples=arguments.branches or 0, fusion=arguments.fusion)
    with_z = config.samples and config.fusion != "none"
    traces = grow_trees(
        policy, [question], sampling, config, samples=arguments.samples, generator=generator,
        steering=load_steering(policy, config.latents or None) if with_z else None,
    )  # fmt: skip
    print(traces[0])
    for at, rollout in enumerate(traces[0].rollouts):
        print(f"\n[{at}] entropy in nats, token by token")
        for piece, entropy in zip(rollout.pieces, rollout.entropies, strict=True):
            bar = "█" * round(20 * min(entropy, 2.0) / 2.0)
            print(f"  {json.dumps(piece, ensure_ascii=True):16} {entropy:6.3f} {bar}".rstrip())
    if output:
        write_traces(output / "traces.jsonl", traces)


def _info(arguments: argparse.Namespace) -> None:
    from i2b_lpo.config import PRESETS, preset

    if arguments.preset:
        print(json.dumps(preset(arguments.preset).to_json(), indent=2))
        return
    import accelerate
    import torch
    import transformers

    from i2b_lpo.policy import BUNDLED, asset_path
    from i2b_lpo.tasks import BENCHMARKS

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(
        f"i2b-lpo {i2b_lpo.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, accelerate {accelerate.__version__}\n"
        f"processor cores {os.cpu_count()}, torch threads {torch.get_num_threads()}, GPU {cuda}\n"
        f"tasks: shop, product (bundled), {', '.join(BENCHMARKS)} (Hugging Face hub)\n"
        f"presets: {', '.join(PRESETS)}\nbundled policies:"
    )
    for name, what in BUNDLED.items():
        print(f"  {name}: {what} ({asset_path(name)})")


def _course(name: str) -> Path:
    """The folder of `notebooks` or `tutorials`: in an installed package inside it, else beside."""
    package = Path(i2b_lpo.__file__).parent
    for place in (package / f"_{name}", package.parent / name):
        if any(place.rglob("*.ipynb")):
            return place
    raise ValueError(f"This installation has no {name}; install the package again.")


def _notebooks(arguments: argparse.Namespace) -> None:
    source = _course("notebooks")
    _need_new(arguments.folder)
    folder = _new_folder(arguments.folder)
    for file in sorted(source.glob("*.ipynb")):
        shutil.copy(file, folder / file.name)
        print(folder / file.name)


def _tutorials(arguments: argparse.Namespace) -> None:
    source = _course("tutorials")
    _need_new(arguments.folder)
    folder = _new_folder(arguments.folder)
    # Exercises and solutions import the checks beside them.
    for part in ("checks", "exercises", "solutions"):
        unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source / part, folder / part, ignore=unwanted)
    for file in sorted(source.glob("*.md")):
        shutil.copy(file, folder / file.name)
    for file in sorted(folder.rglob("*.ipynb")):
        print(file)


def _export(arguments: argparse.Namespace) -> None:
    from i2b_lpo.export import export

    _need_new(arguments.folder)
    source = Path(arguments.source)
    policy = source / "policy"
    export(
        str(policy) if policy.is_dir() else arguments.source,
        arguments.folder,
        run=source if policy.is_dir() else None,
    )
    print(arguments.folder)


_COMMANDS = {
    "tour": _tour,
    "train": _train,
    "train-latents": _train_latents,
    "evaluate": _evaluate,
    "rollout": _rollout,
    "pretrain": _pretrain,
    "info": _info,
    "notebooks": _notebooks,
    "tutorials": _tutorials,
    "export": _export,
}

if __name__ == "__main__":
    sys.exit(main())
