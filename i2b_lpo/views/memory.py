"""What takes the memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import plotly.graph_objects as go

from i2b_lpo.views.base import INK, NEUTRAL, View, styled
from i2b_lpo.views.text import escape, number

__all__ = ["memory_budget"]

UNITS = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def memory_budget(parts: Mapping[str, float]) -> View:
    """The parts of a memory budget as bars with numbers.

    Args:
        parts: name → bytes.

    Raises:
        ValueError: there is no part, or one isn't a number of bytes ≥ 0.
    """
    if not parts or not all(isfinite(size) and size >= 0 for size in parts.values()):
        raise ValueError("A memory budget needs at least one part, each in bytes and not negative.")
    largest = max(parts.values())
    scale, unit = _unit(largest)
    sizes = [_bytes(size) for size in parts.values()]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=list(range(len(parts))),
        x=[size / scale for size in parts.values()],
        width=0.66,
        text=sizes,
        textposition="outside",
        cliponaxis=False,
        marker={"color": NEUTRAL, "line": {"color": INK, "width": 1}},
        hovertext=[f"{escape(name, 40)}: {size}" for name, size in zip(parts, sizes, strict=True)],
        hoverinfo="text",
    )
    total = _bytes(sum(parts.values()))
    styled(
        figure,
        title=f"Memory: {total} in all",
        height=110 + 34 * len(parts),
        margin={"t": 50, "b": 50},
        xaxis={"title": {"text": unit}, "range": [0, 1.2 * (largest or 1) / scale]},
        yaxis={
            "range": [len(parts) - 0.4, -0.6],
            "tickvals": list(range(len(parts))),
            "ticktext": [escape(name, 40) for name in parts],
            "showgrid": False,
        },
    )
    rows = list(zip(parts, sizes, strict=True))
    return View(
        figure,
        f"Memory: {total} in all: " + ", ".join(f"{name} {size}" for name, size in rows) + ".",
        (("part", "size"), *rows),
    )


def _unit(size: float) -> tuple[float, str]:
    return next((unit for unit in UNITS if size >= unit[0]), UNITS[-1])


def _bytes(size: float) -> str:
    scale, unit = _unit(size)
    return f"{number(size / scale, 1)} {unit}"
