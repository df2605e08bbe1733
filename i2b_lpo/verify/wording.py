r"""What people write around an answer: prose before it, a unit or a remark after it.

``Answer: 5``, ``about 5``, ``USD 18``, ``(B) 12`` | ``18\text{ eggs}``, ``3 km/h``, ``12人``,
``2\text{ (multiplicity 2)}``. A word that changes the number (``5\text{ or six}``,
``5\text{ factorial}``, ``5万``) or may be a product of variables (``2 abc``) is not a unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SCALES", "Quantity", "quantity", "without_prose"]

# ------------------------------------------------------------------------------------ before it

_PROSE = re.compile(
    r"(?:(?:so|thus|hence|therefore),? ?)?(?:"
    r"(?:the )?(?:(?:final|correct|right) )?(?:answer|ans|result|solution|option|choice|total)"
    r"(?![A-Za-z])(?: is| are| of| equals| option|[:=.])*[: ]*"
    r"|(?:about|approximately|approx\.?|roughly|around|exactly|equals|is|it is|there are)[: ]+"
    r"|(?:about|approximately|approx\.?|roughly|around|exactly|equals)(?=\}))+",
    re.IGNORECASE,
)
_CURRENCY = re.compile(
    r"(?:\\text\{)?(?:USD|EUR|GBP|INR|CNY|RMB|JPY|CAD|AUD|US|Rs\.?|\\(?:euro|pounds|yen))"
    r"(?![A-Za-z])\}? ?(?=[-\d.\\(])"
)


def without_prose(text: str) -> str:
    r"""``\text{Answer: }5`` → ``5``, ``\text{Answer: B}`` → ``\text{B}``, ``USD 18`` → ``18``."""
    in_text = text.startswith(r"\text{")
    begin = len(r"\text{") if in_text else 0
    if prose := _PROSE.match(text, begin):
        rest = text[prose.end() :].lstrip(" ")
        if in_text:
            rest = rest[1:].lstrip(" :=") if rest.startswith("}") else rf"\text{{{rest}"
        text = rest if re.search(r"[^\W_]", rest.removeprefix(r"\text")) else text
    # A quantity in words is a quantity: \text{2 red balls}.
    if inner := re.fullmatch(r"\\text\{((?:-?\d)[^{}\\]*)\}", text):
        text = inner[1]
    return _CURRENCY.sub("", text, count=1) if _CURRENCY.match(text) else text


# -------------------------------------------------------------------------------------- after it

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
SCALES |= {"trillion": 10**12, "dozen": 12, "lakh": 10**5, "crore": 10**7}

# Words that change a number or add a second answer; none of these is part of a unit.
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "half halves third thirds fourth fourths fifth fifths sixth sixths tenth tenths hundredths"
)
_OTHER_WORDS = (
    "or and but not nor to than plus minus negative squared cubed factorial choose mod modulo base "
    "root power pi if unless except versus vs most least and/or oder und ou et o y или и"
)
_CHANGES = frozenset(f"{_NUMBER_WORDS} {_OTHER_WORDS}".split())
_CHANGES_CJK = re.compile(r"[一二三四五六七八九十百千万萬亿億兆半或和与與及到至]")

# Units of one to three letters. Longer words need no list.
_SHORT_UNITS = (
    "cm mm km dm nm ml mL cl dl kL mg kg gm lb lbs oz ft in yd mi hr hrs min sec ms mph kph rpm sq "
    "cu kW kJ kN kV kWh mA MW Hz kHz MHz GHz Pa kPa dB GB MB KB TB USD EUR RMB Rs ohm Ohm mol deg "
    "pts day men boy cup pen car cat dog egg box bus way toy gal ton yr yrs eV ha cc"
)
_SHORT = frozenset(_SHORT_UNITS.split())
_LETTER_UNITS = frozenset("smghLJNWVCFK")
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_POWER = r"(?:\^(?:\d|\{-?\d\}))?"
_TEXT = rf"\\text\{{[^{{}}\\<>=+]*+\}}{_POWER}"
_UNIT = re.compile(
    rf"(?: ?(?:/|\\cdot ?)?(?:{_TEXT}|\\frac\{{{_TEXT}\}}\{{{_TEXT}\}}|\\mu(?=\\text)"
    rf"|\\Omega(?![A-Za-z])|\^\\circ(?: ?[CF](?![A-Za-z]))?|[^\W\d_]++\.?{_POWER}))++"
)
_BEGINS = re.compile(
    r"(?<=[\d)}\]%!])(?=/?\\text\{|\\cdot ?\\text\{|\\frac\{\\text|\\mu\\text|\\Omega|\^\\circ"
    r"| ?[^\W\d_])|(?<=\\pi)(?= [^\W\d_]|\\text\{)"
)
_REMARK = re.compile(
    r",?(?:"
    r"\\text\{ ?\((?:with )?multiplicity \d+\)\}"  # of a root
    r"|\(?\\text\{,? ?\(?(?:since|because)(?![A-Za-z]).*+"
    r"|(?:\\text\{,? ?for|(?<=[\w)}]) for) (?:all|any|every|each)(?: real)?(?: numbers?)?"
    r"(?: [a-z])?\}? ?[a-z]?(?:\\in\\mathbb\{[A-Z]\})?"
    r"|\\forall ?[a-z](?:\\in\\mathbb\{[A-Z]\})?"
    r")$"
)


@dataclass(frozen=True)
class Quantity:
    """An answer and the unit after it.

    Attributes:
        text: the answer without a remark.
        before: what comes before the unit; without a unit it is `text`.
        unit: the unit as written.
        certain: whether the unit's letters can't be a product of variables.
    """

    text: str
    before: str
    unit: str = ""
    certain: bool = True

    @property
    def words(self) -> list[str]:
        """The unit's words in lower case, scales in the singular."""
        words = re.findall(r"[^\W\d_]+", re.sub(r"\\[A-Za-z]+", " ", self.unit.lower()))
        return [word[:-1] if word[:-1] in SCALES else word for word in words]

    @property
    def percent(self) -> bool:
        """Whether the unit is a hundredth."""
        words = self.words
        return bool({"percent", "pct", "percentage"}.intersection(words)) or (
            words[:2] == ["per", "cent"]
        )


def quantity(text: str) -> Quantity:
    """Split unit and remark off a text in one notation."""
    if remark := _REMARK.search(text):
        text = text[: remark.start()].rstrip(" ,(") or text
    for begin in _BEGINS.finditer(text):
        before, unit = text[: begin.start()], text[begin.start() :]
        if not _UNIT.fullmatch(unit) or not re.search(r"\d|\\pi", before):
            continue
        found = Quantity(text, before, unit, _certain(unit))
        if not _changes_the_number(found) and (found.certain or _possible(unit)):
            return found
        break
    return Quantity(text, text)


def _changes_the_number(found: Quantity) -> bool:
    # A digit in a unit is a power of its letters: m/s^2, cm2.
    if re.search(r"(?<![A-Za-z^{-])\d|\d\d|\d[^\W\d_]", found.unit):
        return True
    words = found.words
    if words[-1:] == ["squared"] and len(words) > 1:
        words.pop()
    # Of a compound the last part counts: two-dollar bills, twenty-one.
    firsts = re.findall(r"[a-z]+(?=-[a-z])", found.unit.lower())
    return bool(_CHANGES.intersection(words).difference(firsts) or _CHANGES_CJK.search(found.unit))


def _bare_words(unit: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", unit))


def _certain(unit: str) -> bool:
    bare = _bare_words(unit)
    if not bare or r"\text" in unit or unit[0] == "^" or re.match(rf"[{_CJK}]", bare[0]):
        return True
    if not unit.startswith(" "):
        return False
    letters = _LETTER_UNITS | _SHORT
    return any(len(word) > 3 or word in _SHORT for word in bare) or (
        "/" in unit and letters.issuperset(bare)
    )


def _possible(unit: str) -> bool:
    # 5t is five t, and 5 x as well; 18cm, 18 abx and 18 m are more likely units than products.
    bare = _bare_words(unit)
    if unit.startswith(" "):
        return len(bare[0]) > 2 or (len(bare) == 1 and bare[0] in _LETTER_UNITS)
    return bare[0] in _SHORT or bare in (["L"], ["g"])
