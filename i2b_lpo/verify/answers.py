"""Answer text → what it says: a number with its marks, words, or neither. Stage 1 compares that.

`notation` unifies its notation, `wording` strips prose and units, `exact` reads the number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from i2b_lpo.verify.exact import rational
from i2b_lpo.verify.notation import notation
from i2b_lpo.verify.wording import SCALES, quantity, without_prose

__all__ = ["Form", "Words", "form_of", "is_prose"]


@dataclass(frozen=True)
class Words:
    r"""An answer without any mathematics: the words of each item, in lower case.

    Attributes:
        items: between commas, "and" and "or".
        link: ``and`` or ``or``, if one of them joins the items.
        certain: whether they can't be variables: they are in ``\text{…}`` or long.
    """

    items: tuple[tuple[str, ...], ...]
    link: str = ""
    certain: bool = False

    def same(self, other: Words) -> bool:
        """Whether both say the same; the order counts unless the items are joined or letters."""
        if self.link and other.link and self.link != other.link:
            return False
        letters = all(len(item) == 1 and len(item[0]) == 1 for item in self.items)
        if self.link or other.link or letters:
            return sorted(self.items) == sorted(other.items)
        return self.items == other.items


@dataclass(frozen=True)
class Form:
    """An answer in one notation, and what it says."""

    text: str  # the answer in one notation: what stage 2 gets
    number: Fraction | None = None
    percent: bool = False
    degrees: bool = False
    name: str = ""  # "x" of x = 5
    mark: str = ""  # "_8" of 37_8, "mod 7" of 5\pmod{7}
    maybe_product: bool = False  # plain letters follow the number: 18 abx
    option: str = ""  # "b" of (B) 12
    words: Words | None = None


_NAME = re.compile(r"([A-Za-z]|\\[a-z]+)((?:_(?:\w|\{\w+\}))?)(?:=|\\(?:approx|equiv))(?=[^=])")
_BASE = re.compile(r"(-?\d+)_(?:(\d)|\{(\d+)\})")
_RESIDUE = re.compile(r"(.+?)\\pmod\{(\w+)\}")
_OPTION = re.compile(r"(?:\\text\{)?(?:\(([A-J])\)|([A-J])[).:])\}?(?=[^\s=,])")
_SINE_OF_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\d)? ?[({]?)(\d+(?:\.\d+)?)\^\\circ"
)
_PLAIN_TEXT = re.compile(r"(?!-)(?:[^\W_]|[ ,.;:()'&-])*")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@lru_cache(maxsize=1024)  # some 50 MB if all of them were long and strange
def form_of(answer: str) -> Form:
    r"""Return an answer's form, whatever characters it has.

    Args:
        answer: the content of a box, or a bare gold answer.

    Example:
        >>> form_of(r"\$1{,}234.50"), form_of("½").number
        (Form(text='1234.50', number=Fraction(2469, 2), ...), Fraction(1, 2))
        >>> form_of(r"\text{Monday}").words
        Words(items=(('monday',),), link='', certain=True)
    """
    if _INTEGER.fullmatch(answer):
        return Form(answer, Fraction(int(answer)))
    text = _SINE_OF_DEGREES.sub(r"\1\\frac{\2\\pi}{180}", without_prose(notation(answer)))
    if option := _OPTION.match(text):
        rest = _read(text[option.end() :].strip("{} "))
        named = rest.words and any(len(word) > 1 for item in rest.words.items for word in item)
        if rest.number is not None or (named and ")" in option[0]):
            return replace(rest, option=(option[1] or option[2]).lower())
    return _read(text)


def _read(text: str) -> Form:
    found = quantity(text)
    scales = [SCALES[word] for word in found.words if word in SCALES]
    # Stage 2 must see letters that may be variables, and number words.
    text = found.before if found.certain and not scales else found.text
    numeral, name, mark = found.before.removeprefix(r"\approx").strip(), "", ""
    if named := _NAME.match(numeral):
        name, numeral = named[1] + named[2], numeral[named.end() :]
    percent = numeral.endswith(r"\%") or found.percent
    numeral = numeral.removesuffix(r"\%")
    if residue := _RESIDUE.fullmatch(numeral):
        numeral, mark = residue[1], f"mod {residue[2]}"
    elif based := _BASE.fullmatch(numeral):
        numeral, mark = based[1], f"_{based[2] or based[3]}"
    number = rational(numeral)
    if number is None:
        return Form(text, words=_words(found.text))
    return Form(
        text,
        number * math.prod(scales),
        percent=percent,
        degrees=found.unit == r"^\circ" or "degrees" in found.words,
        name=name,
        mark=mark,
        maybe_product=not found.certain,
    )


def _words(text: str) -> Words | None:
    plain = re.sub(r"\\text(?=\{)|[{}]", "", text).casefold()
    if not _PLAIN_TEXT.fullmatch(plain) or not re.search(r"[^\W\d_]", plain):
        return None
    links = re.findall(r"&|\b(?:and|or)\b", plain)
    parts = (re.findall(r"[^\W_]+", part) for part in re.split(r"[,;&]|\b(?:and|or)\b", plain))
    items = tuple(tuple(part) for part in parts if part)
    outside = re.sub(r"\\text\{[^{}]*\}", "", text)
    certain = not re.search(r"[^\W_]", outside) or (
        any(len(word) >= 5 for item in items for word in item)
        and not re.search(r"[\d(-]", plain)  # an expression
    )
    return Words(items, "or" if "or" in links else "and" if links else "", certain)


_COMMAND = re.compile(r"\\(?:begin|end)\{\w*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?<![^\W_])(?!(?:and|or|[A-Z]+)(?![^\W\d_]))[^\W\d_]{2,}")


def is_prose(form: Form) -> bool:
    r"""Whether an answer is a sentence, or words around a number that aren't read as its unit.

    ``18 dollars and 50 cents`` and ``He has 5 apples left``: only the same words would equal such a
    gold answer. ``June 20`` is a name.
    """
    if form.number is not None:
        return False
    words = len(_WORD.findall(_COMMAND.sub(" ", form.text)))
    begins = re.match(r"[-(]*\d+(?!\d|st|nd|rd|th)", form.text)
    return (
        words > 7
        or (words > 0 and begins is not None)
        or (words > 1 and re.search(r"\d", form.text) is not None)
    )
