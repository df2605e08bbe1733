"""One group: what the update learns from each rollout of a question."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from plotly.subplots import make_subplots

from i2b_lpo.trace import Rollout, Trace
from i2b_lpo.views.base import (
    DIVERGING,
    INK,
    MUTED,
    NEUTRAL,
    STYLES,
    View,
    heading,
    readable,
    shade,
    styled,
)
from i2b_lpo.views.text import escape, number, signed

__all__ = ["group_advantages", "reward_sign"]


def group_advantages(trace: Trace, advantages: Sequence[float]) -> View:
    """The rollouts of one question with reward, advantage A and length.

    Args:
        trace: the group.
        advantages: A of each rollout.

    Raises:
        ValueError: there is not exactly one finite advantage for each rollout.
    """
    count = len(trace.rollouts)
    if not count or len(advantages) != count or not all(map(isfinite, advantages)):
        raise ValueError(
            f"A group needs one finite advantage for each rollout, got {len(advantages)} for "
            f"{count} rollouts."
        )
    signs = [reward_sign(rollout) for rollout in trace.rollouts]
    shown = [signed(a, 2) for a in advantages]
    lengths = [len(rollout) for rollout in trace.rollouts]
    reach = max(0.5, *map(abs, advantages))
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.06, shared_yaxes=True
    )
    bars = {
        "y": list(range(count)),
        "orientation": "h",
        "width": 0.66,
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [_hover(i, rollout) for i, rollout in enumerate(trace.rollouts)],
        "hoverinfo": "text",
        "showlegend": False,
        "row": 1,
    }
    figure.add_bar(
        **bars,
        col=1,
        x=list(advantages),
        text=shown,
        marker={
            "color": [shade((a / reach + 1) / 2, DIVERGING) for a in advantages],
            "line": {"color": INK, "width": 1},
        },
    )
    figure.add_bar(
        **bars,
        col=2,
        x=lengths,
        text=[
            f"{length}{'' if rollout.finished else ' (cut off)'}"
            for length, rollout in zip(lengths, trace.rollouts, strict=True)
        ],
        marker={"color": NEUTRAL, "line": {"color": INK, "width": 1}},
    )
    heading(figure, "advantage A", row=1, col=1)
    heading(figure, "length (tokens)", row=1, col=2)
    figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=1)
    figure.update_xaxes(range=[-1.3 * reach, 1.3 * reach], row=1, col=1)
    figure.update_xaxes(range=[0, 1.4 * max(1, *lengths)], row=1, col=2)
    figure.update_yaxes(
        range=[count - 0.4, -0.6],
        tickvals=list(range(count)),
        ticktext=[
            f'{i}  <span style="color:{colour}"><b>{sign}</b></span>'
            for i, (sign, colour) in enumerate(signs)
        ],
        showgrid=False,
    )
    right = sum(rollout.correct for rollout in trace.rollouts)
    styled(
        figure,
        title=f"One group: {right} of {count} rollouts correct (✓), the others not (✗)",
        height=120 + 34 * count,
        margin={"t": 80, "b": 40},
    )
    rows = [
        (str(i), sign, a, str(length), "yes" if rollout.finished else "no")
        for i, ((sign, _), a, length, rollout) in enumerate(
            zip(signs, shown, lengths, trace.rollouts, strict=True)
        )
    ]
    return View(
        figure,
        f"Group advantages: {right} of {count} rollouts correct; reward and advantage of each: "
        + ", ".join(f"{i} {sign} {a}" for i, sign, a, *_ in rows)
        + ".",
        (("rollout", "reward", "advantage", "length (tokens)", "finished"), *rows),
    )


def reward_sign(rollout: Rollout) -> tuple[str, str]:
    """The reward as a sign, and the sign's colour."""
    if rollout.reward is None:
        return "?", MUTED
    if rollout.correct:
        return "✓", readable(STYLES["correct"].colour)
    if rollout.reward == 0:
        return "✗", readable(STYLES["wrong"].colour)
    return number(rollout.reward, 2), INK


def _hover(i: int, rollout: Rollout) -> str:
    lines = [escape(line, 60) for line in rollout.text.split("\n")]
    return "<br>".join([f"<b>rollout {i}</b>", *lines[:12], *(["…"] if len(lines) > 12 else [])])
