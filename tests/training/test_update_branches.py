"""The update on trees: what is trained, with which log-probs, and the whole step with branches."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import LENGTH, QUESTIONS, FakeTask, by_chance, parameters, same_bits
from tiny import tiny_policy
from torch import Tensor

import i2b_lpo.tasks.maths
import i2b_lpo.training.learner
import i2b_lpo.training.loop
import i2b_lpo.training.step
from i2b_lpo.config import (
    NO_IB,
    BranchConfig,
    GRPOConfig,
    IBConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    preset,
)
from i2b_lpo.method.loss import policy_loss
from i2b_lpo.method.methods import with_method
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import Steering, new_steering
from i2b_lpo.rollout.branching import grow_trees
from i2b_lpo.trace import Trace, read_traces, write_traces
from i2b_lpo.training.batch import Trajectory, pack, trajectories_of
from i2b_lpo.training.learner import Learner, TokenScorer, build_learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import select, train_step
from i2b_lpo.training.updating import update, without_z

CONFIG = RunConfig(
    steps=2,
    questions=3,
    rollout=RolloutConfig(rollouts=2, max_new_tokens=LENGTH),
    branch=BranchConfig(branches=3, fraction=0.5),
    grpo=GRPOConfig(micro_tokens=200),
)


@pytest.fixture(autouse=True)
def chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)


def policy_and_steering(
    dtype: torch.dtype = torch.float64, fusion: str = "psa"
) -> tuple[Policy, Steering]:
    policy = tiny_policy(dtype=dtype)
    torch.manual_seed(5)
    steering = new_steering(policy, d_z=4, fusion=fusion)
    with torch.no_grad():
        for parameter in steering.fusion.parameters():
            parameter.mul_(20)  # so that z matters
    steering.fusion.to(dtype)
    steering.cvae.to(dtype)
    return policy, steering


PLAIN = replace(CONFIG, grpo=GRPOConfig(micro_tokens=200, logprob="plain"))


def trees_of(policy: Policy, steering: Steering, config: RunConfig = CONFIG) -> list[Trace]:
    return grow_trees(
        policy,
        QUESTIONS,
        Sampling(LENGTH, config.rollout.temperature),
        config.branch,
        rollouts=config.rollout.rollouts,
        steering=steering,
        generator=torch.Generator().manual_seed(0),
    )


def with_advantages(traces: Sequence[Trace]) -> list[Trajectory]:
    size = len(traces[0].rollouts)
    return trajectories_of(traces, torch.arange(1.0, len(traces) * size + 1).view(-1, size) / 16)


def learner_of(
    config: RunConfig = CONFIG, dtype: torch.dtype = torch.float64, fusion: str = "psa"
) -> tuple[Learner, list[Trace]]:
    policy, steering = policy_and_steering(dtype, fusion)
    config = replace(config, branch=replace(config.branch, fusion=fusion))
    traces = trees_of(policy, steering, config)
    return build_learner(policy, config, steering=steering), traces


# --- what is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_mask_counts_each_generated_token_once(rounds: int) -> None:
    policy, steering = policy_and_steering()
    config = replace(CONFIG, branch=replace(CONFIG.branch, branches=2, rounds=rounds))
    for trace in trees_of(policy, steering, config):
        samples = with_advantages([trace])
        batch = pack(samples, policy.pad_id)
        assert int(batch.mask.sum()) == trace.new_tokens() == sum(s.new_tokens for s in samples)
        prompt = len(trace.prompt_ids)
        for i, (row, sample) in enumerate(zip(batch.mask, samples, strict=True)):
            own = range(prompt + trace.start(i), prompt + len(trace.rollouts[i]))
            assert row.nonzero()[:, 0].tolist() == list(own), "a prefix or padding is trained"
            assert batch.old_logp[i][row].tolist() == pytest.approx(
                sample.rollout.logprobs[trace.start(i) :], abs=1e-6
            )


def test_since_counts_from_the_row_before_the_first_own_token() -> None:
    learner, traces = learner_of()
    batch = pack(with_advantages(traces[:1]), learner.policy.pad_id)
    for i, rollout in enumerate(traces[0].rollouts):
        zero = (batch.since[i] == 0).nonzero()[:, 0].tolist()
        if rollout.branch is None:
            assert zero == [] and (batch.since[i] < 0).all(), "a root has no z"
            continue
        assert zero == [rollout.branch.p - 1]
        assert batch.mask[i].nonzero()[0] == rollout.branch.p
        assert batch.z is not None
        assert batch.z[i].tolist() == list(rollout.branch.z), "z is narrower than it was drawn"


def test_what_the_filter_pruned_counts_nowhere() -> None:
    learner, traces = learner_of()
    rollouts = traces[0].rollouts
    cut = replace(
        traces[0],
        rollouts=tuple(replace(r, kept=i not in (3, 6)) for i, r in enumerate(rollouts)),
    )
    ones = torch.ones(1, len(rollouts))
    kept = [s for s in trajectories_of([traces[0]], ones)]
    del kept[6], kept[3]
    pruned = trajectories_of([cut], ones)
    assert [s.dropped for s in pruned] == [i in (3, 6) for i in range(len(rollouts))]
    assert update(learner, pruned)["trained_tokens"] == sum(s.new_tokens for s in kept)
    other, _ = learner_of()
    update(other, kept)
    assert same_bits(parameters(learner.policy), parameters(other.policy))


@pytest.mark.parametrize("variant", ["grpo", "sequence_mean", "dr_grpo"])
def test_the_denominator_counts_what_is_a_trajectorys_own(variant: str) -> None:
    """At ρ = 1 the loss is worked out by hand; a branch's prefix belongs to its parent."""
    config = replace(CONFIG, grpo=replace(CONFIG.grpo, variant=variant))
    learner, traces = learner_of(config)
    own = [len(r) - t.start(i) for t in traces for i, r in enumerate(t.rollouts)]
    whole = [len(r) for t in traces for r in t.rollouts]
    assert sum(own) < 0.8 * sum(whole), "the prefixes are too short to matter"
    gains = [((i * 5) % 7 - 3) / 8 for i in range(len(own))]
    samples = trajectories_of(traces, torch.tensor(gains).view(len(traces), -1))
    per_token = sum(a * n for a, n in zip(gains, own, strict=True))
    expected = {
        "grpo": -per_token / sum(own),
        "sequence_mean": -sum(gains) / len(own),
        "dr_grpo": -per_token / (LENGTH * len(own)),
    }[variant]
    assert update(learner, samples)["loss"] == pytest.approx(expected, abs=1e-6)


# --- latents of another kind --------------------------------------------------------------------


def drawn_with(sample: Trajectory, **changes: Any) -> Trajectory:
    branch = sample.rollout.branch
    assert branch is not None
    return replace(sample, rollout=replace(sample.rollout, branch=replace(branch, **changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "input"}, "A branch was drawn with fusion input, γ_0 = 1.0, s_0 = 8.0"),
        ({"gamma": 0.5}, r"drawn with fusion psa, γ_0 = 0\.5, .* and the learner has fusion psa"),
        ({"decay": None}, r"γ_0 = 1\.0, s_0 = None, "),
        ({"version": 2}, r"latents of version 2, and the learner has .* latents of version 1: "),
        ({"version": 0}, r"latents of version unknown \(it wasn't recorded\), and the learner has"),
    ],
)
def test_a_branch_of_other_latents_is_refused_before_any_change(
    changes: dict[str, Any], message: str
) -> None:
    learner, traces = learner_of()
    samples = with_advantages(traces)
    at = next(i for i, s in enumerate(samples) if s.z)
    samples[at] = drawn_with(samples[at], **changes)
    before = parameters(learner.policy)
    with pytest.raises(ValueError, match=message):
        update(learner, samples)
    assert same_bits(before, parameters(learner.policy)) and not learner.optimizer.state
    plain = replace(learner, config=PLAIN)  # which asks what the policy does without z
    assert update(plain, without_z(plain, samples))["grad_norm"] > 0


def test_a_learner_without_latents_refuses_branches_with_z() -> None:
    _, traces = learner_of()
    learner = build_learner(tiny_policy(dtype=torch.float64), CONFIG)
    before = parameters(learner.policy)
    with pytest.raises(ValueError, match=r"version 1, and the learner has no latents: its ratios"):
        update(learner, with_advantages(traces))
    assert same_bits(before, parameters(learner.policy))
    roots = [s for s in with_advantages(traces) if not s.z]
    assert update(learner, roots)["mean_ratio"] == pytest.approx(1.0, abs=1e-6)


def test_what_is_prepared_is_trained_without_z_and_nothing_else() -> None:
    learner, traces = learner_of(PLAIN)
    samples = with_advantages(traces)
    before = parameters(learner.policy)
    with pytest.raises(ValueError, match=r"isn't ready for grpo\.logprob plain; call without_z on"):
        update(learner, samples)
    ready = without_z(learner, samples)
    with pytest.raises(ValueError, match=r"prepared by without_z, and grpo\.logprob latent trains"):
        update(replace(learner, config=CONFIG), ready)
    assert same_bits(before, parameters(learner.policy))


def test_traces_that_were_saved_train_as_before(tmp_path: Path) -> None:
    learner, traces = learner_of()
    write_traces(tmp_path / "traces.jsonl", traces)
    again = list(read_traces(tmp_path / "traces.jsonl"))
    assert again == traces
    assert update(learner, with_advantages(again))["mean_ratio"] == pytest.approx(1.0, abs=1e-6)


# --- log-probs with and without z ---------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["psa", "input", "softmax", "residual"])
def test_with_z_the_ratio_before_the_update_is_one(fusion: str) -> None:
    learner, traces = learner_of(fusion=fusion)
    metrics = update(learner, with_advantages(traces))
    assert metrics["mean_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["clip_fraction"] == 0.0


def test_without_z_the_ratio_is_not_one() -> None:
    """The control: what the released code does makes the update off-policy in silence."""
    learner, traces = learner_of()
    batch = pack(with_advantages(traces), learner.policy.pad_id)
    scorers = (learner.scorer, TokenScorer(learner.policy, CONFIG.rollout.temperature))
    with torch.no_grad():
        right, blind = ((scorer(batch)[0] - batch.old_logp)[batch.mask].abs() for scorer in scorers)
    assert right.max() < 1e-5
    assert (blind > 0.05).float().mean() > 0.2, "z hardly changed the tokens that were drawn"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_plain_training_weighs_each_token_by_the_capped_ratio(temperature: float) -> None:
    config = replace(
        CONFIG,
        grpo=replace(CONFIG.grpo, logprob="plain", ratio_cap=1.5),
        rollout=replace(CONFIG.rollout, temperature=temperature),
    )
    learner, traces = learner_of(config)
    samples = with_advantages(traces)
    ready = without_z(learner, samples)
    capped = 0
    for before, after in zip(samples, ready, strict=True):
        if before.rollout.branch is None:
            assert after is before, "a root was sampled without z"
            continue
        assert after.old_logprobs is not None and after.weights is not None
        own = plain_logprobs(learner.policy, before, temperature)
        assert after.old_logprobs == pytest.approx(own, abs=1e-9)
        with_z = before.rollout.logprobs[before.start :]
        expected = [min(1.5, math.exp(a - b)) for a, b in zip(own, with_z, strict=True)]
        assert after.weights == pytest.approx(expected, abs=1e-9)
        capped += sum(weight == 1.5 for weight in after.weights)
    assert capped, "no ratio reached the cap: it was not tested"
    assert update(learner, ready)["mean_ratio"] == pytest.approx(1.0, abs=1e-6)


def test_every_branch_with_an_advantage_is_prepared_whatever_its_sign() -> None:
    learner, traces = learner_of(PLAIN)
    scores = (torch.arange(24.0) % 3 - 1).view(3, 8)  # −1, 0 and 1 among the branches
    samples = trajectories_of(traces, scores)
    assert {s.advantage for s in samples if s.z} == {-1.0, 0.0, 1.0}
    for before, after in zip(samples, without_z(learner, samples), strict=True):
        if not before.z or not before.advantage:
            assert after is before
            continue
        assert after.old_logprobs == pytest.approx(
            plain_logprobs(learner.policy, before, 1.0), abs=1e-9
        )
        assert after.weights is not None and len(after.weights) == before.new_tokens


@pytest.mark.parametrize("updates", [1, 2])
def test_the_ratio_is_to_the_policy_before_the_first_update(
    updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared within each update, log ρ would be 0 where the policy has moved by much more."""
    grpo = replace(PLAIN.grpo, updates=updates)
    config = replace(PLAIN, questions=4, grpo=grpo, optimizer=OptimizerConfig(5e-3, warmup_steps=0))
    policy, steering = policy_and_steering()
    learner = build_learner(policy, config, steering=steering)
    old = copy.deepcopy(policy.model)
    given: list[Trajectory] = []
    moved: list[float] = []

    def watched(
        learner: Learner, samples: Sequence[Trajectory], **settings: Any
    ) -> dict[str, float]:
        for sample in (s for s in samples if s.z and s.advantage):
            given.append(sample)
            now = plain_logprobs(learner.policy, sample, 1.0)
            moved.extend(abs(a - b) for a, b in zip(now, sample.old_logprobs or (), strict=True))
        return update(learner, samples, **settings)

    monkeypatch.setattr(i2b_lpo.training.step, "update", watched)
    train_step(learner, FakeTask(), 0)
    assert len(given) > 6
    for sample in given:
        expected = plain_logprobs(replace(learner.policy, model=old), sample, 1.0)
        assert sample.old_logprobs == pytest.approx(expected, abs=1e-9)
    assert (max(moved) > 0.05) == (updates > 1), "the second update meets a policy that has moved"


@torch.no_grad()
def plain_logprobs(policy: Policy, sample: Trajectory, temperature: float) -> list[float]:
    ids = torch.tensor([[*sample.prompt_ids, *sample.rollout.ids]])
    logits = policy.model(input_ids=ids, use_cache=False).logits[0, :, : policy.vocab_size]
    logp = (logits.double() / temperature).log_softmax(-1)
    first = len(sample.prompt_ids) + sample.start
    return [float(logp[at - 1, ids[0, at]]) for at in range(first, ids.shape[1])]


def test_the_weight_acts_on_the_surrogate_alone() -> None:
    torch.manual_seed(0)
    logp = torch.randn(3, 5, dtype=torch.float64).sub(3).requires_grad_()
    old = logp.detach() + 0.3 * torch.randn(3, 5, dtype=torch.float64)
    entropy = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    a = torch.tensor([1.0, -0.5, -2.0], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
    weight = torch.rand(3, 5, dtype=torch.float64) * 2
    found = policy_loss(logp, old, a, mask, weight=weight, entropy=entropy, alpha=0.25).loss
    total = 0.0
    for i in range(3):
        for t in range(5):
            if mask[i, t]:
                ratio = math.exp(float(logp[i, t].detach() - old[i, t]))
                clipped = min(max(ratio, 0.8), 1.2)
                term = min(ratio * float(a[i]), clipped * float(a[i]))
                term = max(term, 3 * float(a[i])) if a[i] < 0 else term
                total += float(weight[i, t]) * term + 0.25 * float(a[i] * entropy[i, t].detach())
    assert float(found) == pytest.approx(-total / int(mask.sum()), abs=1e-12)
    found.backward()
    assert entropy.grad is not None
    expected = torch.where(mask.bool(), -0.25 * a[:, None] / int(mask.sum()), 0.0)
    torch.testing.assert_close(entropy.grad, expected)
    wrong = weight.clone()
    wrong[0, 1] = math.nan
    with pytest.raises(ValueError, match="weight must be finite"):
        policy_loss(logp, old, a, mask, weight=wrong)


# --- the fusion ---------------------------------------------------------------------------------


def fusion_of(learner: Learner) -> dict[str, Tensor]:
    assert learner.steering is not None
    return {n: p.detach().clone() for n, p in learner.steering.fusion.named_parameters()}


@pytest.mark.parametrize("trained", [False, True])
def test_only_train_psa_trains_the_fusion(trained: bool) -> None:
    config = replace(CONFIG, grpo=replace(CONFIG.grpo, train_psa=trained))
    learner, traces = learner_of(config)
    policy, fusion = parameters(learner.policy), fusion_of(learner)
    update(learner, with_advantages(traces))
    assert not same_bits(policy, parameters(learner.policy))
    moved = {name: not torch.equal(fusion[name], p) for name, p in fusion_of(learner).items()}
    assert moved == dict.fromkeys(("U_k", "U_v", "U_n"), trained)


def test_gradient_checkpointing_changes_nothing_with_z() -> None:
    one, traces = learner_of()
    two, _ = learner_of(replace(CONFIG, gradient_checkpointing=True))
    update(one, with_advantages(traces))
    update(two, with_advantages(traces))
    for (name, a), (_, b) in zip(
        parameters(one.policy).items(), parameters(two.policy).items(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)


# --- the whole step -----------------------------------------------------------------------------


def test_a_step_scores_the_whole_group_before_it_filters() -> None:
    policy, steering = policy_and_steering(torch.float32)
    config = replace(CONFIG, ib=IBConfig())
    record = train_step(build_learner(policy, config, steering=steering), FakeTask(), 0)
    assert record.rewards.shape == record.advantages.shape == (3, 8)
    for trace, rewards, scores in zip(
        record.traces, record.rewards, record.advantages, strict=True
    ):
        assert len(trace.branch_sets()) == 2
        for members in trace.branch_sets():
            values = [trace.rollouts[i].score.value for i in members]  # type: ignore[union-attr]
            best = sorted(members, key=lambda i: -values[members.index(i)])[:2]
            assert {i for i in members if trace.rollouts[i].kept} == set(best)
        assert trace.rollouts[0].kept and trace.rollouts[1].kept, "a root was filtered"
        if rewards.unique().numel() > 1:
            expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            torch.testing.assert_close(scores, expected)
    assert record.metrics["kept"] == pytest.approx(2 / 3)
    assert record.metrics["new_tokens"] == sum(t.new_tokens() for t in record.traces)
    kept = {r.branch is None for t in record.traces for r in t.rollouts if not r.kept}
    assert kept == {False}


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo"])
def test_renormalised_advantages_are_the_variants_own_of_the_kept(variant: str) -> None:
    policy, steering = policy_and_steering(torch.float32)
    grpo = replace(CONFIG.grpo, variant=variant)
    config = replace(CONFIG, ib=IBConfig(renormalise=True), grpo=grpo)
    learner = build_learner(policy, config, steering=steering)
    record = train_step(learner, FakeTask(), 0)
    for trace, rewards, scores in zip(
        record.traces, record.rewards, record.advantages, strict=True
    ):
        kept = torch.tensor([r.kept for r in trace.rollouts])
        own = rewards[kept]
        if own.unique().numel() > 1:
            divisor = own.std() + 1e-4 if variant == "grpo" else 1.0
            torch.testing.assert_close(scores[kept], (own - own.mean()) / divisor)
        assert (scores[~kept] == 0).all()


def test_without_scores_nothing_is_filtered() -> None:
    policy, steering = policy_and_steering(torch.float32)
    learner = build_learner(policy, CONFIG, steering=steering)
    traces = trees_of(policy, steering)
    scores = torch.zeros(3, 8)
    found, same = select(traces, scores, learner)
    assert found == traces and same is scores


def test_a_run_is_the_same_for_the_same_seed() -> None:
    runs = []
    for _ in range(2):
        policy, steering = policy_and_steering(torch.float32)
        config = replace(CONFIG, ib=IBConfig())
        history = train(config, policy, FakeTask(), steering=steering, progress=False)
        runs.append(([{k: v for k, v in h.items() if "seconds" not in k} for h in history], policy))
    assert runs[0][0] == runs[1][0]
    assert same_bits(parameters(runs[0][1]), parameters(runs[1][1]))


# --- settings -----------------------------------------------------------------------------------


def test_the_two_methods_have_groups_of_one_size() -> None:
    for name in ("tiny", "qwen2.5-0.5b", "qwen2.5-7b"):
        grpo, whole = (with_method(preset(name), m) for m in ("grpo", "i2b-lpo"))
        assert grpo.branch.branches == 0 and grpo.ib == NO_IB and grpo == preset(name)
        assert whole.rollout.rollouts * (1 + whole.branch.branches) == grpo.rollout.rollouts
        assert (whole.rollout.rollouts, whole.branch.branches, whole.ib.keep) == (2, 3, 2)
        assert whole.grpo.alpha == 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: with_method(RunConfig(), "ppo"), "Unknown method 'ppo'; choose grpo or i2b-lpo"),
        (
            lambda: with_method(replace(RunConfig(), rollout=RolloutConfig(rollouts=6)), "i2b-lpo"),
            r"rollout.rollouts is 6\); I²B-LPO needs a multiple of 4",
        ),
        (lambda: RunConfig(rollout=RolloutConfig(rollouts=1)), "a group needs at least 2"),
        (lambda: IBConfig(estimator="none"), "'top_n' needs scores"),
        (lambda: GRPOConfig(logprob="both"), "choose latent or plain"),
        (lambda: RunConfig(grpo=GRPOConfig(train_psa=True)), "train_psa has nothing to train"),
        (lambda: GRPOConfig(logprob="plain", train_psa=True), "train_psa needs grpo.logprob lat"),
        (lambda: GRPOConfig(ratio_cap=0.0), "ratio_cap is 0.0"),
        (lambda: BranchConfig(branches=-1), "branch.branches is -1"),
        (lambda: BranchConfig(rounds=0), "branch.rounds is 0"),
        (lambda: BranchConfig(fraction=0.0), "branch.fraction is 0.0"),
    ],
)
def test_wrong_settings_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_run_that_lacks_latents_says_how_to_make_them() -> None:
    policy = tiny_policy()
    before = parameters(policy)
    with pytest.raises(ValueError, match=r"make them with: i2b-lpo train-latents --policy"):
        train(CONFIG, policy, FakeTask(), progress=False)
    with pytest.raises(ValueError, match=r"Unknown ib\.estimator 'luck'"):
        train(replace(CONFIG, ib=IBConfig("luck")), policy, FakeTask(), progress=False)
    with pytest.raises(ValueError, match="train_psa has nothing to train"):
        build_learner(policy, replace(CONFIG, grpo=GRPOConfig(train_psa=True)))
    assert same_bits(before, parameters(policy))
