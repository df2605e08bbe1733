r"""Text → the answer in it: a model's last box, a data set's reference."""

from __future__ import annotations

import re

__all__ = ["box_begins", "extract_boxed", "gold_answer", "gsm8k_gold", "unboxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)")
_SPACE = re.compile(r"\s*+")
# A run of backslashes with what it acts on, or a brace. Possessive, so a megabyte of backslashes or
# spaces is read once.
_BRACES = re.compile(r"(\\++)((?:boxed|fbox)\s*+\{|[{}])?|[{}]")


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced ``\boxed{…}`` or ``\fbox{…}``, None without one.

    One pass over any text. The last box is the one that begins last, so the inner of two nested
    ones; a box that never closes is skipped, and so is an empty one if there is another; ``\{`` and
    ``\}`` are not braces.

    Example:
        >>> extract_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}, or \boxed{3")
        '\\frac{1}{2}'
    """
    first = _BOX.search(text)
    if first is None:
        return None
    last: tuple[bool, int, int] | None = None  # is it filled, where it begins, where it ends
    depth = 0
    boxes: list[tuple[int, int]] = []  # open ones: (depth, where the content begins)
    for match in _BRACES.finditer(text, first.start()):
        backslashes, braced = match.groups()
        if braced and braced[0] in "bf":
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
                    begin, end = boxes.pop()[1], match.end() - 1
                    space = _SPACE.match(text, begin)
                    filled = space is not None and space.end() < end
                    if last is None or (filled, begin) > last[:2]:
                        last = (filled, begin, end)
                depth -= 1
    return None if last is None else text[last[1] : last[2]]


def box_begins(text: str) -> int | None:
    r"""Where the answer that is verified begins: the last balanced box, or else an open one.

    Example:
        >>> box_begins(r"so \boxed{3}"), box_begins("so 3")
        (3, None)
    """
    last = at = text.rfind(r"\boxed")
    while at >= 0 and extract_boxed(text[at:]) is None:
        at = text.rfind(r"\boxed", 0, at)
    at = last if at < 0 else at
    return None if at < 0 else at


def unboxed(answer: str) -> str:
    """The content of the last box, or the whole text; ValueError if it isn't a string."""
    if not isinstance(answer, str):
        raise ValueError(f"give an answer as a string, not {type(answer).__name__}")
    content = extract_boxed(answer)
    return answer if content is None else content


def gold_answer(reference: str) -> str:
    r"""Return the answer that a reference ends in: after ``####``, in its last box, or all of it.

    Example:
        >>> gold_answer("48/2 = 24, so 544. #### 544"), gold_answer(r"so \boxed{x+1}.")
        ('544', 'x+1')
        >>> gold_answer("18 dollars")
        '18 dollars'
    """
    _, marker, number = reference.rpartition("####")
    return number.strip() if marker else unboxed(reference)


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
