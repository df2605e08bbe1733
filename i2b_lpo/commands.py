"""What each command of the command line does; `i2b_lpo.cli` reads its arguments.

Bad input is refused before any file is written: settings and names first, then the task, the
policy and its latents. Only the commands that need torch import it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import i2b_lpo
from i2b_lpo.about import installed, summary
from i2b_lpo.config import (
    EvaluateConfig,
    LatentConfig,
    PretrainConfig,
    RunConfig,
    SampleConfig,
    TourConfig,
    compose,
    names,
    preset,
    to_toml,
    write_run,
)
from i2b_lpo.method.methods import with_method

__all__ = ["BASES", "COMMANDS"]

Settings = TypeVar("Settings")

# What each command starts from; --config, its named options and --set change it.
BASES: dict[str, Any] = {
    "tour": TourConfig(),
    "train": preset("tiny"),
    "train-latents": LatentConfig(),
    "evaluate": EvaluateConfig(),
    "rollout": SampleConfig(),
    "pretrain": PretrainConfig(shop_share=0.0, steps=1200),  # the warm-up
}


def _settings(arguments: argparse.Namespace, base: Settings, **named: Any) -> Settings:
    """The settings given; an option's `dest` is the name of its setting."""
    given = vars(arguments)
    named |= {name: given[name] for name in names(type(base)) if given.get(name) is not None}
    return compose(
        base,
        file=arguments.config,
        named=named,
        method=given.get("method"),
        with_method=with_method if isinstance(base, RunConfig) else None,
        sets=arguments.sets,
    )


def _need_new(folder: Path | None) -> None:
    """Refuse a folder that isn't empty, before any work is done, so that nothing is lost."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; choose a new folder, or remove it first.")


def _new_folder(folder: Path) -> Path:
    """Create `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _task(settings: Any) -> Any:
    from i2b_lpo.tasks.loading import load_task

    return load_task(settings.task, path=settings.data or None)


def _tour(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments, BASES["tour"])
    from i2b_lpo.method.checks import check
    from i2b_lpo.tour import tour

    check(settings)
    page = tour(arguments.output, settings)
    print(f"\nPage: {page} (open it in a browser)")


def _train(arguments: argparse.Namespace) -> None:
    config = _settings(arguments, preset(arguments.preset))
    if not arguments.resume:
        _need_new(arguments.output)
    import torch
    from accelerate import PartialState

    from i2b_lpo.method.checks import check
    from i2b_lpo.model.policy import load_policy
    from i2b_lpo.training.loop import train
    from i2b_lpo.training.processes import own_device

    check(config)
    task = _task(config)
    # Small updates would be lost in half-precision weights; on a GPU the passes run in bfloat16.
    device = own_device(config.device)
    policy = load_policy(config.policy, device=device, dtype=torch.float32)
    train(config, policy, task, output=arguments.output, resume=arguments.resume)
    PartialState().destroy_process_group()
    print(f"Policy and metrics: {arguments.output}")


def _train_latents(arguments: argparse.Namespace) -> None:
    config = _settings(arguments, BASES["train-latents"])
    _need_new(arguments.output)
    from i2b_lpo.method.checks import check
    from i2b_lpo.model.policy import load_policy
    from i2b_lpo.model.steering import latest_version, new_steering, save_steering
    from i2b_lpo.training.latents import collect, steering_report, train_latents

    check(config)
    task = _task(config)
    policy = load_policy(config.policy, device=config.device)
    new_steering(policy, d_z=config.d_z, fusion=config.fusion)  # refuses before minutes are spent
    source = load_policy(config.source, device=config.device) if config.source else policy
    examples, tokens = collect(source, task, config)
    steering = train_latents(policy, examples, config, version=latest_version(policy) + 1)
    held_out, _ = collect(
        source, task, dataclasses.replace(config, seed=config.seed + 1), split="validation",
        questions=max(20, config.questions // 5),
    )  # fmt: skip
    report = steering_report(steering, policy, held_out, config)
    steering.card.update(rollout_tokens=tokens, validation=report)
    save_steering(steering, arguments.output)
    write_run(config, arguments.output, "train-latents")
    print(json.dumps(report, indent=2))
    print(f"Latents: {arguments.output}")


def _pretrain(arguments: argparse.Namespace) -> None:
    named: dict[str, Any] = {}
    if arguments.learnt in ("shop", "product"):  # one world, in two shares
        share = PretrainConfig.shop_share if arguments.learnt == "shop" else 0.0
        named = {"task": "shop", "shop_share": share}
    elif arguments.learnt is not None:
        named = {"task": arguments.learnt}
    config = _settings(arguments, BASES["pretrain"], **named)
    _need_new(arguments.output)
    from i2b_lpo.evaluation.measuring import evaluate
    from i2b_lpo.model.policy import make_policy, save_policy
    from i2b_lpo.model.sampling import Sampling
    from i2b_lpo.tasks.loading import load_examples, load_task
    from i2b_lpo.training.pretraining import build_model, build_tokenizer, pretrain

    load_examples(config.task)  # refuses a task without any
    bundled = "shop" if config.shop_share else "product"
    task = load_task(bundled if config.task == "shop" else config.task)
    output = _new_folder(arguments.output)
    # It knows the words of shop and product, so that the policy can continue with the other.
    tokenizer = build_tokenizer(PretrainConfig(task=config.task, seed=config.seed))
    model = build_model(tokenizer, seed=config.seed)
    pretrain(model, tokenizer, config)
    policy = make_policy(model, tokenizer, name=str(output))
    save_policy(policy, output)
    write_run(config, output, "pretrain")
    questions = task.questions("validation", 100, seed=0)
    print(evaluate(policy, task, questions, sampling=Sampling(160), seed=config.seed)[0])
    print(f"Policy: {output}")


def _evaluate(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments, BASES["evaluate"])
    output, parts = arguments.output, None
    if output is not None:
        parts = output / "unfinished"
        if not arguments.resume:
            _need_new(output)
        elif not parts.is_dir():
            raise ValueError(f"{output} holds no evaluation to continue; omit --resume.")
    elif arguments.resume:
        raise ValueError("--resume continues the run in --output; name its folder.")
    from i2b_lpo.evaluation.measuring import evaluate
    from i2b_lpo.infra.files import write_text
    from i2b_lpo.model.sampling import Sampling
    from i2b_lpo.trace import write_traces

    drawn = settings.rollout
    policy, task = _policy_and_task(settings)
    questions = task.questions(settings.split, settings.questions, seed=settings.seed)
    try:
        result, traces = evaluate(
            policy, task, questions,
            sampling=Sampling(drawn.max_new_tokens, drawn.temperature, drawn.top_p),
            samples=drawn.rollouts, seed=settings.seed, batch=drawn.batch, parts=parts,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command with --resume continues." if output else "stopped."
        ) from None
    print(result)
    if output is not None and parts is not None:
        write_traces(output / "traces.jsonl", traces)
        write_text(output / "evaluation.json", json.dumps(result.to_json(), indent=2) + "\n")
        write_run(settings, output, "evaluate")
        shutil.rmtree(parts)


def _policy_and_task(settings: EvaluateConfig | SampleConfig) -> tuple[Any, Any]:
    """Load both; the task comes without the questions that are too long."""
    from i2b_lpo.model.policy import load_policy
    from i2b_lpo.tasks.task import without_long_prompts

    task = _task(settings)
    policy = load_policy(settings.policy, device=settings.device)
    return policy, without_long_prompts(
        task,
        lambda question: len(policy.prompt_ids(question)),
        max_prompt_tokens=settings.rollout.max_prompt_tokens,
    )


def _rollout(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments, BASES["rollout"])
    output, drawn, config = arguments.output, settings.rollout, settings.branch
    _need_new(output)
    import torch

    from i2b_lpo.method.checks import check
    from i2b_lpo.model.sampling import Sampling
    from i2b_lpo.model.steering import load_steering
    from i2b_lpo.rollout.branching import grow_trees
    from i2b_lpo.tasks.loading import own_question
    from i2b_lpo.trace import write_traces

    check(settings)
    own = own_question(settings.question) if arguments.question is not None else None
    policy, task = _policy_and_task(settings)
    question = own or task.questions(settings.split, 1, seed=settings.seed)[0]
    with_z = config.branches and config.fusion != "none"
    steering = load_steering(policy, config.latents or None, run=settings) if with_z else None
    traces = grow_trees(
        policy, [question], Sampling(drawn.max_new_tokens, drawn.temperature, drawn.top_p), config,
        rollouts=drawn.rollouts, steering=steering, batch=drawn.batch,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    print(traces[0])
    for at, rollout in enumerate(traces[0].rollouts):
        print(f"\n[{at}] entropy in nats, token by token")
        for piece, entropy in zip(rollout.pieces, rollout.entropies, strict=True):
            bar = "█" * round(20 * min(entropy, 2.0) / 2.0)
            print(f"  {json.dumps(piece, ensure_ascii=True):16} {entropy:6.3f} {bar}".rstrip())
    if output is not None:
        write_traces(_new_folder(output) / "traces.jsonl", traces)
        write_run(settings, output, "rollout")


def _info(arguments: argparse.Namespace) -> None:
    asked = (arguments.preset, arguments.method, arguments.config, arguments.sets)
    if arguments.toml or any(asked):
        run = _settings(arguments, preset(arguments.preset or "tiny"))
        print(to_toml(run) if arguments.toml else summary(run), end="")
    else:
        print(installed(), end="")


def _course(name: str) -> Path:
    """The folder of `notebooks` or `tutorials`: inside an installed package, else next to it."""
    package = Path(i2b_lpo.__file__).parent
    for place in (package / f"_{name}", package.parent / name):
        if any(place.rglob("*.ipynb")):
            return place
    raise ValueError(f"This installation has no {name}; reinstall the package.")


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
    # Exercises and solutions import the checks next to them.
    for part in ("checks", "exercises", "solutions"):
        unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source / part, folder / part, ignore=unwanted)
    for file in sorted(source.glob("*.md")):
        shutil.copy(file, folder / file.name)
    for file in sorted(folder.rglob("*.ipynb")):
        print(file)


def _export(arguments: argparse.Namespace) -> None:
    from i2b_lpo.model.exporting import export

    _need_new(arguments.folder)
    source = Path(arguments.source)
    policy = source / "policy"
    export(
        str(policy) if policy.is_dir() else arguments.source,
        arguments.folder,
        run=source if policy.is_dir() else None,
    )
    print(arguments.folder)


COMMANDS = {
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
