"""Means of clouds of points: large markers, with names that keep clear of each other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from i2b_lpo.views.base import INK, Style
from i2b_lpo.views.text import escape, visible

__all__ = ["means"]

WIDE, TALL = 500, 330  # of a panel in pixels, about
LETTER, LINE, MARK = 8, 16, 17

Box = tuple[float, float, float]
"""Centre and half the width in pixels; as tall as a line."""


def means(figure: go.Figure, named: Sequence[tuple[str, Style, float, float]]) -> None:
    """Draw a large marker with its name at each mean.

    Args:
        figure: one panel with all its points.
        named: name in plain text, style, x and y.
    """
    points = [xy for d in figure.data if d.x for xy in zip(d.x, d.y, strict=True) if None not in xy]
    (left, right), (low, high) = ((min(ends), max(ends)) for ends in zip(*points, strict=True))
    taken: list[Box] = [
        (WIDE * (x - left) / (right - left or 1), TALL * (y - low) / (high - low or 1), MARK / 2)
        for *_, x, y in named
    ]
    centres = list(taken)
    for (name, style, x, y), (across, up, _) in zip(named, centres, strict=True):
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={
                "symbol": style.symbol,
                "color": style.colour,
                "size": MARK,
                "line": {"color": INK, "width": 2},
            },
            hoverinfo="skip",
            showlegend=False,
        )
        half = LETTER * len(visible(name, 24)) / 2
        aside = half + MARK
        sides = [
            (across + dx, up + dy, half)
            for dx, dy in ((0, MARK), (0, -MARK), (aside, 0), (-aside, 0))
        ]
        _, at = min((_touching(box, taken), at) for at, box in enumerate(sides))
        taken.append(sides[at])
        figure.add_annotation(
            x=x, y=y, text=f"<b>{escape(name, 24)}</b>", xshift=sides[at][0] - across,
            yshift=sides[at][1] - up, showarrow=False, bgcolor="rgba(255, 255, 255, 0.8)",
            borderpad=1, font={"size": 12},
        )  # fmt: skip


def _touching(box: Box, taken: Sequence[Box]) -> int:
    x, y, half = box
    return sum(abs(y - up) < LINE and abs(x - across) < half + wide for across, up, wide in taken)
