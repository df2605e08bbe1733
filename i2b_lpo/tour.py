"""The tour: measure the bundled policy, train it by GRPO, measure again, write a page."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
import transformers

import i2b_lpo
from i2b_lpo.config import preset
from i2b_lpo.decode import Sampling
from i2b_lpo.evaluate import Evaluation, evaluate
from i2b_lpo.metrics import Interval, paired_differences
from i2b_lpo.policy import load_policy
from i2b_lpo.report import tour_page
from i2b_lpo.tasks import load_task
from i2b_lpo.trace import Trace, write_traces
from i2b_lpo.train import StepRecord, train
from i2b_lpo.update import Learner

__all__ = ["tour"]

SHOWN = (
    "greedy",
    "pass@1",
    "pass@8",
    "maj@8",
    "entropy",
    "distinct strategies",
    "distinct-4",
    "1-self-BLEU",
    "length",
    "rep-4",
)
EVALUATION_SEED = 20_000  # never a training seed, the same before and after


def tour(output: Path, *, seed: int = 0, steps: int | None = None) -> Path:
    """Run the tour and return its page; the files of an earlier tour in `output` are replaced."""
    begin = time.perf_counter()
    config = replace(preset("tiny"), seed=seed)
    if steps is not None:
        config = replace(config, steps=steps)
    output.mkdir(parents=True, exist_ok=True)
    task = load_task(config.task)
    policy = load_policy(config.policy)
    questions = task.questions("validation", config.evaluation.questions, seed=0)
    sampling = Sampling(config.rollout.max_new_tokens, config.rollout.temperature)

    def measured(name: str) -> tuple[Evaluation, list[Trace]]:
        result, traces = evaluate(
            policy,
            task,
            questions,
            sampling=sampling,
            samples=config.evaluation.samples,
            seed=EVALUATION_SEED,
            progress=f"evaluate {name}",
        )
        (output / f"{name}.json").write_text(json.dumps(result.to_json()) + "\n")
        write_traces(output / f"traces_{name}.jsonl", traces)
        return result, traces

    before, traces_before = measured("before")
    print(_forks(traces_before[0]))
    groups: list[tuple[Trace, list[float]]] = []

    def keep_a_mixed_group(_: Learner, record: StepRecord) -> None:
        for trace, row in zip(record.traces, record.advantages.tolist(), strict=True):
            if not groups and any(row):
                groups.append((trace, row))

    records = train(config, policy, task, output=output, on_step=keep_a_mixed_group)
    group, scores = groups[0] if groups else (None, [])
    after, traces_after = measured("after")
    change = paired_differences(before.values, after.values)
    print(_table(before, after, change))
    return tour_page(
        output / "index.html",
        before=before.to_json(),
        after=after.to_json(),
        records=records,
        traces_before=traces_before,
        traces_after=traces_after,
        config=config.to_json(),
        environment=_environment(time.perf_counter() - begin),
        group=group,
        advantages=scores,
        labeller=task.label,
        command=f"i2b-lpo tour --seed {seed} --steps {config.steps}",
    )


def _forks(trace: Trace) -> str:
    """One rollout and its most uncertain tokens, in words."""
    rollout = trace.rollouts[0]
    order = sorted(range(len(rollout)), key=lambda t: -rollout.entropies[t])[:5]
    forks = ", ".join(
        f"{json.dumps(rollout.pieces[t])} {rollout.entropies[t]:.2f} nat" for t in sorted(order)
    )
    return f"\n{trace.question.text}\n\n{rollout.text}\n\nmost uncertain tokens: {forks}\n"


def _table(before: Evaluation, after: Evaluation, change: dict[str, Interval]) -> str:
    lines = [f"\n{'':20} {'before':22} {'after':22} change (paired, 95 % interval)"]
    for name in SHOWN:
        if name in change:
            lines.append(
                f"{name:20} {before.metrics[name]!s:22} {after.metrics[name]!s:22} {change[name]}"
            )
    return "\n".join(lines)


def _environment(seconds: float) -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "i2b-lpo": i2b_lpo.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads",
        "minutes": f"{seconds / 60:.1f}",
    }
