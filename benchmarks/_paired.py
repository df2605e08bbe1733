"""What the benchmarks share: a stopwatch, interleaved timing, machine facts, the JSON line."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

__all__ = ["REST", "Stopwatch", "Times", "against", "interleave", "machine", "report"]

REST = 0.06  # seconds of sleep before short timings, see `interleave`


@dataclass(frozen=True)
class Times:
    """Single timings of one contender, in the order taken.

    Attributes:
        wall: seconds by the clock.
        cpu: processor seconds of this process; on a quiet machine with one thread equal to `wall`,
            and less disturbed by other programs on a busy one.
    """

    wall: list[float]
    cpu: list[float]

    def to_json(self) -> dict[str, Any]:
        """The medians and every single timing."""
        return {
            "median_seconds": round(median(self.wall), 4),
            "median_cpu_seconds": round(median(self.cpu), 4),
            "seconds": [round(t, 4) for t in self.wall],
            "cpu_seconds": [round(t, 4) for t in self.cpu],
        }


class Stopwatch:
    """Times what happens between `start` and `stop`, with garbage collection off."""

    def __init__(self) -> None:
        self.times = Times([], [])
        self._begin = (0.0, 0.0)

    def start(self) -> None:
        gc.collect()
        gc.disable()
        self._begin = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        gc.enable()
        self.times.wall.append(wall - self._begin[0])
        self.times.cpu.append(cpu - self._begin[1])


def interleave(
    works: Mapping[str, Callable[[], object]], repeats: int, *, rest: float = 0.0
) -> dict[str, Times]:
    """Run every work once untimed, then `repeats` times in turn; who goes first rotates.

    Each timing begins after `rest` seconds of sleep: a process at real-time priority (`chrt -f`) is
    stopped by Linux for 50 ms whenever it has run for 950 ms of a second, which is a sixth of a
    short work.
    """
    for work in works.values():
        work()
    gc.freeze()  # what is alive now needn't be scanned before every timing
    watches = {name: Stopwatch() for name in works}
    names = list(works)
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
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


def machine(*packages: str) -> dict[str, Any]:
    """Date, processor, cores, load, threads and versions: what a timing depends on."""
    names = Path("/proc/cpuinfo")  # Linux only; elsewhere the platform's own name must do
    lines = names.read_text().splitlines() if names.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", *packages)},
    }


def report(result: Mapping[str, Any], file: Path | None) -> None:
    """Print the result as one JSON line, the last one, and write it to `file` if there is one."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
