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
from i2b_lpo.commands import BASES, COMMANDS as _COMMANDS
from i2b_lpo.config import flat
from i2b_lpo.method.methods import METHODS

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
        "settings of --config and --set, with their defaults; later ones override earlier ones:\n"
        "preset, --config, named options, --set\n\n"
        + textwrap.fill("  ".join(pairs), 78, break_long_words=False, break_on_hyphens=False)
    )


_HELP = {
    "tour": "train the bundled policy and write a page of what happened (4 min)",
    "train": "train a policy by GRPO or by I²B-LPO",
    "train-latents": "train the latents of a policy (6 min for a bundled one)",
    "evaluate": "measure a policy on a task",
    "rollout": "sample a policy on questions and show the entropy of each token",
    "pretrain": "teach a tiny policy from random weights (5 min)",
    "info": "say what is installed and bundled, or what a run would be",
    "notebooks": "copy the notebooks into a folder",
    "tutorials": "copy exercises, solutions and guides into a folder",
    "export": "write a policy as an ordinary Hugging Face folder with a card",
}
_WRITE = ("train", "train-latents", "evaluate", "rollout", "pretrain", "tour")
_MUST = ("train", "train-latents", "pretrain")  # these have an output or have done nothing
_EXAMPLE = {"pretrain": "tokens=1000", "train-latents": "beta_kl=0.2"}


def _parser() -> _Parser:
    parser = _Parser(prog="i2b-lpo", description="Teach and run I²B-LPO, step by step.")
    parser.add_argument("--version", action="version", version=i2b_lpo.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subs = {
        name: commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=_settings_of(name) if name in BASES else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, help in _HELP.items()
    }
    _add_files(subs)
    _add_methods(subs)
    _add_questions(subs)
    _add_sampling(subs)
    _add_latents(subs)
    subs["pretrain"].add_argument(
        "--task", dest="learnt", metavar="TASK", help="product, shop or functions (product)"
    )
    for name in ("notebooks", "tutorials"):
        subs[name].add_argument("folder", type=Path, metavar="DIR")
    subs["export"].add_argument(
        "source", help="a run's folder, a bundled name or a policy's folder"
    )
    subs["export"].add_argument("folder", type=Path, metavar="DIR")
    return parser


def _add_files(subs: dict[str, _Parser]) -> None:
    """Seed, output, settings from a file and single ones, steps, resume."""
    for name in _WRITE:
        output = "runs/tour" if name == "tour" else None
        _named(subs[name], "--seed", "source of all randomness")
        subs[name].add_argument(
            "--output",
            type=Path,
            default=output,
            metavar="DIR",
            required=name in _MUST,
            help="folder to write to" + (f" ({output})" if output else ""),
        )
    for name in (*_WRITE, "info"):
        subs[name].add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="settings from a TOML file, such as run.toml",
        )
        example = _EXAMPLE.get(name, "rollout.batch=64")
        subs[name].add_argument(
            "--set",
            dest="sets",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"one setting, such as {example}; may be repeated",
        )
    for name in ("tour", "train", "train-latents", "pretrain"):
        _named(subs[name], "--steps", "optimizer steps")
    for name in ("train", "evaluate"):
        subs[name].add_argument(
            "--resume", action="store_true", help="continue the stopped run in --output"
        )


def _add_methods(subs: dict[str, _Parser]) -> None:
    """Preset and method of a run, and how it is shown or sharded."""
    train, info = subs["train"], subs["info"]
    train.add_argument("--preset", default="tiny", help="settings by name (tiny); see info")
    info.add_argument("--preset", help="the run of this preset")
    for sub in (train, info):
        sub.add_argument(
            "--method",
            choices=METHODS,
            help="sets what the method owns; --set comes after it (grpo)",
        )
    info.add_argument(
        "--toml", action="store_true", help="every setting of a run, as a file for --config"
    )
    train.add_argument(
        "--shard",
        action="store_const",
        const=True,
        help="split the weights over torchrun's processes (FSDP2)",
    )


def _add_questions(subs: dict[str, _Parser]) -> None:
    """Whom to ask, what, and where."""
    for name in ("train", "train-latents", "evaluate", "rollout"):
        sub = subs[name]
        _named(sub, "--policy", "bundled name, folder or hub name")
        _named(sub, "--task", TASKS)
        _named(sub, "--data", "local copy of a benchmark: a folder with train / test .jsonl")
        _named(sub, "--device", "cpu or cuda")
    _named(subs["train-latents"], "--questions", "train questions")
    _named(subs["evaluate"], "--questions", "how many")
    _named(subs["rollout"], "--question", "your own question of the bundled task")


def _add_sampling(subs: dict[str, _Parser]) -> None:
    """How answers are drawn where they are evaluated or shown."""
    for name in ("evaluate", "rollout"):
        sub = subs[name]
        _named(sub, "--split", "split of the task")
        _named(sub, "--samples", "per question", "rollout.rollouts")
        _named(sub, "--temperature", "0 is greedy", "rollout.temperature")
        _named(sub, "--top-p", "share of the probability that is drawn from", "rollout.top_p")
        _named(sub, "--max-new-tokens", "length limit", "rollout.max_new_tokens")


def _add_latents(subs: dict[str, _Parser]) -> None:
    """Branches and the latents that steer them."""
    train, latents, rollout = subs["train"], subs["train-latents"], subs["rollout"]
    _named(
        train, "--latents", "folder of train-latents (the bundled policies' own)", "branch.latents"
    )
    _named(latents, "--source", "policy whose rollouts are used for training (the same)")
    _named(latents, "--fusion", "psa, input, softmax or residual")
    _named(latents, "--objective", "steer or selector")
    rollout.add_argument(
        "--branches",
        type=_positive,
        dest="branch.branches",
        metavar="N",
        help="fork each rollout and grow this many branches",
    )
    _named(rollout, "--fusion", "how z enters the branches; none re-samples", "branch.fusion")


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
