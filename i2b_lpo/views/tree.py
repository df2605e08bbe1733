"""The tree of one question on a token axis: who forked where, and how each branch ended."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from plotly.subplots import make_subplots

from i2b_lpo.trace import Trace
from i2b_lpo.views.base import DIVERGING, GRID, INK, MUTED, View, shade, styled
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.lanes import Layout, layout_of
from i2b_lpo.views.strip import BRIGHTEST, entropy_scale
from i2b_lpo.views.text import escape, number, signed, visible
from i2b_lpo.views.tree_text import (
    count,
    fate,
    fork_hover,
    lane_hover,
    score_text,
    strategy_word,
    token_hover,
    tree_table,
    tree_words,
)

__all__ = ["branch_tree"]

KEPT, PRUNED = 0.44, 0.2  # height of a lane's tokens; lanes are 1 apart
FADED = 0.45  # opacity of a pruned lane
LATENT = 16  # numbers of z that are drawn


def branch_tree(trace: Trace) -> View:
    """The tree of one question: a lane for each trajectory, its own tokens coloured by entropy.

    A branch leaves its parent's lane at its fork, at the token that is decided again (◆ and H_t);
    what it takes from its parent isn't drawn twice. At the right: the reward, S_IB if scored, what
    the filter did, and z as a row of bars. A pruned lane is thin, pale and dashed. Words that start
    with a capital stand above their tokens, where there is room.

    Args:
        trace: the tree; a trace without branches shows as bare lanes.

    Raises:
        ValueError: it holds no trajectory.
    """
    if not trace.rollouts:
        raise ValueError("This trace holds no trajectory to draw; sample some first.")
    layout = layout_of(trace)
    columns = _columns(trace, layout)
    latent = any(rollout.branch and rollout.branch.z for rollout in trace.rollouts)
    aside = 0.085 * (len(columns) + latent)
    figure = make_subplots(
        rows=1, cols=2, column_widths=[1 - aside, aside], horizontal_spacing=0, shared_yaxes=True
    )
    _stems(figure, trace, layout)
    _tokens(figure, trace, layout)
    _marks(figure, trace, layout)
    _ends(figure, trace, layout, columns)
    if latent:
        _latents(figure, trace, layout, len(columns))
    _axes(figure, layout, len(columns) + latent)
    _frame(figure, trace, layout)
    return View(figure, tree_words(trace, layout), tree_table(trace, layout))


# --- what is drawn ------------------------------------------------------------------------------


def _stems(figure: Any, trace: Trace, layout: Layout) -> None:
    """A line from the parent's lane down to each branch; dashes where the branch is pruned."""
    lane = layout.lane
    figure.add_scatter(  # also names the dashes where nothing is pruned yet, so it has no points
        x=[None],
        y=[None],
        mode="lines",
        line={"color": INK, "width": 1.5, "dash": "dot"},
        name="pale, dashed: pruned",
        showlegend=not all(rollout.kept for rollout in trace.rollouts),
    )
    for kept in (True, False):
        x: list[float | None] = []
        y: list[float | None] = []
        for fork in layout.forks:
            at = layout.stems[fork.parent, fork.t]
            for child in (lane[i] for i in fork.members if trace.rollouts[i].kept == kept):
                x += [at, at, fork.t, None]
                y += [lane[fork.parent], child, child, None]
        line = {"color": INK, "width": 1.5, "dash": "solid" if kept else "dot"}
        figure.add_scatter(
            x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=1, col=1
        )
    pruned = [i for i, rollout in enumerate(trace.rollouts) if not rollout.kept]
    figure.add_scatter(
        x=[x for i in pruned for x in (trace.start(i), len(trace.rollouts[i]), None)],
        y=[y for i in pruned for y in (lane[i] + 0.22, lane[i] + 0.22, None)],
        mode="lines",
        line={"color": INK, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )


def _tokens(figure: Any, trace: Trace, layout: Layout) -> None:
    """A box for each token that is a trajectory's own."""
    own = [
        (i, t)
        for i, rollout in enumerate(trace.rollouts)
        for t in range(trace.start(i), len(rollout))
    ]
    kept = [trace.rollouts[i].kept for i, _ in own]
    figure.add_bar(
        orientation="h",
        base=[t for _, t in own],
        x=[1] * len(own),
        y=[layout.lane[i] for i, _ in own],
        width=[KEPT if stays else PRUNED for stays in kept],
        marker={
            "color": [shade(trace.rollouts[i].entropies[t] / BRIGHTEST) for i, t in own],
            "opacity": [1 if stays else FADED for stays in kept],
            "line": {"width": 0},
        },
        hovertext=[token_hover(trace, i, t) for i, t in own],
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=1,
    )


def _marks(figure: Any, trace: Trace, layout: Layout) -> None:
    """A ◆ at each fork, and above the lanes its entropy and the words that fit."""
    forks, lane = layout.forks, layout.lane
    outline = {"color": INK, "width": 2}
    figure.add_scatter(
        x=[layout.stems[f.parent, f.t] for f in forks],
        y=[lane[f.parent] for f in forks],
        mode="markers",
        marker={"symbol": "diamond", "size": 11, "color": "white", "line": outline},
        name="fork, with its H<sub>t</sub>",
        hovertext=[fork_hover(trace, f) for f in forks],
        hoverinfo="text",
        showlegend=bool(forks),
        row=1,
        col=1,
    )
    labels = [(i, left, text) for i in lane for left, text in _labels(trace, layout, i)]
    colours = [INK if trace.rollouts[i].kept else MUTED for i, *_ in labels]
    figure.add_scatter(
        x=[left for _, left, _ in labels],
        y=[lane[i] - 0.48 for i, *_ in labels],
        mode="text",
        text=[text for *_, text in labels],
        textposition="middle right",
        textfont={"size": 11, "color": colours},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
        row=1,
        col=1,
    )


def _labels(trace: Trace, layout: Layout, i: int) -> list[tuple[float, str]]:
    """What stands above a lane, with its left end: its forks first, then words that don't touch."""
    pieces, pixel = trace.rollouts[i].pieces, layout.pixel
    nats = {f.t: f"<b>{number(f.entropy, 2)}</b>" for f in layout.forks if f.parent == i}
    shown: list[tuple[float, str]] = []
    taken: list[tuple[float, float]] = []
    for t in (*nats, *range(trace.start(i), len(pieces))):
        word = strategy_word(pieces[t]) if t < len(pieces) else ""
        text = f"{nats.get(t, '')} {escape(word)}".strip()
        left = layout.stems[i, t] - 4 * pixel if t in nats else t + 2 * pixel
        right = left + (7 * len(word) + 32 * (t in nats) + 8) * pixel
        if text and all(left >= end or right <= begin for begin, end in taken):
            taken.append((left, right))
            shown.append((left, text))
    return shown


Column = tuple[str, list[str], list[str]]


def _columns(trace: Trace, layout: Layout) -> list[Column]:
    """Reward, S_IB and the filter's verdict, as far as there are any: name, texts, colours."""
    rollouts = [trace.rollouts[i] for i in layout.order]
    signs = list(map(reward_sign, rollouts))
    columns = [("R", [f"<b>{sign}</b>" for sign, _ in signs], [colour for _, colour in signs])]
    plain = [INK] * len(rollouts)
    if any(rollout.score is not None for rollout in rollouts):
        columns.append(("S<sub>IB</sub>", list(map(score_text, rollouts)), plain))
    if not all(rollout.kept for rollout in rollouts):
        columns.append(("filter", list(map(fate, rollouts)), plain))
    return columns


def _ends(figure: Any, trace: Trace, layout: Layout, columns: Sequence[Column]) -> None:
    """The columns at the right of the lanes."""
    lane = layout.lane
    hover = [lane_hover(trace, i) for i in lane]
    for place, (name, texts, colours) in enumerate(columns):
        figure.add_scatter(
            x=[place] * len(lane),
            y=list(lane.values()),
            mode="text",
            text=texts,
            textfont={"size": 12, "color": colours},
            hovertext=hover,
            hoverinfo="text",
            showlegend=False,
            cliponaxis=False,
            row=1,
            col=2,
        )
        _column(figure, name, place)


def _column(figure: Any, name: str, place: int) -> None:
    figure.add_annotation(
        x=place, y=1, yref="y domain", text=f"<b>{name}</b>", yanchor="bottom", yshift=4,
        showarrow=False, font={"size": 13}, row=1, col=2,
    )  # fmt: skip


def _latents(figure: Any, trace: Trace, layout: Layout, place: int) -> None:
    """Draw z of each branch as a row of bars, up above 0 and down below it."""
    cells = [
        (y, at, len(branch.z[:LATENT]), value, i)
        for i, y in layout.lane.items()
        if (branch := trace.rollouts[i].branch) is not None
        for at, value in enumerate(branch.z[:LATENT])
    ]
    reach = max(1e-12, *(abs(value) for *_, value, _ in cells))
    figure.add_bar(
        x=[place - 0.4 + 0.8 * (at + 0.5) / count for _, at, count, *_ in cells],
        width=[0.8 / count for _, _, count, *_ in cells],
        base=[y for y, *_ in cells],
        y=[-0.4 * value / reach for *_, value, _ in cells],  # the axis points down
        marker={
            "color": [shade((value / reach + 1) / 2, DIVERGING) for *_, value, _ in cells],
            "line": {"color": INK, "width": 0.5},
        },
        hovertext=[
            f"trajectory {i}, z<sub>{at + 1}</sub> = {signed(value, 2)}"
            for _, at, _, value, i in cells
        ],
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=2,
    )
    _column(figure, "z", place)


# --- around it ----------------------------------------------------------------------------------


def _axes(figure: Any, layout: Layout, columns: int) -> None:
    """Tokens across, lanes down, and room for the columns."""
    lefts = [at - 8 * layout.pixel for at in layout.stems.values()]
    figure.update_xaxes(
        title_text="t, token of the answer",
        range=[min(-1.0, *lefts, 0.0), 1.02 * layout.longest],
        showgrid=False,
        row=1,
        col=1,
    )
    figure.update_xaxes(visible=False, range=[-0.5, columns - 0.5], row=1, col=2)
    figure.update_yaxes(
        range=[max(layout.lane.values()) + 0.6, -0.75],
        tickvals=list(layout.lane.values()),
        ticktext=[f"{i}" for i in layout.order],
        gridcolor=GRID,
    )
    figure.update_yaxes(showgrid=False, row=1, col=2)


def _frame(figure: Any, trace: Trace, layout: Layout) -> None:
    """The scale of entropy, the title, and the height that the lanes need."""
    entropy_scale(
        figure, orientation="h", lenmode="pixels", len=260, x=0, xanchor="left", xpad=0,
        y=0, yanchor="top", ypad=44, thickness=12,
        title={"text": "H (nat)", "side": "right", "font": {"size": 13}},
    )  # fmt: skip
    question = textwrap.wrap(visible(trace.question.text, 300), 90)
    title = [*map(escape, question), f"{count(trace)}; answer {escape(trace.question.answer, 30)}"]
    pitch = 34 if len(layout.order) <= 12 else 26
    lanes = int(max(130, pitch * (max(layout.lane.values()) + 1)))
    styled(
        figure,
        title="<br>".join(title),
        height=138 + 18 * len(title) + lanes,
        margin={"t": 40 + 18 * len(title), "b": 96, "l": 40, "r": 10},
        barmode="overlay",
        legend={"y": 1, "yanchor": "bottom", "font": {"size": 12}},
    )
