r"""Answer text → one notation: the same LaTeX for the same thing, however it was typed.

Removes what is only visual (spaces, sizes, fonts, colours, separators of thousands), writes
Unicode and plain notation (``pi/3``, ``x**2``) as LaTeX, and gives every argument its braces. Model
text is only rewritten, never evaluated; every pattern reads a text in about linear time.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["INEQUALITY", "notation", "split_list"]

INEQUALITY = re.compile(r"[<>]|\\(?:[lg](?:eq?|eqslant|t)|neq?)(?![A-Za-z])")

# --------------------------------------------------------------------------- characters → LaTeX

_UNICODE = {
    **dict.fromkeys("‐‑‒–—−﹣", "-"),
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("⟨〈", r"\langle "),
    **dict.fromkeys("⟩〉", r"\rangle "),
    **dict.fromkeys("µμ", r"\mu "),
    **dict.fromkeys("ΩΩ", r"\Omega "),
    **{
        "、": ",",
        "。": ".",
        "…": r"\ldots ",
        "’": "'",
        "′": "'",
        "∣": r"\mid ",
        "∖": r"\setminus ",
    },
    **{"÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp "},
    **{"√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "℃": r"^\circ C", "℉": r"^\circ F"},
    **{"≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∪": r"\cup "},
    **{
        "∩": r"\cap ",
        "∖": r"\setminus ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "∀": r"\forall ",
        "∨": r"\lor ",
        "∧": r"\land ",
    },
    **{name: rf"\mathbb{{{plain}}}" for name, plain in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
    **{"θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ϵ": r"\epsilon ", "ε": r"\epsilon "},
}


def _to_latex(answer: str) -> str:
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
        elif kind == "Sc" and character != "$":
            pass  # a currency: the amount is the same with or without it
        elif kind != "Cf":  # a direction or joining mark: invisible, and no part of the answer
            pieces.append(" " if kind in ("Zs", "Cc") else character)
    return unicodedata.normalize("NFC", "".join(pieces)) + ("}" if raised else "")


# ----------------------------------------------------------------------------- what is for the eye

_LAYOUT = [
    (re.compile(r"^\s*\*\*([^*]*)\*\*\s*$"), r"\1"),  # Markdown's bold
    (re.compile(r"\\(?:text)?color\s*(?:\[\w*\])?\{[\w!.,]*\}"), ""),
    (re.compile(r"\\(?:fbox|boxed|underline)\s*(?=\{)|\\(?:bf|rm|it|sf)(?![A-Za-z])"), ""),
    (re.compile(r"(?<=\\\\)\s*\[\d*\.?\d*\s*(?:pt|em|ex|mm|cm)\]"), ""),  # a matrix's row spacing
    # Thousands: 1\,234  1{,}234  1'234
    (re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,;:! ]|~|')\s*(?=\d{3}(?!\d))"), ""),
    (
        re.compile(
            r"\\(?:left|right)(?:\.|(?![A-Za-z]))|\\middle(?![A-Za-z])"
            r"|\\(?:[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|(?<!\\)\\[!()\[\]]|\\?\$"
        ),
        "",
    ),
]
_GAP = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\hspace\*?\{[^{}]*\}")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
# No number begins with 0, so the comma before 000 or 050 does not separate two.
_GROUPED_ZERO = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})*?,0\d\d(?:,\d{3})*(?!\d)")
_GROUP_SPACE = re.compile(r"^([-+]?\d{1,3})((?: \d{3})+)(?=\D*$| \d+/\d+$)")


def _join_thousands(text: str) -> str:
    # In brackets a comma separates items, unless those that do have a space: \{1,000, 2,000\}.
    grouped = [_GROUPED_ZERO]
    if ", " in text or not re.search(r"[(\[]|\\\{", text):
        grouped.insert(0, _GROUPED)
    for pattern in grouped:
        text = pattern.sub(lambda match: match[0].replace(",", ""), text)
    return text


# ------------------------------------------------------------------------- commands and arguments

_FUNCTIONS = "arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp"
_PLAIN = re.compile(
    r"\\text\{[^{}]*\}"  # words stay words
    rf"|(?<![A-Za-z\\])(?:(sqrt|pi|infinity)|({_FUNCTIONS})(?= ?[({{^\d\\]| ?[A-Za-z](?![A-Za-z])))"
    r"(?![A-Za-z])"
)
_END = r"(?![A-Za-z])"  # of a command's name
_COMMANDS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Fonts: upright and bold words are text, a bold letter is a vector's name.
        (r"\\(?:math(?:rm|it|sf)|text(?:bf|it|rm|sf|normal)|[mh]box)\s*(?=\{)", r"\\text"),
        (r"\\(?:mathbf|boldsymbol|bm)\s*\{(\w)\}", r"\1"),
        (r"\\(?:mathbf|boldsymbol|bm)\s*(?=\{)", r"\\text"),
        (r"\\hat\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\\([ij])math)", r"\1\2"),
        (rf"\\text\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"\\text\{([ei])\}", r" \1"),  # upright constants, not units
        (r"\\text\{\s*\^\\circ\s*([CFK]?)\s*\}", r"^\\circ \1"),
        (r"\\text\{([0-9A-Z]+)\}(?=_)", r"\1"),  # digits of another base
        (r"\\text\{((?:(?![{}\\])[\W\d_])*)\}", r"\1"),  # nothing in it is a letter
        # One name for one sign
        (rf"\\var(epsilon|phi|theta|rho|sigma){_END}", r"\\\1"),
        (rf"\\varnothing{_END}|\\\{{\s*\\\}}", r"\\emptyset"),
        (rf"\\(?:R|Reals){_END}|\\(?:mathbb|Bbb)\s*R{_END}", r"\\mathbb{R}"),
        (rf"\\[lr]?vert{_END}", "|"),
        (rf"\\lg{_END}", r"\\log_{10}"),
        (r"\*\*", "^"),
        (rf"\\degree{_END}|\^\s*\{{?\s*\\circ\s*\}}?|(?<=\d)\^(?:o{_END}|\{{o\}})", r"^\\circ"),
        (r"(?<!\\)%", r"\\%"),
        (rf"\\langle{_END}(.*?)\\rangle{_END}", r"(\1)"),
        # Fractions, binomials, powers
        (rf"\\(?:[dtc]|nice|s)frac{_END}", r"\\frac"),
        (rf"\\frac\s*\\pi{_END}\s*", r"\\frac{\\pi}"),
        (r"(?<![\w)}\]])(?:\{\})?\^\{?(\d+)\}?/_\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"\\[dt]?binom\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})", r"\\binom{\1\2}{\3\4}"),
        (rf"\{{([^{{}}]*)\\choose{_END}([^{{}}]*)\}}", r"\\binom{\1}{\2}"),
        (rf"^([^{{}}]*)\\choose{_END}([^{{}}]*)$", r"\\binom{\1}{\2}"),
        (r"\^\s*-\s*(\d+|[A-Za-z])", r"^{-\1}"),
        # Repeating decimals and residues
        (r"(\.\d*)\\(?:bar|dot|overline)\s*(?:\{(\d+)\}|(\d))(?!\d*\\dot)", r"\1\\overline{\2\3}"),
        (r"(\.\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\1\\overline{\2\3\4}"),
        (r"\s*\\(?:pmod|pod)\s*(?:\{\s*(\w+)\s*\}|(\w+))", r"\\pmod{\1\2}"),
        (r"\s*\((?:\\bmod|\\mod|mod|\\text\{\s*mod\s*\})\s*(\w+)\)", r"\\pmod{\1}"),
    )
]
_ROOT = r"\\sqrt(?![A-Za-z])\s*((?:\[[^\[\]]*\])?)\s*"
_BRACKETED = re.compile(rf"(?:{_ROOT}|\^\s*)(?=\()")
_BARE_ROOT = re.compile(
    rf"{_ROOT}(\d+(?:\.\d+)?|[A-Za-z]|\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|\\(?!frac|sqrt)[A-Za-z]+)"
)
_DOTS = re.compile(r"(\.\d{2,60})(?:\\l?dots(?![A-Za-z])|\\cdots|\.\.\.)$")


def _without_dots(match: re.Match[str]) -> str:
    return re.sub(r"\\cdot(?![A-Za-z])", " ", match[0])  # kg\cdot m


def _command(match: re.Match[str]) -> str:
    if match[1] is None and match[2] is None:
        return match[0]
    return {"infinity": r"\infty "}.get(match[1], f"\\{match[1] or match[2]} ")


def _with_braces(text: str) -> str:
    r"""``\sqrt(x)`` and ``x^(2)`` with braces, then ``\sqrt13``, ``\sqrt x``, ``\sqrt[3]\pi``."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for at, character in enumerate(text):
        if character == "(":
            opened.append(at)
        elif character == ")" and opened:
            closing[opened.pop()] = at
    characters = list(text)
    for match in _BRACKETED.finditer(text):
        if match.end() in closing:
            characters[match.end()], characters[closing[match.end()]] = "{", "}"
    return _BARE_ROOT.sub(r"\\sqrt\1{\2}", "".join(characters))


def _repeating(match: re.Match[str]) -> str:
    # 0.333… repeats one digit three times, 0.1212… a block twice; 3.14… doesn't say what follows.
    digits = match[1]
    for length in range(1, (len(digits) - 1) // 2 + 1):
        block = digits[-length:]
        if digits.endswith(block * (3 if length == 1 else 2)):
            while digits[:-length].endswith(block):
                digits = digits[:-length]
            return rf"{digits[:-length]}\overline{{{block}}}"
    return match[0]


# ------------------------------------------------------------------------------- lists and sets

_AND = re.compile(r"\s*(?:\\text\{[\s,;]*(?:and|or)\s*\}|,?\s(?:and|or)(?=\s)|\\&)\s*")
_LINK = re.compile(
    r",?\s*(?:\\text\{[\s,;]*(and|or)\s*\}|(?<=[\s}])(and|or)(?=[\s\\])|\\(?:(lor|vee)|land|wedge)"
    rf"{_END})\s*"
)
_WORD = re.compile(
    r"\\(?:begin|end)\{\w*\}|\\[A-Za-z]+|(?!(?:and|or)(?![^\W\d_]))([^\W\d_]{2,})|[^\W\d_]+"
)
_HALF_DAY = re.compile(r"\s*(?:\\text\{\s*)?([ap])\.?\s?m\b\.?\s*\}?$", re.IGNORECASE)
_BEGIN = r"(?:(?<=^)|(?<=[=,(])|(?<=\\cup)|(?<=\\cap)|(?<=\\in)|(?<=\\setminus))"
_FROM_OUTSIDE = re.compile(rf"{_BEGIN}\]([^\[\]()]*[,;][^\[\]()]*)([\[\]])")  # ]0,1[ and ]0,1]
_TO_OUTSIDE = re.compile(r"\[([^\[\]()]*[,;][^\[\]()]*)\[")  # [0,1[
_SEMICOLON = re.compile(r"([(\[][^;,()\[\]]*);([^;,()\[\]]*[)\]])")  # (0;1]
_BUILDER = re.compile(
    r"(?:[A-Za-z]\\in)?\\\{([A-Za-z])(?:\\in\\mathbb\{R\})?"
    r"(?::|\\mid|\\vert|\\colon|\||\\text\{such that\})(.+)\\\}"
)
_REAL = re.compile(r",?[A-Za-z]\\in\\mathbb\{R\}$")
_REALS = re.compile(r"(?:\\text\{)?(?:the set of )?(?:all )?(?:the )?real(?:s| numbers)\}?", re.I)


_SIGN = re.compile(rf"\\(?:pm|mp){_END} ?")


def _in_words(text: str) -> bool:
    return any(match[1] for match in _WORD.finditer(text))


def split_list(text: str) -> list[str]:
    """The elements between the commas outside of all brackets; one, if the brackets don't match."""
    depth, begin, elements = 0, 0, []
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            elements.append(text[begin:at])
            begin = at + 1
    return [*elements, text[begin:]] if depth == 0 else [text]


def _both_signs(text: str) -> str:
    r"""Write an element with one ``\pm`` as the two that it stands for, others as they are."""
    if text.startswith(r"\{") and text.endswith(r"\}") and text.count(r"\{") == 1:
        return rf"\{{{_both_signs(text[2:-2])}\}}"
    elements = []
    for element in split_list(text):
        signs = list(_SIGN.finditer(element))
        if len(signs) != 1:
            elements.append(element)
            continue
        before, after = element[: signs[0].start()], element[signs[0].end() :]
        plus = "" if not before or before[-1] in "({[=," else "+"
        elements += [f"{before}{plus}{after}", f"{before}-{after}"]
    return ",".join(elements)


def _sets(text: str) -> str:
    text = _FROM_OUTSIDE.sub(lambda m: f"({m[1]}{')' if m[2] == '[' else ']'}", text)
    text = _SEMICOLON.sub(r"\1,\2", _TO_OUTSIDE.sub(r"[\1)", text))
    if built := _BUILDER.fullmatch(text):
        text = built[2].strip()
    if INEQUALITY.search(text):
        return _REAL.sub("", text)
    return r"\mathbb{R}" if _REALS.fullmatch(text) else _both_signs(text) if "\\" in text else text


# --------------------------------------------------------------------------------- all together


def notation(answer: str) -> str:
    r"""Return an answer in one notation, whatever characters it has.

    Example:
        >>> notation(r"\$1{,}234.50"), notation("½"), notation(r"\pm\sqrt 13")
        ('1234.50', '\\frac{1}{2}', '\\sqrt{13},-\\sqrt{13}')
    """
    text = answer if answer.isascii() and answer.isprintable() else _to_latex(answer)
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    text = _join_thousands(re.sub(r" +", " ", _GAP.sub(" ", text)))
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\text\{[^{}]*\}", _without_dots, text)
    text = _with_braces(_PLAIN.sub(_command, text))
    if INEQUALITY.search(text):  # there "and" is not "or"
        text = _LINK.sub(
            lambda m: rf"\text{{{'or' if 'or' in m.groups() or m[3] else 'and'}}}", text
        )
    elif not _in_words(text):
        text = _AND.sub(",", text)
    text = re.sub(r",\s*(?=,)", "", text)
    text = re.sub(r"([_^])\{(\w)\}(?!\w)", r"\1\2", text)
    # A space between two letters or digits separates; every other one is only visual.
    text = re.sub(r" (?![^\W_])|(?<![^\W_]) |(?<=\d) (?=[A-Za-z]\b)(?![smghLJNWVCFK]\b)", "", text)
    text = _HALF_DAY.sub(lambda m: f"{m[1].lower()}m", text) if ":" in text else text
    text = _DOTS.sub(_repeating, text).strip(" ").lstrip("=").rstrip(" .,;:")
    text = _GROUP_SPACE.sub(lambda match: match[1] + match[2].replace(" ", ""), text)
    while inner := re.fullmatch(r"\{([^{}]*)\}|\(([A-Za-z])\)", text):
        text = inner[1] if inner[2] is None else inner[2]
    return _sets(text)
