"""Policies side by side: metrics with their intervals, and the strategies they use.

The arguments are `Evaluation.to_json` dicts by policy name, as a run folder holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from i2b_lpo.views.base import GRID, INK, Style, View, hatched, heading, styled, styles
from i2b_lpo.views.text import escape, interval, label, number, percent

__all__ = ["comparison", "is_accuracy", "strategy_shares"]

Evaluations = Mapping[str, Mapping[str, Any]]

OTHERS = ("entropy", "distinct strategies", "length", "rep-4")
STEP = 24  # pixels from one policy's dot to the next
GAP = 52  # pixels between two panels


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of right answers."""
    return metric == "greedy" or metric.startswith(("pass@", "maj@", "avg@"))


def _check(evaluations: Evaluations, field: str) -> None:
    if not evaluations:
        raise ValueError("There is no evaluation to draw; give at least one by name.")
    for name, found in evaluations.items():
        if not found.get(field):
            raise ValueError(f"The evaluation {name!r} has no {field}; give Evaluation.to_json().")


# --- metrics ------------------------------------------------------------------------------------


def comparison(evaluations: Evaluations, *, metrics: Sequence[str] = ()) -> View:
    """Metrics of several policies: a mark for the mean, a line for its interval.

    Accuracies share one panel from 0 to 1; every other metric has a panel with its own scale.

    Args:
        evaluations: policy name → `Evaluation.to_json()`.
        metrics: which; by default all accuracies, entropy, distinct strategies, length and rep-4.

    Raises:
        ValueError: there is nothing to draw, or no evaluation has a requested metric.
    """
    _check(evaluations, "metrics")
    known = list(dict.fromkeys(m for e in evaluations.values() for m in e["metrics"]))
    if missing := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"No evaluation has {', '.join(missing)}; choose from {', '.join(known)}.")
    wanted = list(metrics) or [*filter(is_accuracy, known), *(m for m in OTHERS if m in known)]
    if not wanted:
        raise ValueError(f"Name the metrics to draw; the evaluations have {', '.join(known)}.")
    accuracies = [metric for metric in wanted if is_accuracy(metric)]
    others = [metric for metric in wanted if not is_accuracy(metric)]
    band = STEP * len(evaluations)
    tall = max((band + 14) * len(accuracies), (band + GAP) * len(others) - GAP, 60)
    figure = _panels(bool(accuracies), len(others), tall)
    looks = styles(evaluations)
    if accuracies:
        cell = {"row": 1, "col": 1}
        heading(figure, "accuracy (share of right answers)", **cell)
        _marks(figure, evaluations, accuracies, looks, **cell)
        figure.update_xaxes(range=[-0.02, 1.16], tickvals=[0, 0.25, 0.5, 0.75, 1], **cell)
        names = [escape(metric, 24) for metric in accuracies]
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, **cell)
    for at, metric in enumerate(others):
        cell = {"row": at + 1, "col": 2 if accuracies else 1}
        heading(figure, escape(label(metric), 40), **cell)
        low, high = _marks(figure, evaluations, [metric], looks, **cell)
        span = (high - low) or abs(high) or 1.0
        figure.update_xaxes(range=[low - 0.12 * span, high + 0.35 * span], nticks=5, **cell)
        figure.update_yaxes(tickvals=[], **cell)
    height = tall + 183
    styled(
        figure,
        title=f"{_subject(evaluations)}<br>means over questions with 95 &#37; bootstrap intervals",
        height=height,
        margin={"t": 133, "b": 50},
        legend={"y": 1 - 54 / height, "yref": "container", "yanchor": "top"},
    )
    found = [
        (
            metric,
            [(n, e["metrics"][metric]) for n, e in evaluations.items() if metric in e["metrics"]],
        )
        for metric in wanted
    ]
    return View(
        figure,
        "Comparison (mean and 95 % interval): "
        + "; ".join(
            f"{label(metric)}: {', '.join(f'{name} {interval(cell)}' for name, cell in cells)}"
            for metric, cells in found
        )
        + ".",
        (
            ("metric", "policy", "mean", "low", "high", "questions"),
            *(
                (
                    label(metric),
                    name,
                    *(number(cell[k]) for k in ("mean", "low", "high")),
                    str(cell["n"]),
                )
                for metric, cells in found
                for name, cell in cells
            ),
        ),
    )


def _panels(accuracies: bool, others: int, tall: int) -> go.Figure:
    rows = max(1, others)
    spacing = GAP / tall if rows > 1 else 0
    if not (accuracies and others):
        return make_subplots(rows=rows, cols=1, vertical_spacing=spacing)
    return make_subplots(
        rows=rows,
        cols=2,
        specs=[[{"rowspan": rows} if row == 0 else None, {}] for row in range(rows)],
        column_widths=[0.56, 0.44],
        horizontal_spacing=0.07,
        vertical_spacing=spacing,
    )


def _subject(evaluations: Evaluations) -> str:
    subjects = {
        f"{e.get('task')}, {e.get('questions')} questions × {e.get('samples')} samples"
        for e in evaluations.values()
    }
    return escape(subjects.pop(), 70) if len(subjects) == 1 else "Policies compared"


def _marks(
    figure: go.Figure,
    evaluations: Evaluations,
    metrics: Sequence[str],
    looks: Mapping[str, Style],
    *,
    row: int,
    col: int,
) -> tuple[float, float]:
    """Draw one row per metric; return the lowest and the highest end of an interval."""
    ends: list[float] = []
    for place, (name, evaluation) in enumerate(evaluations.items()):
        measured = evaluation["metrics"]
        cells = [(at, measured[m]) for at, m in enumerate(metrics) if m in measured]
        ends += [cell[end] for _, cell in cells for end in ("low", "high")]
        offset = 0.8 * ((place + 0.5) / len(evaluations) - 0.5)
        style = looks[name]
        here = {"y": [at + offset for at, _ in cells], "row": row, "col": col}
        figure.add_scatter(
            **here,
            x=[cell["mean"] for _, cell in cells],
            mode="markers",
            name=escape(name, 40),
            legendgroup=f"{place}",
            showlegend=row == col == 1,
            marker={
                "color": style.colour,
                "symbol": style.symbol,
                "size": 10,
                "line": {"color": INK, "width": 0.8},
            },
            error_x={
                "array": [cell["high"] - cell["mean"] for _, cell in cells],
                "arrayminus": [cell["mean"] - cell["low"] for _, cell in cells],
                "color": style.colour,
                "thickness": 2,
                "width": 5,
            },
            hovertext=[
                f"{escape(name, 40)}, {escape(label(metrics[at]), 40)}: {interval(cell)}"
                for at, cell in cells
            ],
            hoverinfo="text",
        )
        figure.add_scatter(
            **here,
            x=[cell["high"] for _, cell in cells],
            mode="text",
            text=[f"  {number(cell['mean'])}" for _, cell in cells],
            textposition="middle right",
            textfont={"size": 12},
            showlegend=False,
            hoverinfo="skip",
            cliponaxis=False,
        )
    figure.update_yaxes(range=[len(metrics) - 0.5, -0.5], showgrid=False, row=row, col=col)
    for line in range(1, len(metrics)):
        figure.add_hline(y=line - 0.5, line={"color": GRID, "width": 1}, row=row, col=col)
    return min(ends), max(ends)


# --- strategies ---------------------------------------------------------------------------------


UNUSED = {"share": 0.0, "product_right": None, "trace_right": None, "count": 0}


def strategy_shares(evaluations: Evaluations) -> View:
    """How often each strategy is used, and how often it gives the true product.

    Args:
        evaluations: policy name → `Evaluation.to_json()`.

    Raises:
        ValueError: an evaluation has no strategies.
    """
    _check(evaluations, "strategies")
    names = list(dict.fromkeys(s for e in evaluations.values() for s in e["strategies"]))
    looks = styles(evaluations)
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.08, shared_yaxes=True)
    thick = 0.8 / len(evaluations)
    sentences = []
    table = []
    for place, (policy, evaluation) in enumerate(evaluations.items()):
        uses = [evaluation["strategies"].get(name, UNUSED) for name in names]
        shares = [percent(use["share"]) for use in uses]
        right = [_of(use["product_right"], use["count"]) for use in uses]
        bars = {
            "y": [at - 0.4 + thick * (place + 0.5) for at in range(len(names))],
            "orientation": "h",
            "width": thick * 0.9,
            "name": escape(policy, 40),
            "legendgroup": f"{place}",
            "textposition": "outside",
            "textfont": {"size": 12},
            "cliponaxis": False,
            "hovertext": [
                f"{escape(policy, 40)}, {escape(name, 24)}<br>{escape(share)} of all uses<br>"
                f"right: {escape(text)}"
                for name, share, text in zip(names, shares, right, strict=True)
            ],
            "hoverinfo": "text",
            "marker": hatched(looks[policy]),
            "row": 1,
        }
        figure.add_bar(
            **bars, col=1, x=[use["share"] for use in uses], text=list(map(escape, shares))
        )
        figure.add_bar(
            **bars,
            col=2,
            x=[use["product_right"] or 0.0 for use in uses],
            text=list(map(escape, right)),
            showlegend=False,
        )
        rows = list(zip(names, shares, right, uses, strict=True))
        table += [
            (name, policy, share, text, _of(use["trace_right"], use["count"]))
            for name, share, text, use in rows
        ]
        parts = [f"{name} {share} (right: {text})" for name, share, text, _ in rows]
        sentences.append(f"{policy}: {', '.join(parts)}")
    heading(figure, "share of all uses", row=1, col=1)
    heading(figure, "uses that gave the true product", row=1, col=2)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    most = max(use["share"] for e in evaluations.values() for use in e["strategies"].values())
    figure.update_xaxes(tickvals=ticks, ticktext=[escape(percent(tick, 0)) for tick in ticks])
    figure.update_xaxes(range=[0, 1.25 * most], row=1, col=1)
    figure.update_xaxes(range=[0, 1.4], row=1, col=2)
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tickvals=list(range(len(names))),
        ticktext=[escape(name, 24) for name in names],
        showgrid=False,
    )
    height = (22 * len(evaluations) + 14) * len(names) + 160
    styled(
        figure,
        title="Strategies: how often they are used, how often they are right",
        height=height,
        barmode="overlay",
        margin={"t": 110, "b": 45},
        legend={"y": 1 - 36 / height, "yref": "container", "yanchor": "top"},
    )
    return View(
        figure,
        "Strategies by share of all uses, and how often they gave the true product: "
        + "; ".join(sentences)
        + ".",
        (("strategy", "policy", "share of uses", "product right", "whole trace right"), *table),
    )


def _of(share: float | None, count: int) -> str:
    return "not used" if share is None else f"{percent(share)} of {count}"
