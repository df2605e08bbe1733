"""Head-activation map: which heads z reaches, layer by layer (the paper's Fig. 4 asks this)."""

from __future__ import annotations

from typing import Any

import numpy as np
from plotly.subplots import make_subplots

from i2b_lpo.views.base import GRID, STYLES, View, styled
from i2b_lpo.views.grids import GREYS, Array, grid_height, grid_of, layer_axis, outline, panel
from i2b_lpo.views.text import escape, number, percent

__all__ = ["head_activation"]


def head_activation(
    with_z: Any,
    without_z: Any,
    *,
    slot: Any = None,
    title: str = "Head activation: whose output z moves",
) -> View:
    """How active each head is without z and with it, and how far z moves its output.

    With o_h the output of head h at one row and o'_h the same with z: activation is ‖o_h‖, and
    "moved by" is ‖o'_h − o_h‖ / ‖o_h‖. Outputs of equal activation may point in different
    directions: a head that z reverses at the same length moves by 2.

    Args:
        with_z: outputs of the heads of one row, ``(layers, heads, d_head)``: what attention passes
            to its output projection.
        without_z: the same row without z, in the same shape.
        slot: the attention weight on the latent's slot, ``(layers, heads)``; left out by default,
            as fusions other than PSA have no slot.
        title: above the figure; plain text.

    Raises:
        ValueError: shapes differ or aren't as above, or a number isn't finite.

    Example:
        >>> print(head_activation([[[3.0, 4.0], [0.0, 2.0]]], [[[3.0, 0.0], [0.0, 2.0]]]))
        Head activation: whose output z moves: 1 layers × 2 heads. Activation without z from 2.00 \
to 3.00, with z from 2.00 to 5.00; moved by 67 % of its activation on average in layer 0; moved \
most: 133 % at layer 0, head 0.
    """
    on, off = _outputs(with_z), _outputs(without_z)
    if on.shape != off.shape:
        raise ValueError(
            f"The outputs have the shapes {on.shape} and {off.shape}; give equal ones."
        )
    before, after = (np.linalg.norm(outputs, axis=-1) for outputs in (off, on))
    moved = np.linalg.norm(on - off, axis=-1) / np.maximum(before, 1e-12)
    panels: list[tuple[str, Array, float]] = [
        ("without z", before, float(max(before.max(), after.max()))),
        ("with z", after, float(max(before.max(), after.max()))),
        ("moved by", moved, float(moved.max())),
    ]
    if slot is not None:
        weights = grid_of(slot)
        if weights.shape != before.shape:
            raise ValueError(
                f"The slot's weights have the shape {weights.shape}, not {before.shape}; give one "
                "for each layer and head."
            )
        panels.append(("slot's weight", weights, 1.0))
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.05, shared_yaxes=True)
    for col, (name, values, top) in enumerate(panels, 1):
        panel(figure, name, values, (0.0, top or 1e-12), GREYS, name, col)
    layers, heads = before.shape
    layer, head = map(int, np.unravel_index(int(moved.argmax()), moved.shape))
    if moved[layer, head]:
        outline(figure, layer, head, 3, color=STYLES["I²B-LPO"].colour, width=4)
    layer_axis(figure, layers)
    styled(
        figure,
        title=f"{escape(title, 80)}<br>activation ‖o<sub>h</sub>‖, and the change as a share of "
        "it; outlined: moved most",
        height=grid_height(layers),
        margin={"t": 95, "b": 75},
        plot_bgcolor=GRID,
        showlegend=False,
    )
    return View(
        figure,
        f"{title}: {layers} layers × {heads} heads. {_words(before, after, moved)}",
        (
            ("layer", "head", *(name for name, *_ in panels)),
            *(
                (str(at), str(h), *(number(float(values[at, h]), 3) for _, values, _ in panels))
                for at in range(layers)
                for h in range(heads)
            ),
        ),
    )


def _words(before: Array, after: Array, moved: Array) -> str:
    """Both activations, what moved on average in each layer, and what moved most."""
    means = ", ".join(
        f"{percent(float(share), 0)}{' of its activation on average' * (at == 0)} in layer {at}"
        for at, share in enumerate(moved.mean(1))
    )
    said = f"Activation without z {_range(before)}, with z {_range(after)}; moved by {means}; "
    layer, head = map(int, np.unravel_index(int(moved.argmax()), moved.shape))
    if not moved[layer, head]:
        return said + "no head moved."
    most = percent(float(moved[layer, head]), 0)
    return said + f"moved most: {most} at layer {layer}, head {head}."


def _outputs(values: Any) -> Array:
    try:
        outputs = np.asarray(values, dtype=np.float64)
    except ValueError as error:
        raise ValueError("Outputs need equally many numbers for each head and layer.") from error
    if outputs.ndim != 3 or not outputs.size:
        raise ValueError(f"Outputs have the shape (layers, heads, d_head), got {outputs.shape}.")
    if not np.isfinite(outputs).all():
        raise ValueError("Every output must be finite; check what measured it.")
    return outputs


def _range(values: Array) -> str:
    return f"from {number(float(values.min()), 2)} to {number(float(values.max()), 2)}"
