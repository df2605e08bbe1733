"""Trace of the bundled task → its labels: which strategies it used, and which steps are right.

The labeller measures and is no part of a reward. It follows the generators that the solutions were
written by (`i2b_lpo.tasks.shop`), and sends them what the trace states.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from i2b_lpo.tasks.shop import NUMBER, STRATEGIES, Expression, Problem, calculate

__all__ = ["Labels", "Step", "Use", "label"]


@dataclass(frozen=True)
class Step:
    """One line of a trace. `right`: the line the strategy asks for here, with the true value."""

    text: str
    right: bool


@dataclass(frozen=True)
class Use:
    """A strategy used for a product; `right`: followed to its end and the value is true."""

    strategy: str
    right: bool


@dataclass(frozen=True)
class Labels:
    """What a trace did.

    Attributes:
        uses: the strategy of each product, in order.
        steps: its lines.
        well_formed: every product has a strategy that is followed to its end, and a box closes.
    """

    uses: tuple[Use, ...]
    steps: tuple[Step, ...]
    well_formed: bool

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies in order."""
        return tuple(use.strategy for use in self.uses)

    @property
    def signature(self) -> str:
        """Strategies in order, e.g. ``Split>Round``; two traces with one signature are alike."""
        return ">".join(self.strategies)


_VALUE = r"(-?[0-9]{1,18})"  # a slip may lead below zero
_EQUATION = re.compile(rf"{_VALUE}([*+-]){_VALUE}={_VALUE}")
_HEAD = re.compile(rf"([A-Z][a-z]+) {NUMBER}")
_BOX = re.compile(rf"\\boxed\{{{_VALUE}\}}")


def label(problem: Problem, text: str) -> Labels:
    """Label a trace: its strategies and which of its steps are right.

    A wrong value is carried on, as the trace itself does, so one slip marks one step, not all
    that follow. A line that is not the strategy's next one is not right, even if it is true.
    """
    lines = [line for line in text.split("\n") if line]
    uses: list[Use] = []
    steps: list[Step] = []
    values: list[int] = []
    at = 0

    def follow(expression: Expression) -> int | None:
        """The value the trace states for `expression` on its next line; None if it isn't there."""
        nonlocal at
        match = _EQUATION.fullmatch(lines[at]) if at < len(lines) else None
        if match is None or (int(match[1]), match[2], int(match[3])) != expression:
            return None
        at += 1
        value = int(match[4])
        steps.append(Step(match[0], value == calculate(*expression)))
        return value

    for a, b in problem.products:
        head = _HEAD.fullmatch(lines[at]) if at < len(lines) else None
        if head is None or head[1] not in STRATEGIES:
            break
        at += 1
        name, number = head[1], int(head[2])
        derive = STRATEGIES[name].derive
        if derive is None:
            steps.append(Step(head[0], number == a * b))
            uses.append(Use(name, number == a * b))
            values.append(number)
            continue
        keep = a if number == b else b
        usable = number in (a, b) and STRATEGIES[name].applies(keep, number)
        steps.append(Step(head[0], usable))
        derivation = derive(keep, number) if usable else None
        try:
            value = follow(next(derivation)) if derivation else None
            while derivation and value is not None:
                value = follow(derivation.send(value))
        except StopIteration as end:
            uses.append(Use(name, end.value == a * b))
            values.append(end.value)
        else:
            uses.append(Use(name, right=False))
            break
    well_formed = False
    if len(values) == len(problem.products):
        final: int | None = values[0]
        if len(values) == 2:
            final = follow((values[0], problem.operator, values[1]))
        box = _BOX.fullmatch(lines[at]) if final is not None and at < len(lines) else None
        if box:
            at += 1
            steps.append(Step(box[0], int(box[1]) == final))
            well_formed = at == len(lines)
    # A strategy named after the point where the trace left its form still counts as tried.
    for line in lines[at:]:
        steps.append(Step(line, right=False))
        head = _HEAD.fullmatch(line)
        if head and head[1] in STRATEGIES:
            uses.append(Use(head[1], right=False))
    return Labels(tuple(uses), tuple(steps), well_formed)
