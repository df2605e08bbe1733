"""Timing of small differences: contenders that rest between turns, compared with one of them.

A process at real-time priority (`chrt -f`) is stopped by Linux for 50 ms whenever it has run for
950 ms of a second. That is a sixth of a short work, so each timing begins after a short sleep.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from _paired import Stopwatch, Times

__all__ = ["against", "take_turns"]

REST = 0.06  # seconds


def take_turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """As `_paired.interleave`, with a rest before each timing."""
    for work in works.values():
        work()
    gc.freeze()  # what is alive now needn't be looked through before every timing
    watches = {name: Stopwatch() for name in works}
    names = list(works)
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            watches[name].start()
            works[name]()
            watches[name].stop()
    gc.unfreeze()
    return {name: watch.times for name, watch in watches.items()}


def against(found: Times, base: Times) -> dict[str, Any]:
    """Ratios to `base`: of the medians, median of the turns' own ratios, of processor seconds."""
    turns = [a / b for a, b in zip(found.wall, base.wall, strict=True)]
    return {
        "ratio": round(median(found.wall) / median(base.wall), 3),
        "ratio_of_turns": round(median(turns), 3),
        "cpu_ratio": round(median(found.cpu) / median(base.cpu), 3),
        **found.to_json(),
    }
