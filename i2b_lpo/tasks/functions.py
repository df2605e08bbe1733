"""The domain of Python functions, judged by unit tests: the task ``functions``.

*Write a function f(x) that returns x times 3 plus 4.* An answer is the last block between lines of
three backticks; a small policy can learn these::

    ```python
    def f(x):
        return x*3+4
    ```

**This runs code that a model wrote**, each answer in a child process with limits of time (5 s),
memory (512 MiB) and output (64 KiB), without environment, without packages, in an empty folder, and
with no way to open files or sockets (`i2b_lpo.verify.worker` says how). It isn't a sandbox against
an adversary. Nothing else runs code: not loading or viewing, nor scores or votes, nor any other
task.

Questions are ours [D]: a chain of one to three steps, from left to right.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import add, mul, sub
from typing import cast

from i2b_lpo.tasks.splits import check_split, split_of
from i2b_lpo.tasks.task import Domain, Example, GeneratedTask, Task
from i2b_lpo.trace import Question
from i2b_lpo.verify.confined import confined_verdicts
from i2b_lpo.verify.judges import CALLING
from i2b_lpo.verify.pool import shared_pool
from i2b_lpo.verify.verdict import Reason, Verdict

__all__ = ["FUNCTIONS", "function_questions", "write_function"]

FENCE = "```"
TIMEOUT = 5.0  # seconds for all calls of one answer
MAX_CHARACTERS = 4000  # of an answer
INPUTS = (-7, -1, 0, 1, 2, 3, 10)

Steps = tuple[tuple[str, int], ...]
_WORDS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("+", add),
    "minus": ("-", sub),
    "times": ("*", mul),
}

# --- questions ----------------------------------------------------------------------------------


def _apply(steps: Steps, x: int) -> int:
    for word, number in steps:
        x = _WORDS[word][1](x, number)
    return x


def write_function(steps: Steps) -> str:
    """The function that applies the steps in order; brackets only where they are needed."""
    body = "x"
    for at, (word, number) in enumerate(steps):
        if word == "times" and at and steps[at - 1][0] != "times":
            body = f"({body})"
        body += f"{_WORDS[word][0]}{number}"
    return f"def f(x):\n    return {body}"


def _question(steps: Steps) -> Question:
    told = ", then ".join(f"{word} {number}" for word, number in steps)
    text = f"Write a function f(x) that returns x {told}."
    tests = {
        "call": "f",
        "inputs": [[x] for x in INPUTS],
        "outputs": [_apply(steps, x) for x in INPUTS],
    }
    return Question(
        id=f"functions-{zlib.crc32(text.encode()):08x}",
        text=text,
        answer=write_function(steps),
        task="functions",
        level=len(steps),
        domain="functions",
        checks=json.dumps(tests),
    )


def _draw(split: str, rng: random.Random) -> Iterator[Steps]:
    check_split(split)
    while True:
        count = rng.randint(1, 3)
        steps = tuple((rng.choice(list(_WORDS)), rng.randint(2, 9)) for _ in range(count))
        if split_of(str(steps)) == split:
            yield steps


def function_questions(split: str, rng: random.Random) -> Iterator[Question]:
    """Endless questions of one split, drawn with `rng`; one, two or three steps equally often."""
    return map(_question, _draw(split, rng))


def _examples(rng: random.Random) -> Iterator[Example]:
    for question in function_questions("train", rng):
        solution = f"{FENCE}python\n{question.answer}\n{FENCE}"
        yield question.text, solution, solution


# --- answers ------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[tuple[int, int, int | None]]:
    """Where each block begins, where its code begins, and where that ends; None for an open one."""
    at, opened = 0, None
    for line in text.splitlines(keepends=True):
        if opened is None and line.startswith(FENCE):
            opened = (at, at + len(line))
        elif opened is not None and line.rstrip() == FENCE:
            yield (*opened, at)
            opened = None
        at += len(line)
    if opened is not None:
        yield (*opened, None)


def _begins(text: str) -> int | None:
    found = list(_blocks(text))
    closed = [begin for begin, _, end in found if end is not None]
    return closed[-1] if closed else found[-1][0] if found else None


def _extract(text: str) -> str | None:
    codes = [text[begin:end] for _, begin, end in _blocks(text) if end is not None]
    return codes[-1].rstrip("\n") if codes else None


def _equivalent(one: str, other: str) -> bool:
    """Whether two answers have the same lines, empty ones and ends of lines aside."""

    def lines(code: str) -> list[str]:
        return [line.rstrip() for line in code.splitlines() if line.strip()]

    return lines(one) == lines(other)


# --- verdicts -----------------------------------------------------------------------------------


def _tests(question: Question) -> tuple[str, list[object]]:
    """What the child process is given, and what the calls have to return."""
    try:
        tests = json.loads(question.checks)
        expected = tests.pop("outputs")
        if not len(expected) == len(tests["inputs"]) > 0 or not isinstance(tests["call"], str):
            raise ValueError("as many outputs as inputs")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Question {question.id!r} has no unit tests ({error}); give it checks= a JSON object "
            "of call, inputs and outputs."
        ) from error
    return json.dumps(tests), expected


def _verdict(answer: str, outcome: str, expected: list[object]) -> Verdict:
    if outcome in ("timeout", "unparsable"):
        return Verdict(0.0, cast(Reason, outcome), answer)
    try:
        right = bool(json.loads(outcome) == expected)
    except (RecursionError, ValueError):  # too deep, digits without end, no JSON at all
        right = False
    return Verdict(float(right), "correct" if right else "wrong", answer)


def _judge(questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
    tests = [_tests(question) for question in questions]
    return confined_verdicts(
        CALLING,
        [inputs for inputs, _ in tests],
        [_extract(text) for text in texts],
        lambda at, answer, outcome: _verdict(answer, outcome, tests[at][1]),
        timeout=TIMEOUT,
        max_characters=MAX_CHARACTERS,
    )


def _load(name: str) -> Task | None:
    if name != "functions":
        return None
    shared_pool(CALLING)  # refuses a system that can't confine a process
    if sys.platform == "darwin":
        warnings.warn(
            "functions: macOS keeps no limit of memory, so an answer may take all of it until its "
            f"{TIMEOUT:.0f} s are over.",
            stacklevel=3,
        )
    return GeneratedTask("functions", function_questions)


FUNCTIONS = Domain(
    instruction="Please reason step by step, and put the whole function into one last block that "
    "begins with a line ```python and ends with a line ```.",
    frame=(f"{FENCE}python\n", f"\n{FENCE}"),
    extract=_extract,
    begins=_begins,
    equivalent=_equivalent,
    judge=_judge,
    told={
        "no_answer": "ended without a block between lines of ``` (the prompt must ask for it)",
        "wrong": "wrote a function that raised or returned something else than the unit tests "
        "expect",
        "unparsable": "wrote no Python, or ended the process before the function returned",
        "timeout": f"took more than {TIMEOUT:.0f} s or 512 MiB",
    },
    load=_load,
    tasks=("functions",),
    examples={"functions": _examples},
)
"""Python functions: an answer in a block of code, judged by unit tests."""
