"""One rollout token by token: where did the policy hesitate?"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale

from i2b_lpo.method.metrics import FORK
from i2b_lpo.trace import Rollout, Trace
from i2b_lpo.views.base import INK, MONO, MUTED, SEQUENTIAL, View, ink, shade, styled
from i2b_lpo.views.text import escape, number, visible

__all__ = ["BRIGHTEST", "entropy_scale", "entropy_strip", "outcome", "token_text"]

BRIGHTEST = 1.5  # nat; the same colour means the same entropy in every strip
WRAP = 60  # characters in a row
NARROWEST = 36  # characters across, so that short lines don't become wide boxes
NAMED = 8  # tokens that the words name

Place = tuple[float, int]
"""A token's left end and its row."""


@dataclass(frozen=True)
class Quantity:
    """A per-token quantity in nats, and how a strip shows it."""

    name: str
    symbol: str
    values: Callable[[Rollout], Sequence[float]]
    threshold: float  # by default
    levels: tuple[float, ...]  # of the scale; beyond the last one the colour stays the same
    scale: list[list[Any]]


ENTROPY = Quantity(
    "entropy", "H", lambda rollout: rollout.entropies, FORK, (0, 0.5, 1, BRIGHTEST), SEQUENTIAL
)
QUANTITIES = {
    "entropy": ENTROPY,
    "surprisal": Quantity(
        "surprisal",
        "−log π",
        lambda rollout: [-logp for logp in rollout.logprobs_t1],
        4.0,  # κ of the cost in S_IB
        (0, 2, 4, 6, 8),
        get_colorscale("Magma"),  # not entropy's colours
    ),
}
"""Entropy: how open the choice was. Surprisal: how unlikely what was chosen."""


def entropy_strip(
    trace: Trace, index: int = 0, *, threshold: float | None = None, quantity: str = "entropy"
) -> View:
    """The tokens of one rollout, each coloured by its entropy H_t; one row per line of text.

    Cells above the threshold also have an outline and a ▼.

    Args:
        trace: the rollout's trace.
        index: which rollout.
        threshold: in nats; by default 0.7 of entropy, 4 of surprisal.
        quantity: "entropy", or "surprisal" for −log π(o_t) at temperature 1, in its own colours.

    Raises:
        ValueError: there is no such rollout or quantity, or the rollout has no tokens.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"There is no quantity {quantity!r}; choose {' or '.join(QUANTITIES)}.")
    shows = QUANTITIES[quantity]
    threshold = shows.threshold if threshold is None else threshold
    if not 0 <= index < len(trace.rollouts):
        raise ValueError(f"There is no rollout {index}; choose 0 to {len(trace.rollouts) - 1}.")
    rollout = trace.rollouts[index]
    if not len(rollout):
        raise ValueError(f"Rollout {index} has no tokens to draw; choose another one.")
    glyphs = [token_text(piece) for piece in rollout.pieces]
    widths = [_width(glyph) for glyph in glyphs]
    places, lines = _places(rollout.pieces, widths)
    values = shows.values(rollout)
    forks = [t for t, value in enumerate(values) if value > threshold]
    numbers = list(zip(rollout.pieces, rollout.entropies, rollout.logprobs_t1, strict=True))
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        base=[x for x, _ in places],
        x=[width - 0.12 for width in widths],
        y=[row for _, row in places],
        width=0.72,
        hovertext=[
            f"<b>{escape(repr(piece), 60)}</b><br>H = {h:.3f} nat<br>log π = {logp:.3f} nat"
            f"<br>token {t}"
            for t, (piece, h, logp) in enumerate(numbers)
        ],
        hoverinfo="text",
        showlegend=False,
        **_cells(glyphs, values, threshold, shows),
    )
    figure.add_scatter(
        x=[places[t][0] + widths[t] / 2 for t in forks],
        y=[places[t][1] - 0.45 for t in forks],
        mode="markers",
        marker={"symbol": "triangle-down", "size": 8, "color": INK},
        name=f"and outline: {shows.symbol} above {threshold:g} nat",
        hoverinfo="skip",
        showlegend=True,
    )
    _scale(figure, shows)
    told = f", {shows.name} {shows.symbol}" * (shows is not ENTROPY)
    across = max(x + width for (x, _), width in zip(places, widths, strict=True))
    _frame(figure, trace, f"rollout {index}, {outcome(rollout)}{told}", places, across)
    return View(
        figure,
        f"{shows.name.capitalize()} of rollout {index} ({outcome(rollout)}): {len(rollout)} "
        f"tokens in {lines} lines; mean {number(fmean(values), 2)} nat; {len(forks)} tokens above "
        f"{threshold:g} nat{_list(glyphs, values, forks)}.",
        (
            ("t", "token", "H (nat)", "log π (nat)"),
            *(
                (str(t), repr(piece), number(h, 3), number(logp, 3))
                for t, (piece, h, logp) in enumerate(numbers)
            ),
        ),
    )


def _cells(
    glyphs: Sequence[str], values: Sequence[float], threshold: float, shows: Quantity
) -> dict[str, Any]:
    """Text, colour and outline of each token's cell."""
    colours = [shade(value / shows.levels[-1], shows.scale) for value in values]
    return {
        "text": [escape(glyph) for glyph in glyphs],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "constraintext": "none",
        "textangle": 0,
        "insidetextfont": {"family": MONO, "color": list(map(ink, colours))},
        "marker": {
            "color": colours,
            "line": {"color": INK, "width": [2.5 * (value > threshold) for value in values]},
        },
    }


def _frame(
    figure: go.Figure, trace: Trace, title: str, places: Sequence[Place], across: float
) -> None:
    """The question as title, and at the left of each row its first token's number."""
    first = {row: t for t, (_, row) in reversed(list(enumerate(places)))}
    rows = places[-1][1] + 1
    question = textwrap.wrap(visible(trace.question.text, 300), 90)
    styled(
        figure,
        title="<br>".join([*map(escape, question), title]),
        height=max(250, 88 + 20 * len(question) + 32 * rows),
        margin={"l": 50, "t": 62 + 20 * len(question), "b": 16},
        xaxis={"visible": False, "range": [0, max(NARROWEST, across)]},
        yaxis={
            "range": [rows - 0.45, -0.75],
            "tickvals": list(first),
            "ticktext": [str(t) for t in first.values()],
            "tickfont": {"color": MUTED},
            "title": {"text": "t of the row's first token", "font": {"size": 12}},
            "showgrid": False,
        },
    )


def entropy_scale(figure: go.Figure, **colorbar: Any) -> None:
    """Add the scale of the entropy colours, the same in every figure."""
    _scale(figure, ENTROPY, **colorbar)


def _scale(figure: go.Figure, shows: Quantity, **colorbar: Any) -> None:
    names = [*(f"{level:g}" for level in shows.levels[:-1]), f"≥ {shows.levels[-1]:g}"]
    figure.add_scatter(  # no points, only the scale
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            "colorscale": shows.scale,
            "cmin": 0,
            "cmax": shows.levels[-1],
            "colorbar": {
                "title": {
                    "text": f"{shows.symbol} (nat)<br> ",
                    "side": "top",
                    "font": {"size": 13},
                },
                "tickvals": shows.levels,
                "ticktext": names,
                "thickness": 14,
                "len": 1,
                "outlinewidth": 0,
            }
            | colorbar,
        },
        showlegend=False,
    )


def token_text(piece: str) -> str:
    """A token as plain text that shows its blanks."""
    return visible(piece, 24).replace(" ", "␣") or "∅"


def _width(glyphs: str) -> float:
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in glyphs)
    return max(2.0, len(glyphs) + wide + 0.6)


def _places(pieces: Sequence[str], widths: Sequence[float]) -> tuple[list[Place], int]:
    """The place of each token, and the number of lines of text."""
    places: list[Place] = []
    x, row, lines = 0.0, 0, 1
    for at, width in enumerate(widths):
        ended = at > 0 and "\n" in pieces[at - 1]
        lines += ended
        if ended or (x > 0 and x + width > WRAP):
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    return places, lines


def outcome(rollout: Rollout) -> str:
    """Correct, wrong or the reward in between, in words."""
    if rollout.reward is None:
        return "not verified"
    if rollout.correct:
        return "✓ correct"
    return "✗ wrong" if rollout.reward == 0 else f"reward {rollout.reward:.2f}"


def _list(glyphs: Sequence[str], values: Sequence[float], forks: Sequence[int]) -> str:
    if not forks:
        return ""
    named = ", ".join(f"'{glyphs[t]}' {number(values[t], 2)} at token {t}" for t in forks[:NAMED])
    more = f", and {len(forks) - NAMED} more" if len(forks) > NAMED else ""
    return f": {named}{more}"
