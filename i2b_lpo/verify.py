r"""Model text → last ``\boxed{…}`` → verdict: the reward of a rollout.

Two stages decide whether an answer equals the gold answer:

1. **Exact, here, in microseconds.** Integers, fractions, decimals, and their sums, products and
   powers are compared as `fractions.Fraction`; words such as ``\text{Monday}`` and times of day as
   what they say; anything else is correct if both are the same string in one notation. Needs no
   dependency, and no number grows beyond `MAX_BITS`.
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
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from i2b_lpo._verify_worker import Outcome, shared_pool

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
MAX_DIGITS = 640  # of a number: int() reads this many under every setting of Python's own limit
MAX_BITS = 8192  # of a numerator or denominator on the way to a value
MAX_DEPTH = 50  # of brackets, fractions and powers in a number


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
                (reference, _form(answer or ""))
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
    one, other = _form(a), _form(b)
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
    opened: list[tuple[int, bool]] = []  # (where the content begins, is it a box)
    for match in _BRACES.finditer(text, start):
        backslashes, braced = match.groups()
        if braced and braced[0] == "b":
            opened.append((match.end(), True))
            continue
        brace = braced or match[0]
        if brace == "{" or brace == "}":
            if backslashes and len(backslashes) % 2:
                continue
            if brace == "{":
                opened.append((match.end(), False))
            elif opened:
                begin, is_box = opened.pop()
                if is_box and (last is None or begin > last[0]):
                    last = (begin, match.end() - 1)
    return None if last is None else text[last[0] : last[1]]


# --------------------------------------------------------------------------------- the two stages


@dataclass(frozen=True)
class _Form:
    text: str  # the answer in one notation; what stage 2 is given
    number: Fraction | None = None
    percent: bool = False
    tag: str = ""  # "x" of x = 5, "_8" of 37_8
    bare_unit: bool = False  # the number was followed by plain letters: 18 eggs, or a product?
    words: tuple[str, ...] | None = None  # of an answer without any mathematics
    is_text: bool = False  # the words stand in \text{…}


def _decide(pairs: Sequence[tuple[_Form, _Form]], timeout: float) -> list[Reason]:
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


def _stage_one(gold: _Form, answer: _Form) -> bool | None:
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


def _same_number(gold: _Form, answer: _Form) -> bool:
    # A name or a base may be left out; a base may be added only to a gold answer that has it.
    if answer.tag != gold.tag and answer.tag and (gold.tag or answer.tag.startswith("_")):
        return False
    if gold.percent == answer.percent:
        return gold.number == answer.number
    assert gold.number is not None and answer.number is not None
    part, whole = (gold, answer) if gold.percent else (answer, gold)
    return whole.number in (part.number, Fraction(part.number or 0) / 100)


# --------------------------------------------------------------------- one notation for each answer

_UNICODE = {
    **dict.fromkeys("‐‑‒–—−﹣", "-"),
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("€£¥₹", ""),
    **{"÷": r"\div ", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap "},
    **{"∈": r"\in ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "’": "'", "′": "'"},
}
_GAP = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])")
_GROUP_GAP = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,;:! ]|~)\s*(?=\d{3}(?!\d))")
_GROUP_COMMA = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_GROUP_SPACE = re.compile(r"^([-+]?\d{1,3})((?: \d{3})+)(?=\D*$)")
_SIZES = re.compile(
    r"\\(?:left|right)(?:\.|(?![A-Za-z]))|\\(?:[bB]igg?[lr]?|displaystyle)(?![A-Za-z])"
    r"|(?<!\\)\\[!()\[\]]|\\?\$"
)
_FONT = re.compile(r"\\(?:math(?:rm|bf|it|sf)|text(?:bf|it|rm|sf|normal)|[mh]box)\s*(?=\{)")
_AND = re.compile(r"\s*(?:\\text\{[\s,;]*(?:and|or)\s*\}|,?\s(?:and|or)(?=\s))\s*")
_INEQUALITY = re.compile(r"[<>]|\\(?:[lg](?:eq?|eqslant|t)|neq?)(?![A-Za-z])")
_LINK = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_HALF_DAY = re.compile(r"\s*(?:\\text\{\s*)?([ap])\.?\s?m\b\.?\s*\}?$", re.IGNORECASE)
_UNIT = re.compile(r"(?<=[\w)}\]%])(?:(?:/|\\cdot )?\\text\{[^{}]*\}(?:\^(?:\d|\{-?\d\}))?)+$")
_BARE_UNIT = re.compile(
    r"(?:(?<=[\d }%])(?:[mck]m|[mk]?g|m[lL]|ft|lbs?|oz|hrs?|min|mph|sq)\b"
    r"|(?<=[ }%])[A-Za-z]{3,})[A-Za-z. ]*(?:\^(?:\d|\{\d\}))?$"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES |= {"trillion": 10**12, "dozen": 12}
_PLAIN_TEXT = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(?!-)[A-Za-z0-9 ,.;:()'&-]*")
# Bases and primes: the parser of stage 2 passes over them in silence.
_DROPPED = re.compile(r"(?<=[\d)}])_(?:\w|\{\w*\})|'")
_NAME = re.compile(r"([A-Za-z]|\\[a-z]+)((?:_(?:\w|\{\w+\}))?)(?:=|\\approx)(?=[^=])")
_BASE = re.compile(r"(-?\d+)_(?:(\d)|\{(\d+)\})")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?([ap]m)?")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def _check_timeout(timeout: float) -> None:
    if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        raise ValueError(f"timeout is {timeout!r}; give a positive number of seconds")


def _unboxed(answer: str) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"give an answer as a string, not {type(answer).__name__}")
    content = extract_boxed(answer)
    return answer if content is None else content


def _gold_form(gold: str, max_characters: int) -> _Form:
    gold = _unboxed(gold)
    if len(gold) > max_characters:
        raise ValueError(
            f"the gold answer has {len(gold)} characters; drop the question or raise "
            f"max_characters={max_characters}"
        )
    form = _form(gold)
    if not form.text:
        raise ValueError(f"the gold answer {gold!r} is empty; drop the question")
    return form


@lru_cache(maxsize=8192)
def _form(answer: str) -> _Form:
    if _INTEGER.fullmatch(answer):
        return _Form(answer, Fraction(int(answer)))
    text, numeral, unit = _split_unit(_unified(answer))
    numeral = numeral.removeprefix(r"\approx").strip()
    tag = ""
    if named := _NAME.match(numeral):
        tag, numeral = named[1] + named[2], numeral[named.end() :]
    numeral = re.sub(r"\^\\circ(?: ?[CF])?$", "", numeral)
    percent = numeral.endswith(r"\%") or "percent" in unit
    numeral = numeral.removesuffix(r"\%")
    if based := _BASE.fullmatch(numeral):
        tag, numeral = "_" + (based[2] or based[3]), based[1]
    number = _rational(numeral)
    if number is None:
        words, is_text = _words(text)
        return _Form(text, words=words, is_text=is_text)
    number *= math.prod(_SCALES.get(word, 1) for word in unit)
    return _Form(text, number, percent, tag, bare_unit=bool(unit) and r"\text" not in unit)


def _to_ascii(answer: str) -> str:
    pieces: list[str] = []
    raised = ""  # "^" or "_" while inside a run of raised or lowered characters
    for character in answer:
        kind = unicodedata.category(character)
        decomposed = unicodedata.decomposition(character)
        mark = {"<super>": "^", "<sub>": "_"}.get(decomposed.split(" ")[0], "")
        if raised and mark != raised:
            pieces.append("}")
        if mark and mark != raised:
            pieces.append(mark + "{")
        raised = mark
        if character in _UNICODE:
            pieces.append(_UNICODE[character])
        elif kind == "Nd":
            pieces.append(str(unicodedata.decimal(character)))
        elif decomposed.startswith("<fraction>"):
            over = unicodedata.normalize("NFKC", character).partition("⁄")
            pieces.append(rf"\frac{{{over[0]}}}{{{over[2]}}}" if over[2] else character)
        elif mark or decomposed.startswith("<wide>"):
            plain = unicodedata.normalize("NFKC", character)
            pieces.append(_UNICODE.get(plain, plain))
        elif kind != "Cf":  # a direction or joining mark: invisible, and no part of the answer
            pieces.append(" " if kind in ("Zs", "Cc") else character)
    return "".join(pieces) + ("}" if raised else "")


def _unified(answer: str) -> str:
    text = answer if answer.isascii() and answer.isprintable() else _to_ascii(answer)
    text = _SIZES.sub("", _GROUP_GAP.sub("", text))
    if not re.search(r"[(\[]|\\\{", text):  # within brackets a comma separates
        text = _GROUP_COMMA.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r" +", " ", _GAP.sub(" ", text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*\\pi(?![A-Za-z])\s*", r"\\frac{\\pi}", text)
    text = _FONT.sub(r"\\text", text)
    text = re.sub(r"\\text\{([ei])\}", r" \1", text)  # upright constants, not units
    text = re.sub(r"\\text\{([^{}A-Za-z\\]*)\}", r"\1", text)
    if not _INEQUALITY.search(text):  # there "and" is not "or"
        text = _AND.sub(",", text)
    text = re.sub(r",\s*(?=,)", "", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])", r"^\\circ", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = re.sub(r"([_^])\{(\w)\}(?!\w)", r"\1\2", text)
    # A space between two letters or digits separates; every other one is for the eye.
    text = re.sub(r" (?![A-Za-z0-9])|(?<![A-Za-z0-9]) |(?<=\d) (?=[A-Za-z]\b)", "", text)
    text = _HALF_DAY.sub(lambda m: f"{m[1].lower()}m", text) if ":" in text else text
    text = text.lstrip(" ").rstrip(" .,;:")
    text = _GROUP_SPACE.sub(lambda match: match[1] + match[2].replace(" ", ""), text)
    while inner := re.fullmatch(r"\{([^{}]*)\}|\(([A-Za-z])\)", text):
        text = inner[1] if inner[2] is None else inner[2]
    return text


def _split_unit(text: str) -> tuple[str, str, list[str]]:
    # → the text for stage 2, what stands before the unit, and the unit's words, "\text" among them.
    unit = _UNIT.search(text) or _BARE_UNIT.search(text)
    if unit is None or not re.search(r"\d|\\pi", text[: unit.start()]):
        return text, text, []
    words = re.findall(r"\\?[a-z]+", unit[0].lower())
    before = text[: unit.start()].rstrip()
    # Stage 2 must see letters that may be variables, and number words.
    unitless = r"\text" in words and not _SCALES.keys() & words
    return before if unitless else text, before, words


def _words(text: str) -> tuple[tuple[str, ...] | None, bool]:
    plain = re.sub(r"\\text(?=\{)|[{}]", "", text)
    if not _PLAIN_TEXT.fullmatch(plain):
        return None, False
    words = re.findall(r"[a-z0-9]+", plain.lower())
    if "," in plain and all(len(word) == 1 for word in words):
        words.sort()  # a choice of several letters
    outside = re.sub(r"\\text\{[^{}]*\}", "", text)
    return tuple(words), not re.search(r"[A-Za-z0-9]", outside)


# --------------------------------------------------------------------------------- exact arithmetic


def _rational(text: str) -> Fraction | None:
    try:
        return _Reader(text).value()
    except _NotRationalError:
        return None


class _NotRationalError(Exception):
    pass


_LITERAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_FRACTION_AFTER_SPACE = re.compile(r" (\d+)/(\d+)(?![\d.])")
_TIMES = ("*", r"\cdot", r"\times")
_OVER = ("/", r"\div")


class _Reader:
    """Recursive descent over sums, products, powers and fractions of literals.

    Whatever is not one of these, is larger than `MAX_BITS` or deeper than `MAX_DEPTH` raises
    `_NotRationalError`: the answer is then no number for stage 1, not a wrong one.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def value(self) -> Fraction:
        value = self._sum()
        if self._text[self._at :].strip():
            raise _NotRationalError
        return value

    def _accept(self, *tokens: str) -> str:
        while self._text.startswith(" ", self._at):
            self._at += 1
        for token in tokens:
            if self._text.startswith(token, self._at):
                self._at += len(token)
                return token
        return ""

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match:
            if len(match[0]) > MAX_DIGITS:
                raise _NotRationalError
            self._at = match.end()
        return match

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._accept("+", "-"):
            term = self._product()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while operator := self._accept(*_TIMES, *_OVER):
            factor = self._signed()
            value = _quotient(value, factor) if operator in _OVER else _bounded(value * factor)
        return value

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._accept("+", "-"):
            negative ^= sign == "-"
        value = self._atom()
        if self._accept("^"):
            self._descend()
            value = _power(value, self._signed())
            self._depth -= 1
        return -value if negative else value

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotRationalError

    def _within(self, closing: str) -> Fraction:
        self._descend()
        value = self._sum()
        self._depth -= 1
        if not self._accept(closing):
            raise _NotRationalError
        return value

    def _atom(self) -> Fraction:
        if bracket := self._accept("(", "{"):
            return self._within(")" if bracket == "(" else "}")
        if self._accept(r"\frac"):
            return self._fraction()
        if repeating := self._match(_REPEATING):
            whole, start, period = repeating.groups()
            shift = 10 ** len(start)
            nines = 10 ** len(period) - 1
            return Fraction(int(f"0{whole}{start}"), shift) + Fraction(int(period), nines * shift)
        literal = self._match(_LITERAL)
        if literal is None:
            raise _NotRationalError
        value = Fraction(literal[0])
        if not literal[0].isdigit():
            return value
        part = Fraction(0)  # of a mixed number such as 2\frac12 or 2 1/2
        if slashed := self._match(_FRACTION_AFTER_SPACE):
            part = _quotient(Fraction(int(slashed[1])), Fraction(int(slashed[2])))
        elif self._accept(r"\frac"):
            part = self._fraction()
        else:
            return value
        if not 0 < part < 1:
            raise _NotRationalError
        return value + part

    def _fraction(self) -> Fraction:
        return _quotient(self._argument(), self._argument())

    def _argument(self) -> Fraction:
        if self._accept("{"):
            return self._within("}")
        digit = self._text[self._at : self._at + 1]  # \frac12 is 1/2
        if not digit.isdigit():
            raise _NotRationalError
        self._at += 1
        return Fraction(int(digit))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _NotRationalError
    return value


def _quotient(value: Fraction, divisor: Fraction) -> Fraction:
    if divisor == 0:
        raise _NotRationalError
    return _bounded(value / divisor)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        raise _NotRationalError
    if abs(exponent.numerator) * _bits(base) > MAX_BITS:
        raise _NotRationalError
    return Fraction(base**exponent.numerator)
