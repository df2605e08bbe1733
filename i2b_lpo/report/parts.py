"""Pieces of HTML that the sections of the tour's page are made of."""

from __future__ import annotations

from collections.abc import Sequence

from i2b_lpo.trace import Question
from i2b_lpo.views import View, markup
from i2b_lpo.views.markup import text

__all__ = ["asked", "details", "drawing", "intervals", "listing", "paragraph", "section"]


def section(name: str, title: str, *parts: str) -> str:
    """A section of HTML parts; `name` is its id."""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{text(title)}</h2>\n'
        f"{''.join(parts)}</section>\n"
    )


def paragraph(sentence: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(sentence)}</p>\n"


def listing(tag: str, items: Sequence[str]) -> str:
    """A list, ``ul`` or ``ol``, of HTML items."""
    return f"<{tag}>\n" + "".join(f"<li>{item}</li>\n" for item in items) + f"</{tag}>\n"


def drawing(view: View, name: str, caption: str) -> str:
    """A figure; `name` is its id, `caption` plain text."""
    return view.to_html(include_js=False, name=name, caption=caption)


def details(title: str, *parts: str) -> str:
    """HTML parts that open on a click."""
    return f"<details><summary>{text(title)}</summary>\n{''.join(parts)}\n</details>\n"


def intervals(rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers; an interval stands whole, under its mean."""
    return markup.table([[cell.replace(" [", "\n[") for cell in row] for row in rows])


def asked(question: Question) -> str:
    """A question with its verified answer."""
    return (
        f"<p>Question: <q>{text(question.text)}</q> Verified answer: {text(question.answer)}.</p>\n"
    )
