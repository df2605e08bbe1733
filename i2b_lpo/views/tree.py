"""The tree of one question on a token axis: who forked where, and what became of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from plotly.subplots import make_subplots

from i2b_lpo.trace import Rollout, Trace
from i2b_lpo.views.base import DIVERGING, GRID, INK, MUTED, View, shade, styled
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.lanes import Fork, forks_of, lanes_of, nesting, order_of
from i2b_lpo.views.strip import BRIGHTEST, entropy_scale
from i2b_lpo.views.text import escape, number, signed, visible

__all__ = ["branch_tree"]

KEPT, PRUNED = 0.44, 0.2  # height of a lane's tokens; lanes are 1 apart
FADED = 0.45  # opacity of a pruned lane
ACROSS = 640  # pixels that the token axis has in a notebook, about
AROUND = 8  # tokens before and after the one that is pointed at
NAMED = 16  # trajectories that the words describe
LATENT = 16  # numbers of z that are drawn


def branch_tree(trace: Trace) -> View:
    """The tree of one question: a lane for each trajectory, its own tokens coloured by entropy.

    A branch leaves its parent's lane at its fork, at the token that is decided again (◆ and H_t);
    what it has from its parent isn't drawn twice. At the right: the reward, S_IB if scored, what
    the filter did, and z as a row of bars. A pruned lane is thin, pale and dashed. Words that start
    with a capital stand above their tokens, where there is room.

    Args:
        trace: the tree; a trace without branches shows as bare lanes.

    Raises:
        ValueError: it holds no trajectory.
    """
    if not trace.rollouts:
        raise ValueError("This trace holds no trajectory to draw; sample some first.")
    forks = forks_of(trace)
    order = order_of(trace, forks)
    lane = lanes_of(trace, order)
    longest = max(1, *map(len, trace.rollouts))
    token = longest / ACROSS  # tokens in one pixel
    stems = {(f.parent, f.t): f.t - 9 * token * nesting(forks, f) for f in forks}
    columns = _columns(trace, order)
    latent = any(rollout.branch and rollout.branch.z for rollout in trace.rollouts)
    aside = 0.085 * (len(columns) + latent)
    figure = make_subplots(
        rows=1, cols=2, column_widths=[1 - aside, aside], horizontal_spacing=0, shared_yaxes=True
    )
    _stems(figure, trace, forks, lane, stems)
    _tokens(figure, trace, lane)
    _marks(figure, trace, forks, lane, stems, token)
    _ends(figure, trace, columns, lane)
    if latent:
        _latents(figure, trace, lane, len(columns))
    bottom = max(lane.values())
    pitch = 34 if len(order) <= 12 else 26
    question = textwrap.wrap(visible(trace.question.text, 300), 90)
    title = [*map(escape, question), f"{_count(trace)}; answer {escape(trace.question.answer, 30)}"]
    height = 138 + 18 * len(title) + int(max(130, pitch * (bottom + 1)))
    entropy_scale(
        figure, orientation="h", lenmode="pixels", len=260, x=0, xanchor="left", xpad=0,
        y=0, yanchor="top", ypad=44, thickness=12,
        title={"text": "H (nat)", "side": "right", "font": {"size": 13}},
    )  # fmt: skip
    figure.update_xaxes(
        title_text="t, token of the answer",
        range=[min(-1.0, *(x - 8 * token for x in stems.values()), 0.0), 1.02 * longest],
        showgrid=False,
        row=1,
        col=1,
    )
    figure.update_xaxes(visible=False, range=[-0.5, len(columns) + latent - 0.5], row=1, col=2)
    figure.update_yaxes(
        range=[bottom + 0.6, -0.75],
        tickvals=[lane[i] for i in order],
        ticktext=[f"{i}" for i in order],
        gridcolor=GRID,
    )
    figure.update_yaxes(showgrid=False, row=1, col=2)
    styled(
        figure,
        title="<br>".join(title),
        height=height,
        margin={"t": 40 + 18 * len(title), "b": 96, "l": 40, "r": 10},
        barmode="overlay",
        legend={"y": 1, "yanchor": "bottom", "font": {"size": 12}},
    )
    return View(figure, _words(trace, order, forks), _table(trace, order, forks))


# --- what is drawn ------------------------------------------------------------------------------


def _stems(
    figure: Any,
    trace: Trace,
    forks: Sequence[Fork],
    lane: dict[int, float],
    stems: dict[tuple[int, int], float],
) -> None:
    """A line from the parent's lane down to each branch; dashes where the branch is pruned."""
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
        for fork in forks:
            at = stems[fork.parent, fork.t]
            same = [lane[i] for i in fork.members if trace.rollouts[i].kept == kept]
            for child in same:
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


def _tokens(figure: Any, trace: Trace, lane: dict[int, float]) -> None:
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
        y=[lane[i] for i, _ in own],
        width=[KEPT if stays else PRUNED for stays in kept],
        marker={
            "color": [shade(trace.rollouts[i].entropies[t] / BRIGHTEST) for i, t in own],
            "opacity": [1 if stays else FADED for stays in kept],
            "line": {"width": 0},
        },
        hovertext=[_token_hover(trace, i, t) for i, t in own],
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=1,
    )


def _token_hover(trace: Trace, i: int, t: int) -> str:
    rollout, start = trace.rollouts[i], trace.start(i)
    before = "".join(rollout.pieces[max(0, t - AROUND) : t])[-40:]
    after = "".join(rollout.pieces[t + 1 : t + 1 + AROUND])
    since = "" if rollout.branch is None else f", s = {t - start} since its fork"
    return (
        f"{escape(before)}<b>{escape(rollout.pieces[t], 40)}</b>{escape(after, 40)}"
        f"<br>trajectory {i}, token {t}{since}"
        f"<br>H = {rollout.entropies[t]:.3f} nat<br>log π = {rollout.logprobs_t1[t]:.3f} nat"
    )


def _marks(
    figure: Any,
    trace: Trace,
    forks: Sequence[Fork],
    lane: dict[int, float],
    stems: dict[tuple[int, int], float],
    token: float,
) -> None:
    """A ◆ at each fork, and above the lanes its entropy and the words that fit."""
    figure.add_scatter(
        x=[stems[f.parent, f.t] for f in forks],
        y=[lane[f.parent] for f in forks],
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 11,
            "color": "white",
            "line": {"color": INK, "width": 2},
        },
        name="fork, with its H<sub>t</sub>",
        hovertext=[_fork_hover(trace, f) for f in forks],
        hoverinfo="text",
        showlegend=bool(forks),
        row=1,
        col=1,
    )
    labels = [
        (i, left, text)
        for i in lane
        for left, text in _labels(trace, i, [f for f in forks if f.parent == i], stems, token)
    ]
    figure.add_scatter(
        x=[left for _, left, _ in labels],
        y=[lane[i] - 0.48 for i, *_ in labels],
        mode="text",
        text=[text for *_, text in labels],
        textposition="middle right",
        textfont={
            "size": 11,
            "color": [INK if trace.rollouts[i].kept else MUTED for i, *_ in labels],
        },
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
        row=1,
        col=1,
    )


def _labels(
    trace: Trace,
    i: int,
    forks: Sequence[Fork],
    stems: dict[tuple[int, int], float],
    token: float,
) -> list[tuple[float, str]]:
    """What stands above a lane, with its left end: its forks first, then words that don't touch."""
    pieces = trace.rollouts[i].pieces
    nats = {f.t: f"<b>{number(f.entropy, 2)}</b>" for f in forks}
    shown: list[tuple[float, str]] = []
    taken: list[tuple[float, float]] = []
    for t in (*nats, *range(trace.start(i), len(pieces))):
        word = _word(pieces[t]) if t < len(pieces) else ""
        text = f"{nats.get(t, '')} {escape(word)}".strip()
        left = stems[i, t] - 4 * token if t in nats else t + 2 * token
        right = left + (7 * len(word) + 32 * (t in nats) + 8) * token
        if text and all(left >= end or right <= begin for begin, end in taken):
            taken.append((left, right))
            shown.append((left, text))
    return shown


def _word(piece: str) -> str:
    """A token that is a word with a capital, such as a strategy's; else nothing."""
    word = visible(piece.strip(), 14)
    return word if len(word) > 1 and word.isalpha() and word[0].isupper() else ""


def _fork_hover(trace: Trace, fork: Fork) -> str:
    rollout = trace.rollouts[fork.parent]
    before = "".join(rollout.pieces[max(0, fork.t - AROUND) : fork.t])[-40:]
    return (
        f"<b>fork of trajectory {fork.parent} at token {fork.t}</b>"
        f"<br>H = {number(fork.entropy, 3)} nat<br>after “{escape(before)}” it drew "
        + "<br>".join(
            f"{escape(_first(trace.rollouts[i], fork.t))} [{i}]"
            for i in (fork.parent, *fork.members)
        )
    )


def _first(rollout: Rollout, t: int) -> str:
    return visible(repr(rollout.pieces[t]), 40) if t < len(rollout) else "nothing"


Column = tuple[str, list[str], list[str]]


def _columns(trace: Trace, order: Sequence[int]) -> list[Column]:
    """Reward, S_IB and the filter's verdict, as far as there are any: name, texts, colours."""
    rollouts = [trace.rollouts[i] for i in order]
    signs = list(map(reward_sign, rollouts))
    columns = [("R", [f"<b>{sign}</b>" for sign, _ in signs], [colour for _, colour in signs])]
    plain = [INK] * len(order)
    if any(rollout.score is not None for rollout in rollouts):
        columns.append(("S<sub>IB</sub>", list(map(_score, rollouts)), plain))
    if not all(rollout.kept for rollout in rollouts):
        columns.append(("filter", list(map(_fate, rollouts)), plain))
    return columns


def _ends(figure: Any, trace: Trace, columns: Sequence[Column], lane: dict[int, float]) -> None:
    """The columns at the right of the lanes."""
    hover = [_lane_hover(trace, i) for i in lane]
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


def _latents(figure: Any, trace: Trace, lane: dict[int, float], place: int) -> None:
    """Draw z of each branch as a row of bars, up above 0 and down below it."""
    cells = [
        (y, at, len(branch.z[:LATENT]), value, i)
        for i, y in lane.items()
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


def _score(rollout: Rollout) -> str:
    return "–" if rollout.score is None else signed(rollout.score.value, 2)


def _fate(rollout: Rollout) -> str:
    return "root" if rollout.branch is None else "kept" if rollout.kept else "pruned"


def _lane_hover(trace: Trace, i: int) -> str:
    rollout, branch = trace.rollouts[i], trace.rollouts[i].branch
    lines = [f"<b>trajectory {i}</b>, {len(rollout)} tokens{_cut(rollout)}"]
    if branch is not None:
        lines.append(
            f"round {branch.round}: branch of {branch.parent} from token {trace.start(i)}, "
            f"fusion {escape(branch.fusion, 20)}"
        )
        if branch.z:
            some = ", ".join(signed(value, 2) for value in branch.z[:4])
            more = ", …" if len(branch.z) > 4 else ""
            decay = "constant" if branch.decay is None else f"s<sub>0</sub> = {branch.decay:g}"
            lines.append(f"z = ({some}{more}), γ<sub>0</sub> = {branch.gamma:g}, {decay}")
    if (score := rollout.score) is not None:
        lines.append(
            f"S<sub>IB</sub> {signed(score.value, 2)}: answer {signed(score.answer, 2)}, "
            f"cost {signed(score.cost, 2)}"
        )
    text = [escape(line, 60) for line in rollout.text.split("\n")]
    return "<br>".join([*lines, *text[:12], *(["…"] if len(text) > 12 else [])])


def _cut(rollout: Rollout) -> str:
    return "" if rollout.finished else " (cut off)"


# --- the same in words --------------------------------------------------------------------------


def _count(trace: Trace) -> str:
    branches = [rollout for rollout in trace.rollouts if rollout.branch is not None]
    roots = len(trace.rollouts) - len(branches)
    rounds = max((r.branch.round for r in branches if r.branch is not None), default=0)
    said = f"{roots} root{'s' * (roots != 1)}, {len(branches)} branch{'es' * (len(branches) != 1)}"
    return said + f" in {rounds} rounds" * (rounds > 1)


def _words(trace: Trace, order: Sequence[int], forks: Sequence[Fork]) -> str:
    rollouts = trace.rollouts
    right = sum(rollout.correct for rollout in rollouts)
    summary = f"{_count(trace)}, {trace.new_tokens()} tokens; {right} of {len(rollouts)} correct"
    branches = [rollout for rollout in rollouts if rollout.branch is not None]
    if not all(rollout.kept for rollout in rollouts):
        summary += f"; {sum(r.kept for r in branches)} of {len(branches)} branches kept"
    said = []
    for i in order[:NAMED]:
        rollout, start = rollouts[i], trace.start(i)
        parts = [f"{i} {reward_sign(rollout)[0]} {len(rollout) - start} tokens{_cut(rollout)}"]
        if rollout.branch is not None:
            parts[0] += f" from {_first(rollout, start)}"
        if rollout.score is not None:
            parts.append(f"S_IB {signed(rollout.score.value, 2)}")
        if not rollout.kept:
            parts.append("pruned")
        parts += [
            f"forks at token {f.t} (H {number(f.entropy, 2)} nat) into "
            + ", ".join(map(str, f.members))
            for f in forks
            if f.parent == i
        ]
        said.append(", ".join(parts))
    more = f"; and {len(order) - NAMED} more" if len(order) > NAMED else ""
    return f"Branch tree: {summary}. From the top: {'; '.join(said)}{more}."


def _table(
    trace: Trace, order: Sequence[int], forks: Sequence[Fork]
) -> tuple[tuple[str, ...], ...]:
    entropies = {i: f.entropy for f in forks for i in f.members}
    rows = []
    for i in order:
        rollout, start = trace.rollouts[i], trace.start(i)
        branch, score = rollout.branch, rollout.score
        rows.append(
            (
                str(i),
                "–" if branch is None else str(branch.parent),
                "–" if branch is None else str(start),
                number(entropies.get(i), 2),
                "–" if branch is None else branch.fusion,
                str(len(rollout) - start),
                reward_sign(rollout)[0],
                *(
                    ("–",) * 3
                    if score is None
                    else tuple(signed(part, 2) for part in (score.value, score.answer, score.cost))
                ),
                _fate(rollout),
                "–" if branch is None else ", ".join(signed(v, 2) for v in branch.z) or "–",
                rollout.text,
            )
        )
    names = ("parent", "fork at token", "H there (nat)", "fusion", "own tokens", "reward")
    return (("trajectory", *names, "S_IB", "answer", "cost", "filter", "z", "text"), *rows)
