"""Looks for things that the theme gives no meaning: strategies, kinds, settings."""

from __future__ import annotations

from collections.abc import Iterable

from i2b_lpo.views.base import STYLES, Style

__all__ = ["PALETTE", "category_styles"]

PALETTE = (
    Style("#0072B2", "circle", "solid", ""),
    Style("#E69F00", "square", "dash", "."),
    Style("#CC79A7", "diamond", "dot", "-"),
    Style("#56B4E9", "triangle-up", "dashdot", "/"),
    Style("#F0E442", "cross", "longdash", "x"),
    Style("#000000", "star", "longdashdot", "|"),
    Style("#8A8A8A", "hexagon", "solid", "+"),
)
"""Okabe–Ito without the colours of right and wrong; any two differ in colour, marker and hatch."""

_KNOWN = dict(zip(("Split", "Round", "Grid", "Factor", "Guess"), PALETTE, strict=False)) | {
    "concise": PALETTE[0],
    "drift": STYLES["wrong"],
    "verbose": PALETTE[1],
    "loop": PALETTE[2],
    "correct": STYLES["correct"],
    "wrong": STYLES["wrong"],
}
"""The bundled task's strategies, the kinds of trace of METHOD §5, and outcomes."""


def category_styles(names: Iterable[str]) -> dict[str, Style]:
    """A look for each category: a known one has its own in every figure, others get a free one.

    Raises:
        ValueError: there are more categories than can be told apart.

    Example:
        >>> {name: style.symbol for name, style in category_styles(["Round", "Other"]).items()}
        {'Round': 'square', 'Other': 'circle'}
    """
    wanted = set(names)
    found = {name: style for name, style in _KNOWN.items() if name in wanted}
    free = [style for style in PALETTE if style not in found.values()]
    others = sorted(wanted - set(found))
    if len(others) > len(free):
        raise ValueError(f"{len(wanted)} categories can't be told apart; group some of them.")
    return found | dict(zip(others, free, strict=False))
