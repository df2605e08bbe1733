"""Layers × heads as a panel of a figure, for all views of attention heads."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from i2b_lpo.views.base import DIVERGING, heading, ink, shade
from i2b_lpo.views.text import escape, number, signed

__all__ = ["GREYS", "Array", "grid_height", "grid_of", "layer_axis", "outline", "panel"]

Array = npt.NDArray[np.float64]

GREYS: list[list[Any]] = [[0.0, "#FFFFFF"], [1.0, "#1A1A1A"]]
"""White is zero here too; the colours of entropy stay entropy's."""

LEGIBLE = 100  # cells of a grid that still have room for their numbers


def grid_height(layers: int) -> int:
    """Height of a figure of such panels in pixels."""
    return max(310, min(700, 170 + 42 * layers))


def layer_axis(figure: Any, layers: int) -> None:
    """Number the layers, from the top down."""
    step = max(1, ceil(layers / 16))
    figure.update_yaxes(
        range=[layers - 0.5, -0.5],
        tickvals=list(range(0, layers, step)),
        ticktext=[f"{at}" for at in range(0, layers, step)],
        showgrid=False,
    )
    figure.update_yaxes(title_text="layer", row=1, col=1)


def grid_of(values: Any) -> Array:
    """`values` as (layers, heads).

    Raises:
        ValueError: the shape is wrong, or a number isn't finite.
    """
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


def panel(
    figure: Any,
    name: str,
    values: Array,
    ends: tuple[float, float],
    scale: list[list[Any]],
    quantity: str,
    col: int,
) -> None:
    """Draw a heatmap of (layers, heads) in column `col`, with its scale below.

    Args:
        figure: subplots in one row.
        name: above the panel; plain text.
        values: (layers, heads).
        ends: what the scale's first and last colour stand for.
        scale: of colours.
        quantity: what hovering calls the number; plain text.
        col: from 1.
    """
    bottom, top = ends
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
    digits = 2 if max(map(abs, ends)) < 10 else 0
    if len(cells) <= LEGIBLE:
        figure.add_scatter(
            x=[head for _, head in cells],
            y=[layer for layer, _ in cells],
            mode="text",
            text=[shown(float(values[cell]), digits) for cell in cells],
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


def outline(figure: Any, layer: int, head: int, col: int, **line: Any) -> None:
    """A frame around one head of the panel in column `col`."""
    figure.add_shape(
        type="rect", x0=head - 0.5, x1=head + 0.5, y0=layer - 0.5, y1=layer + 0.5,
        line=line, row=1, col=col,
    )  # fmt: skip
