"""Out of memory: the same step in smaller passes. Numbers that aren't finite: no step at all."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import QUESTIONS, SMALL, parameters, same_bits, scored, setting
from test_update_branches import CONFIG, policy_and_steering, trees_of, with_advantages
from tiny import tiny_policy
from torch import Tensor

import i2b_lpo.infra.memory
import i2b_lpo.model.logprobs
import i2b_lpo.training.learner
import i2b_lpo.training.updating
from i2b_lpo.config import BranchConfig, IBConfig, RolloutConfig
from i2b_lpo.infra.memory import OutOfMemory, halving, lowering, ran_out
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.rollout.scoring import score_traces
from i2b_lpo.trace import Branch, Trace
from i2b_lpo.training.batch import Trajectory
from i2b_lpo.training.learner import Learner, build_learner
from i2b_lpo.training.updating import update, without_z

pytestmark = pytest.mark.slow

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"
)
PYTHON = MemoryError()


class Limit:
    """A stand-in for `policy_logprobs` whose passes over more than `tokens` run out of memory.

    Args:
        tokens: the most padded tokens of a pass.
        error: what it raises.
        after: passes that still go through, whatever their size.
        backward: fail in the backward pass.
    """

    def __init__(
        self, tokens: int, error: Exception, *, after: int = 0, backward: bool = False
    ) -> None:
        self.tokens, self.error, self.after, self.backward = tokens, error, after, backward
        self.passes: list[int] = []
        self.made: list[weakref.ref[Tensor]] = []

    def __call__(
        self, model: Any, ids: Tensor, *arguments: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        assert not any(ref() is not None for ref in self.made), "a failed pass was kept"
        self.passes.append(ids.numel())
        full = ids.numel() > self.tokens and len(self.passes) > self.after
        if full and not self.backward:
            self._refuse()
        logp, entropy = policy_logprobs(model, ids, *arguments, **named)
        if full and logp.requires_grad:
            # After the head's gradient, before that of the first layer.
            states = model.get_decoder().layers[-1].input_layernorm.weight
            logp = logp + 0 * states.sum()
            self.made.append(weakref.ref(logp))
            logp.register_hook(self._refuse)
        return logp, entropy

    def _refuse(self, *_: Any) -> None:
        raise type(self.error)(*self.error.args)  # a new one, which keeps no traceback


def grpo(tokens: int = 400) -> tuple[Learner, list[Trajectory]]:
    """Attention drops some weights out, so that every pass draws random numbers."""
    config = setting(tokens, alpha=0.1)
    policy = tiny_policy(dtype=torch.float64, attention_dropout=0.25)
    samples = scored(policy, config) + scored(policy, config, seed=1)
    return build_learner(policy, config), samples


def branches(tokens: int = 400, logprob: str = "plain") -> tuple[Learner, list[Trajectory]]:
    policy, steering = policy_and_steering()
    grpo = replace(CONFIG.grpo, micro_tokens=tokens, logprob=logprob)
    config = replace(CONFIG, grpo=grpo)
    learner = build_learner(policy, config, steering=steering)
    samples = with_advantages(trees_of(policy, steering, config))
    return learner, without_z(learner, samples) if logprob == "plain" else samples


def state_of(learner: Learner) -> dict[str, Tensor]:
    moments = {
        f"{at} {name}": value.clone()
        for at, state in enumerate(learner.optimizer.state.values())
        for name, value in state.items()
    }
    return {n: p.detach().clone() for n, p in learner.scorer.named_parameters()} | moments


def three_steps(
    learner: Learner, samples: Sequence[Trajectory], limit: Limit | None = None
) -> list[Any]:
    """Metrics and state after each of three updates; memory is short in the second one alone."""
    torch.manual_seed(0)
    found = []
    for step in range(3):
        with pytest.MonkeyPatch.context() as patch:
            if limit is not None and step == 1:
                patch.setattr(i2b_lpo.training.learner, "policy_logprobs", limit)
            found.append((update(learner, samples, step=step), state_of(learner)))
    return found


def same_run(one: list[Any], two: list[Any]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(a[0] == b[0] and same_bits(a[1], b[1]) for a, b in pairs)


def small_in_the_middle(
    make: Callable[[], tuple[Learner, list[Trajectory]]], tokens: int
) -> list[Any]:
    """The reference: no shortage, but the second update's passes are that small."""
    torch.manual_seed(0)
    learner, samples = make()
    small = replace(learner.config, grpo=replace(learner.config.grpo, micro_tokens=tokens))
    found = []
    torch.manual_seed(0)
    for step in range(3):
        using = replace(learner, config=small) if step == 1 else learner
        found.append((update(using, samples, step=step), state_of(learner)))
    return found


@pytest.mark.parametrize("make", [grpo, branches])
@pytest.mark.parametrize(
    "limit",
    [
        Limit(250, CUDA),
        Limit(110, CPU),
        Limit(250, PYTHON, after=1),
        Limit(250, CUDA, backward=True),
        Limit(250, CPU, after=1, backward=True),
    ],
    ids=["forward", "twice", "second pass", "backward", "second backward"],
)
def test_a_step_is_repeated_in_smaller_passes(
    make: Callable[[], tuple[Learner, list[Trajectory]]], limit: Limit
) -> None:
    limit.passes.clear()
    limit.made.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        learner, samples = make()
        found = three_steps(learner, samples, limit)
    sizes = [400, 200, 100] if limit.tokens < 200 else [400, 200]
    assert [str(w.message) for w in told if w.category is UserWarning] == [
        f"Out of memory at {a} tokens per pass; repeated with {b} (--set grpo.micro_tokens={b} "
        "avoids the repeat)."
        for a, b in pairwise(sizes)
    ]
    assert max(limit.passes) > limit.tokens, "nothing ran out"
    assert same_run(found, small_in_the_middle(make, sizes[-1])), "not bit for bit"


def test_smaller_passes_make_the_same_step() -> None:
    learner, samples = branches()
    plenty = three_steps(learner, samples)
    learner, samples = branches()
    with pytest.warns(UserWarning, match="Out of memory at 400"):
        found = three_steps(learner, samples, Limit(250, CUDA))
    for one, two in zip(found, plenty, strict=True):
        assert one[0] == pytest.approx(two[0], rel=1e-11)
        for name, tensor in two[1].items():
            torch.testing.assert_close(one[1][name], tensor, rtol=1e-12, atol=1e-12)


def test_branches_are_prepared_in_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, ready = branches()
    raw = [replace(s, old_logprobs=None, weights=None) for s in ready]
    limit = Limit(150, CUDA)
    monkeypatch.setattr(i2b_lpo.training.learner, "policy_logprobs", limit)
    with pytest.warns(UserWarning, match=r"Out of memory at 200 .*grpo\.micro_tokens=100"):
        found = without_z(learner, raw)
    assert max(limit.passes) > 150 and any(s.weights for s in ready)
    for one, two in zip(found, ready, strict=True):
        assert one.old_logprobs == pytest.approx(two.old_logprobs, abs=1e-12)
        assert one.weights == pytest.approx(two.weights, abs=1e-12)
    limit.tokens = 10
    with pytest.raises(OutOfMemory, match="in a pass over one trajectory"), pytest.warns():
        without_z(learner, raw)


def test_each_size_is_named_once() -> None:
    learner, samples = grpo()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(i2b_lpo.training.learner, "policy_logprobs", Limit(250, CUDA))
                update(learner, samples)
    assert len([w for w in told if "Out of memory" in str(w.message)]) == 1


@pytest.mark.parametrize("backward", [False, True])
def test_one_trajectory_that_does_not_fit_is_refused_before_any_change(backward: bool) -> None:
    learner, samples = grpo()
    update(learner, samples)
    before = state_of(learner)
    longest = max(len(s) for s in samples if s.advantage)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True):
        limit = Limit(longest - 1, CUDA, backward=backward)
        patch.setattr(i2b_lpo.training.learner, "policy_logprobs", limit)
        with pytest.raises(OutOfMemory) as caught:
            update(learner, samples)
    assert str(caught.value) == (
        f"Out of memory in a pass over one trajectory of {longest} tokens; no parameter was "
        "changed. Take --set gradient_checkpointing=true, a lower --set "
        "rollout.max_new_tokens=N, or a smaller policy."
    )
    assert same_bits(state_of(learner), before)
    assert all(p.grad is None for p in learner.scorer.parameters())
    assert not learner.policy.model.training


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[3]' is invalid"), KeyError("out of memory."), OutOfMemory("x")]
)
def test_other_errors_are_not_repeated(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, samples = grpo()
    before = state_of(learner)
    limit = Limit(0, error)
    monkeypatch.setattr(i2b_lpo.training.learner, "policy_logprobs", limit)
    with pytest.raises(type(error)) as caught:
        update(learner, samples)
    assert caught.value.args == error.args and len(limit.passes) == 1
    assert same_bits(state_of(learner), before)


def test_what_counts_as_out_of_memory() -> None:
    assert all(ran_out(error) for error in (CUDA, CPU, PYTHON))
    other = (None, OutOfMemory("final"), ValueError("memory"), RuntimeError("size mismatch"))
    assert not any(ran_out(error) for error in other)


def test_a_failed_try_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    freed: list[bool] = []

    def attempt(tokens: int) -> int:
        if tokens == 8:
            large = torch.zeros(1000)
            made.append(weakref.ref(large))
            raise MemoryError
        return tokens

    def clear(**_: object) -> None:
        freed.append(made[0]() is None)

    monkeypatch.setattr(i2b_lpo.infra.memory, "clear_device_cache", clear)
    with pytest.warns(UserWarning, match="repeated with 4"):
        assert halving(attempt, 8) == 4
    assert freed == [True], "the device's cache is emptied after the tensors are gone"


def test_not_even_one_token_fits() -> None:
    tried: list[int] = []

    def attempt(tokens: int) -> None:
        tried.append(tokens)
        raise MemoryError

    with (
        pytest.warns(UserWarning),
        pytest.raises(OutOfMemory, match="at one token per pass; use a smaller policy"),
    ):
        halving(attempt, 9)
    assert tried == [9, 4, 2, 1]


def test_advice_where_passes_cannot_shrink() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^Out of memory while decoding; lower rollout\.batch\.$"),
        lowering("while decoding; lower rollout.batch."),
    ):
        raise CUDA
    with pytest.raises(ValueError, match="other"), lowering("never said"):
        raise ValueError("other")


def traces_of(policy: Policy) -> list[Trace]:
    generator = torch.Generator().manual_seed(0)
    return roll_out(policy, QUESTIONS, Sampling(10), rollouts=4, generator=generator)


@pytest.mark.parametrize("estimator", ["answer_information", "answer_conditioned"])
def test_scores_are_measured_again_in_smaller_passes(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(dtype=torch.float64)
    traces = traces_of(policy)
    settings = IBConfig(estimator)
    plenty, expected = (score_traces(policy, traces, settings, micro_tokens=n) for n in (400, 100))
    monkeypatch.setattr(i2b_lpo.model.logprobs, "policy_logprobs", Limit(110, CPU))
    with pytest.warns(UserWarning, match=r"--set grpo\.micro_tokens=100 avoids the repeat"):
        found = score_traces(policy, traces, settings, micro_tokens=400)
    assert found == expected
    for one, two in zip(found, plenty, strict=True):
        values = [[r.score.value for r in t.rollouts if r.score] for t in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=1e-10)
    monkeypatch.setattr(i2b_lpo.model.logprobs, "policy_logprobs", Limit(0, CPU))
    with (
        warnings.catch_warnings(record=True),
        pytest.raises(OutOfMemory, match=r"Take a lower --set rollout\.max_new_tokens=N, or a"),
    ):
        score_traces(policy, traces, settings)


REAL = """
import resource, sys, warnings
import torch
import test_memory as t
from dataclasses import replace

torch.set_num_threads(1)
config = t.setting(8192)
sizes = dict(hidden_size=128, intermediate_size=1024)
samples = [s for s in t.scored(t.tiny_policy(**sizes), config) if s.advantage] * 16

def weights(tokens):
    fresh = t.tiny_policy(**sizes)
    small = replace(config, grpo=replace(config.grpo, micro_tokens=tokens))
    learner = t.build_learner(fresh, small)
    return t.update(learner, samples), t.parameters(fresh)

weights(512)  # libraries and buffers take their room
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 60 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = weights(8192)
halved = sum("Out of memory" in str(w.message) for w in told)
assert halved, "memory sufficed"
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
expected = weights(8192 >> halved)
assert found[0] == expected[0] and t.same_bits(found[1], expected[1])
print("repeated", halved)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_really_runs_out() -> None:
    path = [str(Path(i2b_lpo.__file__).parent.parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", REAL],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("repeated")


# --- not finite ---------------------------------------------------------------------------------


def of_advantage(value: float, samples: list[Trajectory]) -> list[Trajectory]:
    return [replace(samples[0], advantage=value), *samples[1:]]


def of_latents(value: float, samples: list[Trajectory]) -> list[Trajectory]:
    at = next(i for i, s in enumerate(samples) if s.rollout.branch)
    branch = samples[at].rollout.branch
    assert isinstance(branch, Branch) and branch.z
    changed = replace(samples[at].rollout, branch=replace(branch, z=(value, *branch.z[1:])))
    samples[at] = replace(samples[at], rollout=changed)
    return samples


def of_old_log_probs(value: float, samples: list[Trajectory]) -> list[Trajectory]:
    at = next(i for i, s in enumerate(samples) if s.rollout.branch)
    rollout = samples[at].rollout
    changed = replace(rollout, logprobs=(*rollout.logprobs[:-1], value))
    samples[at] = replace(samples[at], rollout=changed)
    return samples


@pytest.mark.parametrize(
    ("logprob", "damage", "value", "name"),
    [
        ("latent", of_advantage, math.nan, "advantages"),
        ("latent", of_advantage, -math.inf, "advantages"),
        ("latent", of_latents, math.nan, "latents"),
        ("latent", of_latents, math.inf, "latents"),
        ("latent", of_old_log_probs, math.nan, "old log-probs"),
        ("latent", of_old_log_probs, -math.inf, "old log-probs"),
        ("plain", of_old_log_probs, math.nan, "ratio weights"),
    ],
)
def test_damaged_records_change_neither_weights_nor_moments(
    logprob: str, damage: Callable[..., list[Trajectory]], value: float, name: str
) -> None:
    learner, samples = branches(logprob=logprob)
    update(learner, samples)
    before = state_of(learner)
    assert len(before) > len(list(learner.scorer.parameters())), "there are no moments"
    damaged = damage(value, samples)
    if logprob == "plain":
        raw = [replace(s, old_logprobs=None, weights=None) for s in damaged]
        damaged = without_z(learner, raw)
    with pytest.raises(FloatingPointError, match=rf"^Step 7: {name}: not every number is finite; "):
        update(learner, damaged, step=7)
    assert same_bits(state_of(learner), before)
    assert all(p.grad is None for p in learner.scorer.parameters())


def broken(value: float, where: str = "layers.1.mlp.down_proj.weight") -> Policy:
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.get_decoder().get_parameter(where)[0, 0] = value
    return policy


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_policy_of_damaged_weights_is_refused_everywhere(value: float) -> None:
    policy = broken(value)
    with pytest.raises(FloatingPointError, match=r"^New token 1: the logits of tiny qwen3 are not"):
        traces_of(policy)
    traces = traces_of(tiny_policy())
    with pytest.raises(FloatingPointError, match=r"^Scoring: the log-probs of tiny qwen3 are not"):
        score_traces(policy, traces, IBConfig())
    learner = build_learner(policy, SMALL)
    before = parameters(policy)
    with pytest.raises(FloatingPointError, match=r"^Step 3: log-probs: not every number is finite"):
        update(learner, scored(tiny_policy(), SMALL), step=3)
    after = parameters(policy)
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)


def test_infinite_latents_end_in_a_sentence_too() -> None:
    policy, steering = policy_and_steering()
    with torch.no_grad():
        next(steering.fusion.parameters()).fill_(math.nan)
    config = replace(CONFIG, rollout=RolloutConfig(rollouts=2, max_new_tokens=10))
    assert config.branch == BranchConfig(branches=3, fraction=0.5)
    with pytest.raises(FloatingPointError, match=r"^New token 1: the logits of tiny qwen3 are not"):
        trees_of(policy, steering, config)
