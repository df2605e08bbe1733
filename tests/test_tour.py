"""Two trainings side by side: the same as alone, and none is left over however it ends."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from i2b_lpo.config import (
    EvaluationConfig,
    IBConfig,
    RolloutConfig,
    RunConfig,
    TourConfig,
    read_run,
)
from i2b_lpo.model.policy import load_policy
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.tour import FIRST_STEP, POLICIES, _forget, nearest_step, run_of, train_side_by_side
from i2b_lpo.trace import read_traces
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord

pytestmark = pytest.mark.slow

ENDLESS = 100_000  # steps
PATIENCE = 240.0  # seconds, on a very busy machine


def settings_of(home: Path, steps: int = 2) -> TourConfig:
    return TourConfig(
        policy=str(home / "policy"),
        latents=str(home / "latents"),
        steps=steps,
        questions=2,
        rollout=RolloutConfig(rollouts=4, max_new_tokens=6),
        evaluation=EvaluationConfig(questions=3, samples=2),
    )


def both(home: Path, steps: int = 2) -> dict[str, RunConfig]:
    settings = settings_of(home, steps)
    return {"GRPO": run_of(settings, "grpo"), "I²B-LPO": run_of(settings, "i2b-lpo")}


def without_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """One training by each method, side by side in `output`, and again each by itself."""

    output: Path
    configs: dict[str, RunConfig]
    records: dict[str, list[dict[str, float]]]
    alone: dict[str, list[dict[str, float]]]
    weights: dict[str, list[Weights]]  # of the ones alone, after each step


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    # tiny-base is sometimes right, so that its steps move it.
    settings = TourConfig(steps=4, questions=2, rollout=RolloutConfig(rollouts=4))
    configs = {"GRPO": run_of(settings, "grpo"), "I²B-LPO": run_of(settings, "i2b-lpo")}
    output = tmp_path_factory.mktemp("side by side")
    (output / "grpo" / POLICIES / "step-9").mkdir(parents=True)  # of an earlier tour
    records = train_side_by_side(configs, output)
    assert multiprocessing.active_children() == []
    alone: dict[str, list[dict[str, float]]] = {}
    weights: dict[str, list[Weights]] = {name: [] for name in configs}
    for name, config in configs.items():

        def look(learner: Learner, record: StepRecord, name: str = name) -> None:
            state = learner.policy.model.state_dict()
            weights[name].append({key: w.clone() for key, w in state.items()})

        policy, task = load_policy(config.policy), load_task(config.task)
        alone[name] = train(config, policy, task, progress=False, on_step=look)
    return Trained(output, configs, records, alone, weights)


def equal(one: Weights, two: Weights) -> bool:
    return all(one[key].equal(w) for key, w in two.items())


def test_side_by_side_each_trains_as_it_would_alone(trained: Trained) -> None:
    assert list(trained.records) == ["GRPO", "I²B-LPO"]
    for (name, config), folder in zip(trained.configs.items(), ("grpo", "i2b-lpo"), strict=True):
        assert without_seconds(trained.records[name]) == without_seconds(trained.alone[name]), name
        output = trained.output / folder
        assert read_run(output) == config
        lines = (output / "metrics.jsonl").read_text("ascii").splitlines()
        assert list(map(json.loads, lines)) == trained.records[name]
        assert equal(load_policy(output / "policy").model.state_dict(), trained.weights[name][-1])
        traces = list(read_traces(output / FIRST_STEP))
        assert [len(trace.rollouts) for trace in traces] == [4, 4]
        assert [len(trace.meta["advantages"]) for trace in traces] == [4, 4]
    asked = [[t.question for t in read_traces(p)] for p in trained.output.glob(f"*/{FIRST_STEP}")]
    assert len(asked) == 2 and asked[0] == asked[1], "both learn from the same questions"


def test_grpo_is_kept_as_it_was_at_the_other_ones_tokens(trained: Trained) -> None:
    grpo, ours = ([row["new_tokens"] for row in rows] for rows in trained.records.values())
    gaps = [abs(sum(grpo[:steps]) - sum(ours)) for steps in range(1, 5)]
    stop = 1 + gaps.index(min(gaps))
    assert nearest_step(trained.records["GRPO"], sum(ours)) == stop < 4, "else nothing is shown"
    (kept,) = (trained.output / "grpo" / POLICIES).iterdir()
    assert kept.name == f"step-{stop}" and not (trained.output / "i2b-lpo" / POLICIES).exists()
    weights, after = load_policy(kept).model.state_dict(), trained.weights["GRPO"]
    assert equal(weights, after[stop - 1]) and not equal(weights, after[-1])


@pytest.mark.parametrize("seed", range(20))
def test_no_policy_is_removed_that_may_still_be_the_nearest(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows = {
        name: [{"new_tokens": float(rng.randint(1, most))} for _ in range(rng.randint(1, 12))]
        for name, most in (("GRPO", 8), ("I²B-LPO", rng.choice([3, 8, 20])))
    }
    told: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    saved = 0
    while any(len(told[name]) < len(rows[name]) for name in rows):
        name = rng.choice([name for name in rows if len(told[name]) < len(rows[name])])
        told[name].append(rows[name][len(told[name])])
        while saved < min(len(rows["GRPO"]), len(told["GRPO"]) + rng.randint(0, 1)):
            saved += 1  # a policy is saved before its step is told
            (tmp_path / f"step-{saved}").mkdir()
        _forget(tmp_path, told)
    (tmp_path / ".step-99.part").mkdir()
    _forget(tmp_path, told, ended=True)
    shutil.rmtree(tmp_path / ".step-99.part")
    target = sum(row["new_tokens"] for row in rows["I²B-LPO"])
    sums = [
        sum(row["new_tokens"] for row in rows["GRPO"][:n]) for n in range(1, len(rows["GRPO"]) + 1)
    ]
    nearest = 1 + min(range(len(sums)), key=lambda i: (abs(sums[i] - target), i))
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{nearest}"]


def in_time(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def test_if_one_fails_the_other_is_ended_and_one_sentence_says_why(
    home: Path, tmp_path: Path
) -> None:
    configs = both(home, ENDLESS)
    broken = replace(configs["I²B-LPO"], ib=IBConfig(estimator="tea leaves"))
    with pytest.raises(ChildProcessError) as error:
        train_side_by_side(configs | {"I²B-LPO": broken}, tmp_path)
    assert multiprocessing.active_children() == []
    said = str(error.value)
    assert said.startswith("Training by I²B-LPO failed: ") and "tea leaves" in said
    assert said.endswith(". Training by GRPO was ended.") and "\n" not in said


def test_a_killed_training_is_noticed(home: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "grpo" / "metrics.jsonl"

    def kill() -> None:
        if in_time(lambda: metrics.is_file() and metrics.stat().st_size > 0):
            (child,) = (c for c in multiprocessing.active_children() if c.name == "GRPO")
            child.kill()

    configs = both(home, ENDLESS) | {"I²B-LPO": both(home, 20)["I²B-LPO"]}
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildProcessError, match=r"by GRPO failed: .*signal 9; if memory was short"):
        train_side_by_side(configs, tmp_path)
    killer.join()
    assert multiprocessing.active_children() == []


SCRIPT = """
import signal, sys
from pathlib import Path
from test_tour import ENDLESS, settings_of
from i2b_lpo import cli
from i2b_lpo.config import write_run
write_run(settings_of(Path("."), ENDLESS), Path("."), "tour")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.exit(cli.main(["tour", "--config", "run.toml", "--output", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
def test_a_stopped_tour_leaves_no_process(home: Path, tmp_path: Path, how: str) -> None:
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    tour = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        files = [tmp_path / name / "metrics.jsonl" for name in ("grpo", "i2b-lpo")]
        started = in_time(lambda: all(f.is_file() and f.stat().st_size > 0 for f in files))
        if how == "Ctrl-C":
            os.killpg(tour.pid, signal.SIGINT)  # as a terminal does: to all of them
        else:
            tour.kill()
        # What was said ends when the last process that could say something has ended.
        said, _ = tour.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tour.pid, signal.SIGKILL)
    assert started, said
    assert "Traceback" not in said
    if how == "Ctrl-C":
        assert tour.returncode == 130
        assert said.rstrip().endswith("i2b-lpo: stopped.")
