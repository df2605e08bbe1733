"""The sections of the tour's page on the runs: their curves, what they cost, how they were set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from i2b_lpo.trace import Trace
from i2b_lpo.views import training_curves
from i2b_lpo.views.text import number, percent

__all__ = ["Run", "longer", "settings", "total", "training"]

CURVES = (
    "reward",
    "entropy",
    "distinct_strategies",
    "length",
    "rep4",
    "new_tokens",
    "root_reward",
    "branch_reward",
    "S_IB",
)


@dataclass(frozen=True)
class Run:
    """One training run as its folder holds it; it may have continued beyond what is compared.

    Attributes:
        evaluation: `Evaluation.to_json()` of the policy that is compared.
        traces: what `evaluation` was measured on.
        records: one dict of numbers for each training step, up to the run's end.
        config: `RunConfig.to_json()`.
        step: the traces of the first training step, each with its ``meta["advantages"]``.
        stop: number of steps that the compared policy was trained for; None: all.
        end: `Evaluation.to_json()` of the policy after all steps, where these are more.
    """

    evaluation: Mapping[str, Any]
    traces: Sequence[Trace]
    records: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    step: Sequence[Trace] = ()
    stop: int | None = None
    end: Mapping[str, Any] | None = None

    @property
    def compared(self) -> Sequence[Mapping[str, Any]]:
        """The records of the steps behind `evaluation`."""
        return self.records[: self.stop]


def longer(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Title → the whole of each run that went on after what is compared of it."""
    return {
        f"{name}, all {len(run.records)} steps": replace(
            run, evaluation=run.end, traces=(), stop=None, end=None
        )
        for name, run in runs.items()
        if run.end is not None
    }


def total(run: Run, key: str) -> float | None:
    """Sum of a number over the steps compared; None if a step lacks it."""
    rows = run.compared
    return sum(row[key] for row in rows) if all(key in row for row in rows) else None


def training(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What ``training.html`` shows: the curves of both runs, and what each cost."""
    records = {name: run.records for name, run in runs.items()}
    keys = [key for key in CURVES if any(key in row for rows in records.values() for row in rows)]
    return {
        "curves": training_curves(records, keys=keys),
        "costs": _costs(dict(runs) | longer(runs)),
    }


def _costs(runs: Mapping[str, Run]) -> list[tuple[str, ...]]:
    """What the runs spent, as far as their records tell."""
    rows: list[tuple[str, ...]] = [("", *runs)]
    rows.append(("training steps", *(str(len(run.compared)) for run in runs.values())))
    for name, key in (("generated", "new_tokens"), ("trained on", "trained_tokens")):
        totals = [total(run, key) for run in runs.values()]
        rows.append((f"tokens {name}", *("–" if t is None else f"{t:,.0f}" for t in totals)))
    kept = [[row["kept"] for row in run.compared if "kept" in row] for run in runs.values()]
    rows.append(("branches kept", *(percent(fmean(k)) if k else "no branches" for k in kept)))
    for part in ("rollout", "score", "update"):
        key = f"{part}_seconds"
        sums = [(total(run, key), len(run.compared)) for run in runs.values()]
        means = (None if spent is None else spent / steps for spent, steps in sums)
        rows.append((f"seconds a step: {part}", *(number(mean, 2) for mean in means)))
    return rows


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = str(value) or "–"
    return rows


def settings(runs: Mapping[str, Run], environment: Mapping[str, Any]) -> dict[str, Any]:
    """What ``settings.html`` shows: how both runs were set, and where they ran."""
    flat = [_flat(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [(key, *(config.get(key, "–") for config in flat)) for key in keys]
    header = ("setting", *runs)
    return {
        "differing": [header, *(row for row in rows if row[1] != row[2])],
        "all": [header, *rows],
        "environment": [("what", "value"), *_flat(environment).items()],
    }
