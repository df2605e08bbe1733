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
        bars = {"x": [i + 0.08 + width * (place + 0.5) for i in range(BINS)], "hoverinfo": "text"}
        figure.add_bar(
            **bars,
            y=[sqrt(share) or None for share in shares],
            width=width * 0.94,
            name=f"{escape(name, 24)}: {escape(summary)}",
            text=[_label(share) for share in shares],
            textposition="outside",
            textfont={"size": 11},
            textangle=0,
            constraintext="none",
            cliponaxis=False,
            marker=hatched(looks[name]),
            hovertext=_hover(name, shares),
        )
        sentence = f"{name}: {len(pairs)} tokens, mean {number(fmean(entropies), 2)} nat, {summary}"
        if words:
            forks = [h for piece, h in pairs if piece.strip() in words]
            parts = columns[f"{name}, hatched"] = _shares(forks, len(pairs))
            figure.add_bar(
                **bars,
                y=[sqrt(share) or None for share in parts],
                width=width * 0.55,
                name="hatched: " + escape(", ".join(words), 60),
                legendrank=2000,  # after every policy
                legendgroup="words",
                showlegend=place == 0,
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
                hovertext=_hover(", ".join(words), parts),
            )
            mean = f", mean {number(fmean(forks), 2)} nat" if forks else ""
            sentence += f"; {len(forks)} of the hatched words{mean}"
        sentences.append(sentence)
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
    entries = len(groups) + bool(words)
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
            "range": [0, min(1.08, 1.15 * sqrt(max(map(max, columns.values()))))],
        },
    )
    return View(
        figure,
        "Distribution of token entropy: " + ". ".join(sentences) + ".",
        (
            ("H (nat)", *columns),
            *((_range(i), *(percent(row[i], 2) for row in columns.values())) for i in range(BINS)),
        ),
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
