"""GRPO beside I²B-LPO on the bundled policy: both trained for as many steps, measured without z.

    python benchmarks/methods.py run grpo --seed 0        # 3 minutes on one core; once per method
    python benchmarks/methods.py report                   # benchmarks/results/methods.{json,md}

Methods: `grpo` (G = 8), `i2b-lpo` (M = 2, K = 3, branches trained with their z), and changes of one
switch of it each: `plain` (branches trained without z, weighted), `within_outcome` (the other
filter), `no_filter`, `resample` (no latents: fusion "none"). Every choice is made on validation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from i2b_lpo.config import RunConfig, preset
from i2b_lpo.evaluation import evaluate
from i2b_lpo.method import METHODS, bootstrap_interval, with_method
from i2b_lpo.model import Sampling, load_policy
from i2b_lpo.tasks import load_task
from i2b_lpo.training import train

QUESTIONS = 150
RUNS, RESULTS = Path("runs/methods"), Path(__file__).parent / "results"
SHOWN = ("pass@1", "pass@8", "greedy", "distinct strategies", "entropy", "length", "rep-4")


def _i2b(change: Callable[[RunConfig], RunConfig]) -> Callable[[RunConfig], RunConfig]:
    return lambda config: change(with_method(config, "i2b-lpo"))


ARMS: dict[str, Callable[[RunConfig], RunConfig]] = {
    **{name: partial(with_method, name=name) for name in METHODS},
    "plain": _i2b(lambda c: replace(c, grpo=replace(c.grpo, logprob="plain"))),
    "within_outcome": _i2b(lambda c: replace(c, ib=replace(c.ib, filter="within_outcome"))),
    "no_filter": _i2b(lambda c: replace(c, ib=replace(c.ib, filter="none"))),
    "resample": _i2b(lambda c: replace(c, branch=replace(c.branch, fusion="none"))),
}


def run(method: str, seed: int, steps: int) -> None:
    """Train one method and measure it."""
    config = ARMS[method](replace(preset("tiny"), steps=steps, seed=seed))
    policy, task = load_policy(config.policy), load_task(config.task)
    history = train(config, policy, task)
    result, _ = evaluate(
        policy,
        task,
        task.questions("validation", QUESTIONS, seed=0),
        sampling=Sampling(config.rollout.max_new_tokens),
        seed=20_000,
    )
    found = {
        "method": method,
        "seed": seed,
        "steps": steps,
        "new_tokens": sum(h["new_tokens"] for h in history),
        "trained_tokens": sum(h["trained_tokens"] for h in history),
        "metrics": {name: asdict(result.metrics[name]) for name in SHOWN},
        "values": {name: result.values[name] for name in SHOWN},
        "strategies": {name: round(use.share, 3) for name, use in result.strategies.items()},
        "history": history,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / f"{method}-{seed}.json").write_text(json.dumps(found) + "\n")
    print(method, seed, {name: str(result.metrics[name]) for name in SHOWN}, found["strategies"])


def report() -> None:
    """Means over the seeds that were run, and differences to GRPO paired by question and seed."""
    rows = [json.loads(path.read_text()) for path in sorted(RUNS.glob("*.json"))]
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["method"], {})[row["seed"]] = row
    table: dict[str, Any] = {}
    for method in ARMS:
        if method not in runs:
            continue
        seeds = sorted(runs[method].keys() & runs["grpo"].keys())
        entry: dict[str, Any] = {
            "seeds": seeds,
            "new_tokens": fmean(runs[method][s]["new_tokens"] for s in seeds),
        }
        for name in SHOWN:
            # A question's values are averaged over seeds before questions are resampled.
            own = [runs[method][s]["values"][name] for s in seeds]
            grpo = [runs["grpo"][s]["values"][name] for s in seeds]
            mean = [fmean(column) for column in zip(*own, strict=True)]
            base = [fmean(column) for column in zip(*grpo, strict=True)]
            entry[name] = str(bootstrap_interval(mean))
            entry[f"{name} - grpo"] = str(
                bootstrap_interval([a - b for a, b in zip(mean, base, strict=True)])
            )
        table[method] = entry
    RESULTS.mkdir(exist_ok=True)
    found = {"steps": rows[0]["steps"], "questions": QUESTIONS, "methods": table}
    (RESULTS / "methods.json").write_text(json.dumps(found, indent=2) + "\n")
    names = ("pass@1", "pass@8", "distinct strategies", "entropy")
    lines = [
        "# GRPO beside I²B-LPO",
        "",
        f"{rows[0]['steps']} steps from tiny-base, {QUESTIONS} validation questions × 8 samples "
        "without z; mean [95 % interval over questions] and the paired difference to GRPO. Made by "
        f"`benchmarks/methods.py`, {rows[0]['date']}, {rows[0]['machine']}.",
        "",
        "| method | seeds | new tokens | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for method, entry in table.items():
        cells = [f"{entry[n]}, {entry[f'{n} - grpo']}" for n in names]
        lines.append(
            f"| {method} | {len(entry['seeds'])} | {entry['new_tokens'] / 1000:.0f}k | "
            + " | ".join(cells)
            + " |"
        )
    (RESULTS / "methods.md").write_text("\n".join(lines) + "\n")
    print(json.dumps(found))


def main() -> None:
    """Run one method, or write the report of all that were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run")
    one.add_argument("method", choices=ARMS)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--steps", type=int, default=60)
    sub.add_parser("report")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "run":
        run(arguments.method, arguments.seed, arguments.steps)
    else:
        report()


if __name__ == "__main__":
    main()
