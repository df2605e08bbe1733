"""The table of methods: one entry is a whole method, which nothing else needs to know."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import run
from test_train import by_chance
from tiny import tiny_policy

import i2b_lpo.tasks.maths
import i2b_lpo.training.step
from i2b_lpo.config import BranchConfig, RolloutConfig, RunConfig, read_run
from i2b_lpo.method.checks import check
from i2b_lpo.method.methods import METHODS, with_method
from i2b_lpo.model.policy import save_policy
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.training.batch import Trajectory, pack, trajectories_of
from i2b_lpo.training.updating import update

PLUG_IN = '''
"""Entropy-Adv (arXiv 2506.14758): A + min(0.4 H, |A|/2); and earlier tokens count more."""

from i2b_lpo.method import METHODS, Method


def shaped(traces, advantages, config):
    return [
        [[a + min(0.4 * h, abs(a) / 2) for h in r.entropies] for r, a in zip(t.rollouts, row)]
        for t, row in zip(traces, advantages)
    ]


def earlier_more(traces, advantages, config):
    return [[[1 / (1 + t) for t in range(len(r))] for r in trace.rollouts] for trace in traces]


METHODS["entropy-adv"] = Method(
    "Entropy-Adv", "arXiv 2506.14758", METHODS["grpo"].configure, shaped, earlier_more
)
'''


@pytest.fixture
def plug_in(tmp_path: Path) -> Iterator[None]:
    """One file with one entry, imported as a user's own module."""
    file = tmp_path / "entropy_adv.py"
    file.write_text(PLUG_IN, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("entropy_adv", file)
    assert spec is not None and spec.loader is not None
    before = dict(METHODS)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    METHODS.clear()
    METHODS.update(before)


def tree(*rows: Sequence[float]) -> Trace:
    """Rollouts of these entropies."""
    rollouts = tuple(
        Rollout(
            (5,) * len(h), ("x",) * len(h), tuple(h), (-0.5,) * len(h), (-0.5,) * len(h), "", True
        )
        for h in rows
    )
    return Trace(Question("q", "?", "1"), (3, 4), rollouts)


@pytest.mark.usefixtures("plug_in")
def test_the_hook_of_a_new_method_gives_the_papers_numbers() -> None:
    trace = tree([1.2, 0.4, 1.6], [0.5, 0.9], [1.1], [0.2, 0.3, 0.6])
    hook = METHODS["entropy-adv"].advantages
    assert hook is not None
    a = [[0.86587543, -0.86587543, -0.86587543, 0.86587543]]
    (found,) = hook([trace], a, RunConfig())
    # Reckoned by hand: the bonus is capped at |A|/2 = .432938.
    expected = [[1.298813, 1.025875, 1.298813], [-0.665875, -0.505875], [-0.432938]]
    expected.append([0.945875, 0.985875, 1.105875])
    for row, want in zip(found, expected, strict=True):
        assert row == pytest.approx(want, abs=1e-6)


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize("logprob", ["latent", "plain"])
def test_a_new_method_is_one_file_and_one_entry(
    logprob: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tiny_policy(), tmp_path / "policy")
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
    seen: list[Trajectory] = []

    def watched(learner: Any, trajectories: Sequence[Trajectory], **rest: Any) -> dict[str, float]:
        seen.extend(trajectories)
        return update(learner, trajectories, **rest)

    monkeypatch.setattr(i2b_lpo.training.step, "update", watched)
    small = ("--steps", 1, "--set", "questions=2", "--set", "rollout.max_new_tokens=8")
    own: tuple[str, ...] = ("--set", "branch.branches=1", "--set", "branch.fusion=none")
    own += ("--set", "rollout.rollouts=2") if logprob == "latent" else ()
    arguments = ("--policy", tmp_path / "policy", "--output", tmp_path / "run", *small, *own)
    assert run("train", "--method", "entropy-adv", *arguments) == 0
    assert read_run(tmp_path / "run").method == "entropy-adv"
    assert any(t.advantage for t in seen) and any(t.start for t in seen)
    for trajectory in seen:
        entropies, a = trajectory.rollout.entropies[trajectory.start :], trajectory.advantage
        shaped = [a + min(0.4 * h, abs(a) / 2) for h in entropies]
        assert trajectory.per_token == pytest.approx(shaped)
        places = range(trajectory.start, len(trajectory.rollout))
        assert trajectory.weights == pytest.approx([1 / (1 + t) for t in places])
    batch = pack(seen, 0)
    given = [x for t in seen for x in t.per_token or ()]
    assert batch.advantages[batch.mask].tolist() == pytest.approx(given)
    assert not batch.advantages[~batch.mask].any()


@pytest.mark.usefixtures("plug_in")
def test_a_token_without_advantage_or_weight_has_no_gradient(tmp_path: Path) -> None:
    from i2b_lpo.training.learner import build_learner

    config = RunConfig(questions=1, rollout=RolloutConfig(rollouts=2, max_new_tokens=4))
    trace = tree([0.1, 0.2, 0.3], [0.1, 0.2])

    def change(per_token: Any, weights: Any) -> float:
        learner = build_learner(tiny_policy(dtype=torch.float64), config)
        chosen = trajectories_of(
            [trace], torch.tensor([[1.0, -1.0]]), per_token=per_token, weights=weights
        )
        return update(learner, chosen)["grad_norm"]

    ones = [[[1.0] * 3, [1.0] * 2]]
    none = [[[0.0] * 3, [0.0] * 2]]
    first, second = [[[1.0, 0.0, 0.0], [0.0, 0.0]]], [[[0.5, 0.0, 0.0], [0.0, 0.0]]]
    assert change(none, None) == 0 and change(ones, none) == 0
    assert change(first, None) > 0
    assert change(second, None) == pytest.approx(change(first, None) / 2)
    assert change(ones, second) == pytest.approx(change(second, ones))


@pytest.mark.parametrize("name", ["advantages", "weights"])
def test_a_hook_that_misses_a_token_is_told(name: str) -> None:
    trace = tree([0.1, 0.2, 0.3], [0.1, 0.2])
    numbers = [[[1.0, 1.0], [1.0, 1.0]]]
    key = "per_token" if name == "advantages" else name
    with pytest.raises(ValueError, match=f"0 of question q has 3 tokens and 2 {name}; give one"):
        trajectories_of([trace], torch.zeros(1, 2), **{key: numbers})  # type: ignore[arg-type]


def test_unknown_methods_are_refused_before_any_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown method 'ppo'; choose grpo or i2b-lpo"):
        with_method(RunConfig(), "ppo")
    with pytest.raises(ValueError, match="Unknown method 'ppo'; choose one of grpo, i2b-lpo"):
        check(RunConfig(method="ppo"))
    (tmp_path / "mine.toml").write_text('method = "ppo"\n', encoding="utf-8")
    arguments = ("--config", tmp_path / "mine.toml", "--output", tmp_path / "run")
    assert run("train", *arguments) == 2 and not (tmp_path / "run").exists()


def test_every_method_has_a_title_and_a_source() -> None:
    assert [m.title for m in METHODS.values()] == ["GRPO", "I²B-LPO"]
    for name, method in METHODS.items():
        assert method.source
        made = with_method(RunConfig(rollout=RolloutConfig(rollouts=16)), name)
        assert made.method == name and made.group == 16
    own = with_method(RunConfig(branch=BranchConfig(branches=1)), "grpo")
    assert own.branch == BranchConfig()


def test_the_table_needs_no_torch() -> None:
    import subprocess

    code = "import sys, i2b_lpo.method.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
