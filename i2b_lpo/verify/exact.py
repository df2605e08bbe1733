"""Exact arithmetic: a sum, product, power or fraction of literals as text → `Fraction`."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["rational"]

MAX_DIGITS = 640  # of a number: int() reads this many under every setting of Python's own limit
MAX_BITS = 8192  # of a numerator or denominator on the way to a value
MAX_DEPTH = 50  # of brackets, fractions and powers in a number


def rational(text: str) -> Fraction | None:
    r"""Return the value of a number in LaTeX, None if it isn't one or exceeds a bound.

    Example:
        >>> rational(r"2\frac{1}{2}"), rational("2^{-1}"), rational("x+1")
        (Fraction(5, 2), Fraction(1, 2), None)
    """
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

    Anything else, or a number larger than `MAX_BITS` or deeper than `MAX_DEPTH`, raises
    `_NotRationalError`: for stage 1 the answer is then not a number, rather than a wrong one.
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
        if not 0 <= part < 1:
            raise _NotRationalError
        return value + part

    def _fraction(self) -> Fraction:
        return _quotient(self._argument(), self._argument())

    def _argument(self) -> Fraction:
        if self._accept("{"):
            return self._within("}")
        digit = self._text[self._at : self._at + 1]  # \frac12 is 1/2
        if not digit.isdecimal():  # ① is a digit, but int() doesn't take it
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
