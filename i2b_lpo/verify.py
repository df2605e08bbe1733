r"""Model text → last ``\boxed{…}`` → verdict: the reward of a rollout.

Two stages decide whether an answer equals the gold answer:

1. **Exact, here, in microseconds.** Integers, fractions, decimals, and their sums, products and
   powers are compared as `fractions.Fraction`; words such as ``\text{Monday}`` and times of day as
   what they say; anything else is correct if both are the same string in one notation. Needs no
   dependency, and no number grows beyond `_exact.MAX_BITS`.
2. **math-verify, in a child process** (`i2b_lpo._verify_worker`) with limits of time and memory,
   for the rest: roots, polynomials, intervals, matrices, sets, equations.

Accepted on purpose: a unit, a currency or a variable's name on one side only (``18`` = ``\$18`` =
``18\text{ eggs}`` = ``x=18``), whatever the unit; a missing percent or degree sign (``20\%`` =
``20`` = ``0.2``); a base that only the gold answer names (``37_8`` = ``37``); unsimplified
arithmetic (``6/8`` = ``3/4``).

What remains inexact in stage 2: a decimal counts for an irrational number when they agree to six
digits; a list is a set, and ``(1,2)`` is as well the open interval as the pair; ``i`` is always the
imaginary unit; ``1/2\pi`` is ``1/(2π)``; equations are compared over the real numbers, inequalities
by math-verify alone. Stage 1 does not round: ``0.333333`` is not ``1/3``.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from i2b_lpo._answers import Form, form_of
from i2b_lpo._verify_pool import shared_pool
from i2b_lpo._verify_worker import Outcome

__all__ = [
    "Reason",
    "Verdict",
    "equivalent",
    "extract_boxed",
    "gsm8k_gold",
    "verify",
    "verify_batch",
]

Reason = Literal["correct", "wrong", "no_answer", "unparsable", "timeout", "too_long"]

MAX_CHARACTERS = 2000  # of an answer; the longest among MATH's 8,000 has 159


@dataclass(frozen=True)
class Verdict:
    r"""The judgement of one answer.

    Attributes:
        correct: whether the answer equals the gold answer; the reward is ``float(correct)``.
        reason: ``correct``; ``wrong``; ``no_answer``: no balanced box, or an empty one;
            ``unparsable``: not LaTeX that math-verify can read; ``timeout``: more time or memory
            than a comparison may take; ``too_long``: more than `max_characters`.
        answer: the content of the last balanced ``\boxed{…}`` as written, None if there is none.
    """

    correct: bool
    reason: Reason
    answer: str | None


def verify(
    gold: str, text: str, *, timeout: float = 5.0, max_characters: int = MAX_CHARACTERS
) -> Verdict:
    r"""Judge the last ``\boxed{…}`` of a model's text against the gold answer.

    Safe to call from any thread. A comparison that needs math-verify starts a child process at the
    first call (about 1 s, not counted as `timeout`) and takes about 10 ms after that.

    Args:
        gold: the reference answer, bare (``\frac{3}{4}``) or boxed.
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
        Verdict(correct=True, reason='correct', answer='\\$18.00')
        >>> verify("18", "so she makes 18 dollars").reason
        'no_answer'
    """
    return verify_batch([gold], [text], timeout=timeout, max_characters=max_characters)[0]


def verify_batch(
    golds: Sequence[str],
    texts: Sequence[str],
    *,
    timeout: float = 5.0,
    max_characters: int = MAX_CHARACTERS,
) -> list[Verdict]:
    r"""Judge many texts, each against its gold answer.

    Numbers and repeated answers cost microseconds. The others share the workers within twice
    `timeout` for each 64 of them: an equal part each, at most `timeout`, so that a few which hang
    do not take the time of the rest.

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
    early: list[Reason | None] = [
        "no_answer"
        if answer is None or not answer.strip()
        else "too_long"
        if len(answer) > max_characters
        else None
        for answer in answers
    ]
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
        Verdict(reason == "correct", reason, answer)
        for reason, answer in zip(reasons, answers, strict=True)
    ]


def equivalent(a: str, b: str, *, timeout: float = 5.0) -> bool:
    r"""Return whether two answers (bare or boxed) are the same: one vote for majority@k.

    The order of the arguments does not matter. Answers longer than `MAX_CHARACTERS` are the same
    only if they are the same string; what cannot be read or decided in time is not the same.

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
    a, b = sorted(_unboxed(side).strip() for side in (a, b))
    if a == b:
        return True
    if max(len(a), len(b)) > MAX_CHARACTERS:
        return False
    one, other = form_of(a), form_of(b)
    if not (one.text and other.text):
        return False
    return bool(_stage_one(other, one)) or _decide([(one, other)], timeout) == ["correct"]


def gsm8k_gold(answer_field: str) -> str:
    """Return the final number of a GSM8K ``answer`` field: after the last ``####``, without commas.

    Raises:
        ValueError: the field has no ``####``.

    Example:
        >>> gsm8k_gold("She sold 48/2 = <<48/2=24>>24 more, so 1,072 in all. #### 1,072")
        '1072'
    """
    _, marker, number = answer_field.rpartition("####")
    if not marker or not number.strip():
        raise ValueError("no final answer: a GSM8K answer field ends in '#### ' and the number")
    return number.strip().replace(",", "")


# A run of backslashes with what it acts on, or a brace. Possessive, so a megabyte of backslashes or
# spaces is read once.
_BRACES = re.compile(r"(\\++)(boxed\s*+\{|[{}])?|[{}]")


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced ``\boxed{…}``, None if there is none.

    One pass over the text, whatever is in it. The last box is the one that begins last, so the
    inner of two nested ones; a box that never closes is passed over; ``\{`` and ``\}`` are no
    braces.

    Example:
        >>> extract_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}, or \boxed{3")
        '\\frac{1}{2}'
    """
    start = text.find(r"\boxed")
    if start < 0:
        return None
    last: tuple[int, int] | None = None
    depth = 0
    boxes: list[tuple[int, int]] = []  # open ones: (depth, where the content begins)
    for match in _BRACES.finditer(text, start):
        backslashes, braced = match.groups()
        if braced and braced[0] == "b":
            depth += 1
            boxes.append((depth, match.end()))
            continue
        brace = braced or match[0]
        if brace == "{" or brace == "}":
            if backslashes and len(backslashes) % 2:
                continue
            if brace == "{":
                depth += 1
            elif depth:
                if boxes and boxes[-1][0] == depth:
                    begin = boxes.pop()[1]
                    if last is None or begin > last[0]:
                        last = (begin, match.end() - 1)
                depth -= 1
    return None if last is None else text[last[0] : last[1]]


def _check_timeout(timeout: float) -> None:
    if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        raise ValueError(f"timeout is {timeout!r}; give a positive number of seconds")


def _unboxed(answer: str) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"give an answer as a string, not {type(answer).__name__}")
    content = extract_boxed(answer)
    return answer if content is None else content


def _gold_form(gold: str, max_characters: int) -> Form:
    gold = _unboxed(gold)
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

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?([ap]m)?")
# Bases and primes: the parser of stage 2 passes over them in silence.
_DROPPED = re.compile(r"(?<=[\d)}])_|'")
_LINK = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")


def _decide(pairs: Sequence[tuple[Form, Form]], timeout: float) -> list[Reason]:
    reasons: list[Reason | None] = []
    undecided: dict[tuple[str, str], Outcome] = {}
    for gold, answer in pairs:
        equal = _stage_one(gold, answer)
        reasons.append(None if equal is None else "correct" if equal else "wrong")
        if equal is None:
            undecided[gold.text, answer.text] = "timeout"
    if undecided:
        outcomes = shared_pool().compare_many(list(undecided), timeout)
        undecided = dict(zip(undecided, outcomes, strict=True))
    return [
        reason or undecided[gold.text, answer.text]
        for reason, (gold, answer) in zip(reasons, pairs, strict=True)
    ]


def _stage_one(gold: Form, answer: Form) -> bool | None:
    if gold.text == answer.text:
        return True
    if gold.number is not None and answer.number is not None and not gold.bare_unit:
        return _same_number(gold, answer)
    if gold.is_text or answer.is_text:
        return gold.words is not None and gold.words == answer.words
    clocks = [_CLOCK.fullmatch(form.text) for form in (gold, answer)]
    if clocks[0] and clocks[1]:
        ours, theirs = clocks[0].groups(), clocks[1].groups()
        same_time = [int(part or 0) for part in ours[:3]] == [int(part or 0) for part in theirs[:3]]
        return same_time and (ours[3] == theirs[3] or not (ours[3] and theirs[3]))
    if _DROPPED.search(gold.text) or _DROPPED.search(answer.text):
        return False
    links = [set(_LINK.findall(form.text)) for form in (gold, answer)]
    return False if all(links) and links[0] != links[1] else None


def _same_number(gold: Form, answer: Form) -> bool:
    # A name or a base may be left out; a base may be added only to a gold answer that has it.
    if answer.tag != gold.tag and answer.tag and (gold.tag or answer.tag.startswith("_")):
        return False
    if gold.percent == answer.percent:
        return gold.number == answer.number
    assert gold.number is not None and answer.number is not None
    part, whole = (gold, answer) if gold.percent else (answer, gold)
    return whole.number in (part.number, Fraction(part.number or 0) / 100)
