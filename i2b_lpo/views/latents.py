"""Latents z: where the strategies lie among them, and which dimensions carry anything."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from i2b_lpo.views.base import INK, NEUTRAL, Style, View, hatched, styled
from i2b_lpo.views.categories import PALETTE, category_styles
from i2b_lpo.views.means import means
from i2b_lpo.views.text import escape, number, percent, signed

__all__ = ["kl_bars", "latent_map"]

Array = npt.NDArray[np.float64]


def latent_map(
    points: Sequence[Sequence[float]] | npt.NDArray[Any],
    labels: Sequence[str],
    *,
    here: Sequence[float] | npt.NDArray[Any] | None = None,
    title: str = "Latents z, a point for each trajectory",
) -> View:
    """Latents on their first two principal axes, coloured and shaped by label.

    Two-dimensional latents are drawn as they are. A large marker with its name is at the mean of
    each label. "Between the labels" is the share of the latents' total variance that lies between
    these means, counting all dimensions: near 0 if z knows nothing about the label.

    Args:
        points: one latent per row, ``(n, d_z)`` with n ≥ 2 and d_z ≥ 2.
        labels: what colours each of them, such as the strategy of its trajectory.
        here: a latent to mark, ``(d_z,)``; axes and shares don't depend on it.
        title: above the figure; plain text.

    Raises:
        ValueError: wrong shape, a number that isn't finite, latents that are all equal, not one
            label per latent, or too many labels to tell apart.
    """
    z = _latents(points, labels)
    marked = None if here is None else _marked(here, z.shape[1])
    looks = category_styles(labels)
    centred = z - z.mean(0)
    total = float(np.square(centred).sum())
    if total == 0:
        raise ValueError("All latents are equal, so there is nothing to map; draw different ones.")
    flat = z.shape[1] == 2
    axes = np.eye(2) if flat else _principal_axes(centred)
    place = (z if flat else centred) @ axes.T  # (n, 2)
    shares = [float(np.square(centred @ axis).sum()) / total for axis in axes]
    names = ["z<sub>1</sub>", "z<sub>2</sub>"] if flat else ["first axis", "second axis"]
    figure = go.Figure()
    between = 0.0
    said, table = [], []
    centres: list[tuple[str, Style, float, float]] = []
    for name, style in looks.items():
        # numpy's own comparison would drop a NUL at a label's end.
        rows = np.flatnonzero([label == name for label in labels])
        between += len(rows) * float(np.square(centred[rows].mean(0)).sum()) / total
        mean = place[rows].mean(0)
        centres.append((name, style, float(mean[0]), float(mean[1])))
        _points(figure, name, style, place[rows], z[rows])
        shown = tuple(signed(float(value), 2) for value in mean)
        said.append(f"{name} {len(rows)}, mean ({', '.join(shown)})")
        table.append((name, str(len(rows)), *shown))
    means(figure, centres)
    if marked is not None:
        x, y = (marked if flat else marked - z.mean(0)) @ axes.T
        _mark(figure, float(x), float(y))
        shown = signed(float(x), 2), signed(float(y), 2)
        said.append(f"z now at ({', '.join(shown)})")
        table.append(("z now", "1", *shown))
    across, up = (
        f"{name} ({escape(percent(share, 0))} of the variance)"
        for name, share in zip(names, shares, strict=True)
    )
    styled(
        figure,
        title=f"{escape(title, 90)}<br>large: the mean of each; between them lies "
        f"{escape(percent(between, 0))} of the variance",
        height=520,
        margin={"t": 95, "b": 55},
        xaxis={"title": {"text": across}},
        yaxis={"title": {"text": up}},
    )
    where = "in 2 dimensions" if flat else f"in {z.shape[1]} dimensions, on two principal axes"
    return View(
        figure,
        f"{title}: {len(z)} {where} ({percent(shares[0], 0)} and {percent(shares[1], 0)} of the "
        f"variance); between the labels {percent(between, 0)} of all variance. "
        f"{'; '.join(said)}.",
        (("label", "latents", "mean across", "mean up"), *table),
    )


def _latents(points: Sequence[Sequence[float]] | npt.NDArray[Any], labels: Sequence[str]) -> Array:
    try:
        z = np.asarray(points, dtype=np.float64)
    except ValueError as error:
        raise ValueError("A map needs latents as rows of equally many numbers.") from error
    if z.ndim != 2 or min(z.shape) < 2:
        raise ValueError(f"A map needs latents of shape (n, d_z), both at least 2, got {z.shape}.")
    if not np.isfinite(z).all():
        raise ValueError("Every latent must be finite; look at what inferred them.")
    if len(labels) != len(z):
        raise ValueError(f"{len(z)} latents need as many labels, got {len(labels)}.")
    return z


def _marked(here: Sequence[float] | npt.NDArray[Any], d_z: int) -> Array:
    z = np.asarray(here, dtype=np.float64)
    if z.shape != (d_z,) or not np.isfinite(z).all():
        raise ValueError(f"The latent to mark needs {d_z} finite numbers, got shape {z.shape}.")
    return z


def _points(figure: go.Figure, name: str, style: Style, place: Array, z: Array) -> None:
    """The latents of one label: `place` (n, 2) on the map, `z` (n, d_z) to point at."""
    figure.add_scatter(
        x=place[:, 0].tolist(),
        y=place[:, 1].tolist(),
        mode="markers",
        name=f"{escape(name, 24)} ({len(z)})",
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": 8,
            "opacity": 0.75,
            "line": {"color": INK, "width": 0.6},
        },
        hovertext=[_hover(name, latent) for latent in z],
        hoverinfo="text",
    )


def _mark(figure: go.Figure, x: float, y: float) -> None:
    """A ring with a cross, which no label has; white below, so that it shows on any point."""
    for colour, width in (("white", 7), (INK, 3)):
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name="z now",
            marker={
                "symbol": "circle-cross-open",
                "size": 24,
                "color": colour,
                "line": {"color": colour, "width": width},
            },
            hoverinfo="skip",
            showlegend=colour == INK,
        )


def _principal_axes(centred: Array) -> Array:
    """The two directions of largest variance, (2, d_z), each with its largest entry positive."""
    axes: Array = np.linalg.svd(centred, full_matrices=False)[2][:2]
    largest = axes[[0, 1], np.abs(axes).argmax(1)]
    return axes * np.where(largest < 0, -1.0, 1.0)[:, None]


def _hover(name: str, z: Array) -> str:
    some = ", ".join(signed(float(value), 2) for value in z[:6])
    return f"<b>{escape(name, 40)}</b><br>z = ({some}{', …' if len(z) > 6 else ''})"


def kl_bars(kl_per_dimension: Sequence[float], active: Sequence[bool]) -> View:
    """KL(Q‖P) of each dimension of z in nats; hatched and marked if the dimension is unused.

    Args:
        kl_per_dimension: mean over the examples, d_z numbers from 0 up.
        active: whether each dimension varies with the example (`probe.active_units`).

    Raises:
        ValueError: there is no dimension, not one flag per dimension, or a bad KL (below 0 or not
            finite).
    """
    nats, flags = list(map(float, kl_per_dimension)), list(map(bool, active))
    if not nats or len(nats) != len(flags):
        raise ValueError(f"Give a flag for each dimension, got {len(flags)} for {len(nats)}.")
    if not all(isfinite(value) and value > -1e-6 for value in nats):
        raise ValueError("A KL is a finite number of nats, not below 0; check what measured it.")
    figure = go.Figure()
    for wanted, style, name in (
        (True, PALETTE[0], "active"),
        (False, Style(NEUTRAL, hatch="/"), "unused: z barely varies here"),
    ):
        at = [i for i, flag in enumerate(flags) if flag == wanted]
        if at:
            figure.add_bar(
                x=at,
                y=[nats[i] for i in at],
                width=0.7,
                name=name,
                marker=hatched(style),
                text=[number(nats[i], 2) for i in at] if len(nats) <= 24 else None,
                textposition="outside",
                textfont={"size": 12},
                textangle=0,
                constraintext="none",
                cliponaxis=False,
                hovertext=[f"dimension {i + 1}: {number(nats[i], 3)} nat, {name}" for i in at],
                hoverinfo="text",
            )
    total = number(sum(nats), 2)
    count = f"{sum(flags)} of {len(flags)}"
    step = -(-len(nats) // 32)
    styled(
        figure,
        title=f"KL(Q‖P): {total} nat in all; {count} dimensions of z are active",
        height=330,
        margin={"t": 80, "b": 50},
        showlegend=True,
        xaxis={
            "title": {"text": "dimension of z"},
            "tickvals": list(range(0, len(nats), step)),
            "ticktext": [f"{i + 1}" for i in range(0, len(nats), step)],
            "range": [-0.6, len(nats) - 0.4],
            "showgrid": False,
        },
        yaxis={"title": {"text": "KL (nat)"}, "range": [0, 1.2 * max(*nats, 0.01)]},
    )
    unused = [str(i + 1) for i, flag in enumerate(flags) if not flag]
    return View(
        figure,
        f"KL(Q‖P) of each dimension of z: {total} nat in all; {count} dimensions active: "
        + ", ".join(f"{i} {number(value, 2)}" for i, value in enumerate(nats, 1))
        + (f"; unused: {', '.join(unused)}." if unused else "."),
        (
            ("dimension", "KL (nat)", "active"),
            *(
                (str(i), number(value, 3), "yes" if flag else "no")
                for i, (value, flag) in enumerate(zip(nats, flags, strict=True), 1)
            ),
        ),
    )
