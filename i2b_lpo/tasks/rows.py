"""Rows of a data set → questions, with a list of the skipped rows and why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2b_lpo.infra.secrets import redact
from i2b_lpo.trace import Question
from i2b_lpo.verify.verdict import check_gold

__all__ = ["LeftOut", "Source", "answer_in", "listing", "questions_of", "read_rows", "text_in"]

SHOWN = 5  # rows that a message lists


@dataclass(frozen=True)
class LeftOut:
    """A question that is not used, and why.

    Attributes:
        what: the row, counted from 1, or the question's id.
        reason: what is wrong with it.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """A data set: how a row becomes a question, and where it is on the Hugging Face hub."""

    text: Callable[[Mapping[str, Any]], str]
    answer: Callable[[Mapping[str, Any]], str]
    hub: str = ""
    split: str = ""
    config: str | None = None


def text_in(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds text.

    Raises:
        ValueError: none does, or it holds something else.
    """
    return _held(row, names, str)


def answer_in(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds text or a number; 0 is a number.

    Raises:
        ValueError: none does, or it holds something else.
    """
    return _held(row, names, str | int | float)


def _held(row: Mapping[str, Any], names: Sequence[str], kinds: Any) -> str:
    for name in names:
        value = row.get(name)
        if value is None or not str(value).strip():
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is of type {type(value).__name__}")
        if isinstance(value, float) and not math.isfinite(value):  # pandas' missing value
            raise ValueError(f"{name} is {value}")
        return str(value)
    raise ValueError(f"{' or '.join(names)} is missing")


def read_rows(path: Path) -> dict[int, Any]:
    """The rows of a .json or .jsonl file by their number, from 0; blank lines don't count.

    A line that isn't JSON becomes a ValueError among the rows, for `questions_of` to list.

    Raises:
        ValueError: the file can't be read, or doesn't hold a list of rows.
    """
    shown = redact(str(path))
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that Windows puts first
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"Can't read {shown} ({reason}); give a .json or .jsonl file.") from error
    if path.suffix.lower() == ".json":
        rows = _parsed(data)
        if isinstance(rows, ValueError):
            raise ValueError(f"Can't read {shown}: {rows}; give a .json or .jsonl file.") from rows
        numbered = dict(enumerate(rows)) if isinstance(rows, list) else {}
    else:
        # Split only at this byte: JSON strings may hold U+2028 and other line ends.
        lines = enumerate(data.split(b"\n"))
        numbered = {number: _parsed(line) for number, line in lines if line.strip()}
    if not numbered:
        raise ValueError(f"{shown} holds no list of questions; give one JSON object a question.")
    return numbered


def _parsed(document: bytes) -> Any:
    try:
        return json.loads(document.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(f"byte {error.start + 1} is no UTF-8")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if error.lineno > 1 else ""
        return ValueError(f"it is no JSON ({where}column {error.colno}: {error.msg})")
    except (RecursionError, ValueError):  # thousands of brackets or digits
        return ValueError("it is nested too deeply or holds too long a number")


def questions_of(
    name: str, split: str, rows: Mapping[int, Any], source: Source
) -> tuple[dict[int, Question], list[LeftOut]]:
    """Questions by their row's number, and the skipped rows."""
    what = f"{split} row" if source.hub else "row"
    found: dict[int, Question] = {}
    left_out: list[LeftOut] = []
    first: dict[str, int] = {}
    for at, row in rows.items():
        try:
            question = _question(f"{name}-{split}-{at}", name, row, source)
            if first.setdefault(question.text, at) != at:
                raise ValueError(f"it asks the same as row {first[question.text] + 1}")
        except ValueError as error:
            left_out.append(LeftOut(f"{what} {at + 1}", str(error)))
        else:
            found[at] = question
    return found, left_out


def _question(id: str, name: str, row: Any, source: Source) -> Question:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("it is no JSON object")
    text, answer = source.text(row), source.answer(row)
    try:
        (text + answer).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    try:
        check_gold(answer)
    except ValueError as error:
        raise ValueError(re.sub(r"; [^;]*$", "", str(error))) from error
    level = re.search("[0-9]{1,9}", str(row.get("level")))  # 5, or MATH's "Level 5"
    return Question(id, text, answer, name, int(level[0]) if level else 0)


def listing(left_out: Sequence[LeftOut]) -> str:
    """The first few of them, and how many more."""
    shown = "; ".join(map(str, left_out[:SHOWN]))
    more = len(left_out) - SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
