"""Kill a training run with SIGKILL at random moments, resume it, and compare it bit for bit.

    python scripts/soak.py --kills 100

A reference run is never stopped. Then the same run is killed again and again: half of the kills
come at a random time, half at a random moment within a randomly chosen stage, so that short stages
are hit too. Every step's tokens, latents, log-probs, rewards, scores, advantages and losses, and at
the end all weights and moments, are compared with the reference. If a run finishes before all kills
are used, the next one begins. 100 kills take 3 minutes; needs `os.fork`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers.utils import logging

import i2b_lpo.rollout.branching
import i2b_lpo.training.learner
import i2b_lpo.training.loop
import i2b_lpo.training.step
from i2b_lpo.config import CheckpointConfig, RolloutConfig, RunConfig, preset
from i2b_lpo.method import with_method
from i2b_lpo.model.policy import load_policy
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord

REPORT = Path(__file__).parent.parent / "benchmarks" / "results" / "soak.json"
STAGES: dict[str, tuple[Any, str] | None] = {
    # stage → the function whose call it is
    "start": None,  # loading, restoring
    "rollout": (i2b_lpo.rollout.branching, "sample"),
    "branching": (i2b_lpo.rollout.branching, "branch_out"),
    "verification": (i2b_lpo.rollout.branching, "verified"),
    "scoring": (i2b_lpo.training.step, "score_traces"),
    "update": (i2b_lpo.training.step, "update"),
    "save": (i2b_lpo.training.loop, "save_checkpoint"),
    "end": (i2b_lpo.training.loop, "save_policy"),
}
NAMES = list(STAGES)


def config_of(steps: int) -> RunConfig:
    """The bundled policy and task with a small group, saved every second step."""
    small = replace(
        preset("tiny"),
        steps=steps,
        questions=3,
        rollout=RolloutConfig(rollouts=8, max_new_tokens=96),
        checkpoint=CheckpointConfig(every=2),
    )
    return with_method(small, "i2b-lpo")


def marked(shared: mmap.mmap) -> None:
    """From now on `shared` holds the stage this process is in, and how many it has entered."""
    entered = 0

    def watch(at: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal entered
            before, entered = shared[0], entered + 1
            shared[:2] = bytes([at, entered % 256])
            try:
                return real(*arguments, **named)
            finally:
                shared[:1] = bytes([before])

        return watched

    for at, place in enumerate(STAGES.values()):
        if place is not None:
            setattr(*place, watch(at, getattr(*place)))


def digest(record: StepRecord) -> str:
    """Every number of a step in one sum."""
    numbers = {k: v for k, v in record.metrics.items() if not k.endswith("_seconds")}
    traces = json.dumps([trace.to_json() for trace in record.traces])
    found = hashlib.sha256(f"{traces}{record.advantages.tolist()}{numbers}".encode())
    return found.hexdigest()


def work(config: RunConfig, folder: Path, resume: bool) -> None:
    """Train in `folder`; adds each step's digest and at last that of weights and moments to log."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()

    def write(name: str, found: str) -> None:
        with (folder / "log").open("a") as log:
            log.write(f"{name} {found}\n")

    learners: list[Learner] = []

    def note(learner: Learner, record: StepRecord) -> None:
        write(f"{record.metrics['step']:.0f}", digest(record))
        learners[:] = [learner]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run without a checkpoint yet begins anew
        train(
            config, load_policy(config.policy), load_task(config.task), output=folder / "run",
            resume=resume, on_step=note, progress=False,
        )  # fmt: skip
    weights = (folder / "run" / "policy" / "model.safetensors").read_bytes()
    write("policy", hashlib.sha256(weights).hexdigest())
    for learner in learners:  # none if it was killed after the last step
        moments = learner.optimizer.state_dict()["state"]
        content = json.dumps(moments, default=lambda t: t.tolist(), sort_keys=True)
        write("moments", hashlib.sha256(content.encode()).hexdigest())


def forked(task: Callable[[], None]) -> int:
    """Start a child process that does the task and ends; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as error:
            print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> bool:
    """Whether the child has ended by itself; raises if it failed."""
    found, status = os.waitpid(child, os.WNOHANG)
    if found and status:
        raise RuntimeError(f"the training ended with status {status}")
    return bool(found)


def kill(child: int, shared: mmap.mmap, rng: random.Random, longest: float) -> str | None:
    """Kill the child at a random moment; returns the stage it was in, None if it ended first."""
    by_stage = rng.random() < 0.5
    aim, skip = rng.randrange(len(NAMES)), rng.randrange(4)
    moment = 10 ** rng.uniform(-3.5, -1.3) if by_stage else rng.uniform(0, longest)
    begin, entry = time.monotonic(), None
    while not ended(child):
        if by_stage and (shared[0] != aim or shared[1] == entry):
            pass  # elsewhere, or in a call that was not chosen
        elif by_stage and skip and aim:
            entry, skip = shared[1], skip - 1
        else:
            if by_stage:
                entry, begin = shared[1], time.monotonic()
            while time.monotonic() - begin < moment and not (by_stage and shared[0] != aim):
                if ended(child):
                    return None
                time.sleep(0.0002)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return NAMES[shared[0]]
        time.sleep(0.0002)
    return None


def differences(log: Path, reference: dict[str, str]) -> list[str]:
    """The names whose digests differ from the reference, or never appeared."""
    found: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        name, number = line.split()
        found.setdefault(name, set()).add(number)
    wrong = [name for name in reference if found.get(name, {reference[name]}) != {reference[name]}]
    return wrong + [name for name in reference if name not in found and name != "moments"]


def main() -> None:
    """Run the soak and write its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    config, rng = config_of(arguments.steps), random.Random(arguments.seed)
    shared = mmap.mmap(-1, 2)  # seen by parent and child
    begin = time.monotonic()
    kills: Counter[str] = Counter()
    wrong: list[str] = []
    runs = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        _, status = os.waitpid(forked(lambda: work(config, folder, resume=False)), 0)
        if status:
            raise RuntimeError(f"the reference run ended with status {status}")
        lines = (folder / "log").read_text().splitlines()
        reference = dict(line.split() for line in lines)
        longest = time.monotonic() - begin
        with tqdm(total=arguments.kills, unit="kill") as bar:
            while kills.total() < arguments.kills:
                runs += 1
                folder = Path(scratch) / f"run{runs}"
                folder.mkdir()
                going = True
                while going:

                    def go_on(folder: Path = folder) -> None:
                        marked(shared)
                        work(config, folder, resume=(folder / "run" / "run.toml").is_file())

                    shared[:2] = bytes(2)
                    child = forked(go_on)
                    if kills.total() < arguments.kills:
                        stage = kill(child, shared, rng, longest / 2)
                        going = stage is not None
                        kills.update([stage] if stage else [])
                        bar.update(stage is not None)
                    else:
                        _, status = os.waitpid(child, 0)
                        if status:
                            raise RuntimeError(f"the training ended with status {status}")
                        going = False
                wrong += [f"run {runs}: {n}" for n in differences(folder / "log", reference)]
                shutil.rmtree(folder)
    report = {
        "kills": kills.total(),
        "kills_by_stage": {name: kills[name] for name in NAMES},
        "runs_finished": runs,
        "steps_each": arguments.steps,
        "differences": len(wrong),
        "different": wrong,
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one torch thread",
    }
    arguments.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
