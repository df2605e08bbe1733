"""Text and numbers for figures and pages: nothing hidden, nothing active, nothing unrounded."""

from __future__ import annotations

from collections.abc import Mapping

from i2b_lpo.infra.text import visible

__all__ = [
    "escape",
    "fitting_digits",
    "interval",
    "label",
    "number",
    "percent",
    "signed",
    "visible",
]


# Plotly reads a little HTML, entities and %{…} in nearly every text, and MathJax reads $…$.
_PLOTLY = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;"})


def escape(text: str, limit: int = 0) -> str:
    """`text` such that plotly shows it literally, in labels, hover texts and templates alike.

    Example:
        >>> escape("<b>$x$ %{y}")
        '&lt;b&gt;&#36;x&#36; &#37;{y}'
    """
    return visible(text, limit).translate(_PLOTLY)


def fitting_digits(*values: float) -> int:
    """Digits after the point that suit the largest of some numbers."""
    largest = max(map(abs, values))
    return 3 if largest <= 1 else 2 if largest < 10 else 1


def number(value: float | None, digits: int | None = None) -> str:
    """A rounded number as text; no negative zero, and a dash for None.

    Args:
        value: finite, or None.
        digits: after the point; by default as many as its size needs.

    Example:
        >>> number(-0.0001, 2), number(0.12345), number(1234.56), number(4e-5), number(None)
        ('0.00', '0.123', '1234.6', '4.0e-05', '–')
    """
    if value is None:
        return "–"
    if digits is None:
        if 0 < abs(value) < 0.001:
            return f"{value:.1e}"
        digits = fitting_digits(value)
    return f"{value:z.{digits}f}"


def signed(value: float, digits: int | None = None) -> str:
    """A rounded number with its sign; none for zero.

    Example:
        >>> signed(0.25), signed(-0.25, 1), signed(-0.0001, 2)
        ('+0.250', '−0.2', '0.00')
    """
    shown = number(value, digits)
    zero = not shown.strip("-0.")
    return shown if zero else shown.replace("-", "−", 1) if value < 0 else f"+{shown}"


def percent(share: float, digits: int = 1) -> str:
    """A share as plain text.

    Example:
        >>> percent(0.0625)
        '6.2 %'
    """
    return f"{number(100 * share, digits)} %"


def interval(cell: Mapping[str, float]) -> str:
    """An `Interval` as a dict, as text.

    Example:
        >>> interval({"mean": 0.5, "low": 0.25, "high": 0.75})
        '0.500 [0.250, 0.750]'
    """
    ends = [cell[end] for end in ("mean", "low", "high")]
    mean, low, high = (number(end, fitting_digits(*ends)) for end in ends)
    return f"{mean} [{low}, {high}]"


_NAMES = {
    "S_IB": "mean S_IB",
    "branch_reward": "reward of branches",
    "clip_fraction": "tokens clipped (share)",
    "entropy": "entropy (nat)",
    "kept": "branches kept (share)",
    "length": "length (tokens)",
    "distinct_strategies": "distinct strategies",
    "finished": "finished (share)",
    "grad_norm": "gradient norm",
    "mean_ratio": "mean ratio ρ",
    "new_tokens": "tokens generated",
    "rep4": "repetition (rep-4)",
    "rep-4": "repetition (rep-4)",
    "reward": "mean reward",
    "rollout_seconds": "rollout (seconds)",
    "root_reward": "reward of roots",
    "score_seconds": "scoring (seconds)",
    "solved": "solved at least once",
    "trained_tokens": "tokens trained on",
    "uniform_groups": "equal-reward groups",
    "update_seconds": "update (seconds)",
}


def label(key: str) -> str:
    """The name of a metric as plain text, with its unit."""
    return _NAMES.get(key, key)
