"""What a check is: a right answer, cases, and wrong answers with the words that name them.

An answer is run on every case. If what it returns isn't right, it is compared with what each known
wrong answer returns: the one that agrees everywhere names the mistake, or else the only one that
agrees in some case. Needs no policy and nothing of i2b_lpo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

Answer = Callable[..., Any]
Cases = Callable[[], list[tuple[Any, ...]]]


class NotRight(AssertionError):
    """Says what is wrong with an answer; Jupyter shows only these words."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


class Exercise:
    """A check, to be called with a learner's function.

    Attributes:
        name: of the function that is asked for.
        right: a right answer.
        mistakes: name → (a wrong answer, what to tell who gives it).
    """

    def __init__(self, right: Answer, cases: Cases) -> None:
        self.name, self.right, self.cases = right.__name__, right, cases
        self.mistakes: dict[str, tuple[Answer, str]] = {}

    def mistake(self, words: str) -> Callable[[Answer], Answer]:
        """Register the decorated wrong answer under its name, with the words that name it."""

        def register(wrong: Answer) -> Answer:
            self.mistakes[wrong.__name__] = wrong, words
            return wrong

        return register

    def __call__(self, answer: Answer) -> None:
        """Print that the answer is right.

        Raises:
            NotRight: it isn't; the message names the mistake if it is a usual one.
        """
        found = [_outcome(answer, case) for case in self.cases()]
        for outcome in found:
            if isinstance(outcome, NotImplementedError):
                raise NotRight(f"{self.name} isn't written yet: {outcome}") from None
        expected = [_outcome(self.right, case) for case in self.cases()]
        pairs = zip(self.cases(), expected, found, strict=True)
        bad = next((pair for pair in pairs if not _same(*pair[1:])), None)
        if bad is None:
            self._untouched(answer)
            print(f"✓ {self.name}: right in {len(found)} cases")
            return
        raise NotRight(f"{self.name}: {self._named(expected, found) or _difference(*bad)}")

    def _named(self, expected: list[Any], found: list[Any]) -> str:
        """The words of the mistake that these outcomes are of; empty if it has no name."""
        known = {
            words: [_outcome(wrong, case) for case in self.cases()]
            for wrong, words in self.mistakes.values()
        }
        for words, outcomes in known.items():
            if all(map(_same, outcomes, found)):
                return words
        # Two mistakes at once: a case that only one of the known ones explains.
        for right, outcome, *others in zip(expected, found, *known.values(), strict=True):
            explained = [
                words for words, other in zip(known, others, strict=True) if _same(other, outcome)
            ]
            raised = isinstance(outcome, Exception)  # of which only the type is compared
            if len(explained) == 1 and not raised and not _same(right, outcome):
                return f"{explained[0]} (And something else isn't right yet.)"
        return ""

    def _untouched(self, answer: Answer) -> None:
        for case in self.cases():
            before = deepcopy(case)
            _outcome(answer, case)
            if not _same(list(before), list(case)):
                raise NotRight(
                    f"{self.name}: the values are right, but an argument was changed in place; "
                    "work on a copy."
                )


def exercise(cases: Cases) -> Callable[[Answer], Exercise]:
    """Make a check of the decorated right answer; `cases` gives fresh arguments at each call."""
    return lambda right: Exercise(right, cases)


def _outcome(answer: Answer, case: tuple[Any, ...]) -> Any:
    """What the answer returns, or the exception that it ends in."""
    try:
        return answer(*case)
    except Exception as error:  # a learner's code may raise anything, and gets it told
        return error


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        a, b = one.detach(), other.detach()
        return a.shape == b.shape and torch.allclose(
            a.double(), b.double(), rtol=1e-6, atol=1e-6, equal_nan=True
        )
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        scalar, number = (one, other) if isinstance(one, torch.Tensor) else (other, one)
        plain = isinstance(number, int | float) and scalar.dim() == 0
        return plain and _same(scalar.item(), number)
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    return type(one) is type(other) and bool(one == other)


def _difference(case: tuple[Any, ...], expected: Any, found: Any) -> str:
    """In words what a wrong answer without a name got wrong."""
    if isinstance(found, Exception):
        return f"ended in {type(found).__name__}: {found}"
    if found is None:
        return "returned None; end the function in a return."
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return f"returned {type(found).__name__}, where a tensor is expected."
        if found.shape != expected.shape:
            return f"returned the shape {tuple(found.shape)}, expected {tuple(expected.shape)}."
    elif isinstance(found, torch.Tensor) and not isinstance(expected, int | float):
        return f"returned a tensor, where {type(expected).__name__} is expected."
    given = ", ".join(map(_short, case))
    wanted, got = _short(expected), _short(found)
    if wanted == got:  # of another type, or by less than is printed
        return f"for ({given}) {_apart(expected, found)}"
    return f"for ({given}) expected {wanted}, got {got}"


def _apart(expected: Any, found: Any, at: str = "") -> str:
    """In words the first place in which two results differ that print alike."""
    both = (expected, found)
    if all(isinstance(one, torch.Tensor) for one in both):
        return _apart(expected.tolist(), found.tolist(), at)
    if all(isinstance(one, list | tuple) for one in both) and len(expected) == len(found):
        for i, (one, other) in enumerate(zip(*both, strict=True)):
            if not _same(one, other):
                return _apart(one, other, f"{at}[{i}]")
    if all(isinstance(one, Mapping) for one in both) and list(expected) == list(found):
        for key in expected:
            if not _same(expected[key], found[key]):
                return _apart(expected[key], found[key], f"{at}[{key!r}]")
    place = f"at {at} " if at else ""
    number = all(isinstance(one, int | float) for one in both)
    if type(expected) is not type(found) and not number:
        kinds = (type(one).__name__ for one in both)
        return "{}expected {}, got {}: {}".format(place, *kinds, _short(found))
    wanted, got = map(repr, both)
    if max(len(wanted), len(got)) > 120:
        start = next(i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b)
        return f"{place}expected …{wanted[start:][:60]!r}, got …{got[start:][:60]!r}"
    return f"{place}expected {wanted}, got {got}"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.numel() > 12:
            return f"a tensor of shape {tuple(value.shape)}"
        value = value.tolist()
    text = str(_rounded(value))
    return text if len(text) <= 120 else text[:119] + "…"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list | tuple):
        return type(value)(map(_rounded, value))
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return value
