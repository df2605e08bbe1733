"""The training loop against dense float64 references, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings, strategies as st
from tiny import tiny_policy
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import i2b_lpo.rollout.rollouts
import i2b_lpo.tasks.maths
import i2b_lpo.training.learner
import i2b_lpo.training.loop
import i2b_lpo.training.step
import i2b_lpo.training.updating
from i2b_lpo.config import GRPOConfig, OptimizerConfig, RolloutConfig, RunConfig, read_run
from i2b_lpo.method.grpo import VARIANTS
from i2b_lpo.method.loss import loss_normaliser, policy_loss
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.padding import micro_batches
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.branching import grow_trees
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.labels import Labels
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.training.batch import Batch, Trajectory, pack, trajectories_of
from i2b_lpo.training.learner import Learner, build_learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord, advantages_of, reward_table, train_step
from i2b_lpo.training.updating import update
from i2b_lpo.verify.verdict import Verdict

pytestmark = pytest.mark.slow

LENGTH = 10  # new tokens at most
SMALL = RunConfig(
    questions=4,
    steps=3,
    rollout=RolloutConfig(rollouts=4, max_new_tokens=LENGTH),
    optimizer=OptimizerConfig(learning_rate=1e-3, max_grad_norm=1e9),  # never clips
)
QUESTIONS = (
    Question("a", "What is 23*14?", "322"),
    Question("b", "Hi", "1"),
    Question("c", "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?", "544"),
)
GRADIENTS = dict[str, Tensor]


@dataclass(frozen=True)
class FakeTask:
    """Three short prompts in turn; `step` decides where the turn begins."""

    name: str = "fake"
    asked: tuple[Question, ...] = QUESTIONS

    def questions(self, split: str, count: int, *, seed: int) -> list[Question]:
        return [self.asked[i % len(self.asked)] for i in range(count)]

    def batch(self, step: int, size: int, *, seed: int) -> list[Question]:
        return [
            replace(self.asked[i % len(self.asked)], id=str(i))
            for i in range(step * size + seed, (step + 1) * size + seed)
        ]

    def label(self, question: Question, text: str) -> Labels | None:
        return None


def by_chance(golds: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
    """Verdicts that depend on the text alone and make most groups mixed."""
    right = [zlib.crc32(text.encode()) % 2 == 0 for text in texts]
    return [Verdict(float(ok), "correct" if ok else "wrong", None) for ok in right]


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)


def setting(
    micro_tokens: int = 4096, alpha: float = 0.0, variant: str = "grpo", temperature: float = 1.0
) -> RunConfig:
    return replace(
        SMALL,
        grpo=GRPOConfig(variant=variant, alpha=alpha, micro_tokens=micro_tokens),
        rollout=replace(SMALL.rollout, temperature=temperature),
    )


def learner_of(config: RunConfig = SMALL, **policy: Any) -> Learner:
    return build_learner(tiny_policy(**{"dtype": torch.float64} | policy), config)


def parameters(policy: Policy) -> GRADIENTS:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def same_bits(a: GRADIENTS, b: GRADIENTS) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scored(policy: Policy, config: RunConfig, seed: int = 0) -> list[Trajectory]:
    """Samples of all lengths with drifted old log-probs and advantages of both signs and 0.

    Old log-probs are float32 numbers and advantages (like every α here) multiples of 2^−7, so that
    no reference depends on the precision they are stored with.
    """
    rng = random.Random(seed)
    traces = roll_out(
        policy,
        QUESTIONS,
        Sampling(LENGTH, config.rollout.temperature),
        rollouts=4,
        generator=torch.Generator().manual_seed(seed),
    )
    samples = []
    for at, trace in enumerate(traces):
        for row, rollout in enumerate(trace.rollouts):
            length = rng.randint(1, len(rollout))
            old = torch.tensor([x + rng.gauss(0, 0.4) for x in rollout.logprobs[:length]])
            rollout = Rollout(
                ids=rollout.ids[:length],
                pieces=rollout.pieces[:length],
                entropies=rollout.entropies[:length],
                logprobs=tuple(old.tolist()),
                logprobs_t1=rollout.logprobs_t1[:length],
                text=rollout.text,
                finished=False,
            )
            advantage = 0.0 if at == 1 else (1.5, -0.5, -1.25, 0.0)[row]
            samples.append(Trajectory(trace.prompt_ids, rollout, advantage))
    rng.shuffle(samples)
    return samples


def gradients(
    learner: Learner, samples: Sequence[Trajectory]
) -> tuple[dict[str, float], GRADIENTS]:
    """What `update` hands to the optimizer, and its metrics; no parameter is changed."""
    caught: GRADIENTS = {}

    def catch(*_: Any) -> None:
        named = learner.policy.model.named_parameters()
        caught.update({name: p.grad.clone() for name, p in named})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.optimizer, "step", catch)
        metrics = update(learner, samples)
    assert all(p.grad is None for p in learner.policy.model.parameters())
    return metrics, caught


def assert_close(found: GRADIENTS, expected: GRADIENTS, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-6, "the reference has no gradient: nothing was compared"
    for name, gradient in expected.items():
        worst = float((found[name] - gradient).abs().max())
        assert worst <= tolerance * scale, f"{name}: {worst / scale:.1e}"


DUAL_CLIP: dict[str, float | None] = {"dapo": None, "dr_grpo": None}  # all others have 3


def dense_loss(policy: Policy, samples: Sequence[Trajectory], config: RunConfig) -> Tensor:
    """METHOD §6, one sample and one token at a time, from full logits; nothing is skipped."""
    variant = VARIANTS[config.grpo.variant]
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        start = len(sample.prompt_ids)
        ids = torch.tensor([[*sample.prompt_ids, *sample.rollout.ids]])
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
        logits = logits[:, : policy.vocab_size].double()
        log_q = (logits / config.rollout.temperature).log_softmax(-1)
        log_p = logits.log_softmax(-1)
        terms = []
        for t, token in enumerate(sample.rollout.ids):
            ratio = (log_q[t, token] - sample.rollout.logprobs[t]).exp()
            a = sample.advantage
            clipped = ratio.clamp(1 - variant.clip_low, 1 + variant.clip_high)
            term = torch.minimum(ratio * a, clipped * a)
            bound = DUAL_CLIP.get(config.grpo.variant, 3.0)
            if a < 0 and bound is not None:
                term = torch.maximum(term, torch.tensor(bound * a, dtype=torch.float64))
            entropy = -(log_p[t].exp() * log_p[t]).sum()
            terms.append(term + config.grpo.alpha * a * entropy)
        share = len(terms) if variant.reduction == "sequence" else 1
        total = total - torch.stack(terms).sum() / share
    denominators = {
        "token": sum(len(s.rollout) for s in samples),
        "sequence": len(samples),
        "constant": LENGTH * len(samples),
    }
    return total / denominators[variant.reduction]


# --- one loss, however it is cut ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_gradients_do_not_depend_on_the_micro_batches(kind: str) -> None:
    policy = tiny_policy(kind, dtype=torch.float64)
    drawn = [s for s in scored(policy, SMALL) if s.advantage]
    # Eight samples of one length, so that n of them fill n × length padded tokens exactly.
    prompt = drawn[0].prompt_ids
    longest = max((s.rollout for s in drawn), key=len)
    samples = []
    for at in range(8):
        old = torch.tensor([x + 0.125 * (at - 4) for x in longest.logprobs])  # float32 numbers
        rollout = replace(longest, logprobs=tuple(old.tolist()))
        samples.append(Trajectory(prompt, rollout, (-1.0) ** at * (at + 1)))
    found = {}
    for size, count in ((8, 1), (4, 2), (2, 4)):
        config = setting(micro_tokens=size * len(samples[0]), alpha=1 / 128)
        learner = build_learner(policy, config)
        shapes: list[tuple[int, ...]] = []
        hook = policy.model.get_decoder().register_forward_pre_hook(
            lambda _m, _a, kwargs, shapes=shapes: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
        metrics, found[size] = gradients(learner, samples)
        hook.remove()
        assert shapes == [(size, len(samples[0]))] * count
        assert metrics["loss"] == pytest.approx(
            dense_loss(policy, samples, config).item(), rel=1e-12
        )
    assert_close(found[4], found[8])
    assert_close(found[2], found[8])


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_update_equals_a_dense_reference(variant: str, alpha: float) -> None:
    config = setting(micro_tokens=70, alpha=alpha, variant=variant, temperature=0.7)
    learner = learner_of(config)
    policy = learner.policy
    samples = scored(policy, config)
    assert len(micro_batches([s for s in samples if s.advantage], 70, len)) >= 3
    metrics, found = gradients(learner, samples)
    loss = dense_loss(policy, samples, config)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-10)
    names, weights = zip(*policy.model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    assert_close(found, expected, 1e-10)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-10)
    assert metrics["clip_fraction"] > 0, "no token was clipped: the clips were not tested"
    assert metrics["trained_tokens"] == sum(len(s.rollout) for s in samples if s.advantage)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_its_own_dual_clip(variant: str) -> None:
    """Ratios far above 3: methods of papers that bound none let them through."""
    config = setting(variant=variant)
    learner = learner_of(config)
    samples = []
    for sample in scored(learner.policy, config):
        low = torch.tensor([x - 2.5 for x in sample.rollout.logprobs])  # float32 numbers
        rollout = replace(sample.rollout, logprobs=tuple(low.tolist()))
        samples.append(replace(sample, rollout=rollout))
    metrics, _ = gradients(learner, samples)
    assert metrics["mean_ratio"] > 6
    loss = dense_loss(learner.policy, samples, config)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert (metrics["grad_norm"] > 0.1) == (variant in DUAL_CLIP), "every token is bounded, or none"


@pytest.mark.parametrize("variant", ["grpo", "sequence_mean", "dr_grpo"])
def test_skipping_samples_without_advantage_equals_including_them(variant: str) -> None:
    config = setting(micro_tokens=100, alpha=0.25, variant=variant)
    learner = learner_of(config)
    policy = learner.policy
    samples = scored(policy, config)
    assert sum(s.advantage == 0 for s in samples) == 6
    metrics, found = gradients(learner, samples)
    batch = pack(samples, policy.pad_id)
    logp, entropy = policy_logprobs(
        policy.model,
        batch.input_ids,
        batch.attention_mask,
        batch.mask,
        temperature=1.0,
        vocab_size=policy.vocab_size,
    )
    reduction = VARIANTS[variant].reduction
    longest = LENGTH if reduction == "constant" else None
    result = policy_loss(
        logp,
        batch.old_logp,
        batch.advantages,
        batch.mask,
        entropy=entropy,
        alpha=0.25,
        reduction=reduction,
        normaliser=loss_normaliser(batch.mask, reduction, max_length=longest),
    )
    assert metrics["loss"] == pytest.approx(result.loss.item(), rel=1e-12)
    names, weights = zip(*policy.model.named_parameters(), strict=True)
    assert_close(found, dict(zip(names, torch.autograd.grad(result.loss, weights), strict=True)))


def test_padding_never_changes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(setting(alpha=0.25))
    samples = scored(learner.policy, SMALL)
    metrics, expected = gradients(learner, samples)
    real_pack = pack

    def pack_wider(samples: Sequence[Trajectory], pad_id: int, device: Any = "cpu") -> Batch:
        batch = real_pack(samples, pad_id + 5, device)
        extra = torch.nn.functional.pad
        return Batch(
            extra(batch.input_ids, (0, 9), value=7),
            extra(batch.attention_mask, (0, 9)),
            extra(batch.mask, (0, 9)),
            extra(batch.old_logp, (0, 9), value=-3.0),
            extra(batch.advantages, (0, 9), value=-2.0),
            extra(batch.weights, (0, 9), value=5.0),
            extra(batch.since, (0, 9), value=3),
        )

    monkeypatch.setattr(i2b_lpo.training.updating, "pack", pack_wider)
    padded, found = gradients(learner, samples)
    assert padded["loss"] == pytest.approx(metrics["loss"], rel=1e-12)
    assert_close(found, expected)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain = learner_of()
    samples = scored(plain.policy, SMALL)
    saving = learner_of(replace(SMALL, gradient_checkpointing=True))
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.policy.model.modules())
    assert_close(gradients(saving, samples)[1], gradients(plain, samples)[1])


# --- from traces to tensors -----------------------------------------------------------------------


@st.composite
def any_samples(draw: st.DrawFn) -> list[Trajectory]:
    ids = st.integers(0, 50)
    found = []
    for _ in range(draw(st.integers(1, 6))):
        prompt = draw(st.lists(ids, min_size=1, max_size=6))
        new = draw(st.lists(ids, min_size=1, max_size=6))
        old = draw(st.lists(st.floats(-9, 0, width=32), min_size=len(new), max_size=len(new)))
        zeros = (0.0,) * len(new)
        rollout = Rollout(tuple(new), ("",) * len(new), zeros, tuple(old), zeros, "", True)
        found.append(Trajectory(tuple(prompt), rollout, draw(st.floats(-2, 2, width=32))))
    return found


@settings(max_examples=40)
@given(any_samples())
def test_pack_puts_every_number_in_its_place(samples: list[Trajectory]) -> None:
    batch = pack(samples, pad_id=99)
    width = max(len(s.prompt_ids) + len(s.rollout.ids) for s in samples)
    assert int(batch.mask.sum()) == sum(len(s.rollout.ids) for s in samples)
    for row, sample in enumerate(samples):
        start, new = len(sample.prompt_ids), len(sample.rollout.ids)
        for t in range(width):
            inside, is_new = t < start + new, start <= t < start + new
            token = [*sample.prompt_ids, *sample.rollout.ids][t] if inside else 99
            assert batch.input_ids[row, t] == token
            assert batch.attention_mask[row, t] == inside
            assert batch.mask[row, t] == is_new
            assert batch.old_logp[row, t] == (sample.rollout.logprobs[t - start] if is_new else 0)
        own = batch.advantages[row][batch.mask[row]]
        assert (own == sample.advantage).all() and not batch.advantages[row][~batch.mask[row]].any()
    shapes = {tuple(t.shape) for t in (batch.input_ids, batch.attention_mask, batch.mask)}
    assert shapes == {(len(samples), width)} == {tuple(batch.old_logp.shape)}


@given(any_samples(), st.integers(1, 60))
def test_micro_batches_hold_every_sample_once_within_the_limit(
    samples: list[Trajectory], tokens: int
) -> None:
    batches = micro_batches(samples, tokens, len)
    assert sorted(map(id, (s for b in batches for s in b))) == sorted(map(id, samples))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens
    lengths = [len(s) for b in batches for s in b]
    assert lengths == sorted(lengths), "documents of like length share a batch"
    for batch, following in pairwise(batches):  # none could be fuller
        assert (len(batch) + 1) * len(following[0]) > tokens


def test_samples_pair_each_rollout_with_its_advantage() -> None:
    policy = tiny_policy()
    generator = torch.Generator().manual_seed(0)
    traces = roll_out(policy, QUESTIONS, Sampling(4), rollouts=2, generator=generator)
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    samples = trajectories_of(traces, scores)
    assert [s.advantage for s in samples] == [1, 2, 3, 4, 5, 6]
    assert [s.rollout for s in samples] == [r for t in traces for r in t.rollouts]
    assert [s.prompt_ids for s in samples] == [t.prompt_ids for t in traces for _ in range(2)]
    assert all(len(s) == len(s.prompt_ids) + len(s.rollout.ids) for s in samples)
    with pytest.raises(ValueError, match="zip"):
        trajectories_of(traces, scores[:2])
    with pytest.raises(ValueError, match="zip"):
        trajectories_of(traces, scores[:, :1])


# --- decoding and training agree ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_recorded_log_probs_equal_teacher_forced_ones(
    dtype: torch.dtype, tolerance: float, temperature: float, top_p: float
) -> None:
    policy = tiny_policy(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(LENGTH, temperature, top_p)
    traces = roll_out(policy, QUESTIONS, sampling, rollouts=4, generator=generator)
    samples = trajectories_of(traces, torch.ones(3, 4))
    batch = pack(samples, policy.pad_id)
    with torch.no_grad():
        logp, entropy = policy_logprobs(
            policy.model,
            batch.input_ids,
            batch.attention_mask,
            batch.mask,
            temperature=temperature,
            vocab_size=policy.vocab_size,
        )
    for row, sample in enumerate(samples):
        new = slice(len(sample.prompt_ids), len(sample))
        for found, recorded in (
            (logp, sample.rollout.logprobs),
            (entropy, sample.rollout.entropies),
        ):
            assert found[row, new].tolist() == pytest.approx(recorded, abs=tolerance)


@pytest.mark.usefixtures("chance")
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_the_first_update_is_on_policy_and_reads_prompt_and_stored_tokens(
    temperature: float, top_p: float
) -> None:
    rollout = replace(SMALL.rollout, temperature=temperature, top_p=top_p)
    learner = learner_of(replace(SMALL, rollout=rollout), dtype=torch.float32)
    read: list[list[int]] = []

    def keep(_module: Any, _arguments: Any, kwargs: dict[str, Any]) -> None:
        if not kwargs.get("use_cache"):  # the update's passes
            for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
                read.append(ids[mask.bool()].tolist())

    decoder = learner.policy.model.get_decoder()
    hook = decoder.register_forward_pre_hook(keep, with_kwargs=True)
    record = train_step(learner, FakeTask(), 0)
    hook.remove()
    assert record.metrics["mean_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert record.metrics["clip_fraction"] == 0
    useful = [
        [*trace.prompt_ids, *rollout.ids]
        for trace, row in zip(record.traces, record.advantages, strict=True)
        for rollout, advantage in zip(trace.rollouts, row, strict=True)
        if advantage
    ]
    assert sorted(read) == sorted(useful)
    assert len(useful) >= 8
    for trace in record.traces:
        assert list(trace.prompt_ids) == learner.policy.prompt_ids(trace.question.text)


# --- groups without a lesson ----------------------------------------------------------------------


def all_right(golds: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
    return [Verdict(1.0, "correct", None) for _ in texts]


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_of_equal_reward_change_nothing(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(setting(variant=variant, alpha=0.25))
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
    train_step(learner, FakeTask(), 0)  # so that the optimizer holds momentum
    if VARIANTS[variant].overlong_cache:  # lengths would tell the rollouts apart
        monkeypatch.setattr(
            i2b_lpo.training.step, "overlong_penalty", lambda x, **_: torch.zeros(x.shape)
        )
    before = parameters(learner.policy)
    steps = [state["step"].item() for state in learner.optimizer.state.values()]
    assert set(steps) == {1}
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", all_right)
    record = train_step(learner, FakeTask(), 1)
    assert record.metrics["reward"] == 1
    assert record.metrics["uniform_groups"] == 1
    assert not record.advantages.any()
    assert same_bits(parameters(learner.policy), before)
    assert [s["step"].item() for s in learner.optimizer.state.values()] == steps
    for name in ("loss", "grad_norm", "clip_fraction", "trained_tokens"):
        assert record.metrics[name] == 0, f"{name} must be there in every step"


def test_an_update_of_nothing_is_no_step() -> None:
    learner = learner_of()
    before = parameters(learner.policy)
    assert update(learner, []) == {
        "loss": 0.0,
        "grad_norm": 0.0,
        "clip_fraction": 0.0,
        "mean_ratio": 1.0,
        "trained_tokens": 0.0,
    }
    assert same_bits(parameters(learner.policy), before)
    assert not learner.optimizer.state


# --- rewards --------------------------------------------------------------------------------------


def traces_of(rewards: Sequence[Sequence[float | None]], lengths: Sequence[int]) -> list[Trace]:
    def rollout(reward: float | None, n: int) -> Rollout:
        zeros = (0.0,) * n
        return Rollout((3,) * n, ("",) * n, zeros, zeros, zeros, "", False, reward=reward)

    return [
        Trace(
            Question(f"q{i}", "Hi", "1"),
            (1, 2),
            tuple(rollout(r, n) for r, n in zip(row, lengths, strict=True)),
        )
        for i, row in enumerate(rewards)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_become_advantages(variant: str) -> None:
    traces = traces_of([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], [5, 9, 10])
    rewards = reward_table(traces)
    assert rewards.tolist() == [[1, 0, 1], [1, 1, 1]]
    table = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    if VARIANTS[variant].overlong_cache:
        # L_max 10 and L_cache 2: free up to 8 tokens, −0.5 at 9, −1 at 10.
        table = [[1.0, -0.5, 0.0], [1.0, 0.5, 0.0]]
    expected = []
    for row in table:
        mean = sum(row) / 3
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / 2) + 1e-4
        expected += [(r - mean) / (1 if variant == "dr_grpo" else std) for r in row]
    found = advantages_of(traces, rewards, setting(variant=variant))
    assert found.shape == (2, 3)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert rewards.tolist() == [[1, 0, 1], [1, 1, 1]], "the table was changed"


def test_dynamic_sampling_compares_verdicts_not_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    # All answers are right: DAPO drops the groups, although their lengths differ.
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", all_right)
    learner = learner_of(setting(variant="dapo"))
    eos = learner.policy.eos_ids
    learner = replace(learner, policy=replace(learner.policy, eos_ids=(*eos, *range(60))))
    record = train_step(learner, FakeTask(), 0)
    assert len({len(r) for t in record.traces for r in t.rollouts}) > 2
    assert record.rewards.min() == 1, "the penalty is no verdict"
    assert record.metrics["trained_tokens"] == 0


@pytest.mark.parametrize("variant", ["grpo", "sequence_mean", "dr_grpo"])
def test_a_dropped_group_counts_neither_above_nor_below(variant: str) -> None:
    config = setting(alpha=0.25, variant=variant)
    learner = learner_of(config)
    samples = scored(learner.policy, config)
    gone = samples[3].prompt_ids
    kept = [s for s in samples if s.prompt_ids != gone]
    assert len(kept) == 8
    assert len(samples) == 12
    metrics, found = gradients(learner, [replace(s, dropped=s.prompt_ids == gone) for s in samples])
    kept_metrics, expected = gradients(learner, kept)
    assert metrics == kept_metrics
    assert_close(found, expected)
    loss = dense_loss(learner.policy, kept, config).item()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(("variant", "drops"), [("grpo", False), ("dynamic_sampling", True)])
def test_dynamic_sampling_alone_drops_uniform_groups(
    variant: str, drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(golds: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        # The first two groups of four are mixed, the others right throughout.
        return [Verdict(float(i % 2 == 0 or i >= 8), "correct", None) for i in range(len(texts))]

    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", half)
    seen: list[Trajectory] = []

    def watched(
        learner: Learner, samples: Sequence[Trajectory], **settings: Any
    ) -> dict[str, float]:
        seen.extend(samples)
        return update(learner, samples, **settings)

    monkeypatch.setattr(i2b_lpo.training.step, "update", watched)
    record = train_step(learner_of(setting(variant=variant)), FakeTask(), 0)
    assert [s.dropped for s in seen] == [False] * 8 + [drops] * 8
    assert [s.rollout for s in seen] == [r for t in record.traces for r in t.rollouts]
    assert [s.advantage for s in seen] == record.advantages.flatten().tolist()
    assert [bool(s.advantage) for s in seen] == [True] * 8 + [False] * 8


# --- what is refused ------------------------------------------------------------------------------


def untouched(learner: Learner, before: GRADIENTS) -> bool:
    model = learner.policy.model
    return (
        same_bits(parameters(learner.policy), before)
        and not learner.optimizer.state
        and all(p.grad is None for p in model.parameters())
    )


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), None])
def test_a_missing_or_infinite_reward_is_refused(
    reward: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of()
    before = parameters(learner.policy)

    def broken(*arguments: Any, **settings: Any) -> list[Trace]:
        traces = grow_trees(*arguments, **settings)
        first, *rest = traces[1].rollouts
        traces[1] = replace(traces[1], rollouts=(replace(first, reward=reward), *rest))
        return traces

    monkeypatch.setattr(i2b_lpo.training.step, "grow_trees", broken)
    with pytest.raises(FloatingPointError, match=rf"Step 7: the reward of question 29 is {reward}"):
        train_step(learner, FakeTask(), 7)
    assert untouched(learner, before)


Break = Callable[[Learner, pytest.MonkeyPatch], str]


def break_log_probs(learner: Learner, patch: pytest.MonkeyPatch) -> str:
    calls = []

    def broken(*arguments: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        logp, entropy = policy_logprobs(*arguments, **settings)
        calls.append(1)
        return (logp * float("nan") if len(calls) == 2 else logp), entropy

    patch.setattr(i2b_lpo.training.learner, "policy_logprobs", broken)
    return "log-probs"


def break_entropies(learner: Learner, patch: pytest.MonkeyPatch) -> str:
    def broken(*arguments: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        logp, entropy = policy_logprobs(*arguments, **settings)
        return logp, entropy + float("inf")

    patch.setattr(i2b_lpo.training.learner, "policy_logprobs", broken)
    return "entropies"


def break_the_loss(learner: Learner, patch: pytest.MonkeyPatch) -> str:
    def broken(*arguments: Any, **settings: Any) -> Any:
        result = policy_loss(*arguments, **settings)
        return replace(result, loss=result.loss * float("inf"))

    patch.setattr(i2b_lpo.training.updating, "policy_loss", broken)
    return "loss"


def break_a_gradient(learner: Learner, patch: pytest.MonkeyPatch) -> str:
    name, parameter = list(learner.policy.model.named_parameters())[3]
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    return f"gradient of .*{name}"


def break_the_norm(learner: Learner, patch: pytest.MonkeyPatch) -> str:
    # Every number is finite, only the sum of their squares isn't.
    parameter = next(learner.policy.model.parameters())
    parameter.register_hook(lambda gradient: torch.full_like(gradient, 1e200))
    return "gradient"


@pytest.mark.parametrize(
    "damage", [break_log_probs, break_entropies, break_the_loss, break_a_gradient, break_the_norm]
)
def test_non_finite_numbers_are_refused_before_any_change(
    damage: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(setting(micro_tokens=100, alpha=0.005))
    samples = scored(learner.policy, SMALL)
    assert len(micro_batches([s for s in samples if s.advantage], 100, len)) >= 2
    before = parameters(learner.policy)
    tensor = damage(learner, monkeypatch)
    with pytest.raises(FloatingPointError, match=f"Step 7: {tensor}") as caught:
        update(learner, samples, step=7)
    assert "no parameter was changed" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert untouched(learner, before)


@pytest.mark.parametrize("old", [float("nan"), -float("inf")])
def test_a_non_finite_old_log_prob_is_refused_before_any_change(old: float) -> None:
    learner = learner_of(setting(micro_tokens=100))
    samples = scored(learner.policy, SMALL)
    last = max((s for s in samples if s.advantage), key=len)  # in the last micro-batch
    broken = replace(last.rollout, logprobs=(*last.rollout.logprobs[:-1], old))
    samples[samples.index(last)] = replace(last, rollout=broken)
    before = parameters(learner.policy)
    with pytest.raises(FloatingPointError, match="Step 7: old log-probs"):
        update(learner, samples, step=7)
    assert untouched(learner, before)


def test_an_update_that_was_stopped_leaves_no_gradient_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = learner_of(setting(micro_tokens=100))
    samples = scored(learner.policy, SMALL)
    _, expected = gradients(learner, samples)
    calls = []

    def stopped(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return policy_loss(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(i2b_lpo.training.updating, "policy_loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            update(learner, samples)
    assert_close(gradients(learner, samples)[1], expected)


def test_an_unknown_variant_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=r"Unknown grpo.variant 'gppo'; choose one of grpo, clip"):
        train(setting(variant="gppo"), tiny_policy(), FakeTask(), output=output, progress=False)
    assert not output.exists()


@pytest.mark.usefixtures("chance")
def test_after_a_step_the_policy_decodes_as_before() -> None:
    # In training mode with gradient checkpointing, transformers switches the cache off.
    learner = learner_of(replace(SMALL, gradient_checkpointing=True))

    def drawn() -> list[Trace]:
        generator = torch.Generator().manual_seed(0)
        return roll_out(learner.policy, QUESTIONS, Sampling(6), rollouts=2, generator=generator)

    train_step(learner, FakeTask(), 0)
    found = drawn()
    learner.policy.model.eval()
    assert found == drawn()


def test_questions_that_cannot_be_dealt_evenly_are_refused() -> None:
    config = replace(SMALL, questions=4, grpo=GRPOConfig(updates=3))
    with pytest.raises(ValueError, match=r"4 questions .* use a multiple of 3"):
        build_learner(tiny_policy(), config)


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chance")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant: str) -> None:
    learner = learner_of(setting(variant=variant, alpha=0.005))
    before = parameters(learner.policy)
    record = train_step(learner, FakeTask(), 0)
    assert record.metrics["grad_norm"] > 0
    after = parameters(learner.policy)
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert record.rewards.shape == record.advantages.shape == (4, 4)


@pytest.mark.usefixtures("chance")
@pytest.mark.parametrize("updates", [2, 4])
def test_several_updates_of_a_step_use_disjoint_questions(
    updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, grpo=GRPOConfig(updates=updates))
    learner = learner_of(config)
    seen: list[list[Trajectory]] = []
    before = parameters(learner.policy)

    def watched(
        learner: Learner, samples: Sequence[Trajectory], **settings: Any
    ) -> dict[str, float]:
        seen.append(list(samples))
        return update(learner, samples, **settings)

    monkeypatch.setattr(i2b_lpo.training.step, "update", watched)
    record = train_step(learner, FakeTask(), 0)
    assert len(seen) == updates
    whole = trajectories_of(record.traces, record.advantages)
    chosen = [id(s.rollout) for part in seen for s in part]
    assert sorted(chosen) == sorted(id(s.rollout) for s in whole), "all of them, each once"
    groups = [{id(s.rollout) for s in part} for part in seen]
    for trace in record.traces:
        rows = {id(r) for r in trace.rollouts}
        assert sum(bool(rows & group) for group in groups) == 1, "a group was torn apart"
    assert {s["step"].item() for s in learner.optimizer.state.values()} == {updates}
    assert not same_bits(parameters(learner.policy), before)
    useful = sum(len(s.rollout) for s in whole if s.advantage)
    assert record.metrics["trained_tokens"] == useful, "metrics are of the whole step"


@pytest.mark.parametrize("updates", [1, 2])
def test_each_update_leaves_out_the_uniform_groups_among_its_own(
    updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups 0 and 3 are uniform: one of the first update and one of the second."""
    given: list[list[Trajectory]] = []

    def verdicts(golds: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        right = [i // 4 in (0, 1, 2) and (i // 4 == 0 or i % 2 == 0) for i in range(len(texts))]
        return [Verdict(float(ok), "correct" if ok else "wrong", None) for ok in right]

    def watched(
        learner: Learner, samples: Sequence[Trajectory], **settings: Any
    ) -> dict[str, float]:
        given.append(list(samples))
        return update(learner, samples, **settings)

    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", verdicts)
    monkeypatch.setattr(i2b_lpo.training.step, "update", watched)
    grpo = GRPOConfig(variant="dynamic_sampling", updates=updates)
    record = train_step(learner_of(replace(SMALL, grpo=grpo)), FakeTask(), 0)
    assert [len(set(row)) for row in record.rewards.tolist()] == [1, 2, 2, 1]
    for part, samples in enumerate(given):
        groups = list(range(4))[part::updates]
        rollouts = [r for i in groups for r in record.traces[i].rollouts]
        assert [s.rollout for s in samples] == rollouts
        dropped = [i in (0, 3) for i in groups for _ in range(4)]
        assert [s.dropped for s in samples] == dropped
        advantages = [a for i in groups for a in record.advantages[i].tolist()]
        assert [s.advantage for s in samples] == pytest.approx(
            [0.0 if out else a for a, out in zip(advantages, dropped, strict=True)]
        )


@pytest.mark.usefixtures("chance")
def test_a_step_is_summed_up_in_numbers() -> None:
    record = train_step(learner_of(), FakeTask(), 2)
    rollouts = [r for t in record.traces for r in t.rollouts]
    rewards = [[r.reward for r in t.rollouts] for t in record.traces]
    lengths = [len(r.ids) for r in rollouts]
    metrics = record.metrics
    assert metrics["step"] == 2
    assert metrics["reward"] == pytest.approx(sum(r.reward or 0 for r in rollouts) / 16)
    assert metrics["solved"] == sum(1.0 in row for row in rewards) / 4
    assert metrics["uniform_groups"] == sum(len(set(row)) == 1 for row in rewards) / 4
    assert metrics["length"] == sum(lengths) / 16
    assert metrics["finished"] == sum(r.finished for r in rollouts) / 16
    total = sum(sum(r.entropies) for r in rollouts)
    assert metrics["entropy"] == pytest.approx(total / sum(lengths))
    assert "distinct_strategies" not in metrics, "this task has no labeller"
    shop = train_step(learner_of(), load_task("product"), 0)
    assert shop.metrics["distinct_strategies"] >= 1
    assert shop.metrics.keys() - metrics.keys() == {"distinct_strategies"}


def run(
    on_step: Callable[[Learner, StepRecord], None] | None = None, **changes: Any
) -> tuple[list[dict[str, float]], list[StepRecord], GRADIENTS]:
    policy = tiny_policy()
    records: list[StepRecord] = []

    def keep(learner: Learner, record: StepRecord) -> None:
        records.append(record)
        if on_step is not None:
            on_step(learner, record)

    config = replace(SMALL, **changes)
    history = train(config, policy, FakeTask(), on_step=keep, progress=False)
    assert [r.metrics for r in records] == history
    return history, records, parameters(policy)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in history]


@pytest.mark.usefixtures("chance")
def test_a_run_is_a_function_of_its_seed_and_step() -> None:
    def disturb(learner: Learner, record: StepRecord) -> None:
        torch.rand(17)
        random.seed(len(record.traces))
        torch.manual_seed(99)
        scored(learner.policy, SMALL)

    history, records, weights = run()
    again, records_again, weights_again = run()
    other, disturbed, weights_disturbed = run(disturb)
    assert without_seconds(history) == without_seconds(again) == without_seconds(other)
    assert same_bits(weights, weights_again)
    assert same_bits(weights, weights_disturbed)
    for one, two, three in zip(records, records_again, disturbed, strict=True):
        assert one.traces == two.traces == three.traces
    assert records[0].traces != records[1].traces
    assert run(seed=1)[1][0].traces[0].rollouts != records[0].traces[0].rollouts


@pytest.mark.usefixtures("chance")
def test_each_step_draws_other_rollouts() -> None:
    first, later = (train_step(learner_of(), FakeTask(), step).traces for step in (0, 3))
    assert [t.prompt_ids for t in first] == [t.prompt_ids for t in later]
    assert not any(a.rollouts == b.rollouts for a, b in zip(first, later, strict=True))


@pytest.mark.usefixtures("chance")
def test_the_learning_rate_warms_up_and_the_gradient_is_clipped() -> None:
    rates: list[float] = []
    used: list[float] = []
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=4, max_grad_norm=1e-3)
    config = replace(SMALL, steps=6, optimizer=optimizer)
    learner = learner_of(config)
    step = learner.optimizer.step

    def watched(*arguments: Any) -> None:
        gradients = [p.grad for p in learner.policy.model.parameters()]
        used.append(math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None)))
        rates.append(learner.optimizer.param_groups[0]["lr"])
        step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.optimizer, "step", watched)
        norms = [train_step(learner, FakeTask(), i).metrics["grad_norm"] for i in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert used == pytest.approx([1e-3] * 6, rel=1e-2)
    assert min(norms) > 1e-2, "the reported norm is the one before clipping"
    (group,) = learner.optimizer.param_groups
    assert group["weight_decay"] == 0


def test_learning_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_an_a(golds: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        return [Verdict(float("a" in text), "correct", None) for text in texts]

    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", has_an_a)
    config = replace(
        SMALL,
        steps=14,
        rollout=RolloutConfig(rollouts=8, max_new_tokens=4),
        optimizer=OptimizerConfig(learning_rate=2e-2),
    )
    history = train(config, tiny_policy(), FakeTask(), progress=False)
    rewards = [row["reward"] for row in history]
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-3:]) / 3 > 0.9


# --- nothing earned -------------------------------------------------------------------------------


def told_of(steps: int, reward: Callable[[Question, str], float] | None, **changes: Any) -> str:
    """What a run says; every verdict is "no_answer" unless it has a reward of its own."""
    config = replace(SMALL, steps=steps, **changes)
    with warnings.catch_warnings(record=True) as told, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(
            i2b_lpo.tasks.maths,
            "verify_batch",
            lambda golds, texts: [Verdict(0.0, "no_answer", None)] * len(texts),
        )
        train(config, tiny_policy(), FakeTask(), reward=reward, progress=False)
    return "\n".join(str(w.message) for w in told if w.category is UserWarning)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_whose_first_steps_earn_nothing_says_so_once_and_why(steps: int) -> None:
    told = told_of(steps, None)
    assert told.count("No trajectory of the first steps earned a reward") == 1
    assert f"Of {16 * min(3, steps)}, " in told
    assert "% didn't end within rollout.max_new_tokens=10 (raise it" in told
    assert r"% ended without \boxed{…} (the prompt must ask for it)" in told
    assert "\n" not in told


def test_the_reasons_are_those_of_the_run() -> None:
    always = SMALL.rollout
    told = told_of(1, lambda question, text: 0.0, rollout=replace(always, max_new_tokens=60))
    assert "got nothing from the reward function" in told and "boxed" not in told
    told = told_of(1, lambda question, text: -1.0)
    assert "No trajectory of the first steps" in told, "a penalty is no reward"


@pytest.mark.parametrize("reward", [0.1, 1.0])
def test_a_run_that_earns_anything_says_nothing(reward: float) -> None:
    """One trajectory of the third step is enough: the questions are only hard."""
    asked: list[str] = []

    def late(question: Question, text: str) -> float:
        asked.append(text)
        return reward if len(asked) == 48 else 0.0

    assert "No trajectory" not in told_of(4, late)
    assert "No trajectory" not in told_of(2, lambda question, text: reward)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chance")
def test_a_run_writes_settings_metrics_and_a_policy(tmp_path: Path) -> None:
    policy = tiny_policy()
    output = tmp_path / "some" / "run"
    seen: list[int] = []

    def count_lines(learner: Learner, record: StepRecord) -> None:
        seen.append(len((output / "metrics.jsonl").read_text(encoding="ascii").splitlines()))

    config = setting(variant="dapo", alpha=0.1)
    history = train(config, policy, FakeTask(), output=output, on_step=count_lines, progress=False)
    assert seen == [1, 2, 3], "a line is there as soon as its step is done"
    lines = (output / "metrics.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [row["step"] for row in history] == [0, 1, 2]
    assert read_run(output) == config
    model = AutoModelForCausalLM.from_pretrained(output / "policy")
    tokenizer = AutoTokenizer.from_pretrained(output / "policy")
    ids = tokenizer("What is 23*14?", return_tensors="pt").input_ids
    assert not policy.model.training
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
        assert not torch.equal(model(ids).logits, tiny_policy().model(ids).logits)


# --- precision -----------------------------------------------------------------------------------


def test_half_precision_weights_are_refused() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        build_learner(policy, RunConfig())


@pytest.fixture
def no_accelerator_yet() -> Iterator[None]:
    """accelerate keeps one precision a process; forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_accelerator_yet")
def test_bfloat16_passes_train_float32_weights() -> None:
    policy = tiny_policy()
    config = RunConfig(rollout=RolloutConfig(rollouts=4, max_new_tokens=8), questions=2)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    learner = build_learner(policy, config, accelerator=accelerator)
    before = [p.detach().clone() for p in policy.model.parameters()]
    with accelerator.autocast():
        traces = roll_out(
            policy,
            load_task("shop").questions("train", 2, seed=0),
            Sampling(8),
            rollouts=4,
            generator=torch.Generator().manual_seed(0),
        )
    metrics = update(learner, trajectories_of(traces, torch.tensor([[1.0, -1.0, 0.5, -0.5]] * 2)))
    # The same precision on both sides: what decoding recorded is what the update sees, up to
    # bfloat16's rounding.
    assert metrics["mean_ratio"] == pytest.approx(1.0, abs=0.05)
    changed = [
        not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True)
    ]
    assert all(p.dtype == torch.float32 for p in policy.model.parameters()) and all(changed)


def test_a_step_that_accelerate_would_skip_is_refused() -> None:
    learner = learner_of()
    before = parameters(learner.policy)
    learner.accelerator.gradient_state._set_sync_gradients(False)
    try:
        with pytest.raises(RuntimeError, match="end the other training's accumulate"):
            update(learner, scored(learner.policy, SMALL))
    finally:
        learner.accelerator.gradient_state._set_sync_gradients(True)
    assert same_bits(before, parameters(learner.policy))
