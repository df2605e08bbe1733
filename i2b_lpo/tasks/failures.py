r"""Four kinds of trace for one question of the bundled task, and a labeller that names them.

The paper's case study [P] ranks a concise right derivation above one that drifts, a verbose one and
one that loops (METHOD §5). These are our recipes for them [D]::

    concise        drift          verbose          loop
    Round 37       Round 37       Round 37         Round 37
    40*6=240       40*6=240       40*6=240         40*6=240
    3*6=18         3*6=28   ←     6*40=240  ←      3*6=18
    240-18=222     240-28=212     3*6=18           3*6=18    ←
    \boxed{222}    \boxed{212}    18*1=18   ←      3*6=18    ←
                                  …                …

With the same seed all four start from the same solution and differ only in their failure.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from operator import add, mul, sub

from i2b_lpo.tasks.labels import label
from i2b_lpo.tasks.shop import STRATEGIES, Problem, write_solution

__all__ = ["KINDS", "LOOP", "build", "failure_mode"]

LOOP = 4
"""So many equal lines make a loop; a derivation states few lines twice, and none so often."""

MAX_REPEATED = 250
"""Characters that a loop adds at most."""

_CALCULATE: dict[str, Callable[[int, int], int]] = {"*": mul, "+": add, "-": sub}
_EQUATION = re.compile(r"(-?[0-9]{1,18})([*+-])(-?[0-9]{1,18})=(-?[0-9]{1,18})")


def build(kind: str, problem: Problem, rng: random.Random) -> str:
    """A trace of one kind, ending in a box.

    Args:
        kind: one of `KINDS`: ``concise``, a right solution by habitual strategies; ``drift``, the
            same with one wrong value that everything after it builds on, down to the box;
            ``verbose``, padded by about half with true but superfluous lines, none repeated;
            ``loop``, with one or two of its lines repeated over and over. The last two end in the
            right box.
        problem: the numbers.
        rng: source of randomness; equal states give traces of the same solution.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    return _RECIPES[kind](problem, write_solution(problem, rng), rng)


def failure_mode(problem: Problem, text: str) -> str:
    """Tell which kind a trace is, sampled ones included: one of `KINDS`, or ``other``.

    * ``concise``: nothing but the strategies' own lines, all right.
    * ``drift``: well-formed, with a wrong value carried on to a wrong box.
    * ``loop``: not well-formed, and a line occurs at least `LOOP` times, whatever the box.
    * ``verbose``: ``concise`` once its superfluous lines, all true equations, are removed.
    * ``other``: anything else, such as a false line that no strategy asks for.
    """
    lines = [line for line in text.split("\n") if line]
    labels = label(problem, text)
    if labels.well_formed:
        if _answer(lines[-1]) != problem.answer:
            return "drift"
        return "concise" if all(step.right for step in labels.steps) else "other"
    if lines and max(Counter(lines).values()) >= LOOP:
        return "loop"
    while not labels.well_formed:
        wrong = next((i for i, step in enumerate(labels.steps) if not step.right), None)
        if wrong is None or not _is_true(lines[wrong]):
            return "other"
        del lines[wrong]
        labels = label(problem, "\n".join(lines))
    right = all(step.right for step in labels.steps) and _answer(lines[-1]) == problem.answer
    return "verbose" if right else "other"


# --- the recipes --------------------------------------------------------------------------------


def _concise(problem: Problem, solution: str, rng: random.Random) -> str:
    return solution


def _drift(problem: Problem, solution: str, rng: random.Random) -> str:
    steps = sum("=" in line or line.startswith("Guess") for line in solution.split("\n"))
    # One slip can't cancel out: every step of every strategy changes the answer.
    return _derive_again(problem, solution, slip=rng.randrange(steps), rng=rng)


def _verbose(problem: Problem, solution: str, rng: random.Random) -> str:
    *lines, box = solution.split("\n")
    said = set(lines)
    checks: dict[int, str] = {}  # after which line → what
    for at in rng.sample(range(len(lines)), len(lines)):
        # After the last line, where a policy reads the answer, only lines that end in its value.
        new = [c for c in _restatements(lines[at], at == len(lines) - 1) if c not in said]
        if new and len(checks) < (len(lines) + 1) // 2:
            checks[at] = rng.choice(new)
            said.add(checks[at])
    padded = [part for at, line in enumerate(lines) for part in (line, checks.get(at)) if part]
    return "\n".join([*padded, box])


def _loop(problem: Problem, solution: str, rng: random.Random) -> str:
    *lines, box = solution.split("\n")
    size = rng.randint(1, min(2, len(lines)))
    start = rng.randrange(len(lines) - size + 1)
    block = lines[start : start + size]
    # It continues for twice the solution, as far as a short context has room.
    room = min(2 * len(solution), MAX_REPEATED)
    times = 1 + max(LOOP - 1, room // len("\n".join(block)))
    return "\n".join([*lines[:start], *block * times, *lines[start + size :], box])


_RECIPES: dict[str, Callable[[Problem, str, random.Random], str]] = {
    "concise": _concise,
    "drift": _drift,
    "verbose": _verbose,
    "loop": _loop,
}

KINDS: tuple[str, ...] = tuple(_RECIPES)
"""The four kinds in the order of the paper's scores: .85, .20, .15, −.85 [P]."""


def _derive_again(problem: Problem, solution: str, slip: int, rng: random.Random) -> str:
    """The solution's own strategies with a wrong value at one step, carried on to the box."""
    heads = [line.split() for line in solution.split("\n") if line[0].isalpha()]
    lines: list[str] = []
    values: list[int] = []
    at = -1

    def state(left: int, operator: str, right: int) -> int:
        value = said(_CALCULATE[operator](left, right))
        lines.append(f"{left}{operator}{right}={value}")
        return value

    def said(value: int) -> int:
        nonlocal at
        at += 1
        return _misread(value, rng) if at == slip else value

    for (a, b), (name, number) in zip(problem.products, heads, strict=True):
        derive, part = STRATEGIES[name].derive, int(number)
        if derive is None:
            values.append(said(a * b))
            lines.append(f"{name} {values[-1]}")
            continue
        lines.append(f"{name} {part}")
        derivation = derive(a if part == b else b, part)
        try:
            expression = next(derivation)
            while True:
                expression = derivation.send(state(*expression))
        except StopIteration as end:
            values.append(end.value)
    answer = values[0] if len(values) == 1 else state(values[0], problem.operator, values[1])
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _misread(value: int, rng: random.Random) -> int:
    """`value` with one digit off by up to three, and not below 0: a careless slip."""
    slip: int = rng.choice((-3, -2, -1, 1, 2, 3)) * 10 ** rng.randrange(len(str(value)))
    return value + slip if value + slip >= 0 else value - slip


def _restatements(line: str, last: bool) -> list[str]:
    """True equations that say no more than this line; for the last one, ending in its value."""
    value = int(line.split("=")[-1].split()[-1])
    trivial = [f"{value}*1={value}", f"{value}+0={value}"]
    if not (match := _EQUATION.fullmatch(line)):
        return trivial if line.startswith("Guess") else []
    left, right = match[1], match[3]
    inverse = {
        "*": f"{right}*{left}={value}",
        "+": f"{value}-{right}={left}",
        "-": f"{value}+{right}={left}",
    }
    return trivial if last else [inverse[match[2]], *trivial]


def _is_true(line: str) -> bool:
    match = _EQUATION.fullmatch(line)
    if match is None:
        return False
    return _CALCULATE[match[2]](int(match[1]), int(match[3])) == int(match[4])


def _answer(box: str) -> int:
    return int(box.removeprefix("\\boxed{").removesuffix("}"))
