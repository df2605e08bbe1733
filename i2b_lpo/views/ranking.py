"""The order that S_IB gives to kinds of trace, beside shuffled scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from plotly.subplots import make_subplots

from i2b_lpo.method.metrics import Interval, bootstrap_interval
from i2b_lpo.views.base import INK, MUTED, STYLES, View, hatched, heading, styled
from i2b_lpo.views.categories import PALETTE
from i2b_lpo.views.text import escape, number, percent

__all__ = ["ib_ranking"]

SHUFFLES = 20

Series = dict[str, dict[str, Interval]]
"""Estimator → what each kind beats; how often the first kind is first, and the last last."""


def ib_ranking(
    scores: Mapping[str, Sequence[Sequence[float]]], kinds: Sequence[str], *, seed: int = 0
) -> View:
    """How well each estimator orders the kinds of trace, compared with shuffled scores.

    Left, the share of the other kinds that a kind beats on the same problem: 1 is always first, 0
    always last, and with shuffled scores all are at one half. Right, how often the first kind is
    first and the last kind last. Bars with 95 % bootstrap intervals over problems. The control's
    bars are means of 20 shuffles, and reach from the lowest to the highest of a single one: what
    chance alone makes of so many problems.

    Args:
        scores: estimator → for each problem the score of each kind.
        kinds: the kinds in the order that the scores should give, best first.
        seed: of the shuffles, the control: the first estimator's scores, permuted in each problem.

    Raises:
        ValueError: fewer than two kinds, no scores, or a problem without one finite score a kind.
    """
    if len(kinds) < 2:
        raise ValueError("An order needs at least two kinds of trace.")
    if not scores or not all(scores.values()):
        raise ValueError("There are no scores to rank; give a row for each problem.")
    for name, rows in scores.items():
        if not all(len(row) == len(kinds) and all(map(isfinite, row)) for row in rows):
            raise ValueError(f"{name!r} needs one finite score a kind for each problem.")
    if len({len(rows) for rows in scores.values()}) > 1:
        raise ValueError("Every estimator needs scores of the same problems.")
    if "shuffled" in scores or len(scores) >= len(PALETTE):
        raise ValueError(f"Give fewer than {len(PALETTE)} estimators; shuffled is made here.")
    first = next(iter(scores.values()))
    looks = dict(zip(scores, PALETTE, strict=False)) | {"shuffled": STYLES["control"]}
    series: Series = {
        name: {what: bootstrap_interval(values) for what, values in _placed(rows, kinds).items()}
        for name, rows in scores.items()
    }
    series["shuffled"] = _shuffled(first, kinds, random.Random(seed))
    best, worst = f"{kinds[0]} first", f"{kinds[-1]} last"
    figure = make_subplots(rows=1, cols=2, column_widths=[0.62, 0.38], horizontal_spacing=0.08)
    thick = 0.84 / len(series)
    for place, (name, found) in enumerate(series.items()):
        bar = {
            "name": escape(name, 40),
            "legendgroup": f"{place}",
            "marker": hatched(looks[name]),
            "width": thick * 0.92,
        }
        for col, columns in enumerate(([*kinds], [best, worst]), 1):
            cells = [(column, found[column]) for column in columns]
            _bars(figure, col, cells, thick * (place + 0.5), bar)
    _axes(figure, list(kinds), "share of the other kinds that it beats, in &#37;", 1)
    _axes(figure, [best, worst], "share of problems, in &#37;", 2)
    figure.add_hline(y=0.5, line={"color": MUTED, "dash": "dot", "width": 1.5}, row=1, col=1)
    height = 430
    styled(
        figure,
        title=f"The order that S<sub>IB</sub> gives to {len(first)} × {len(kinds)} traces, "
        "beside shuffled scores",
        height=height,
        barmode="overlay",
        margin={"t": 110, "b": 45},
        legend={"y": 1 - 36 / height, "yref": "container", "yanchor": "top"},
    )
    table = [
        (name, what, str(cell)) for name, found in series.items() for what, cell in found.items()
    ]
    return View(
        figure,
        f"Order of {len(kinds)} kinds of trace of {len(first)} problems, by the share of the other "
        f"kinds that each beats: {_words(series, kinds, best, worst)}.",
        (("scores", "what", "share [95 % interval]"), *table),
    )


# --- the shares ---------------------------------------------------------------------------------


def _placed(rows: Sequence[Sequence[float]], kinds: Sequence[str]) -> dict[str, list[float]]:
    """For each problem: what each kind beats; whether the first kind is first, the last last."""
    return {
        **{kind: [_beaten(r, at) for r in rows] for at, kind in enumerate(kinds)},
        f"{kinds[0]} first": [float(r[0] > max(r[1:])) for r in rows],
        f"{kinds[-1]} last": [float(r[-1] < min(r[:-1])) for r in rows],
    }


def _shuffled(
    rows: Sequence[Sequence[float]], kinds: Sequence[str], rng: random.Random
) -> dict[str, Interval]:
    """What chance alone places, permuting each problem's scores: means and ends of the shuffles."""
    shuffles = [
        _placed([rng.sample(list(row), len(row)) for row in rows], kinds) for _ in range(SHUFFLES)
    ]
    spread = {}
    for what in shuffles[0]:
        means = [fmean(shuffle[what]) for shuffle in shuffles]
        spread[what] = Interval(fmean(means), min(means), max(means), len(rows))
    return spread


def _beaten(row: Sequence[float], at: int) -> float:
    others = [value for i, value in enumerate(row) if i != at]
    return fmean((row[at] > other) + 0.5 * (row[at] == other) for other in others)


# --- the drawing --------------------------------------------------------------------------------


def _bars(
    figure: Any,
    col: int,
    cells: Sequence[tuple[str, Interval]],
    shift: float,
    bar: Mapping[str, Any],
) -> None:
    """One estimator's bars in one panel, each with its interval and its number."""
    x = [at - 0.42 + shift for at in range(len(cells))]
    found = [cell for _, cell in cells]
    figure.add_bar(
        **bar,
        x=x,
        y=[cell.mean for cell in found],
        showlegend=col == 1,
        error_y={
            "array": [cell.high - cell.mean for cell in found],
            "arrayminus": [cell.mean - cell.low for cell in found],
            "color": INK,
            "thickness": 1.5,
            "width": 4,
        },
        hovertext=[f"{bar['name']}, {escape(column, 40)}: {cell}" for column, cell in cells],
        hoverinfo="text",
        row=1,
        col=col,
    )
    figure.add_scatter(
        x=x,
        y=[cell.high for cell in found],
        mode="text",
        text=[f"{100 * cell.mean:.0f}" for cell in found],
        textposition="top center",
        textfont={"size": 11},
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
        row=1,
        col=col,
    )


def _axes(figure: Any, columns: Sequence[str], title: str, col: int) -> None:
    """A panel's names and ticks; `title` is escaped already."""
    heading(figure, title, row=1, col=col)
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[escape(column, 24) for column in columns],
        range=[-0.6, len(columns) - 0.4],
        showgrid=False,
        row=1,
        col=col,
    )
    ticks = [0, 0.25, 0.5, 0.75, 1]
    names = [f"{100 * at:.0f}" for at in ticks]
    figure.update_yaxes(range=[0, 1.14], tickvals=ticks, ticktext=names, row=1, col=col)


def _words(series: Series, kinds: Sequence[str], best: str, worst: str) -> str:
    """The order of each estimator, and how far single shuffles reach."""
    said = []
    for name, found in series.items():
        order = sorted(kinds, key=lambda kind: -found[kind].mean)
        said.append(
            f"{name}: {' > '.join(f'{kind} {number(found[kind].mean, 2)}' for kind in order)}, "
            f"{best} {percent(found[best].mean, 0)}, {worst} {percent(found[worst].mean, 0)}"
        )
    control = series["shuffled"]
    told = ", ".join(
        f"{kind} {number(control[kind].low, 2)} to {number(control[kind].high, 2)}"
        for kind in kinds
    )
    return "; ".join([*said, f"single ones of the {SHUFFLES} shuffles: {told}"])
