"""What all figures share: one theme, and the `View` that a figure comes in.

Colours that stand for things are Okabe–Ito's, entropy is viridis, and advantages are
brown–white–teal with white at zero. A symbol, dash, hatch or word repeats each colour.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale

from i2b_lpo.views import markup
from i2b_lpo.views.text import visible

__all__ = [
    "DIVERGING",
    "GRID",
    "INK",
    "MONO",
    "MUTED",
    "NEUTRAL",
    "SEQUENTIAL",
    "STYLES",
    "Style",
    "Table",
    "View",
    "hatched",
    "heading",
    "ink",
    "readable",
    "shade",
    "styled",
    "styles",
]

INK = "#1A1A1A"
MUTED = "#767676"
GRID = "#E3E3E3"
NEUTRAL = "#D0D0D0"
SANS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"

SEQUENTIAL: list[list[Any]] = get_colorscale("Viridis")
DIVERGING: list[list[Any]] = [
    [0.0, "#8C510A"], [0.25, "#D8B365"], [0.5, "#FFFFFF"], [0.75, "#5AB4AC"], [1.0, "#01665E"]
]  # fmt: skip

Table = tuple[tuple[str, ...], ...]
"""Rows of plain text, the header first."""


# --- what colours stand for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How one thing looks everywhere: its colour, and what says the same without colour."""

    colour: str
    symbol: str = "circle"
    dash: str = "solid"
    hatch: str = ""


STYLES: dict[str, Style] = {
    "base": Style("#0072B2"),
    "GRPO": Style("#E69F00", "diamond", "dash", "."),
    "I²B-LPO": Style("#CC79A7", "square", "dashdot", "-"),
    "control": Style("#8A8A8A", "cross", "dot", "|"),
    "correct": Style("#009E73", "circle"),
    "wrong": Style("#D55E00", "x"),
    "strategy words": Style(INK, "triangle-up", "solid", "/"),
}
"""Okabe–Ito. The same colour means the same thing in every notebook."""

_ALIASES = {"before": "base", "grpo": "GRPO", "i2b": "I²B-LPO", "lpo": "I²B-LPO", "i²b": "I²B-LPO"}
_OTHERS = (Style("#000000"), Style("#56B4E9", "diamond", "dash", "."))
_SYMBOLS = ("circle", "diamond", "square", "x", "triangle-up", "cross", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_HATCHES = ("", ".", "-", "|", "x", "+")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: a name that holds a word of `STYLES` gets its colour.

    Colours may repeat (two runs of GRPO are both GRPO); symbol, dash and hatch do so only when
    they run out.

    Example:
        >>> {name: style.colour for name, style in styles(["tiny-base", "after GRPO"]).items()}
        {'tiny-base': '#0072B2', 'after GRPO': '#E69F00'}
    """
    others = cycle(_OTHERS)
    found: dict[str, Style] = {}
    for name in names:
        style = _meaning(name) or next(others)
        found[name] = replace(
            style,
            symbol=_free(style.symbol, _SYMBOLS, [s.symbol for s in found.values()]),
            dash=_free(style.dash, _DASHES, [s.dash for s in found.values()]),
            hatch=_free(style.hatch, _HATCHES, [s.hatch for s in found.values()]),
        )
    return found


def _meaning(name: str) -> Style | None:
    known = {key.casefold(): key for key in STYLES} | _ALIASES
    if name.casefold() in known:
        return STYLES[known[name.casefold()]]
    for word in re.findall(r"\w+", name.casefold()):
        if word in known:
            return STYLES[known[word]]
    return None


def _free(wanted: str, choices: tuple[str, ...], taken: list[str]) -> str:
    return min((wanted, *choices), key=taken.count)


def shade(share: float, scale: list[list[Any]] = SEQUENTIAL) -> str:
    """The colour at `share` of a scale; beyond its ends, the colour of the end.

    Example:
        >>> shade(0.5, DIVERGING)
        'rgb(255, 255, 255)'
    """
    (colour,) = sample_colorscale(scale, [min(1.0, max(0.0, share))], colortype="tuple")
    return "rgb({}, {}, {})".format(*(round(255 * part) for part in colour))


def ink(colour: str) -> str:
    """Black or white, whichever reads better on a colour of `shade`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    return "#000000" if _luminance(parts) > 0.179 else "#FFFFFF"


def _luminance(parts: Sequence[float]) -> float:
    """WCAG 2's relative luminance of red, green and blue from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def readable(colour: str) -> str:
    """A style's colour, darkened until text in it reads well on white (WCAG AA).

    Example:
        >>> readable("#009E73"), readable("#0072B2")
        ('#00865F', '#0072B2')
    """
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    while _luminance([part / 255 for part in parts]) > 1.05 / 4.55 - 0.05:
        parts = [int(0.99 * part) for part in parts]
    return "#" + "".join(f"{part:02X}" for part in parts)


def hatched(style: Style) -> dict[str, Any]:
    """A bar's marker: the style's colour with its hatch on top."""
    return {
        "color": style.colour,
        "line": {"color": INK, "width": 0.8},
        "pattern": {
            "shape": style.hatch,
            "fgcolor": INK,
            "size": 7,
            "solidity": 0.25,
            "fillmode": "overlay",
        },
    }


# --- the view -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A figure, the same in words, and its numbers.

    In Jupyter it shows the figure; its text form is `describe()`, which is what a check compares.

    Attributes:
        figure: the plotly figure.
        description: what the figure shows, rounded and deterministic.
        table: its numbers, header first, as plain text.
    """

    figure: go.Figure = field(repr=False)
    description: str
    table: Table = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # Both are written to terminals and pages as they are.
        table = tuple(tuple(map(visible, row)) for row in self.table)
        object.__setattr__(self, "description", visible(self.description))
        object.__setattr__(self, "table", table)

    def describe(self) -> str:
        """The figure in words: its alternative text."""
        return self.description

    def __str__(self) -> str:
        return self.description

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        data = {**json.loads(self.figure.to_json()), "config": CONFIG}
        return {"application/vnd.plotly.v1+json": data, "text/plain": self.description}

    def to_html(self, *, include_js: bool = True, caption: str = "", name: str = "") -> str:
        """The figure with its words and numbers as HTML that loads nothing from elsewhere.

        Args:
            include_js: True gives a whole page with plotly.js inside (about 5 MB); False gives a
                ``<figure>`` for a page that already holds it.
            caption: plain text below the figure.
            name: the element's id, unique on its page; derived from the content by default.
        """
        data = self.figure.to_json()
        part = markup.figure(
            name or f"figure-{zlib.crc32(data.encode()):08x}",
            data=json.loads(data),
            config=CONFIG | {"responsive": True},
            height=int(self.figure.layout.height or 450),
            words=self.description,
            caption=caption,
            numbers=self.table,
        )
        return markup.page(self.description.split(":")[0], part) if include_js else part

    def to_png(
        self, path: str | Path, *, width: int = 960, height: int | None = None, scale: float = 2
    ) -> Path:
        """Write the figure as a picture, drawn by a Chrome on this machine; no network.

        Args:
            path: of the file.
            width: in CSS pixels.
            height: in CSS pixels; by default the figure's own.
            scale: picture pixels per CSS pixel.

        Raises:
            RuntimeError: kaleido or Chrome is missing.
        """
        try:
            import kaleido
            from choreographer.errors import ChromeNotFoundError
        except ImportError as error:
            raise RuntimeError("A PNG needs kaleido: pip install 'kaleido>=1'.") from error
        height = height or int(self.figure.layout.height or 450)
        options = {"format": "png", "width": width, "height": height, "scale": scale}
        try:
            # Without this setting kaleido fetches MathJax from a CDN.
            kaleido.write_fig_sync(
                self.figure.to_dict(), path=str(path), opts=options, kopts={"mathjax": False}
            )
        except ChromeNotFoundError as error:
            raise RuntimeError(
                "No Chrome was found to draw the PNG; install Chrome or Chromium (on Debian: apt "
                "install chromium), or use to_html, which needs none."
            ) from error
        return Path(path)


# JupyterLab resizes figures itself: with "responsive" as well they lose their height.
CONFIG: dict[str, Any] = {"displayModeBar": False, "scrollZoom": False, "typesetMath": False}

_AXIS: dict[str, Any] = {
    "gridcolor": GRID, "linecolor": MUTED, "zeroline": False, "ticks": "", "automargin": True,
    "ticklabelstandoff": 4,
    "title": {"font": {"size": 13}, "standoff": 8},
}  # fmt: skip

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": SANS, "size": 13, "color": INK},
        "title": {"font": {"size": 15}, "x": 0, "xref": "container", "xanchor": "left",
                  "yref": "container", "y": 1, "yanchor": "top"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 60, "r": 20, "t": 70, "b": 50},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                   "font": {"size": 13}},
        "hoverlabel": {"bgcolor": "white", "bordercolor": MUTED, "namelength": -1, "align": "left",
                       "font": {"family": SANS, "size": 13, "color": INK}},
        "dragmode": False,
    }
)  # fmt: skip


def styled(figure: go.Figure, *, title: str, height: int, **layout: Any) -> go.Figure:
    """Give `figure` the theme; `title` is escaped already."""
    # Plotly lifts a title of several lines by half of its further lines.
    pad = {"t": 12 + 10 * title.count("<br>"), "l": 12}
    layout |= {"title_text": title, "title_pad": pad, "height": height}
    figure.update_layout(template=TEMPLATE, **layout)
    return figure


def heading(figure: go.Figure, title: str, *, row: int, col: int) -> None:
    """Write a panel's name above its left end; `title` is escaped already."""
    figure.add_annotation(
        text=f"<b>{title}</b>", row=row, col=col, xref="x domain", yref="y domain", x=0, y=1,
        xanchor="left", yanchor="bottom", yshift=4, showarrow=False, font={"size": 13},
    )  # fmt: skip
