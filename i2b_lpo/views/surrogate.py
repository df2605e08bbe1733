"""One token's term of the loss: what the clips leave of it, and where they stop learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from math import isfinite
from typing import Any

from plotly.subplots import make_subplots

from i2b_lpo.views.base import DIVERGING, INK, MUTED, NEUTRAL, View, heading, shade, styled
from i2b_lpo.views.text import escape, number, signed

__all__ = ["surrogate"]

_FLAT = 1e-6
"""A slope below this is none; single-precision values need the room."""


def surrogate(ratios: Sequence[float], terms: Mapping[float, Sequence[float]]) -> View:
    """The surrogate of one token against ρ, one panel per advantage A; grey where it is flat.

    Where the term is flat, its gradient is 0: the token teaches nothing there. The dashed line is
    ρ A, the term without any clip.

    Args:
        ratios: values of ρ = π_θ / π_old, increasing; include those where the term has kinks.
        terms: advantage A, not 0 → the term of J at each ratio, as the loss computes it.

    Raises:
        ValueError: there are no terms, fewer than two ratios, ratios that don't grow, an advantage
            of 0, or a term without one finite value for each ratio.

    Example:
        >>> print(surrogate([0.5, 1.0, 1.2, 2.0], {1.0: [0.5, 1.0, 1.2, 1.2]}))
        Surrogate of one token against ρ from 0.50 to 2.00: A = +1.00 rises from +0.50 to +1.20 at \
ρ = 1.20, flat to ρ = 2.00.
    """
    if len(ratios) < 2 or not all(a < b for a, b in pairwise(ratios)):
        raise ValueError("A surrogate needs at least two ratios that grow from left to right.")
    if not terms or not all(
        len(values) == len(ratios) and all(map(isfinite, values)) for values in terms.values()
    ):
        raise ValueError("A surrogate needs, for each advantage, one finite value for each ratio.")
    if not all(isfinite(advantage) and advantage for advantage in terms):
        raise ValueError("Give advantages other than 0; at A = 0 the term is 0 at every ratio.")
    figure = make_subplots(rows=1, cols=len(terms), horizontal_spacing=0.1)
    sentences = []
    table = []
    for col, (advantage, values) in enumerate(terms.items(), start=1):
        pieces = _pieces(ratios, values)
        _panel(figure, col, ratios, advantage, values, pieces)
        for start, end, way in pieces:
            ends = (number(ratios[at], 2) for at in (start, end))
            heights = (signed(values[at], 2) for at in (start, end))
            table.append((signed(advantage, 2), way, *ends, *heights))
        sentences.append(f"A = {signed(advantage, 2)} {_words(ratios, values, pieces)}")
    height = 380
    styled(
        figure,
        title="One token's term of J (bold) and ρ A (dashed); grey: flat, so no gradient",
        height=height,
        margin={"t": 75, "b": 55},
        showlegend=False,
    )
    return View(
        figure,
        f"Surrogate of one token against ρ from {number(ratios[0], 2)} to {number(ratios[-1], 2)}: "
        + "; ".join(sentences)
        + ".",
        (("advantage", "way", "from ρ", "to ρ", "from value", "to value"), *table),
    )


def _panel(
    figure: Any,
    col: int,
    ratios: Sequence[float],
    advantage: float,
    values: Sequence[float],
    pieces: list[tuple[int, int, str]],
) -> None:
    """One advantage: the term bold, ρ A dashed, and grey where the term is flat."""
    cell = {"row": 1, "col": col}
    name = escape(f"A = {signed(advantage, 2)}")
    figure.add_scatter(
        x=list(ratios),
        y=[ratio * advantage for ratio in ratios],
        mode="lines",
        line={"color": MUTED, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
        **cell,
    )
    figure.add_scatter(
        x=list(ratios),
        y=list(values),
        mode="lines",
        line={"color": shade(float(advantage > 0), DIVERGING), "width": 4},
        hovertemplate=f"{name}, ρ %{{x:.2f}}: %{{y:.2f}}<extra></extra>",
        **cell,
    )
    # After the curves: plotly draws no shape in a panel that is still empty.
    for start, end, way in pieces:
        if way == "flat":
            figure.add_vrect(
                x0=ratios[start],
                x1=ratios[end],
                fillcolor=NEUTRAL,
                opacity=0.5,
                line_width=0,
                layer="below",
                **cell,
            )
    low, high = min(values), max(values)
    room = 0.35 * (high - low) or 1.0
    figure.update_yaxes(range=[low - room, high + room], **cell)
    figure.update_xaxes(
        title_text="ρ = π<sub>θ</sub> / π<sub>old</sub>", range=[ratios[0], ratios[-1]], **cell
    )
    figure.add_vline(x=1, line={"color": INK, "width": 1, "dash": "dot"}, **cell)
    heading(figure, name, **cell)


def _pieces(ratios: Sequence[float], values: Sequence[float]) -> list[tuple[int, int, str]]:
    """Neighbouring steps that go the same way, as (first index, last index, way)."""
    ways = []
    for (a, b), (x, y) in zip(pairwise(ratios), pairwise(values), strict=True):
        slope = (y - x) / (b - a)
        ways.append("flat" if abs(slope) < _FLAT else "rises" if slope > 0 else "falls")
    pieces = []
    at = 0
    for way, run in groupby(ways):
        start, at = at, at + len(list(run))
        pieces.append((start, at, way))
    return pieces


def _words(
    ratios: Sequence[float], values: Sequence[float], pieces: list[tuple[int, int, str]]
) -> str:
    said = []
    for start, end, way in pieces:
        until = number(ratios[end], 2)
        if way == "flat":
            said.append(f"flat to ρ = {until}" if start else f"flat at {signed(values[0], 2)}")
            if not start:
                said[-1] += f" to ρ = {until}"
        else:
            begin, stop = signed(values[start], 2), signed(values[end], 2)
            said.append(f"{way} from {begin} to {stop} at ρ = {until}")
    return ", ".join(said)
