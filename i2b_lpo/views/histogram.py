"""Many tokens at once: most are nearly certain, a few are forks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from math import inf, sqrt
from statistics import fmean

import plotly.graph_objects as go

from i2b_lpo.method.metrics import FORK, SURE
from i2b_lpo.trace import Trace
from i2b_lpo.views.base import INK, MUTED, STYLES, Style, View, hatched, styled, styles
from i2b_lpo.views.text import escape, number, percent

__all__ = ["entropy_histogram"]

EDGES = (0.0, 0.01, 0.02, SURE, 0.1, 0.2, 0.4, FORK, 1.0, 1.4, 2.0, inf)
BINS = len(EDGES) - 1
SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)


def entropy_histogram(
    traces: Sequence[Trace] | Mapping[str, Sequence[Trace]], *, words: Collection[str] = ()
) -> View:
    """How the entropies H_t of all tokens are distributed, for one policy or several by name.

    The share axis is a square root: most tokens are certain, and the point is the few others.

    Args:
        traces: of one policy, or name → traces.
        words: tokens (without surrounding blanks) that get a second, hatched series.

    Raises:
        ValueError: there is no group, or one has no tokens.
    """
    named = isinstance(traces, Mapping)
    groups = dict(traces) if isinstance(traces, Mapping) else {"all tokens": traces}
    looks = styles(groups) if named else {"all tokens": Style("#C4C4C4")}
    tokens = {name: _tokens(found) for name, found in groups.items()}
    if not tokens or not all(tokens.values()):
        raise ValueError("There are no tokens to count; give every group traces with rollouts.")
    figure = go.Figure()
    sentences = []
    columns: dict[str, list[float]] = {}
    width = 0.84 / len(groups)
    for place, (name, pairs) in enumerate(tokens.items()):
        entropies = [h for _, h in pairs]
        shares = columns[name] = _shares(entropies, len(pairs))
        summary = (
            f"{percent(fmean(h <= SURE for h in entropies))} at most {SURE} nat, "
            f"{percent(fmean(h > FORK for h in entropies))} above {FORK} nat"
        )
        x = [i + 0.08 + width * (place + 0.5) for i in range(BINS)]
        _policy_bars(figure, name, summary, shares, x, width, looks[name])
        sentence = f"{name}: {len(pairs)} tokens, mean {number(fmean(entropies), 2)} nat, {summary}"
        if words:
            forks = [h for piece, h in pairs if piece.strip() in words]
            parts = columns[f"{name}, hatched"] = _shares(forks, len(pairs))
            _word_bars(figure, words, parts, x, width, in_legend=place == 0)
            mean = f", mean {number(fmean(forks), 2)} nat" if forks else ""
            sentence += f"; {len(forks)} of the hatched words{mean}"
        sentences.append(sentence)
    _zones(figure)
    _frame(figure, len(groups) + bool(words), max(map(max, columns.values())))
    return View(
        figure,
        "Distribution of token entropy: " + ". ".join(sentences) + ".",
        (
            ("H (nat)", *columns),
            *((_range(i), *(percent(row[i], 2) for row in columns.values())) for i in range(BINS)),
        ),
    )


def _policy_bars(
    figure: go.Figure,
    name: str,
    summary: str,
    shares: Sequence[float],
    x: Sequence[float],
    width: float,
    style: Style,
) -> None:
    """A policy's bar in each range, with its share above it."""
    figure.add_bar(
        x=x,
        y=[sqrt(share) or None for share in shares],
        width=width * 0.94,
        name=f"{escape(name, 24)}: {escape(summary)}",
        text=[_label(share) for share in shares],
        textposition="outside",
        textfont={"size": 11},
        textangle=0,
        constraintext="none",
        cliponaxis=False,
        marker=hatched(style),
        hovertext=_hover(name, shares),
        hoverinfo="text",
    )


def _word_bars(
    figure: go.Figure,
    words: Collection[str],
    shares: Sequence[float],
    x: Sequence[float],
    width: float,
    *,
    in_legend: bool,
) -> None:
    """The part of a policy's bars that the named words make, hatched in front of them."""
    figure.add_bar(
        x=x,
        y=[sqrt(share) or None for share in shares],
        width=width * 0.55,
        name="hatched: " + escape(", ".join(words), 60),
        legendrank=2000,  # after every policy
        legendgroup="words",
        showlegend=in_legend,
        marker={
            "color": "white",
            "line": {"color": INK, "width": 1.2},
            "pattern": {
                "shape": STYLES["strategy words"].hatch,
                "fgcolor": INK,
                "bgcolor": "white",
                "size": 6,
                "solidity": 0.3,
            },
        },
        hovertext=_hover(", ".join(words), shares),
        hoverinfo="text",
    )


def _zones(figure: go.Figure) -> None:
    """Lines where nearly certain tokens end and forks begin."""
    for edge, anchor, zone in ((SURE, "right", "nearly certain "), (FORK, "left", " forks")):
        at = EDGES.index(edge)
        figure.add_vline(x=at, line={"color": MUTED, "dash": "dot", "width": 1.5})
        figure.add_annotation(
            x=at,
            y=1,
            yref="y domain",
            xanchor=anchor,
            yanchor="top",
            text=zone,
            showarrow=False,
            font={"color": MUTED},
        )


def _frame(figure: go.Figure, entries: int, most: float) -> None:
    """Title and axes, with room for the legend's entries and the largest share."""
    styled(
        figure,
        title="Token entropy: share of all tokens in each range, in &#37;",
        height=400 + 24 * entries,
        barmode="overlay",
        margin={"t": 52 + 24 * entries, "b": 55},
        legend={"orientation": "v"},
        xaxis={
            "title": {"text": "H (nat), each range up to and including its upper end"},
            "range": [-0.05, BINS + 0.05],
            "tickvals": list(range(BINS + 1)),
            "ticktext": ["∞" if edge == inf else f"{edge:g}" for edge in EDGES],
            "showgrid": False,
        },
        yaxis={
            "title": {"text": "share of tokens (square-root scale)"},
            "tickvals": [sqrt(share) for share in SHARES],
            "ticktext": [escape(percent(share, 0)) for share in SHARES],
            "range": [0, min(1.08, 1.15 * sqrt(most))],
        },
    )


def _tokens(traces: Sequence[Trace]) -> list[tuple[str, float]]:
    rollouts = [rollout for trace in traces for rollout in trace.rollouts]
    return [pair for r in rollouts for pair in zip(r.pieces, r.entropies, strict=True)]


def _shares(entropies: Sequence[float], total: int) -> list[float]:
    counts = [0] * BINS
    for h in entropies:
        counts[max(0, bisect_left(EDGES, h) - 1)] += 1
    return [count / total for count in counts]


def _range(i: int) -> str:
    low, high = EDGES[i], EDGES[i + 1]
    return f"above {low:g}" if high == inf else f"{low:g} to {high:g}"


def _hover(name: str, shares: Sequence[float]) -> list[str]:
    return [
        f"{escape(name, 60)}<br>{_range(i)} nat: {escape(percent(share, 2))} of all tokens"
        for i, share in enumerate(shares)
    ]


def _label(share: float) -> str:
    return "" if not share else f"{100 * share:.0f}" if share > 0.095 else f"{100 * share:.1f}"
