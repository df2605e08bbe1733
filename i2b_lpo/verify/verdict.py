r"""Model text → last ``\boxed{…}`` → verdict: the reward of a rollout.

Two stages decide whether an answer equals the gold answer:

1. **Exact, here, in microseconds** (stage_one.py). Both answers get one notation and lose prose and
   units. Integers, fractions, decimals, and their sums, products and powers are compared
   as `fractions.Fraction`; words, times of day and ratios by what they say; anything else is
   correct if both are the same string. Needs no dependency, and no number grows beyond
   `exact.MAX_BITS`.
2. **math-verify, in a child process** (worker.py) with limits of time and memory,
   for the rest: roots, polynomials, intervals, matrices, sets, equations.

Accepted on purpose, where a text could be read in two ways:

* A unit, a currency or a variable's name on one side only (``18`` = ``\$18`` = ``18\text{ eggs}`` =
  ``18 m/s`` = ``x=18``), whatever the unit; a missing percent or degree sign (``20\%`` = ``20`` =
  ``0.2``); prose before a number (``Answer: 5``, ``about 5``); an option's letter (``(B) 12`` =
  ``B`` = ``12``). A letter alone behind a number is a variable (``5t``), but in an answer to a
  plain number, ``12 s`` and ``12L`` are units.
* A base or a modulus that only the gold answer names (``37_8`` = ``37``, ``5\pmod 7`` = ``5``), not
  one that only the answer names. Residues are not reduced: ``12\pmod 7`` is not ``5\pmod 7``.
* ``\sqrt13`` is √13 and ``x^-1`` is 1/x, though TeX takes one digit; ``^\circ`` after a number is
  π/180 where the other side has π, and in a sine.
* ``(1,2)`` is the pair, the open interval and a column alike, but not the set ``\{1,2\}``. A list
  without brackets is a set or a tuple. ``1,000`` is one number, but in brackets it is two, unless
  the other commas have spaces: ``\{1,000, 2,000\}``.
* An inequality is an interval if it is solved (``x>2``, ``|x|<2``, ``0<x<1\text{ or }x>3``):
  ``x^2<4`` for ``(-2,2)`` may be the question itself. "and" between inequalities is the
  intersection, even if the union was meant.
* ``a\pm b`` is the two values; several ± in one element stay as they are.
* ``9:24`` and ``3:08`` are times of day, ``3:4:5`` and ``6:8:10`` are ratios.
* The names in ``\text{Alice and Bob}`` have no order; in ``\text{Alice, Bob}`` they have one unless
  the other side joins them. Words of five or more letters are not products of letters.
* ``0.333…`` and ``0.1212…`` repeat. A decimal of `stage_one.PRINTED_DIGITS` digits counts as the
  fraction that it rounds, a shorter one does not: ``0.333333`` is not ``1/3``.
* Unsimplified arithmetic (``6/8`` = ``3/4``).

What remains inexact in stage 2: a decimal counts as an irrational number if they agree to six
digits; ``i`` is always the imaginary unit; ``1/2\pi`` is ``1/(2π)``; ``\log`` has base 10;
equations are compared over the real numbers.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from i2b_lpo.trace import is_correct
from i2b_lpo.verify.answers import Form, form_of, is_prose
from i2b_lpo.verify.pool import shared_pool
from i2b_lpo.verify.references import extract_boxed, gold_answer, gsm8k_gold, unboxed
from i2b_lpo.verify.stage_one import stage_one

__all__ = [
    "Reason",
    "Verdict",
    "check_gold",
    "equivalent",
    "extract_boxed",
    "gold_answer",
    "gsm8k_gold",
    "verify",
    "verify_batch",
]

Reason = Literal["correct", "partly", "wrong", "no_answer", "unparsable", "timeout", "too_long"]
"""Why a verdict is what it is, see `Verdict`."""

MAX_CHARACTERS = 2000  # of an answer; the longest among MATH's 8,000 has 159


@dataclass(frozen=True)
class Verdict:
    r"""The judgement of one answer.

    Attributes:
        reward: R, 1 for a right answer and 0 for a wrong one; some domains give partial rewards.
        reason: ``correct``; ``partly``: a partial reward; ``wrong``; ``no_answer``: no balanced
            box, or only empty boxes; ``unparsable``: not LaTeX that math-verify can read;
            ``timeout``: more time or memory than a comparison may take; ``too_long``: more than
            `max_characters`. Boxes and LaTeX are for mathematics; other domains say what
            replaces them.
        answer: the content of the last balanced box as written, None if there is none.
    """

    reward: float
    reason: Reason
    answer: str | None

    @property
    def correct(self) -> bool:
        """Whether the reward says that the answer is right (`i2b_lpo.trace.is_correct`)."""
        return is_correct(self.reward)


def verify(
    gold: str, text: str, *, timeout: float = 5.0, max_characters: int = MAX_CHARACTERS
) -> Verdict:
    r"""Judge the last ``\boxed{…}`` of a model's text against the gold answer.

    Safe to call from any thread. A comparison that needs math-verify starts a child process at the
    first call (about 1 s, not counted as `timeout`) and takes about 10 ms after that.

    Args:
        gold: the reference answer, bare (``\frac{3}{4}``), boxed, or after ``####``.
        text: what the model wrote.
        timeout: wall-clock seconds for the comparison.
        max_characters: the longest answer that is compared.

    Returns:
        The verdict. Model text never raises.

    Raises:
        ValueError: `gold` is empty or too long, an argument is not a string, or `timeout` is not a
            positive number.
        RuntimeError: the comparison needs math-verify, and its process does not start.

    Example:
        >>> verify("18", r"so she makes \boxed{\$18.00} a day")
        Verdict(reward=1.0, reason='correct', answer='\\$18.00')
        >>> verify("18", "so she makes 18 dollars").reason
        'no_answer'
    """
    return verify_batch([gold], [text], timeout=timeout, max_characters=max_characters)[0]


def early_reason(answer: str | None, max_characters: int) -> Reason | None:
    """Why an answer isn't compared at all; None if it is."""
    if answer is None or not answer.strip():
        return "no_answer"
    return "too_long" if len(answer) > max_characters else None


def verify_batch(
    golds: Sequence[str],
    texts: Sequence[str],
    *,
    timeout: float = 5.0,
    max_characters: int = MAX_CHARACTERS,
) -> list[Verdict]:
    r"""Judge many texts, each against its gold answer.

    Numbers and repeated answers cost microseconds. The others share the workers, within twice
    `timeout` for every 64 of them: an equal part each, at most `timeout`, so that a few that hang
    do not take the others' time.

    Args:
        golds: B reference answers.
        texts: B model texts.
        timeout: wall-clock seconds for one comparison.
        max_characters: the longest answer that is compared.

    Returns:
        B verdicts in order.

    Raises:
        ValueError: as `verify`, or the lengths differ.
        RuntimeError: as `verify`.

    Example:
        >>> [v.reason for v in verify_batch(["3/4", "7"], [r"\boxed{0.75}", r"\boxed{8}"])]
        ['correct', 'wrong']
    """
    if len(golds) != len(texts):
        raise ValueError(
            f"give one gold answer for each text, not {len(golds)} for {len(texts)} texts"
        )
    _check_timeout(timeout)
    references = [_gold_form(gold, max_characters) for gold in golds]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"give the model's text as a string, not {type(text).__name__}")

    answers = [extract_boxed(text) for text in texts]
    early = [early_reason(answer, max_characters) for answer in answers]
    decided = iter(
        _decide(
            [
                (reference, form_of(answer or ""))
                for reference, answer, reason in zip(references, answers, early, strict=True)
                if reason is None
            ],
            timeout,
        )
    )
    reasons: list[Reason] = [next(decided) if reason is None else reason for reason in early]
    return [
        Verdict(float(reason == "correct"), reason, answer)
        for reason, answer in zip(reasons, answers, strict=True)
    ]


def equivalent(a: str, b: str, *, timeout: float = 5.0) -> bool:
    r"""Return whether two answers (bare or boxed) are the same: one vote for majority@k.

    The order of the arguments does not matter. Answers longer than `MAX_CHARACTERS` are the same
    only as equal strings; answers that cannot be read or decided in time are not the same.

    Args:
        a: an answer.
        b: another one.
        timeout: wall-clock seconds for the comparison.

    Raises:
        ValueError: an answer is not a string, or `timeout` is not a positive number.
        RuntimeError: as `verify`.

    Example:
        >>> equivalent(r"\frac{1}{2}", "0.5"), equivalent("12", "21")
        (True, False)
    """
    _check_timeout(timeout)
    a, b = sorted(unboxed(side).strip() for side in (a, b))
    if a == b:
        return True
    if max(len(a), len(b)) > MAX_CHARACTERS:
        return False
    one, other = form_of(a), form_of(b)
    if not (one.text and other.text):
        return False
    return bool(stage_one(other, one)) or _decide([(one, other)], timeout) == ["correct"]


def check_gold(gold: str) -> None:
    """Refuse a gold answer that no model's answer would match.

    Raises:
        ValueError: as `verify`, or the gold answer is a sentence, or words around a number.

    Example:
        >>> check_gold("18 dollars")
        >>> check_gold("18 dollars and 50 cents")
        Traceback (most recent call last):
        ...
        ValueError: the gold answer '18 dollars and 50 cents' is prose; give the number ...
    """
    if is_prose(_gold_form(gold, MAX_CHARACTERS)):
        raise ValueError(
            f"the gold answer {reprlib.repr(gold_answer(gold))} is prose; give the number or name "
            "alone"
        )


def _check_timeout(timeout: float) -> None:
    if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        raise ValueError(f"timeout is {timeout!r}; give a positive number of seconds")


def _gold_form(gold: str, max_characters: int) -> Form:
    if not isinstance(gold, str):
        raise ValueError(f"give an answer as a string, not {type(gold).__name__}")
    gold = gold_answer(gold)
    if len(gold) > max_characters:
        raise ValueError(
            f"the gold answer {reprlib.repr(gold)} has {len(gold)} characters; drop the question "
            f"or raise max_characters={max_characters}"
        )
    form = form_of(gold)
    if not form.text:
        raise ValueError(f"the gold answer {reprlib.repr(gold)} is empty; drop the question")
    return form


# --------------------------------------------------------------------------------- the two stages


def _decide(pairs: Sequence[tuple[Form, Form]], timeout: float) -> list[Reason]:
    reasons: list[Reason | None] = []
    undecided: dict[tuple[str, str], Reason] = {}
    for gold, answer in pairs:
        equal = stage_one(gold, answer)
        reasons.append(None if equal is None else "correct" if equal else "wrong")
        if equal is None:
            undecided[_for_stage_two(gold, answer)] = "timeout"
    if undecided:
        outcomes = cast(list[Reason], shared_pool().compare_many(list(undecided), timeout))
        undecided = dict(zip(undecided, outcomes, strict=True))
    return [
        reason or undecided[_for_stage_two(gold, answer)]
        for reason, (gold, answer) in zip(reasons, pairs, strict=True)
    ]


def _for_stage_two(gold: Form, answer: Form) -> tuple[str, str]:
    # An angle in degrees is one in radians where the other side has π.
    def text(form: Form, other: Form) -> str:
        turn = form.degrees and r"\pi" in other.text
        return rf"\frac{{({form.number})\pi}}{{180}}" if turn else form.text

    return text(gold, answer), text(answer, gold)
