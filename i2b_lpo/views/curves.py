"""What training does step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, isfinite
from statistics import fmean
from typing import Any

from plotly.subplots import make_subplots

from i2b_lpo.views.base import INK, Style, View, heading, styled, styles
from i2b_lpo.views.text import escape, label, number

__all__ = ["training_curves"]

Records = Sequence[Mapping[str, Any]]
Values = list[float | None]


def training_curves(records: Records | Mapping[str, Records], *, keys: Sequence[str] = ()) -> View:
    """Metrics per step as small multiples: values thin, the mean of the last steps bold.

    Args:
        records: one dict per step with ``step`` and numbers; or run name → such dicts.
        keys: which numbers; by default all that the records hold.

    Raises:
        ValueError: there is no record, or no number to draw.
    """
    named = isinstance(records, Mapping)
    runs = dict(records) if isinstance(records, Mapping) else {"run": records}
    if not runs or not all(runs.values()):
        raise ValueError("There are no training records to draw; train for at least one step.")
    keys = list(keys) or _numbers(runs)
    if not keys:
        raise ValueError("The training records hold no number besides the step; give metrics.")
    looks = styles(runs) if named else {"run": Style(INK)}
    steps = max(map(len, runs.values()))
    window = max(1, round(steps / 8))
    columns = min(len(keys), 2 if len(keys) in (2, 4) else 3)
    rows = ceil(len(keys) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.075, vertical_spacing=0.28 / rows
    )
    sentences = []
    table = []
    for at, key in enumerate(keys):
        cell = {"row": at // columns + 1, "col": at % columns + 1}
        heading(figure, escape(label(key), 26).replace("S_IB", "S<sub>IB</sub>"), **cell)
        if at + columns >= len(keys):  # no panel below
            figure.update_xaxes(title_text="step", **cell)
        changes = []
        series = {name: [_finite(row.get(key)) for row in run] for name, run in runs.items()}
        figure.update_yaxes(range=_span(series.values()), **cell)
        for place, (name, run) in enumerate(runs.items()):
            values = series[name]
            line = {
                "x": [_finite(row.get("step", i)) for i, row in enumerate(run)],
                "name": escape(name, 24),
                "legendgroup": f"{place}",
                "mode": "lines" if len(run) > 1 else "lines+markers",
                **cell,
            }
            means = _running_mean(values, window)
            _curve(figure, line, values, means, looks[name], in_legend=named and at == 0)
            known = [value for value in values if value is not None]
            if known:
                first, last = number(fmean(known[:window])), number(fmean(known[-window:]))
                changes.append(f"{name + ' ' if named else ''}{first} → {last}")
                extremes = number(min(known)), number(max(known))
                table.append((name, label(key), first, last, *extremes))
        sentences.append(f"{label(key)} {', '.join(changes) or 'never measured'}")
    height = 100 + 190 * rows + 25 * named
    figure.update_xaxes(showgrid=False, dtick=1 if steps <= 8 else None)
    styled(
        figure,
        title="Training: every step"
        + (f" (thin) and the mean of the last {window} (bold)" if window > 1 else ""),
        height=height,
        margin={"t": 85 + 25 * named, "l": 45, "r": 15},
        legend={"y": 1 - 40 / height, "yref": "container", "yanchor": "top"},
    )
    of = f"{len(runs)} runs of up to {steps} steps" if len(runs) > 1 else f"{steps} steps"
    return View(
        figure,
        f"Training curves: {of}; means of the first and of the last {window} steps: "
        + "; ".join(sentences)
        + ".",
        (("run", "metric", f"first {window}", f"last {window}", "lowest", "highest"), *table),
    )


def _curve(
    figure: Any,
    line: dict[str, Any],
    values: Values,
    means: Values,
    style: Style,
    *,
    in_legend: bool,
) -> None:
    """One run in one panel: every step thin, the running mean bold."""
    figure.add_scatter(
        **line,
        y=values,
        line={"color": style.colour, "width": 1},
        opacity=0.4,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        **line,
        y=means,
        line={"color": style.colour, "width": 2.5, "dash": style.dash},
        showlegend=in_legend,
        hovertemplate=f"{line['name']}, step %{{x}}: %{{y:.3f}}<extra></extra>",
    )


def _numbers(runs: Mapping[str, Records]) -> list[str]:
    pairs = (pair for run in runs.values() for row in run for pair in row.items())
    found = dict.fromkeys(key for key, value in pairs if _finite(value) is not None)
    return [key for key in found if key != "step"]


def _finite(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return float(value) if good else None


def _span(series: Iterable[Values]) -> list[float] | None:
    """The range of an axis; numbers that differ only by rounding make a flat line."""
    known = [value for values in series for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    room = 0.06 * (high - low)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 0.1
    return [low - room, high + room]


def _running_mean(values: Values, window: int) -> Values:
    means: Values = []
    for at in range(len(values)):
        known = [v for v in values[max(0, at - window + 1) : at + 1] if v is not None]
        means.append(fmean(known) if known else None)
    return means
