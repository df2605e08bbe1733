"""Any text as plain text that hides nothing: for figures, pages and terminals alike."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

__all__ = ["visible"]


def visible(text: str, limit: int = 0) -> str:
    r"""`text` on one line, with every character that could hide or act written out.

    Control characters, direction marks, unusual blanks, lone surrogates, invisible characters and
    the like become escapes. The result is plain text: to put it into HTML, escape it.

    Args:
        text: any text.
        limit: longest result in characters, ``…`` included; 0 for any.

    Example:
        >>> print(visible("a\nb\t\0\u202e"))
        a↵b⇥\x00\u202e
    """
    # No character becomes shorter, so no more of a long text is read than can be shown.
    shown = "".join(map(_shown, text[: limit + 1] if limit else text))
    return shown if not limit or len(shown) <= limit else shown[: limit - 1] + "…"


@lru_cache(maxsize=4096)
def _shown(char: str) -> str:
    if char in _MARKS:
        return _MARKS[char]
    code = ord(char)
    if unicodedata.category(char) not in _HIDDEN and not any(code in part for part in _SHAPELESS):
        return char
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


_MARKS = {" ": " ", "\n": "↵", "\t": "⇥"}
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")
# Default_Ignorable_Code_Point outside of these categories, and the blank pattern of Braille:
# fillers, joiners, variation selectors, tags.
_SHAPELESS = (
    range(0x034F, 0x0350), range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810),
    range(0x2065, 0x2066), range(0x2800, 0x2801), range(0x3164, 0x3165), range(0xFE00, 0xFE10),
    range(0xFFA0, 0xFFA1), range(0xFFF0, 0xFFF9), range(0xE0000, 0xE1000),
)  # fmt: skip
