"""γ(s): how strongly z acts on the s-th token after the fork."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log

import plotly.graph_objects as go

from i2b_lpo.views.base import GRID, INK, MUTED, Style, View, styled
from i2b_lpo.views.categories import PALETTE
from i2b_lpo.views.text import escape, number

__all__ = ["gamma_curves"]


def gamma_curves(
    curves: Mapping[str, Sequence[float]],
    *,
    title: str = "Strength γ(s) of z: how much of it acts, s tokens after the fork",
    axis: str = "γ(s)",
) -> View:
    """Curves of γ(s), each with a mark where half of γ(0) is left.

    Between two tokens the half-life is read as on an exponential, so that γ_0 exp(−s/s_0) gives
    s_0 ln 2.

    Args:
        curves: name → γ(s) at s = 0, 1, 2, …, at least two numbers from 0 to 1.
        title: above the curves.
        axis: what is drawn.

    Raises:
        ValueError: there is no curve, more than can be told apart, or one isn't such numbers.

    Example:
        >>> print(gamma_curves({"halves": [1.0, 0.5, 0.25], "constant": [0.5, 0.5]}))
        Strength γ(s) of z, s tokens after the fork: halves from 1.00, half left at s = 1.0, 0.25 \
at s = 2; constant from 0.50, never halved, 0.50 at s = 1.
    """
    if not 1 <= len(curves) <= len(PALETTE):
        raise ValueError(f"Give 1 to {len(PALETTE)} curves of γ(s) by name, got {len(curves)}.")
    for name, values in curves.items():
        if len(values) < 2 or not all(isfinite(v) and 0 <= v <= 1 for v in values):
            raise ValueError(f"The curve {name!r} needs at least two numbers from 0 to 1.")
    longest = max(map(len, curves.values())) - 1
    figure = go.Figure()
    said, table = [], []
    marked = False
    for (name, values), style in zip(curves.items(), PALETTE, strict=False):
        figure.add_scatter(
            x=list(range(len(values))),
            y=list(map(float, values)),
            mode="lines",
            name=escape(name, 40),
            line={"color": style.colour, "width": 3, "dash": style.dash},
            hovertemplate=f"{escape(name, 40)}, s = %{{x}}: γ = %{{y:.3f}}<extra></extra>",
        )
        half = _half_life(values)
        shown = "never halved"
        if half is not None:
            shown = f"half left at s = {number(half, 1)}"
            _half_mark(figure, half, values[0] / 2, style, in_legend=not marked)
            marked = True
        last = f"{number(values[-1], 2)} at s = {len(values) - 1}"
        said.append(f"{name} from {number(values[0], 2)}, {shown}, {last}")
        table.append((name, number(values[0], 3), number(half, 1), number(values[-1], 3)))
    top = max(max(values) for values in curves.values())
    styled(
        figure,
        title=escape(title),
        height=360,
        margin={"t": 80, "b": 50},
        showlegend=True,
        xaxis={"title": {"text": "s, tokens since the fork"}, "range": [0, longest]},
        yaxis={"title": {"text": escape(axis)}, "range": [0, 1.08 * (top or 1)], "gridcolor": GRID},
    )
    return View(
        figure,
        f"Strength γ(s) of z, s tokens after the fork: {'; '.join(said)}.",
        (("curve", "γ(0)", "half left at s", "γ at its end"), *table),
    )


def _half_mark(
    figure: go.Figure, half: float, height: float, style: Style, *, in_legend: bool
) -> None:
    """A mark on the curve where half is left, with a line down to its s."""
    figure.add_scatter(
        x=[half, half],
        y=[0, height],
        mode="lines+markers+text",
        line={"color": MUTED, "width": 1.2, "dash": "dot"},
        marker={
            "symbol": style.symbol,
            "size": [0, 11],
            "color": style.colour,
            "opacity": 1,
            "line": {"color": INK, "width": 1.2},
        },
        text=["", f"  s = {number(half, 1)}"],
        textposition="top right",
        textfont={"size": 12},
        name="markers: half of γ(0) is left",
        legendrank=2000,
        showlegend=in_legend,
        hoverinfo="skip",
        cliponaxis=False,
    )


def _half_life(values: Sequence[float]) -> float | None:
    """Where the curve first falls to half its start; None if it doesn't."""
    goal = values[0] / 2
    if goal == 0:
        return None
    for s, value in enumerate(values):
        if value <= goal:
            before = values[s - 1]
            if value == 0:
                return float(s)
            return s - 1 + log(before / goal) / log(before / value)
    return None
