"""The commands go on where they were stopped; own rewards; what a stopped evaluation gives."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import FakeTask
from tiny import tiny_policy

import i2b_lpo.evaluation.measuring
import i2b_lpo.rollout.rollouts
import i2b_lpo.tasks.maths
from i2b_lpo import cli
from i2b_lpo.config import PRESETS, CheckpointConfig, RolloutConfig, RunConfig
from i2b_lpo.evaluation.measuring import Evaluation, evaluate
from i2b_lpo.model.policy import save_policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Question, Trace
from i2b_lpo.training.loop import train
from i2b_lpo.verify.verdict import verify_batch

Capture = pytest.CaptureFixture[str]
QUESTIONS = load_task("shop").questions("validation", 5, seed=0)


class StopError(BaseException):
    """Stands for a kill."""


def measure(parts: Path | None, **changes: Any) -> tuple[Evaluation, list[Trace]]:
    settings: dict[str, Any] = {"samples": 2, "seed": 3, "batch": 4} | changes
    policy = settings.pop("policy", None) or tiny_policy()
    questions = settings.pop("questions", QUESTIONS)
    return evaluate(
        policy, load_task("shop"), questions, sampling=Sampling(6), parts=parts, **settings
    )


def stop_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let batch number `call` end in a stop; returns the sizes of the batches decoded."""
    seen: list[int] = []

    def watched(*arguments: Any, **named: Any) -> list[Trace]:
        seen.append(len(arguments[1]))
        if len(seen) == call:
            raise StopError
        return roll_out(*arguments, **named)

    monkeypatch.setattr(i2b_lpo.evaluation.measuring, "roll_out", watched)
    return seen


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_stopped_evaluation_goes_on_with_the_same_result(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure(None)
    stop_at(call, monkeypatch)
    with pytest.raises(StopError):
        measure(tmp_path / "parts")
    seen = stop_at(99, monkeypatch)
    assert measure(tmp_path / "parts") == expected
    # greedy 4 + 1 questions, then two at a time
    assert seen == [4, 1, 2, 2, 1][call - 1 :], "what was done isn't done again"
    monkeypatch.setattr(i2b_lpo.evaluation.measuring, "roll_out", None)
    assert measure(tmp_path / "parts") == expected


def test_a_damaged_part_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measure(tmp_path)
    for file in sorted(tmp_path.glob("sampled-*")):
        file.write_text(file.read_text()[:-9])
        seen = stop_at(99, monkeypatch)
        with pytest.warns(UserWarning, match=f"{file.name} is damaged .*decoded again"):
            assert measure(tmp_path) == expected
        assert len(seen) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"samples": 4, "batch": 8}, "samples, batch"),
        ({"policy": tiny_policy(seed=1)}, "weights"),
        ({"questions": [*QUESTIONS[:-1], replace(QUESTIONS[-1], answer="1")]}, "questions"),
    ],
)
def test_another_evaluation_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    measure(tmp_path)
    with pytest.raises(ValueError, match=f"holds another evaluation, with other {named}; continue"):
        measure(tmp_path, **changes)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy's folder; the preset tiny trains it in moments."""
    config = RunConfig(
        policy=str(tmp_path / "policy"),
        steps=3,
        questions=2,
        rollout=RolloutConfig(rollouts=4, max_new_tokens=6),
        checkpoint=CheckpointConfig(every=1),
    )
    save_policy(tiny_policy(), tmp_path / "policy")
    monkeypatch.setitem(PRESETS, "tiny", config)
    return tmp_path


def test_train_resumes_by_the_same_command(small: Path, capsys: Capture) -> None:
    command = ["train", "--output", str(small / "run")]
    assert cli.main([*command, "--steps", "2"]) == 0
    before = (small / "run" / "metrics.jsonl").read_text()
    assert cli.main(command) == 2
    assert "is not empty; choose a new folder" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--seed", "1"]) == 2
    assert "other settings than this run (seed 0 → 1)" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    after = (small / "run" / "metrics.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 3
    assert cli.main(["train", "--output", str(small / "new"), "--resume"]) == 2
    assert "holds no run to go on with" in capsys.readouterr().err


def test_a_signal_is_an_exit_code_and_a_sentence(
    small: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(golds: Any, texts: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return verify_batch(golds, texts)

    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", terminated)
    assert cli.main(["train", "--output", str(small / "run")]) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "Stopped after 1 of 3 steps, saved in" in said and "--resume" in said
    assert [p.name for p in (small / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_evaluate_resumes_by_the_same_command(
    small: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = small / "measured"
    command = ["evaluate", "--policy", str(small / "policy"), "--questions", "3", "--samples", "2"]
    command += ["--max-new-tokens", "6", "--output", str(output)]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(i2b_lpo.evaluation.measuring, "measure", interrupted)
        assert cli.main(command) == 130
    assert "the same command with --resume continues" in capsys.readouterr().err
    assert sorted(p.name for p in output.iterdir()) == ["unfinished"]
    assert cli.main(command) == 2, "nothing is written over"
    with monkeypatch.context() as patch:
        patch.setattr(i2b_lpo.evaluation.measuring, "roll_out", interrupted)  # all is decoded
        assert cli.main([*command, "--resume"]) == 0
    written = sorted(p.name for p in output.iterdir())
    assert written == ["evaluation.json", "run.toml", "traces.jsonl"]
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 2
    assert "holds no evaluation to continue; omit --resume" in capsys.readouterr().err
    assert cli.main([*command[:-2], "--resume"]) == 2
    assert "name its folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="this system has no SIGTERM to catch")
def test_the_real_command_is_terminated_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "i2b_lpo.cli", "train", "--output", str(tmp_path / "run")]
    command += ["--seed", "3", "--method", "i2b-lpo"]
    command += ["--set", "questions=2", "--set", "rollout.max_new_tokens=24"]
    metrics = tmp_path / "run" / "metrics.jsonl"

    def steps() -> int:
        return len(metrics.read_text().splitlines()) if metrics.is_file() else 0

    with subprocess.Popen(
        [*command, "--steps", "50"], stderr=subprocess.PIPE, text=True
    ) as running:
        give_up = time.monotonic() + 120
        while steps() < 1 and running.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        running.terminate()
        assert running.stderr is not None
        said = running.stderr.read()
    done = steps()
    assert running.returncode == 128 + signal.SIGTERM, said
    assert f"Stopped after {done} of 50 steps" in said and 1 <= done < 50
    subprocess.run(
        [*command, "--steps", str(done + 1), "--resume"], check=True, capture_output=True
    )
    assert steps() == done + 1
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


# --- rewards of one's own -------------------------------------------------------------------------

RUN = RunConfig(steps=1, questions=2, rollout=RolloutConfig(rollouts=4, max_new_tokens=6))


def state(policy: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.model.parameters()]


def fails(reward: Any, error: type[Exception], message: str) -> None:
    """Training with this reward raises, and no parameter was changed."""
    policy = tiny_policy()
    before = state(policy)
    with pytest.raises(error, match=message):
        train(RUN, policy, FakeTask(), reward=reward, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, state(policy), strict=True))


def test_a_reward_takes_the_place_of_the_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", None)
    asked: list[tuple[str, str]] = []

    def length(question: Question, text: str) -> float:
        asked.append((question.id, text))
        return len(text) / 10

    generator = torch.Generator().manual_seed(0)
    traces = roll_out(
        tiny_policy(), QUESTIONS[:2], Sampling(6), rollouts=3, generator=generator, reward=length
    )
    rollouts = [(t.question.id, r) for t in traces for r in t.rollouts]
    assert asked == [(name, r.text) for name, r in rollouts]
    assert all(r.reward == len(r.text) / 10 and r.reason == "own reward" for _, r in rollouts)


def test_a_reward_that_raises_is_named_with_its_question() -> None:
    seen: list[Question] = []

    def broken(question: Question, text: str) -> float:
        seen.append(question)
        return 1 / (6 - len(seen))

    fails(
        broken,
        RuntimeError,
        r"^The reward function failed on trajectory 1 of question 1 \(ZeroDivisionError: .*\); no "
        r"parameter was changed\. Fix it, and continue from the newest checkpoint\.$",
    )


def test_a_reward_that_is_no_number_is_named() -> None:
    fails(lambda question, text: None, RuntimeError, r"trajectory 0 of question 0 \(TypeError")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_stops_the_step(value: float) -> None:
    fails(lambda q, text: value, FloatingPointError, rf"reward of question 0 is {value}.*finite")
    with pytest.raises(ValueError, match=f"reward of question .* is {value}; give finite"):
        measure(None, reward=lambda question, text: value)


def test_stopping_by_hand_passes_a_reward_unchanged() -> None:
    def by_hand(question: Question, text: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RUN, tiny_policy(), FakeTask(), reward=by_hand, progress=False)


@pytest.mark.parametrize("empty", [True, False])
def test_groups_of_equal_reward_and_empty_or_cut_off_texts_change_nothing(
    empty: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tiny_policy()
    if empty:  # the end token comes first
        real = policy.model.forward

        def ending(*arguments: Any, **named: Any) -> Any:
            found = real(*arguments, **named)
            found.logits[..., policy.eos_ids[0]] += 1e4
            return found

        monkeypatch.setattr(policy.model, "forward", ending)
    before = state(policy)
    history = train(replace(RUN, steps=2), policy, FakeTask(), output=tmp_path, progress=False)
    assert [row["finished"] for row in history] == [float(empty)] * 2
    assert [row["length"] for row in history] == ([1.0] * 2 if empty else [6.0] * 2)
    assert all(row["uniform_groups"] == 1 and row["trained_tokens"] == 0 for row in history)
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert all(torch.equal(a, b) for a, b in zip(before, state(policy), strict=True))
    assert len([json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]) == 2
