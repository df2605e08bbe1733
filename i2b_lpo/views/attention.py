"""What z does to the attention heads: all of them as a grid, and one of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from plotly.subplots import make_subplots

from i2b_lpo.views.base import (
    DIVERGING,
    GRID,
    INK,
    MONO,
    STYLES,
    Table,
    View,
    heading,
    shade,
    styled,
)
from i2b_lpo.views.grids import GREYS, Array, grid_height, grid_of, layer_axis, outline, panel
from i2b_lpo.views.strip import token_text
from i2b_lpo.views.text import escape, number, signed

__all__ = ["head_detail", "head_grid"]

Numbers = Sequence[float] | npt.NDArray[Any]

NARROW = 560  # pixels across the tokens on a small screen
LETTERS = 13  # pixels that a token's name takes


def head_grid(
    with_z: Sequence[Numbers] | npt.NDArray[Any],
    without_z: Sequence[Numbers] | npt.NDArray[Any],
    *,
    quantity: str = "attention weight on the slot",
    title: str = "What z does to each head",
) -> View:
    """One quantity of every head of one row: with z, without z, and the difference.

    White is zero, and the first two panels share a scale. The head that changes most is outlined,
    and small grids show their numbers.

    Args:
        with_z: ``(layers, heads)``.
        without_z: the same quantity of the same row without z, in the same shape.
        quantity: its name with its unit; plain text.
        title: above the figure; plain text.

    Raises:
        ValueError: shapes differ or aren't (layers, heads), or a number isn't finite.
    """
    on, off = grid_of(with_z), grid_of(without_z)
    if on.shape != off.shape:
        raise ValueError(f"The grids have the shapes {on.shape} and {off.shape}; give equal ones.")
    change = on - off
    layers, heads = on.shape
    both = max(float(np.abs(on).max()), float(np.abs(off).max()), 1e-12)
    signs = float(on.min()) < 0 or float(off.min()) < 0
    low, scale = (-both, DIVERGING) if signs else (0.0, GREYS)
    reach = max(float(np.abs(change).max()), 1e-12)
    most = np.unravel_index(int(np.abs(change).argmax()), change.shape)
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.055, shared_yaxes=True)
    panels = (
        ("with z", on, low, both, scale),
        ("without z", off, low, both, scale),
        ("difference", change, -reach, reach, DIVERGING),
    )
    for col, (name, values, bottom, top, colours) in enumerate(panels, 1):
        panel(figure, name, values, (bottom, top), colours, quantity, col)
    layer, head = map(int, most)
    if change[most]:
        outline(figure, layer, head, 3, color=INK, width=3)
    layer_axis(figure, layers)
    styled(
        figure,
        title=f"{escape(title, 90)}<br>{escape(quantity, 90)}; outlined: changed most",
        height=grid_height(layers),
        margin={"t": 95, "b": 75},
        plot_bgcolor=GRID,
        showlegend=False,
    )
    words = (
        f"{title}: {quantity}, {layers} layers × {heads} heads. With z {_range(on)}; without z "
        f"{_range(off)}; "
    )
    if change[most]:
        words += f"changed most: {signed(float(change[most]), 2)} at layer {layer}, head {head}."
    else:
        words += "no head changed."
    return View(
        figure,
        words,
        (
            ("layer", "head", "with z", "without z", "difference"),
            *(
                (
                    str(at),
                    str(h),
                    number(float(on[at, h]), 3),
                    number(float(off[at, h]), 3),
                    signed(float(change[at, h]), 3),
                )
                for at in range(layers)
                for h in range(heads)
            ),
        ),
    )


def _range(values: Array) -> str:
    shown = signed if values.min() < 0 else number
    return f"from {shown(float(values.min()), 2)} to {shown(float(values.max()), 2)}"


def head_detail(
    weights_with: Numbers,
    weights_without: Numbers,
    tokens: Sequence[str],
    layer: int,
    head: int,
) -> View:
    """One head's attention from one row, over the latent's slot and the tokens.

    Above, the weights with z and without; the slot has its own column, called z. Below, the
    difference: what the slot takes, the tokens lose.

    Args:
        weights_with: 1 + n attention weights with z, the slot's first, as in ``[k_z; K]``.
        weights_without: n attention weights without z.
        tokens: the n tokens that the row sees, itself included.
        layer: which layer, for the title.
        head: which head, for the title.

    Raises:
        ValueError: lengths don't fit, or the weights aren't finite, from 0 up and 1 in all.
    """
    count = len(tokens)
    on = _weights(weights_with, count + 1, "with z")
    off = _weights(weights_without, count, "without")
    change = on - np.concatenate([[0.0], off])
    named = [escape(repr(token), 40) for token in tokens]
    hover = ["<b>z</b>, the latent's slot", *(f"token {t}: {n}" for t, n in enumerate(named))]
    columns = [-1.0, *map(float, range(1, count + 1))]  # a gap beside the slot
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.58, 0.42], vertical_spacing=0.12
    )
    _draw_weights(figure, columns, on, off, hover)
    _draw_change(figure, columns, change, hover)
    for row in (1, 2):
        figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=1)
    _name_tokens(figure, tokens, np.maximum(on[1:], off))
    styled(
        figure,
        title=f"Layer {layer}, head {head}: where one row looks, with z and without",
        height=440,
        margin={"t": 75, "b": 60},
    )
    words = (
        f"Attention of layer {layer}, head {head}, over {count} tokens: the slot of z takes "
        f"{number(float(on[0]), 2)}; the tokens that had most: {_strongest(tokens, on, off)}."
    )
    return View(figure, words, _detail_table(tokens, on, off))


def _draw_weights(
    figure: Any, columns: list[float], on: Array, off: Array, hover: list[str]
) -> None:
    """The upper panel: a bar for each weight with z, a tick for the one without."""
    tokens = len(off)
    place = {"hoverinfo": "text", "row": 1, "col": 1, "showlegend": False}
    figure.add_bar(
        **place,
        x=columns,
        y=on.tolist(),
        width=0.9,
        name="with z",
        text=["<b>z</b>", *[""] * tokens],
        textposition="outside",
        cliponaxis=False,
        marker={
            "color": [STYLES["I²B-LPO"].colour, *["#BDBDBD"] * tokens],
            "line": {"color": INK, "width": [2, *[0.5] * tokens]},
        },
        hovertext=[
            f"{text}<br>with z: {number(float(w), 3)}" for text, w in zip(hover, on, strict=True)
        ],
    )
    figure.add_scatter(
        **place,
        x=columns[1:],
        y=off.tolist(),
        mode="markers",
        name="without z",
        marker={"symbol": "line-ew", "size": 9, "line": {"color": INK, "width": 2.5}},
        hovertext=[
            f"{text}<br>without z: {number(float(w), 3)}"
            for text, w in zip(hover[1:], off, strict=True)
        ],
    )
    heading(figure, "attention weight: bars with z, ticks (–) without", row=1, col=1)
    figure.update_yaxes(range=[0, 1.1 * max(float(on.max()), float(off.max()))], row=1, col=1)


def _draw_change(figure: Any, columns: list[float], change: Array, hover: list[str]) -> None:
    """The lower panel: what z gives and takes."""
    reach = max(float(np.abs(change).max()), 1e-12)
    figure.add_bar(
        x=columns,
        y=change.tolist(),
        width=0.9,
        marker={
            "color": [shade((float(d) / reach + 1) / 2, DIVERGING) for d in change],
            "line": {"color": INK, "width": 0.7},
        },
        hovertext=[
            f"{text}<br>difference: {signed(float(d), 3)}"
            for text, d in zip(hover, change, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
        row=2,
        col=1,
    )
    heading(figure, "difference", row=2, col=1)
    low, high = float(change.min()), float(change.max())
    room = 0.15 * (high - low) or 0.01
    figure.update_yaxes(range=[low - room, high + room], row=2, col=1)


def _name_tokens(figure: Any, tokens: Sequence[str], weights: Array) -> None:
    """The axis below: the slot, and the tokens whose names have room."""
    named = _legible(weights)
    short = all(len(token_text(tokens[t])) < 3 for t in named)
    figure.update_xaxes(range=[-1.8, len(tokens) + 0.8], showgrid=False)
    figure.update_xaxes(
        tickvals=[-1.0, *(t + 1 for t in named)],
        ticktext=["<b>z</b>", *(escape(token_text(tokens[t]), 12) for t in named)],
        tickangle=0 if short else -60,
        tickfont={"family": MONO, "size": 11},
        row=2,
        col=1,
    )


def _strongest(tokens: Sequence[str], on: Array, off: Array) -> str:
    """The three tokens with the largest weight without z, and what z left them."""
    return ", ".join(
        f"'{token_text(tokens[t])}' (token {t}) {number(float(off[t]), 2)} → "
        f"{number(float(on[t + 1]), 2)}"
        for t in map(int, np.argsort(-off, kind="stable")[:3])
    )


def _detail_table(tokens: Sequence[str], on: Array, off: Array) -> Table:
    rows = [("z", "–", number(float(on[0]), 3), "–", signed(float(on[0]), 3))]
    for t, token in enumerate(tokens):
        after, before = float(on[t + 1]), float(off[t])
        shown = number(after, 3), number(before, 3), signed(after - before, 3)
        rows.append((str(t), repr(token), *shown))
    return (("column", "token", "with z", "without z", "difference"), *rows)


def _legible(weights: Array) -> list[int]:
    """The tokens to write out: the strongest first, as long as no two names touch."""
    room = LETTERS * (len(weights) + 2.6) / NARROW  # in tokens
    named: list[int] = []
    for t in map(int, np.argsort(-weights, kind="stable")):
        if all(abs(t - other) >= room for other in named):
            named.append(t)
    return sorted(named)


def _weights(values: Numbers, count: int, name: str) -> Array:
    weights = np.asarray(values, dtype=np.float64)
    if not count or weights.shape != (count,):
        raise ValueError(
            f"The weights {name} have the shape {weights.shape}; with these tokens ({count},) is "
            "needed: one for each token, and with z the slot's before them."
        )
    fine = np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1) < 1e-3
    if not fine:
        raise ValueError(f"The weights {name} must be from 0 up and 1 in all; give a softmax.")
    return weights
