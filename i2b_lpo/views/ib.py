"""S_IB: what a trajectory tells about the answer against what it spends, and the order it gives."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite, log10
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from i2b_lpo.method.metrics import Interval, bootstrap_interval
from i2b_lpo.trace import Rollout, Score, Trace
from i2b_lpo.views.base import INK, MUTED, STYLES, Style, View, hatched, heading, styled
from i2b_lpo.views.categories import PALETTE, category_styles
from i2b_lpo.views.means import means
from i2b_lpo.views.text import escape, number, percent, signed

__all__ = ["ib_ranking", "ib_scatter"]

SHUFFLES = 20

Group = tuple[str, Style, list[tuple[Rollout, Score]]]


def ib_scatter(
    traces: Sequence[Trace], *, kinds: Sequence[Sequence[str]] = (), roots: bool = True
) -> View:
    """Scored trajectories by the two parts of S_IB: the cost across, the answer's part up.

    On a dotted line S_IB is the same; up and to the left is better. A pruned trajectory is open, a
    kept one filled. The large marker is the mean of its kind.

    Args:
        traces: trees with scores; a trajectory without one is left out, and counted in the words.
        kinds: for each trace the kind of each of its trajectories; by default it is the reward.
        roots: whether roots are drawn; no filter acts on them.

    Raises:
        ValueError: nothing is scored, a score isn't finite, or the kinds don't fit the traces.
    """
    if kinds and [len(row) for row in kinds] != [len(trace.rollouts) for trace in traces]:
        raise ValueError("Give a kind for each trajectory of each trace, or no kinds at all.")
    rollouts = [rollout for trace in traces for rollout in trace.rollouts]
    names = [name for row in kinds for name in row] if kinds else list(map(_outcome, rollouts))
    drawn = [each for each in zip(names, rollouts, strict=True) if roots or each[1].branch]
    scored = [(name, rollout, rollout.score) for name, rollout in drawn if rollout.score]
    if not scored:
        raise ValueError("No trajectory is scored; score the traces first (scoring.score_traces).")
    if not all(isfinite(part) for *_, s in scored for part in (s.answer, s.cost, s.value)):
        raise ValueError("Every score must be finite; look at what measured it.")
    looks = category_styles(name for name, *_ in scored)
    groups: list[Group] = [(name, style, _members(name, scored)) for name, style in looks.items()]
    pruned = any(not rollout.kept for _, rollout, _ in scored)
    figure = go.Figure()
    x_range = _span([s.cost for *_, s in scored])
    y_range = _span([s.answer for *_, s in scored])
    _same_score(figure, x_range, y_range)
    for name, style, members in groups:
        _points(figure, name, style, members)
    means(
        figure,
        [
            (name, style, fmean(s.cost for _, s in members), fmean(s.answer for _, s in members))
            for name, style, members in groups
            if len(members) > 2
        ],
    )
    if pruned:
        figure.add_scatter(  # no points, only the legend
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "circle-open", "size": 9, "color": INK, "line": {"width": 1.6}},
            name="open: pruned",
        )
    styled(
        figure,
        title="S<sub>IB</sub> = what it tells about the answer − what it costs; dotted: equal "
        "S<sub>IB</sub>",
        height=500,
        margin={"t": 80, "b": 55},
        showlegend=True,
        xaxis={"title": {"text": "cost I(q;o)"}, "range": x_range},
        yaxis={"title": {"text": "answer's part β<sub>IB</sub> I(o;a)"}, "range": y_range},
    )
    said, table = [], []
    for name, _, members in groups:
        value, answer, cost = (
            fmean(getattr(s, part) for _, s in members) for part in ("value", "answer", "cost")
        )
        kept = sum(r.kept for r, _ in members)
        words = (
            f"{name} {len(members)}, mean S_IB {signed(value, 2)} (answer {signed(answer, 2)}, "
            f"cost {signed(cost, 2)})"
        )
        said.append(words + f", {kept} kept" * pruned)
        shown = tuple(signed(part, 3) for part in (value, answer, cost))
        table.append((name, str(len(members)), *shown, str(kept)))
    without, left_out = len(drawn) - len(scored), len(rollouts) - len(drawn)
    return View(
        figure,
        f"S_IB of {len(scored)} trajectories by its parts, answer − cost: {'; '.join(said)}"
        + f"; {without} not scored" * bool(without)
        + f"; {left_out} roots left out" * bool(left_out)
        + ".",
        (("kind", "trajectories", "S_IB", "answer", "cost", "kept"), *table),
    )


def _outcome(rollout: Rollout) -> str:
    if rollout.reward is None:
        return "not verified"
    if rollout.correct:
        return "correct"
    return "wrong" if rollout.reward <= 0 else "reward between"


def _members(
    name: str, scored: Sequence[tuple[str, Rollout, Score]]
) -> list[tuple[Rollout, Score]]:
    members = [(rollout, score) for found, rollout, score in scored if found == name]
    return sorted(members, key=lambda member: not member[0].kept)  # the legend shows the first


def _span(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.1 * (high - low) or 0.5
    return [low - room, high + room]


def _same_score(figure: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Lines of equal S_IB = answer − cost, each with its value at its upper end."""
    low, high = y[0] - x[1], y[1] - x[0]
    coarse = (high - low) / 11
    power = 10.0 ** floor(log10(coarse))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= coarse)
    digits = max(0, -floor(log10(step)))
    lines: list[tuple[float, float, float]] = []  # S_IB, and the cost at both ends
    for at in range(ceil(low / step), floor(high / step) + 1):
        begin, end = max(x[0], y[0] - at * step), min(x[1], y[1] - at * step)
        if end - begin > 0.04 * (x[1] - x[0]):
            lines.append((at * step, begin, end))
    figure.add_scatter(
        x=[cost for _, begin, end in lines for cost in (begin, end, None)],
        y=[cost for value, begin, end in lines for cost in (begin + value, end + value, None)],
        mode="lines",
        line={"color": MUTED, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    # A line that leaves through the top has its number below its end, any other above it.
    top = [end < x[1] - 0.08 * (x[1] - x[0]) for *_, end in lines]
    figure.add_scatter(
        x=[end for *_, end in lines],
        y=[end + value for value, _, end in lines],
        mode="text",
        text=[signed(value, digits) for value, *_ in lines],
        textposition=["bottom right" if upper else "top left" for upper in top],
        textfont={"size": 11, "color": MUTED},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _points(figure: Any, name: str, style: Style, members: list[tuple[Rollout, Score]]) -> None:
    figure.add_scatter(
        x=[score.cost for _, score in members],
        y=[score.answer for _, score in members],
        mode="markers",
        name=f"{escape(name, 24)} ({len(members)})",
        marker={
            "symbol": [style.symbol if r.kept else f"{style.symbol}-open" for r, _ in members],
            "color": style.colour,
            "size": 9,
            "opacity": 0.75,
            "line": {"color": [INK if r.kept else style.colour for r, _ in members],
                     "width": [0.6 if r.kept else 1.6 for r, _ in members]},
        },
        hovertext=[_hover(name, rollout, score) for rollout, score in members],
        hoverinfo="text",
    )  # fmt: skip


def _hover(name: str, rollout: Rollout, score: Score) -> str:
    lines = [escape(line, 50) for line in rollout.text.split("\n")]
    head = (
        f"<b>{escape(name, 40)}</b>, {_outcome(rollout)}, {'kept' if rollout.kept else 'pruned'}"
        f"<br>S<sub>IB</sub> {signed(score.value, 2)}: answer {signed(score.answer, 2)}, "
        f"cost {signed(score.cost, 2)}"
    )
    return "<br>".join([head, *lines[:8], *(["…"] if len(lines) > 8 else [])])


# --- the order ----------------------------------------------------------------------------------


def ib_ranking(
    scores: Mapping[str, Sequence[Sequence[float]]], kinds: Sequence[str], *, seed: int = 0
) -> View:
    """How far each estimator brings the kinds of trace into order, beside shuffled scores.

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
    rng = random.Random(seed)
    first = next(iter(scores.values()))
    looks = dict(zip(scores, PALETTE, strict=False)) | {"shuffled": STYLES["control"]}
    best, worst = f"{kinds[0]} first", f"{kinds[-1]} last"
    series = {
        name: {what: bootstrap_interval(values) for what, values in _placed(rows, kinds).items()}
        for name, rows in scores.items()
    }
    shuffles = [
        _placed([rng.sample(list(row), len(row)) for row in first], kinds) for _ in range(SHUFFLES)
    ]
    series["shuffled"] = {
        what: _spread([fmean(shuffle[what]) for shuffle in shuffles], len(first))
        for what in shuffles[0]
    }
    panels = [(list(kinds), 1), ([best, worst], 2)]
    figure = make_subplots(rows=1, cols=2, column_widths=[0.62, 0.38], horizontal_spacing=0.08)
    thick = 0.84 / len(series)
    said, table = [], []
    for place, (name, found) in enumerate(series.items()):
        for columns, col in panels:
            cells = [found[column] for column in columns]
            figure.add_bar(
                x=[at - 0.42 + thick * (place + 0.5) for at in range(len(columns))],
                y=[cell.mean for cell in cells],
                width=thick * 0.92,
                name=escape(name, 40),
                legendgroup=f"{place}",
                showlegend=col == 1,
                marker=hatched(looks[name]),
                error_y={
                    "array": [cell.high - cell.mean for cell in cells],
                    "arrayminus": [cell.mean - cell.low for cell in cells],
                    "color": INK,
                    "thickness": 1.5,
                    "width": 4,
                },
                hovertext=[
                    f"{escape(name, 40)}, {escape(column, 40)}: {cell}"
                    for column, cell in zip(columns, cells, strict=True)
                ],
                hoverinfo="text",
                row=1,
                col=col,
            )
            figure.add_scatter(
                x=[at - 0.42 + thick * (place + 0.5) for at in range(len(columns))],
                y=[cell.high for cell in cells],
                mode="text",
                text=[f"{100 * cell.mean:.0f}" for cell in cells],
                textposition="top center",
                textfont={"size": 11},
                showlegend=False,
                hoverinfo="skip",
                cliponaxis=False,
                row=1,
                col=col,
            )
        order = sorted(kinds, key=lambda kind: -found[kind].mean)
        said.append(
            f"{name}: {' > '.join(f'{kind} {number(found[kind].mean, 2)}' for kind in order)}, "
            f"{best} {percent(found[best].mean, 0)}, {worst} {percent(found[worst].mean, 0)}"
        )
        table += [(name, column, str(cell)) for column, cell in found.items()]
    told = ", ".join(
        f"{kind} {number(series['shuffled'][kind].low, 2)} to "
        f"{number(series['shuffled'][kind].high, 2)}"
        for kind in kinds
    )
    said.append(f"single ones of the {SHUFFLES} shuffles: {told}")
    heading(figure, "share of the other kinds that it beats, in &#37;", row=1, col=1)
    heading(figure, "share of problems, in &#37;", row=1, col=2)
    for columns, col in panels:
        figure.update_xaxes(
            tickvals=list(range(len(columns))),
            ticktext=[escape(column, 24) for column in columns],
            range=[-0.6, len(columns) - 0.4],
            showgrid=False,
            row=1,
            col=col,
        )
    ticks = [0, 0.25, 0.5, 0.75, 1]
    figure.update_yaxes(
        range=[0, 1.14], tickvals=ticks, ticktext=[f"{100 * at:.0f}" for at in ticks]
    )
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
    return View(
        figure,
        f"Order of {len(kinds)} kinds of trace of {len(first)} problems, by the share of the other "
        f"kinds that each beats: {'; '.join(said)}.",
        (("scores", "what", "share [95 % interval]"), *table),
    )


def _placed(rows: Sequence[Sequence[float]], kinds: Sequence[str]) -> dict[str, list[float]]:
    """For each problem: what each kind beats; whether the first kind is first, the last last."""
    return {
        **{kind: [_beaten(r, at) for r in rows] for at, kind in enumerate(kinds)},
        f"{kinds[0]} first": [float(r[0] > max(r[1:])) for r in rows],
        f"{kinds[-1]} last": [float(r[-1] < min(r[:-1])) for r in rows],
    }


def _spread(means: Sequence[float], n: int) -> Interval:
    return Interval(fmean(means), min(means), max(means), n)


def _beaten(row: Sequence[float], at: int) -> float:
    others = [value for i, value in enumerate(row) if i != at]
    return fmean((row[at] > other) + 0.5 * (row[at] == other) for other in others)
