"""Names in settings that stand for an entry of a table: refused in one place, before any work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

from i2b_lpo.config import BranchConfig, GRPOConfig, IBConfig, LatentConfig, RunConfig
from i2b_lpo.method.entropy import FORK_RULES
from i2b_lpo.method.filters import FILTERS
from i2b_lpo.method.grpo import VARIANTS
from i2b_lpo.method.ib import ESTIMATORS
from i2b_lpo.method.methods import METHODS
from i2b_lpo.method.psa import FUSIONS
from i2b_lpo.method.samplers import SAMPLERS

__all__ = ["check"]

_TABLES: dict[type, tuple[str, dict[str, Collection[str]]]] = {
    RunConfig: ("", {"method": METHODS}),
    BranchConfig: (
        "branch.",
        {"rule": FORK_RULES, "fusion": (*FUSIONS, "none"), "sampler": SAMPLERS},
    ),
    IBConfig: ("ib.", {"estimator": (*ESTIMATORS, "none"), "filter": FILTERS}),
    GRPOConfig: ("grpo.", {"variant": VARIANTS}),
    LatentConfig: ("", {"fusion": FUSIONS, "rule": FORK_RULES}),
}


def check(settings: Any) -> None:
    """Refuse a name without an entry, in these settings and their sections.

    Raises:
        ValueError: unknown method, fork rule, fusion, sampler, estimator, filter or variant; lists
            the known ones.
    """
    prefix, tables = _TABLES.get(type(settings), ("", {}))
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            check(value)
        elif field.name in tables and value not in tables[field.name]:
            raise ValueError(
                f"Unknown {prefix}{field.name} {value!r}; choose one of "
                f"{', '.join(tables[field.name])}."
            )
