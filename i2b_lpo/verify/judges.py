"""What child processes compare answers by: a judge's file, and what its process is given.

The files are loaded by `worker` in the child alone; here is what the parent must know of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CALLING", "GRADING", "MATHEMATICS", "Judge"]


@dataclass(frozen=True)
class Judge:
    """A judge, and how its processes are started.

    Attributes:
        file: the module that `worker` loads.
        needs: what to do if it doesn't start.
        confined: whether answers may be programs; see `worker`. Such a process starts without
            environment, in an empty folder of its own.
        flags: of the interpreter.
        environment: names of the variables that a confined process is given all the same.
    """

    file: Path
    needs: str
    confined: bool = False
    flags: tuple[str, ...] = ("-P",)
    environment: tuple[str, ...] = ()


_HERE = Path(__file__).parent

MATHEMATICS = Judge(
    _HERE / "stage_two.py",
    "comparing LaTeX answers needs math-verify in this environment (pip install math-verify)",
)
CALLING = Judge(
    _HERE / "calling.py",
    "functions run in a Python without packages, and this one doesn't start that way",
    confined=True,
    flags=("-P", "-s", "-S"),
)
"""Runs a function that a model wrote: without environment, packages and the user's folders."""

GRADING = Judge(
    _HERE / "grading.py",
    "scores of gym:NAME need reasoning-gym in this environment (pip install 'i2b-lpo[gym]')",
    confined=True,
    environment=("HOME", "PATH", "PYTHONPATH"),
)
"""Scores answers to questions of reasoning-gym."""
