"""The judge that runs code: calls a function that a model wrote, and reports what it returned.

It is given the inputs of the unit tests and never what they expect. So an answer that ends the
process, replaces built-ins, returns an object that equals everything or prints a verdict gains
nothing: only the values count, and the parent compares them as plain JSON. Loaded only in a
confined child process (`i2b_lpo.verify.worker`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["MODULES", "against", "prepare"]

MODULES = (
    "bisect", "cmath", "collections", "fractions", "functools", "heapq", "itertools", "json",
    "math", "operator", "random", "re", "string", "typing",
)  # fmt: skip
"""What an answer may import; all else would have to open files."""


def prepare() -> None:
    """Load what answers may import."""
    for name in MODULES:
        import_module(name)


def against(gold: str) -> Callable[[str], str]:
    """What runs an answer.

    Args:
        gold: the name of the function and the arguments of each call, as JSON.

    Returns:
        A function of the answer's code. Its outcome is a JSON list of what the calls returned, or
        the name of the exception that ended them, or ``unparsable`` for what isn't Python.
    """
    asked = json.loads(gold)

    def call(code: str) -> str:
        random.seed(0)  # an answer has the same outcome each time
        scope: dict[str, Any] = {"__name__": "answer"}
        try:
            program = compile(code, "answer", "exec")
        except (SyntaxError, ValueError, RecursionError):
            return "unparsable"
        try:
            exec(program, scope)
            return json.dumps([scope[asked["call"]](*inputs) for inputs in asked["inputs"]])
        except MemoryError:
            raise
        except BaseException as error:  # whatever it raises, SystemExit among it
            return json.dumps(type(error).__name__)

    return call
