"""S_IB: what a trajectory tells about the answer against what it spends."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from i2b_lpo.trace import Rollout, Score, Trace
from i2b_lpo.views.base import INK, MUTED, Style, Table, View, styled
from i2b_lpo.views.categories import category_styles
from i2b_lpo.views.means import means
from i2b_lpo.views.text import escape, signed

__all__ = ["ib_scatter"]

Group = tuple[str, Style, list[tuple[Rollout, Score]]]


def ib_scatter(
    traces: Sequence[Trace], *, kinds: Sequence[Sequence[str]] = (), roots: bool = True
) -> View:
    """Scored trajectories by the two parts of S_IB: cost across, answer part up.

    On a dotted line S_IB is constant; up and to the left is better. A pruned trajectory is open, a
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
    for group in groups:
        _points(figure, *group)
    _means(figure, groups)
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
    said, table = _told(groups, pruned)
    without, left_out = len(drawn) - len(scored), len(rollouts) - len(drawn)
    words = f"S_IB of {len(scored)} trajectories by its parts, answer − cost: {'; '.join(said)}"
    words += f"; {without} not scored" * bool(without)
    words += f"; {left_out} roots left out" * bool(left_out)
    return View(figure, f"{words}.", table)


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


def _means(figure: go.Figure, groups: Sequence[Group]) -> None:
    """The mean of each kind that has enough members for one."""
    centres = [
        (name, style, fmean(s.cost for _, s in members), fmean(s.answer for _, s in members))
        for name, style, members in groups
        if len(members) > 2
    ]
    means(figure, centres)


def _told(groups: Sequence[Group], pruned: bool) -> tuple[list[str], Table]:
    """Each kind in words, and as a row of numbers."""
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
    return said, (("kind", "trajectories", "S_IB", "answer", "cost", "kept"), *table)


def _hover(name: str, rollout: Rollout, score: Score) -> str:
    lines = [escape(line, 50) for line in rollout.text.split("\n")]
    head = (
        f"<b>{escape(name, 40)}</b>, {_outcome(rollout)}, {'kept' if rollout.kept else 'pruned'}"
        f"<br>S<sub>IB</sub> {signed(score.value, 2)}: answer {signed(score.answer, 2)}, "
        f"cost {signed(score.cost, 2)}"
    )
    return "<br>".join([head, *lines[:8], *(["…"] if len(lines) > 8 else [])])
