"""The command line: `i2b-lpo tour | train | train-latents | evaluate | rollout | …`.

A wrong argument or a missing file is one sentence on stderr and exit code 2. torch is imported
only by the commands that need it, so `--help` and `notebooks` answer at once.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import i2b_lpo
from i2b_lpo.commands import BASES
from i2b_lpo.commands import COMMANDS as _COMMANDS
from i2b_lpo.config import METHODS, flat

__all__ = ["main"]

TASKS = "shop, product, functions, gym:NAME, gsm8k, math, math500, aime24, or a .jsonl file"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


_KINDS: dict[type, Callable[[str], Any]] = {bool: bool, int: _positive, float: float, str: str}


def _named(sub: argparse.ArgumentParser, flag: str, what: str, setting: str = "") -> None:
    """An option with the name of a setting as its `dest`; says the setting's default."""
    command = sub.prog.split()[-1]
    setting = setting or flag.removeprefix("--").replace("-", "_")
    default = flat(BASES[command])[setting]
    kind = int if flag == "--seed" else _KINDS[type(default)]
    if command == "train":
        shown = "" if setting in ("branch.latents", "data") else " (the preset's)"
    else:
        shown = f" ({default})" if default != "" else ""
    word = {int: "N", float: "X"}.get(type(default), flag.removeprefix("--").upper())
    word = "DIR" if flag in ("--data", "--latents") else word
    sub.add_argument(flag, dest=setting, type=kind, metavar=word, help=what + shown)


def _settings_of(command: str) -> str:
    """Every setting of a command with its default, for the end of its help."""
    pairs = [
        f"{n}={str(v).lower() if isinstance(v, bool) else v}"
        for n, v in flat(BASES[command]).items()
    ]
    return (
        "settings of --config and --set, with their defaults; what is given later counts:\n"
        "preset, --config, named options, --set\n\n"
        + textwrap.fill("  ".join(pairs), 78, break_long_words=False, break_on_hyphens=False)
    )


def _parser() -> _Parser:
    parser = _Parser(prog="i2b-lpo", description="Teach and run I²B-LPO, step by step.")
    parser.add_argument("--version", action="version", version=i2b_lpo.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=_settings_of(name) if name in BASES else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    tour = command("tour", "train the bundled policy and write a page of what happened (4 min)")
    train = command("train", "train a policy by GRPO or the whole of I²B-LPO")
    latents = command("train-latents", "train the latents of a policy (6 min for a bundled one)")
    evaluate = command("evaluate", "measure a policy on a task")
    rollout = command("rollout", "sample a policy on questions and show the entropy of each token")
    pretrain = command("pretrain", "teach a tiny policy from random weights (5 min)")
    info = command("info", "say what is installed, bundled and configured")
    notebooks = command("notebooks", "copy the notebooks into a folder")
    tutorials = command("tutorials", "copy exercises, solutions and guides into a folder")
    export = command("export", "write a policy as an ordinary Hugging Face folder with a card")

    outputs = dict.fromkeys((train, latents, evaluate, rollout, pretrain)) | {tour: "runs/tour"}
    for sub, output in outputs.items():
        _named(sub, "--seed", "source of all randomness")
        sub.add_argument(
            "--output",
            type=Path,
            default=output,
            metavar="DIR",
            required=sub in (train, latents, pretrain),
            help="folder to write to" + (f" ({output})" if output else ""),
        )
    for sub in (*outputs, info):
        sub.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="settings from a TOML file, such as run.toml",
        )
        sub.add_argument(
            "--set", dest="sets", action="append", default=[], metavar="NAME=VALUE",
            help="one setting, such as "
            + ("tokens=1000" if sub is pretrain else "beta_kl=0.2" if sub is latents
               else "rollout.batch=64") + "; may be repeated",
        )  # fmt: skip
    for sub in (tour, train, latents, pretrain):
        _named(sub, "--steps", "optimizer steps")
    for sub in (train, evaluate):
        sub.add_argument(
            "--resume", action="store_true", help="go on with the run in --output that was stopped"
        )
    train.add_argument("--preset", default="tiny", help="settings by name (tiny); see info")
    for sub in (train, info):
        sub.add_argument(
            "--method",
            choices=METHODS,
            help="sets what the method owns; --set comes after it (grpo)",
        )
    train.add_argument(
        "--shard", action="store_const", const=True,
        help="split the weights over torchrun's processes (FSDP2)",
    )  # fmt: skip
    _named(
        train, "--latents", "folder of train-latents (the bundled policies' own)", "branch.latents"
    )
    for sub in (train, latents, evaluate, rollout):
        _named(sub, "--policy", "bundled name, folder or hub name")
        _named(sub, "--task", TASKS)
        _named(sub, "--data", "local copy of a benchmark: a folder with train / test .jsonl")
        _named(sub, "--device", "cpu or cuda")
    _named(latents, "--source", "policy whose rollouts are learnt from (the same)")
    _named(latents, "--fusion", "psa, input, softmax or residual")
    _named(latents, "--objective", "steer or selector")
    _named(latents, "--questions", "train questions")
    for sub in (evaluate, rollout):
        _named(sub, "--split", "split of the task")
        _named(sub, "--samples", "per question", "rollout.rollouts")
        _named(sub, "--temperature", "0 is greedy", "rollout.temperature")
        _named(sub, "--top-p", "share of the probability that is drawn from", "rollout.top_p")
        _named(sub, "--max-new-tokens", "length limit", "rollout.max_new_tokens")
    _named(evaluate, "--questions", "how many")
    _named(rollout, "--question", "your own question of the bundled task")
    rollout.add_argument(
        "--branches", type=_positive, dest="branch.branches", metavar="N",
        help="fork each rollout and grow this many branches",
    )  # fmt: skip
    _named(rollout, "--fusion", "how z enters the branches; none re-samples", "branch.fusion")
    pretrain.add_argument(
        "--task", dest="learnt", metavar="TASK", help="product, shop or functions (product)"
    )
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


if __name__ == "__main__":
    sys.exit(main())
