"""The tour: measure the bundled policy, train it with GRPO and I²B-LPO side by side, write a page.

Each training runs in its own process with one thread, so neither waits for the other. They report
through a pipe, and this process draws both progress bars.

The two are compared at equal generated tokens. GRPO generates more per step, so it is taken after
the step at which its tokens come nearest to I²B-LPO's total. Its run continues to the same number
of steps and is shown next to them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from itertools import accumulate
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import tqdm.std
import transformers
from tqdm.auto import tqdm as progress_bar
from transformers.utils import logging

import i2b_lpo
from i2b_lpo.config import CheckpointConfig, RunConfig, TourConfig, options, refuse_old, write_run
from i2b_lpo.evaluation.measuring import Evaluation, evaluate
from i2b_lpo.method.methods import METHODS, with_method
from i2b_lpo.model.policy import Policy, load_policy, save_policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import load_steering
from i2b_lpo.report.page import NAMES, summary, tour_page
from i2b_lpo.report.runs import Run
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Trace, read_traces, write_traces
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord

__all__ = ["tour"]

BASE, *TRAINED = NAMES
GRPO, OURS = TRAINED
FOLDERS = {METHODS[name].title: name for name in ("grpo", "i2b-lpo")}
FIRST_STEP = "traces_first_step.jsonl"
POLICIES = "policies"  # folder of GRPO's policies, step-1 and so on
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
EVALUATION_SEED = 20_000  # never a training seed, the same for all three policies
GRACE = 5.0  # seconds that a process gets to end before it is killed

Records = list[dict[str, float]]


def run_of(settings: TourConfig, method: str) -> RunConfig:
    """The training with one method; without checkpoints, which so short a run doesn't need."""
    run = RunConfig(
        policy=settings.policy,
        seed=settings.seed,
        steps=settings.steps,
        questions=settings.questions,
        rollout=settings.rollout,
        grpo=settings.grpo,
        optimizer=settings.optimizer,
        checkpoint=CheckpointConfig(every=0),
    )
    run = with_method(run, method)
    latents = settings.latents if run.branch.branches else ""
    return replace(run, branch=replace(run.branch, latents=latents))


def tour(output: Path, settings: TourConfig | None = None) -> Path:
    """Run the tour and return its page; the files of an earlier tour in `output` are replaced.

    Raises:
        ValueError: the policy has no latents; names the command that makes them.
        ChildProcessError: one training failed; names it and says why. The other was ended.
    """
    begin = time.perf_counter()
    settings = settings or TourConfig()
    for folder in FOLDERS.values():
        refuse_old(output / folder)
    configs = {name: run_of(settings, method) for name, method in FOLDERS.items()}
    task = load_task(configs[TRAINED[0]].task)
    policy = load_policy(settings.policy)
    # The training loads them itself; loading them here only refuses before any work is done.
    ours = configs[OURS]
    latents = load_steering(policy, ours.branch.latents or None, run=ours).card
    questions = task.questions("validation", settings.evaluation.questions, seed=0)
    drawn = settings.rollout
    sampling = Sampling(drawn.max_new_tokens, drawn.temperature, drawn.top_p)

    def measured(what: Policy, folder: Path, name: str) -> tuple[Evaluation, list[Trace]]:
        result, traces = evaluate(
            what,
            task,
            questions,
            sampling=sampling,
            samples=settings.evaluation.samples,
            seed=EVALUATION_SEED,
            progress=f"evaluate {what.name}",
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result.to_json()) + "\n")
        write_traces(folder / f"traces_{name}.jsonl", traces)
        return result, traces

    before, traces_before = measured(policy, output, "before")
    write_run(settings, output, "tour")
    print(_forks(traces_before[0]))
    records = train_side_by_side(configs, output)
    stop = nearest_step(records[GRPO], _tokens(records[OURS]))
    went_on = stop < len(records[GRPO])

    def after(name: str, path: Path, file: str) -> tuple[Evaluation, list[Trace]]:
        # Weights are saved as they were trained, in float32.
        trained = replace(load_policy(path), name=f"after {name}")
        return measured(trained, output / FOLDERS[name], file)

    runs = {}
    for name, folder in FOLDERS.items():
        cut = name == GRPO and went_on
        place = f"{POLICIES}/step-{stop}" if cut else "policy"
        found, traces = after(name, output / folder / place, "equal_tokens" if cut else "after")
        end = after(name, output / folder / "policy", "after")[0].to_json() if cut else None
        runs[name] = Run(
            evaluation=found.to_json(),
            traces=traces,
            records=records[name],
            config=configs[name].to_json(),
            step=list(read_traces(output / folder / FIRST_STEP)),
            stop=stop if cut else None,
            end=end,
        )
    print(_table(before.to_json(), runs))
    return tour_page(
        output / "index.html",
        before=before.to_json(),
        traces_before=traces_before,
        runs=runs,
        environment=_environment(time.perf_counter() - begin),
        latents=latents,
        labeller=task.label,
        command=" ".join(["i2b-lpo tour", *options(settings, TourConfig())]),
    )


# --- two trainings side by side -----------------------------------------------------------------


def train_side_by_side(configs: Mapping[str, RunConfig], output: Path) -> dict[str, Records]:
    """Train each run in its own process; returns the metrics of each step of each run.

    However it ends, no process is left over. GRPO's policies are kept after each step in its folder
    `policies/`; those that can't be the one with I²B-LPO's tokens are removed, so one is left.

    Args:
        configs: name of each run → its settings.
        output: each run writes into its folder there, see `i2b_lpo.training.train`.

    Raises:
        ChildProcessError: a training failed; names it and says why. The others were ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    records: dict[str, Records] = {name: [] for name in configs}
    with ExitStack() as stack:
        running: dict[Any, tuple[str, Any, Any]] = {}
        for place, (name, config) in enumerate(configs.items()):
            receiver, sender = context.Pipe(duplex=False)
            folder = output / FOLDERS[name]
            shutil.rmtree(folder / POLICIES, ignore_errors=True)  # of an earlier tour
            process = context.Process(
                target=_train, args=(config, folder, sender, name == GRPO), name=name
            )
            stack.callback(_end, process)
            process.start()
            sender.close()  # so that the pipe ends when the process does
            bar = progress_bar(total=config.steps, desc=f"{name:8}", unit="step", position=place)
            running[receiver] = name, process, stack.enter_context(bar)
        while running:
            ready = wait(list(running))
            for receiver in [pipe for pipe in running if pipe in ready]:
                name, process, bar = running[receiver]
                try:
                    told = receiver.recv()
                except EOFError:
                    del running[receiver]
                    process.join()
                    told = _cause(process.exitcode)
                if isinstance(told, str):
                    raise ChildProcessError(_failed(name, told, configs))
                if told is not None:
                    records[name].append(told)
                    _forget(output / FOLDERS[GRPO] / POLICIES, records)
                    bar.set_postfix({k: f"{told[k]:.3f}" for k in ("reward", "entropy")}, False)
                    bar.update()
    _forget(output / FOLDERS[GRPO] / POLICIES, records, ended=True)
    return records


def nearest_step(records: Sequence[Mapping[str, float]], tokens: float) -> int:
    """The number of steps (at least one) after which a run's tokens were nearest to `tokens`.

    Example:
        >>> nearest_step([{"new_tokens": 100}, {"new_tokens": 90}, {"new_tokens": 110}], 160)
        2
    """
    sums = accumulate(row["new_tokens"] for row in records)
    return min(enumerate(sums, 1), key=lambda pair: abs(pair[1] - tokens))[0]


def _tokens(records: Sequence[Mapping[str, float]]) -> float:
    return sum(row["new_tokens"] for row in records)


def _forget(policies: Path, records: Mapping[str, Records], *, ended: bool = False) -> None:
    """Remove GRPO's policies that can't become the nearest to I²B-LPO's tokens."""
    if all(records.values()):
        # I²B-LPO's tokens only grow, so a step that is too early stays so.
        first = nearest_step(records[GRPO], _tokens(records[OURS]))
        for path in policies.glob("step-*"):
            step = int(path.name.removeprefix("step-"))
            if step < first or (ended and step > first):
                shutil.rmtree(path)


def _train(config: RunConfig, output: Path, sender: Connection[Any, Any], keep: bool) -> None:
    """One training in its own process: sends the metrics of each step, or what went wrong.

    With `keep` the policy is saved after each step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, and that ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent draws the bars; tqdm's own lock would outlive us if we are terminated.
    tqdm.std.tqdm.set_lock(threading.RLock())
    logging.disable_progress_bar()
    torch.set_num_threads(1)

    def tell(learner: Learner, record: StepRecord) -> None:
        done = int(record.metrics["step"]) + 1
        if keep:
            save_policy(learner.policy, output / POLICIES / f"step-{done}")
        if done == 1:
            pairs = zip(record.traces, record.advantages.tolist(), strict=True)
            shown = [replace(t, meta=t.meta | {"advantages": row}) for t, row in pairs]
            write_traces(output / FIRST_STEP, shown)
        sender.send(record.metrics)

    try:
        policy, task = load_policy(config.policy), load_task(config.task)
        train(config, policy, task, output=output, on_step=tell, progress=False)
    except (ValueError, OSError, FloatingPointError) as error:
        sender.send(f"{error}")
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(process: Any) -> None:
    if process.pid is None:  # it was never started
        return
    if process.is_alive():
        process.terminate()
        process.join(GRACE)
    if process.is_alive():
        process.kill()
    process.join()


def _cause(exit_code: int) -> str | None:
    """Why a process ended without a message; None if all is well."""
    if exit_code < 0:
        return (
            f"its process was ended by signal {-exit_code}; if memory was short, close other "
            "programs and start the tour again."
        )
    return f"its process ended with code {exit_code}; see what it printed." if exit_code else None


def _failed(name: str, cause: str, configs: Mapping[str, RunConfig]) -> str:
    others = " and ".join(other for other in configs if other != name)
    return f"Training by {name} failed: {cause}" + f" Training by {others} was ended." * bool(
        others
    )


# --- what the terminal shows --------------------------------------------------------------------


def _forks(trace: Trace) -> str:
    """One rollout and its most uncertain tokens, in words."""
    rollout = trace.rollouts[0]
    order = sorted(range(len(rollout)), key=lambda t: -rollout.entropies[t])[:5]
    forks = ", ".join(
        f"{json.dumps(rollout.pieces[t])} {rollout.entropies[t]:.2f} nat" for t in sorted(order)
    )
    return f"\n{trace.question.text}\n\n{rollout.text}\n\nmost uncertain tokens: {forks}\n"


def _table(before: Mapping[str, Any], runs: Mapping[str, Run]) -> str:
    rows = summary(before, runs, SHOWN)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(["", *lines, "", "Brackets are 95 % intervals; the difference is paired."])


def _environment(seconds: float) -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "i2b-lpo": i2b_lpo.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores; one torch thread for each "
        f"training, {torch.get_num_threads()} for evaluation",
        "minutes": f"{seconds / 60:.1f}",
    }
