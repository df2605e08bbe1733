"""One training step as a diagram: the numbers that all notebooks use for its stages."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import plotly.graph_objects as go

from i2b_lpo.views.base import INK, MUTED, STYLES, View, styled
from i2b_lpo.views.text import escape

__all__ = ["STAGES", "Stage", "training_step"]


@dataclass(frozen=True)
class Stage:
    """A stage of METHOD §0: its name, what it makes (in lines), and whether GRPO lacks it."""

    name: str
    makes: str
    added: bool = False


STAGES = (
    Stage("question", "q and\nits answer a"),
    Stage("M rollouts", "o = (o_1 … o_T),\neach H_t"),
    Stage("one fork each", "t* where\nH_t is high", added=True),
    Stage("K latents", "z ~ P(z|c)", added=True),
    Stage("K branches", "PSA: z acts\nwith γ(s)", added=True),
    Stage("verify", "R = 1 or 0"),
    Stage("advantages", "A, group of\nG = M(1+K)"),
    Stage("IB score", "S_IB of\neach branch", added=True),
    Stage("keep Top-N", "of each branch\nset B_i", added=True),
    Stage("update", "a new\npolicy π_θ"),
)
"""In order; the first is stage 1."""

ACROSS = 5  # boxes in a row
WIDE, TALL = 0.86, 0.72  # of a box; places are 1 apart


def training_step(*, here: Collection[int] = ()) -> View:
    """The stages of one training step as boxes and arrows (METHOD §0).

    Args:
        here: numbers of the stages to mark, from 1.

    Raises:
        ValueError: there is no such stage.
    """
    if not set(here) <= set(range(1, len(STAGES) + 1)):
        raise ValueError(f"The stages are numbered 1 to {len(STAGES)}, got {sorted(here)}.")
    added = STYLES["I²B-LPO"]
    figure = go.Figure()
    places = [_place(at) for at in range(len(STAGES))]
    for number, (stage, (x, y)) in enumerate(zip(STAGES, places, strict=True), 1):
        marked = number in here
        figure.add_shape(
            type="rect",
            x0=x - WIDE / 2,
            x1=x + WIDE / 2,
            y0=y - TALL / 2,
            y1=y + TALL / 2,
            fillcolor="#EDEDED" if marked else "white",
            line={
                "color": added.colour if stage.added else INK,
                "dash": "dash" if stage.added else "solid",
                "width": 4 if marked else 2,
            },
        )
        head = f"{'▶ ' if marked else ''}{number}{' +' if stage.added else ''}"
        makes = "<br>".join(map(escape, stage.makes.split("\n")))
        makes = re.sub(r"_(\w+)", r"<sub>\1</sub>", makes)
        figure.add_annotation(
            x=x,
            y=y,
            text=f"{escape(head)}<br><b>{escape(stage.name)}</b><br>"
            f'<span style="font-size:12px">{makes}</span>',
            showarrow=False,
        )
    for start, end in zip(places, [*places[1:], places[0]], strict=True):
        _arrow(figure, start, end)
    styled(
        figure,
        title="One training step. “+” and dashes: what I²B-LPO adds to GRPO",
        height=310,
        margin={"l": 10, "r": 10, "t": 45, "b": 10},
        xaxis={"visible": False, "range": [-0.5, ACROSS - 0.5]},
        yaxis={"visible": False, "range": [-1.4, 0.4]},
        showlegend=False,
    )
    rows = [
        (
            str(number),
            stage.name,
            stage.makes.replace("\n", " "),
            "I²B-LPO" if stage.added else "GRPO",
        )
        for number, stage in enumerate(STAGES, 1)
    ]
    marks = f" Marked: {', '.join(map(str, sorted(set(here))))}." if here else ""
    return View(
        figure,
        "One training step: "
        + ", ".join(f"{number}{' +' * (of != 'GRPO')} {name}" for number, name, _, of in rows)
        + f", and again from 1. A + is what I²B-LPO adds to GRPO.{marks}",
        (("stage", "name", "what it makes", "part of"), *rows),
    )


def _place(at: int) -> tuple[float, float]:
    """Centre of a box: right in the upper row, back left in the lower, so that the step closes."""
    return (at, 0) if at < ACROSS else (2 * ACROSS - 1 - at, -1)


def _arrow(figure: go.Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    dx, dy = end[0] - start[0], end[1] - start[1]
    figure.add_annotation(
        x=end[0] - dx * WIDE / 2,
        y=end[1] - dy * TALL / 2,
        ax=start[0] + dx * WIDE / 2,
        ay=start[1] + dy * TALL / 2,
        xref="x",
        yref="y",
        axref="x",
        ayref="y",
        text="",
        showarrow=True,
        arrowhead=2,
        arrowwidth=2,
        arrowcolor=MUTED,
    )
