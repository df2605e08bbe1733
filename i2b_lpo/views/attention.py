"""What z does to the attention heads: all of them as a grid, and one of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from plotly.subplots import make_subplots

from i2b_lpo.views.base import DIVERGING, GRID, INK, MONO, STYLES, View, heading, ink, shade, styled
from i2b_lpo.views.strip import token_text
from i2b_lpo.views.text import escape, number, signed

__all__ = ["head_detail", "head_grid"]

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[Any]

GREYS: list[list[Any]] = [[0.0, "#FFFFFF"], [1.0, "#1A1A1A"]]
"""White is zero here too; the colours of entropy stay entropy's."""

LEGIBLE = 100  # cells of a grid that still have room for their numbers
NAMED = 80  # tokens of a head that are written out


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
    on, off = _grid(with_z), _grid(without_z)
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
        _panel(figure, name, values, bottom, top, colours, quantity, col)
    layer, head = map(int, most)
    if change[most]:
        figure.add_shape(
            type="rect", x0=head - 0.5, x1=head + 0.5, y0=layer - 0.5, y1=layer + 0.5,
            line={"color": INK, "width": 3}, row=1, col=3,
        )  # fmt: skip
    step = max(1, ceil(layers / 16))
    figure.update_yaxes(
        range=[layers - 0.5, -0.5],
        tickvals=list(range(0, layers, step)),
        ticktext=[f"{at}" for at in range(0, layers, step)],
        showgrid=False,
    )
    figure.update_yaxes(title_text="layer", row=1, col=1)
    styled(
        figure,
        title=f"{escape(title, 90)}<br>{escape(quantity, 90)}; outlined: changed most",
        height=max(310, min(700, 170 + 42 * layers)),
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


def _grid(values: Sequence[Numbers] | npt.NDArray[Any]) -> Array:
    try:
        grid = np.asarray(values, dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            "A grid needs a row for each layer, with a number for each head."
        ) from error
    if grid.ndim != 2 or not grid.size:
        raise ValueError(f"A grid has the shape (layers, heads), got {grid.shape}.")
    if not np.isfinite(grid).all():
        raise ValueError("Every number of a grid must be finite; check what measured it.")
    return grid


def _panel(
    figure: Any,
    name: str,
    values: Array,
    bottom: float,
    top: float,
    scale: list[list[Any]],
    quantity: str,
    col: int,
) -> None:
    layers, heads = values.shape
    cells = [(layer, head) for layer in range(layers) for head in range(heads)]
    shown = signed if scale is DIVERGING else number
    share = [(float(values[cell]) - bottom) / (top - bottom) for cell in cells]
    left, right = figure.layout[f"xaxis{col if col > 1 else ''}"].domain
    figure.add_heatmap(
        z=values.tolist(),
        x=list(range(heads)),
        y=list(range(layers)),
        zmin=bottom,
        zmax=top,
        colorscale=scale,
        xgap=1.5,
        ygap=1.5,
        hovertext=[
            [
                f"layer {layer}, head {head}, {name}<br>{escape(quantity, 60)}: "
                f"{shown(float(values[layer, head]), 3)}"
                for head in range(heads)
            ]
            for layer in range(layers)
        ],
        hoverinfo="text",
        colorbar={
            "orientation": "h", "x": left, "xanchor": "left", "y": 0, "yanchor": "top",
            "ypad": 44, "xpad": 0, "len": right - left, "thickness": 10, "outlinewidth": 0.5,
            "nticks": 5, "tickfont": {"size": 11},
        },
        row=1,
        col=col,
    )  # fmt: skip
    if len(cells) <= LEGIBLE:
        figure.add_scatter(
            x=[head for _, head in cells],
            y=[layer for layer, _ in cells],
            mode="text",
            text=[shown(float(values[cell]), 2) for cell in cells],
            textfont={"size": 11, "color": [ink(shade(at, scale)) for at in share]},
            hoverinfo="skip",
            row=1,
            col=col,
        )
    step = max(1, ceil(heads / 8))
    figure.update_xaxes(
        title_text="head",
        title_standoff=2,
        range=[-0.5, heads - 0.5],
        tickvals=list(range(0, heads, step)),
        showgrid=False,
        row=1,
        col=col,
    )
    heading(figure, name, row=1, col=col)


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

    Above, the weights with z and without; the slot is a column of its own, called z. Below, the
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
    on, off = (
        _weights(weights_with, count + 1, "with z"),
        _weights(weights_without, count, "without"),
    )
    change = on - np.concatenate([[0.0], off])
    columns = [-1.0, *map(float, range(1, count + 1))]  # a gap beside the slot
    names = [escape(token_text(token), 12) for token in tokens]
    hover = [
        "<b>z</b>, the latent's slot",
        *(f"token {t}: {escape(repr(p), 40)}" for t, p in enumerate(tokens)),
    ]
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.58, 0.42], vertical_spacing=0.12
    )
    bars = {"hoverinfo": "text", "row": 1, "col": 1}
    figure.add_bar(
        **bars,
        x=columns,
        y=on.tolist(),
        width=0.9,
        name="with z",
        text=["<b>z</b>", *[""] * count],
        textposition="outside",
        cliponaxis=False,
        marker={
            "color": [STYLES["I²B-LPO"].colour, *["#BDBDBD"] * count],
            "line": {"color": INK, "width": [2, *[0.5] * count]},
        },
        hovertext=[
            f"{text}<br>with z: {number(float(w), 3)}" for text, w in zip(hover, on, strict=True)
        ],
        showlegend=False,
    )
    figure.add_scatter(
        **bars,
        x=columns[1:],
        y=off.tolist(),
        mode="markers",
        name="without z",
        marker={"symbol": "line-ew", "size": 9, "line": {"color": INK, "width": 2.5}},
        hovertext=[
            f"{text}<br>without z: {number(float(w), 3)}"
            for text, w in zip(hover[1:], off, strict=True)
        ],
        showlegend=False,
    )
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
    heading(figure, "attention weight: bars with z, ticks (–) without", row=1, col=1)
    heading(figure, "difference", row=2, col=1)
    strongest = np.argsort(-np.maximum(on[1:], off), kind="stable")[:NAMED]
    named = sorted(map(int, strongest))
    for row in (1, 2):
        figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=1)
    figure.update_yaxes(range=[0, 1.1 * max(float(on.max()), float(off.max()))], row=1, col=1)
    ends = float(change.min()), float(change.max())
    room = 0.15 * (ends[1] - ends[0]) or 0.01
    figure.update_yaxes(range=[ends[0] - room, ends[1] + room], row=2, col=1)
    figure.update_xaxes(range=[-1.8, count + 0.8], showgrid=False)
    figure.update_xaxes(
        tickvals=[-1.0, *(t + 1 for t in named)],
        ticktext=["<b>z</b>", *(names[t] for t in named)],
        tickangle=0 if all(len(token_text(tokens[t])) < 3 for t in named) else -90,
        tickfont={"family": MONO, "size": 11 if len(named) < 50 else 9},
        row=2,
        col=1,
    )
    styled(
        figure,
        title=f"Layer {layer}, head {head}: where one row looks, with z and without",
        height=440,
        margin={"t": 75, "b": 60},
    )
    top = [int(at) for at in np.argsort(-off, kind="stable")[:3]]
    return View(
        figure,
        f"Attention of layer {layer}, head {head}, over {count} tokens: the slot of z takes "
        f"{number(float(on[0]), 2)}; the tokens that had most: "
        + ", ".join(
            f"'{token_text(tokens[t])}' (token {t}) {number(float(off[t]), 2)} → "
            f"{number(float(on[t + 1]), 2)}"
            for t in top
        )
        + ".",
        (
            ("column", "token", "with z", "without z", "difference"),
            ("z", "–", number(float(on[0]), 3), "–", signed(float(change[0]), 3)),
            *(
                (
                    str(t),
                    repr(token),
                    number(float(on[t + 1]), 3),
                    number(float(off[t]), 3),
                    signed(float(change[t + 1]), 3),
                )
                for t, token in enumerate(tokens)
            ),
        ),
    )


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
