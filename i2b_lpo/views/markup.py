"""The HTML around a figure: plain strings, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from plotly.offline import get_plotlyjs

from i2b_lpo.views.text import visible

__all__ = ["STYLE", "figure", "page", "table", "text"]

# The browser enforces what the page promises: no request leaves it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 66rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #d0d0d0; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, li, figcaption { max-width: 46rem; }
li { margin: .3rem 0; }
a { color: #005a8c; }
.lead { font-size: 1.1rem; }
.note { color: #555; }
figure { margin: 1.5rem 0; border: 1px solid #e0e0e0; border-radius: 6px; padding: .75rem; }
figcaption { margin: .25rem 0 .5rem; }
.scroll { overflow-x: auto; }
.plot { min-width: 42rem; }
summary { cursor: pointer; color: #005a8c; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0;
  border-bottom: 1px solid #e0e0e0; white-space: pre-wrap; overflow-wrap: break-word;
  max-width: 40rem; }
th { font-weight: 600; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: .9em; }
pre { background: #f6f6f6; padding: .75rem; border-radius: 6px; overflow-x: auto; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
@media (max-width: 40rem) { table { min-width: 36rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, table, pre { break-inside: avoid; }
  .scroll { overflow: visible; }
  .plot { min-width: 0; }
}
"""


def text(value: str) -> str:
    """`value` as HTML text or as a quoted attribute value; only newlines act."""
    return html.escape("\n".join(map(visible, value.split("\n"))), quote=True)


def table(rows: Sequence[Sequence[str]], *, style: str = "") -> str:
    """Rows of plain text as a table, the first as its header; `style` is CSS of the table."""
    if not rows:
        return ""
    styled = f' style="{style}"' if style else ""
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows[1:]
    )
    return (
        f'<div class="scroll" tabindex="0"><table{styled}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>"
    )


def _script_json(data: str) -> str:
    # Inside <script> only these can end the element or the line.
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", data)


def figure(
    name: str,
    *,
    data: str,
    config: str,
    height: int,
    words: str,
    caption: str,
    numbers: Sequence[Sequence[str]],
) -> str:
    """A plotly figure as ``<figure>``: drawing, caption, words and numbers.

    Args:
        name: the id of the drawing's element, unique on its page.
        data: the figure as JSON.
        config: plotly's settings as JSON.
        height: in CSS pixels.
        words: alternative text, plain.
        caption: HTML.
        numbers: the table's rows, plain.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"{name!r} can't be the id of a figure; use small letters, digits and -.")
    return (
        '<figure>\n<div class="scroll" tabindex="0" role="region" aria-label="figure, scrolls">'
        f'<div class="plot" id="{name}" role="img" aria-label="{text(words)}" '
        f'style="height:{height}px"></div></div>\n'
        f"<script>(function () {{ const f = {_script_json(data)};\n"
        f'Plotly.newPlot("{name}", f.data, f.layout, {_script_json(config)}); }})();</script>\n'
        f"<figcaption>{caption}</figcaption>\n"
        f"<details><summary>In words and numbers</summary>\n<p>{text(words)}</p>\n"
        f"{table(numbers)}\n</details>\n</figure>\n"
    )


def page(title: str, body: str) -> str:
    """A whole page with plotly.js in it.

    Args:
        title: plain text.
        body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        "<noscript><p>The figures need JavaScript; the words and numbers under each need none."
        f"</p></noscript>\n{body}</body>\n</html>\n"
    )
