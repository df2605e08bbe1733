"""One rollout token by token: where did the policy hesitate?"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from i2b_lpo.metrics import FORK
from i2b_lpo.trace import Rollout, Trace
from i2b_lpo.views.base import INK, MONO, MUTED, SEQUENTIAL, View, ink, shade, styled
from i2b_lpo.views.text import escape, number, visible

__all__ = ["BRIGHTEST", "entropy_scale", "entropy_strip", "token_text"]

BRIGHTEST = 1.5  # nat; the same colour means the same entropy in every strip
WRAP = 60  # characters in a row
NARROWEST = 36  # characters across, so that short lines don't become wide boxes
LEVELS = [0, 0.5, 1, BRIGHTEST]
NAMED = 8  # tokens that the words name


def entropy_strip(trace: Trace, index: int = 0, *, threshold: float = FORK) -> View:
    """The tokens of one rollout, each coloured by its entropy H_t; one row a line of text.

    Cells above the threshold also have an outline and a ▼.

    Args:
        trace: the rollout's trace.
        index: which rollout.
        threshold: in nats.

    Raises:
        ValueError: there is no such rollout, or it has no tokens.
    """
    if not 0 <= index < len(trace.rollouts):
        raise ValueError(f"There is no rollout {index}; choose 0 to {len(trace.rollouts) - 1}.")
    rollout = trace.rollouts[index]
    if not len(rollout):
        raise ValueError(f"Rollout {index} has no tokens to draw; choose another one.")
    glyphs = [token_text(piece) for piece in rollout.pieces]
    widths = [_width(glyph) for glyph in glyphs]
    places, lines = _places(rollout.pieces, widths)
    forks = [t for t, h in enumerate(rollout.entropies) if h > threshold]
    colours = [shade(h / BRIGHTEST) for h in rollout.entropies]
    numbers = list(zip(rollout.pieces, rollout.entropies, rollout.logprobs_t1, strict=True))
    rows = places[-1][1] + 1
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        base=[x for x, _ in places],
        x=[width - 0.12 for width in widths],
        y=[row for _, row in places],
        width=0.72,
        text=[escape(glyph) for glyph in glyphs],
        textposition="inside",
        insidetextanchor="middle",
        constraintext="none",
        textangle=0,
        insidetextfont={"family": MONO, "color": list(map(ink, colours))},
        hovertext=[
            f"<b>{escape(repr(piece), 60)}</b><br>H = {h:.3f} nat<br>log π = {logp:.3f} nat"
            f"<br>token {t}"
            for t, (piece, h, logp) in enumerate(numbers)
        ],
        hoverinfo="text",
        marker={
            "color": colours,
            "line": {"color": INK, "width": [2.5 * (h > threshold) for h in rollout.entropies]},
        },
        showlegend=False,
    )
    figure.add_scatter(
        x=[places[t][0] + widths[t] / 2 for t in forks],
        y=[places[t][1] - 0.45 for t in forks],
        mode="markers",
        marker={"symbol": "triangle-down", "size": 8, "color": INK},
        name=f"and outline: H above {threshold:g} nat",
        hoverinfo="skip",
        showlegend=True,
    )
    entropy_scale(figure)
    first = {row: t for t, (_, row) in reversed(list(enumerate(places)))}
    question = textwrap.wrap(visible(trace.question.text, 300), 90)
    title = "<br>".join([*map(escape, question), f"rollout {index}, {_verdict(rollout)}"])
    across = max(x + width for (x, _), width in zip(places, widths, strict=True))
    styled(
        figure,
        title=title,
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
    return View(
        figure,
        f"Entropy of rollout {index} ({_verdict(rollout)}): {len(rollout)} tokens in {lines} "
        f"lines; mean {number(fmean(rollout.entropies), 2)} nat; {len(forks)} tokens above "
        f"{threshold:g} nat{_list(glyphs, rollout.entropies, forks)}.",
        (
            ("t", "token", "H (nat)", "log π (nat)"),
            *(
                (str(t), repr(piece), number(h, 3), number(logp, 3))
                for t, (piece, h, logp) in enumerate(numbers)
            ),
        ),
    )


def entropy_scale(figure: go.Figure, **colorbar: Any) -> None:
    """Add the scale of the entropy colours, the same in every figure."""
    figure.add_scatter(  # no points, only the scale
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": BRIGHTEST,
            "colorbar": {
                "title": {"text": "H (nat)<br> ", "side": "top", "font": {"size": 13}},
                "tickvals": LEVELS,
                "ticktext": [*(f"{level:g}" for level in LEVELS[:-1]), f"≥ {BRIGHTEST}"],
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


def _places(pieces: Sequence[str], widths: Sequence[float]) -> tuple[list[tuple[float, int]], int]:
    """Left end and row of each token, and the number of lines of text."""
    places: list[tuple[float, int]] = []
    x, row, lines = 0.0, 0, 1
    for at, width in enumerate(widths):
        ended = at > 0 and "\n" in pieces[at - 1]
        lines += ended
        if ended or (x > 0 and x + width > WRAP):
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    return places, lines


def _verdict(rollout: Rollout) -> str:
    if rollout.reward is None:
        return "not verified"
    return {1.0: "✓ correct", 0.0: "✗ wrong"}.get(rollout.reward, f"reward {rollout.reward:.2f}")


def _list(glyphs: Sequence[str], entropies: Sequence[float], forks: Sequence[int]) -> str:
    if not forks:
        return ""
    named = ", ".join(
        f"'{glyphs[t]}' {number(entropies[t], 2)} at token {t}" for t in forks[:NAMED]
    )
    more = f", and {len(forks) - NAMED} more" if len(forks) > NAMED else ""
    return f": {named}{more}"
