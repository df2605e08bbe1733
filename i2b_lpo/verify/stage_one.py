"""Stage 1: two forms → equal, different, or left to math-verify."""

from __future__ import annotations

import re
from fractions import Fraction

from i2b_lpo.verify.answers import Form
from i2b_lpo.verify.exact import rational
from i2b_lpo.verify.notation import split_list

__all__ = ["stage_one"]

PRINTED_DIGITS = 15  # of a float; so many correct decimals of 1/14 aren't a guess
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?([ap]m)?")
# Bases and primes: the parser of stage 2 silently skips them.
_DROPPED = re.compile(r"(?<=[\d)}])_|'")
_NUMERAL = re.compile(r"([0-9A-F]{2,})_\{1[1-6]\}")  # AB_{12}: a base may be left out
_LINK = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")


def stage_one(gold: Form, answer: Form) -> bool | None:
    """Return whether two answers are the same, None if deciding takes mathematics."""
    if gold.option and answer.option and gold.option != answer.option:
        return False
    if gold.text == answer.text:
        return True
    if gold.number is not None and answer.number is not None and not gold.maybe_product:
        return _same_number(gold, answer)
    if (numeral := _NUMERAL.fullmatch(gold.text)) and answer.text == numeral[1]:
        return True
    for one, other in ((gold, answer), (answer, gold)):
        if one.option and other.words and other.words.items == ((one.option,),):
            return True
    if gold.words and answer.words and (gold.words.certain or answer.words.certain):
        return gold.words.same(answer.words)
    if any(form.words and form.words.certain for form in (gold, answer)):
        return False
    return _of_signs(gold.text, answer.text)


def _of_signs(gold: str, answer: str) -> bool | None:
    texts = (gold, answer)
    clocks = [_CLOCK.fullmatch(text) for text in texts]
    if clocks[0] and clocks[1]:
        one, two = clocks[0].groups(), clocks[1].groups()
        same_time = [int(part or 0) for part in one[:3]] == [int(part or 0) for part in two[:3]]
        return same_time and (one[3] == two[3] or not (one[3] and two[3]))
    ours, theirs = (_ratio(text) for text in texts)
    if ours and theirs:
        return _proportional(ours, theirs)
    if any(_DROPPED.search(text) for text in texts):
        return False
    links = [set(_LINK.findall(text)) for text in texts]
    if all(links) and links[0] != links[1]:
        return False
    # The parser of stage 2 takes any list for a set.
    if any(_is_plain_set(texts[i]) and _is_tuple(texts[1 - i]) for i in (0, 1)):
        return False
    return None


def _is_tuple(text: str) -> bool:
    return text[:1] == "(" and text[-1:] == ")" and "," in text and len(split_list(text)) == 1


def _is_plain_set(text: str) -> bool:
    braced = text.startswith(r"\{") and text.endswith(r"\}") and text.count(r"\{") == 1
    return braced and not any(map(_is_tuple, split_list(text[2:-2])))


def _ratio(text: str) -> list[Fraction]:
    parts = [rational(part) for part in text.split(":")] if ":" in text else []
    return [part for part in parts if part is not None] if None not in parts else []


def _proportional(gold: list[Fraction], answer: list[Fraction]) -> bool:
    i = next((i for i, part in enumerate(gold) if part), 0)
    return (
        len(gold) == len(answer)
        and answer[i] != 0
        and all(
            ours * answer[i] == gold[i] * theirs for ours, theirs in zip(gold, answer, strict=True)
        )
    )


def _same_number(gold: Form, answer: Form) -> bool:
    # A name, a base or a modulus may be left out; the latter two may not be added.
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if answer.mark and answer.mark != gold.mark:
        return False
    assert gold.number is not None and answer.number is not None
    if gold.percent == answer.percent:
        return gold.number == answer.number or _is_rounded(gold.number, answer.number)
    part, whole = (gold, answer) if gold.percent else (answer, gold)
    return whole.number in (part.number, Fraction(part.number or 0) / 100)


def _is_rounded(gold: Fraction, answer: Fraction) -> bool:
    # Whether the answer is what a computer prints of a fraction whose decimals have no end.
    digits = next((n for n in range(PRINTED_DIGITS, 51) if 10**n % answer.denominator == 0), None)
    if digits is None or answer.denominator <= 10 ** (PRINTED_DIGITS - 1):
        return False
    if 10 ** gold.denominator.bit_length() % gold.denominator == 0:
        return False  # a decimal itself
    error = abs(gold - answer)
    return error <= Fraction(1, 10**digits) and error * 10 ** (PRINTED_DIGITS - 1) <= abs(gold)
