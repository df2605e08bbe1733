"""The HTML around a figure, from templates: all text escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from i2b_lpo.views.text import visible

__all__ = ["environment", "figure", "page", "table", "text"]


def environment(package: str) -> Environment:
    """The templates of a package, which may use those of this one.

    Whatever a template prints is escaped and shows its hidden characters; only what it calls safe
    acts. A name that was not given is an error.
    """
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("i2b_lpo.views")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["plotlyjs"] = get_plotlyjs
    return found


def _shown(value: Any) -> Any:
    """Plain text with its hidden characters shown; only newlines act. HTML stays as it is."""
    plain = isinstance(value, str) and not hasattr(value, "__html__")
    return "\n".join(map(visible, value.split("\n"))) if plain else value


TEMPLATES = environment("i2b_lpo.views")


def text(value: str) -> str:
    """`value` as HTML text or as a quoted attribute value; only newlines act."""
    return html.escape(_shown(value), quote=True)


def table(rows: Sequence[Sequence[str]], *, style: str = "") -> str:
    """Rows of plain text as a table, the first as its header; `style` is CSS of the table."""
    macros: Any = TEMPLATES.get_template("table.html").module
    return str(macros.table(rows, style))


def figure(
    name: str,
    *,
    data: Mapping[str, Any],
    config: Mapping[str, Any],
    height: int,
    words: str,
    caption: str,
    numbers: Sequence[Sequence[str]],
) -> str:
    """A plotly figure as ``<figure>``: drawing, caption, words and numbers.

    Args:
        name: the id of the drawing's element, unique on its page.
        data: the figure as plotly's JSON holds it.
        config: plotly's settings.
        height: in CSS pixels.
        words: alternative text, plain.
        caption: plain text, or what a template rendered.
        numbers: the table's rows, plain.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"{name!r} can't be the id of a figure; use small letters, digits and -.")
    return TEMPLATES.get_template("figure.html").render(
        name=name,
        data=data,
        config=config,
        height=height,
        words=words,
        caption=caption,
        numbers=numbers,
    )


def page(title: str, body: str) -> str:
    """A whole page with plotly.js in it.

    Args:
        title: plain text.
        body: HTML.
    """
    return TEMPLATES.get_template("page.html").render(title=title, body=body)
