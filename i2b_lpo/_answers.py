"""Answer text → one notation, and an exact value where it is a number: what stage 1 compares.

Takes away what is for the eye (spaces, sizes, fonts, currency, separators of thousands), writes
Unicode as LaTeX, and splits a name, a unit, a percent sign or a base from its number.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from i2b_lpo._exact import rational

__all__ = ["Form", "form_of"]


@dataclass(frozen=True)
class Form:
    """An answer in one notation, and what it says: a number, or words, or neither."""

    text: str  # the answer in one notation; what stage 2 is given
    number: Fraction | None = None
    percent: bool = False
    tag: str = ""  # "x" of x = 5, "_8" of 37_8
    bare_unit: bool = False  # the number was followed by plain letters: 18 eggs, or a product?
    words: tuple[str, ...] | None = None  # of an answer without any mathematics
    is_text: bool = False  # the words stand in \text{…}


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
_HALF_DAY = re.compile(r"\s*(?:\\text\{\s*)?([ap])\.?\s?m\b\.?\s*\}?$", re.IGNORECASE)
# A second answer is no unit: 5\text{ or 6}, x\text{, y=3}. A digit may only be a power: m/s^2, cm2.
_UNIT = re.compile(
    r"(?<=[\w)}\]%])(?:(?:/|\\cdot )?\\text\{"
    r"(?:[^{}\\<>=+\d]|(?<=[A-Za-z^])\d)*\}(?:\^(?:\d|\{-?\d\}))?)+$"
)
_BARE_UNIT = re.compile(
    r"(?:(?<=[\d }%])(?:[mck]m|[mk]?g|m[lL]|ft|lbs?|oz|hrs?|min|mph|sq)\b"
    r"|(?<=[ }%])[A-Za-z]{3,})[A-Za-z. ]*(?:\^(?:\d|\{\d\}))?$"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES |= {"trillion": 10**12, "dozen": 12}
_PLAIN_TEXT = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(?!-)[A-Za-z0-9 ,.;:()'&-]*")
_NAME = re.compile(r"([A-Za-z]|\\[a-z]+)((?:_(?:\w|\{\w+\}))?)(?:=|\\approx)(?=[^=])")
_BASE = re.compile(r"(-?\d+)_(?:(\d)|\{(\d+)\})")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@lru_cache(maxsize=1024)  # some 50 MB, were all of them long and strange
def form_of(answer: str) -> Form:
    r"""Return an answer's form, whatever characters it has.

    Args:
        answer: the content of a box, or a bare gold answer.

    Example:
        >>> form_of(r"\$1{,}234.50"), form_of("½").number, form_of(r"\text{Monday}").words
        (Form(text='1234.50', number=Fraction(2469, 2), ...), Fraction(1, 2), ('monday',))
    """
    if _INTEGER.fullmatch(answer):
        return Form(answer, Fraction(int(answer)))
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
    number = rational(numeral)
    if number is None:
        words, is_text = _words(text)
        return Form(text, words=words, is_text=is_text)
    number *= math.prod(_SCALES.get(word, 1) for word in unit)
    return Form(text, number, percent, tag, bare_unit=bool(unit) and r"\text" not in unit)


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
