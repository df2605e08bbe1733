"""Training latents: examples at forks, what is learnt and what must stay as it was."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train import LENGTH, FakeTask, by_chance, parameters, same_bits
from tiny import tiny_policy

import i2b_lpo.rollout.rollouts
import i2b_lpo.tasks.maths
import i2b_lpo.training.latents
from i2b_lpo.config import LatentConfig
from i2b_lpo.method.latent import Elbo, LatentModel, cluster_weights, selector_log_prob
from i2b_lpo.method.psa import Strength
from i2b_lpo.model.policy import Policy, load_policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import new_steering
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.training.latents import (
    Example,
    collect,
    continuation_logprobs,
    embed_examples,
    fork_examples,
    next_strategy,
    steering_report,
    train_latents,
)

CONFIG = LatentConfig(
    d_z=3, questions=6, rollouts=4, forks=2, horizon=4, steps=8, batch=8, selector_steps=5
)


@pytest.fixture(autouse=True)
def chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)


def examples_of(policy: Policy, config: LatentConfig = CONFIG) -> list[Example]:
    found, _ = collect(policy, FakeTask(), replace(config, max_new_tokens=LENGTH))
    return found


# --- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategies", "before", "expected"),
    [
        (["Split", "Grid"], "", "Split"),
        (["Split", "Grid"], "Spl", "Split"),
        (["Split", "Grid"], "Split 14\n", "Grid"),
        (["Split", "Split"], "Split 14\n", "Split"),
        (["Split", "Grid"], "Split 14\n23*10=230\nGrid 6", ""),
        ([], "", ""),
    ],
)
def test_the_next_strategy_is_the_first_not_yet_named(
    strategies: list[str], before: str, expected: str
) -> None:
    assert next_strategy(strategies, before) == expected


def test_an_example_is_its_rollout_parted_at_a_fork() -> None:
    policy, task = load_policy("tiny-base"), load_task("shop")
    traces = roll_out(
        policy,
        task.questions("train", 6, seed=0),
        Sampling(120),
        rollouts=2,
        generator=torch.Generator().manual_seed(0),
    )
    config = replace(CONFIG, forks=3)
    examples = fork_examples(policy, task, traces, config, torch.Generator().manual_seed(0))
    whole = {(*t.prompt_ids, *r.ids): (t, r) for t in traces for r in t.rollouts}
    named = 0
    for example in examples:
        trace, rollout = whole[(*example.prefix, *example.rest)]
        t = len(example.prefix) - len(trace.prompt_ids)
        assert t >= 0 and example.question == trace.question
        top = sorted(rollout.entropies, reverse=True)[: -(-len(rollout) // 20)]
        assert rollout.entropies[t] in top, "not one of the most uncertain 5 %"
        labels = task.label(trace.question, rollout.text)
        assert labels is not None
        word = rollout.pieces[t]
        assert example.label == (word if word in labels.strategies else "")
        named += bool(example.label)
    assert named > len(examples) / 4, "hardly a fork chose a strategy"


def test_log_prob_of_a_continuation_is_the_sum_over_its_first_tokens() -> None:
    policy = tiny_policy(dtype=torch.float64)
    examples = examples_of(policy)[:5]
    found = continuation_logprobs(policy, examples, None, 4)
    for example, value in zip(examples, found.tolist(), strict=True):
        rest = example.rest[:4]
        ids = torch.tensor([[*example.prefix, *rest]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, :, : policy.vocab_size]
        logp = logits.double().log_softmax(-1)
        p = len(example.prefix)
        expected = sum(float(logp[p + i - 1, token]) for i, token in enumerate(rest))
        assert value == pytest.approx(expected, abs=1e-9)


def test_z_acts_from_the_first_token_of_a_continuation() -> None:
    policy = tiny_policy(dtype=torch.float64)
    examples = examples_of(policy)[:4]
    torch.manual_seed(0)
    steering = new_steering(policy, d_z=3, strength=Strength(1.0, 0.01))  # the fork's row only
    steering.fusion.double()
    z = 5 * torch.randn(len(examples), 3, dtype=torch.float64)
    with torch.no_grad():
        one = continuation_logprobs(policy, examples, steering.injection(z), 1)
        plain = continuation_logprobs(policy, examples, None, 1)
    assert ((one - plain).abs() > 1e-3).all()


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["psa", "input", "softmax", "residual"])
def test_steer_trains_latents_and_fusion_and_leaves_the_policy(fusion: str) -> None:
    policy = tiny_policy()
    config = replace(CONFIG, fusion=fusion)
    examples = examples_of(policy)
    before, grads = parameters(policy), [p.requires_grad for p in policy.model.parameters()]
    torch.manual_seed(config.seed)
    fresh = new_steering(policy, d_z=3, fusion=fusion)
    steering = train_latents(policy, examples, config)
    assert same_bits(before, parameters(policy))
    assert [p.requires_grad for p in policy.model.parameters()] == grads
    assert all(p.grad is None for p in policy.model.parameters())
    for part in ("fusion", "cvae"):
        old = dict(getattr(fresh, part).named_parameters())
        for name, new in getattr(steering, part).named_parameters():
            moved = not torch.equal(old[name], new)
            assert moved, f"{part}.{name} was not trained"
            assert not new.requires_grad


def test_selector_trains_no_projection_of_psa() -> None:
    policy = tiny_policy()
    config = replace(CONFIG, objective="selector")
    torch.manual_seed(config.seed)
    fresh = new_steering(policy, d_z=3)
    steering = train_latents(policy, examples_of(policy), config)
    fresh_maps = dict(fresh.fusion.named_parameters())
    assert all(torch.equal(p, fresh_maps[n]) for n, p in steering.fusion.named_parameters())
    weights = dict(fresh.cvae.named_parameters())
    assert all(not torch.equal(p, weights[n]) for n, p in steering.cvae.named_parameters())


def test_the_fusion_learns_first_and_the_kl_costs_nothing_then() -> None:
    policy = tiny_policy()
    examples = examples_of(policy)
    seen: list[Elbo] = []
    config = replace(CONFIG, steps=8, fusion_first=0.5, selector_steps=1)
    train_latents(policy, examples, config, on_step=lambda _, result: seen.append(result))
    assert len(seen) == 8
    early = seen[1]  # the loss of a step with β_KL = 0 is −log_prob alone
    assert float(early.loss.detach()) == pytest.approx(-float(early.log_prob.mean()), abs=1e-4)
    late = seen[-1]
    kl = late.kl_per_dimension.clamp_min(config.free_bits).sum()
    expected = -float(late.log_prob.mean()) + config.beta_kl * float(kl)
    assert float(late.loss.detach()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_training_makes_continuations_likelier() -> None:
    policy = tiny_policy()
    examples = examples_of(policy)
    config = replace(CONFIG, steps=60, selector_steps=60, batch=16)
    steering = train_latents(policy, examples, config)
    report = steering_report(steering, policy, examples, config)
    assert report["log_prob"]["posterior"] > report["log_prob"]["without"] + 0.5
    assert report["kl"] == pytest.approx(sum(report["kl_per_dimension"]), abs=0.01)
    assert report["elbo"] == pytest.approx(report["log_prob"]["posterior"] - report["kl"], abs=0.01)
    assert "information" not in report, "this task has no labeller"


def test_the_same_seed_gives_the_same_latents() -> None:
    made = [train_latents(tiny_policy(), examples_of(tiny_policy()), CONFIG) for _ in range(2)]
    for part in ("cvae", "fusion"):
        one, two = (dict(getattr(m, part).state_dict()) for m in made)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_rare_strategies_are_drawn_as_often_as_common_ones() -> None:
    labels = ["Split"] * 90 + ["Grid"] * 10
    weights = cluster_weights(labels)
    assert float(weights[:90].sum()) == pytest.approx(float(weights[90:].sum()))


@pytest.mark.parametrize("steps", ["selector", "steer"])
def test_training_draws_rare_strategies_as_often_as_common_ones(
    steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    found = examples_of(policy)
    assert len(found) > 15
    common = [replace(e, label="Split") for e in found]
    rare = [replace(e, label="Grid", prefix=(*e.prefix, 5)) for e in found[:2]]
    seen: list[str] = []
    if steps == "steer":

        def watched(policy: Policy, batch: Sequence[Example], *rest: Any) -> torch.Tensor:
            seen.extend(e.label for e in batch)
            return continuation_logprobs(policy, batch, *rest)

        monkeypatch.setattr(i2b_lpo.training.latents, "continuation_logprobs", watched)
        train_latents(policy, [*common, *rare], replace(CONFIG, steps=40))
    else:
        before, _ = embed_examples(policy, [*common, *rare], CONFIG.horizon)
        pairs = zip(before, [*common, *rare], strict=True)
        labels = {tuple(e.tolist()): example.label for e, example in pairs}

        def selected(model: LatentModel, e_c: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.extend(labels[tuple(e.tolist())] for e in e_c)
            return selector_log_prob(model, e_c, *rest)

        monkeypatch.setattr(i2b_lpo.training.latents, "selector_log_prob", selected)
        train_latents(policy, [*common, *rare], replace(CONFIG, objective="selector"))
    assert len(seen) > 300
    assert seen.count("Grid") / len(seen) == pytest.approx(0.5, abs=0.1), "they are few examples"


def test_latents_are_a_first_training_unless_they_replace_others() -> None:
    policy = tiny_policy()
    config = replace(CONFIG, objective="selector")
    examples = examples_of(policy)
    assert train_latents(policy, examples, config).version == 1
    assert train_latents(policy, examples, config, version=3).version == 3


def test_too_few_examples_are_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(ValueError, match="3 examples are fewer than a batch of 8; collect more"):
        train_latents(policy, examples_of(policy)[:3], CONFIG)


def test_settings_are_checked() -> None:
    for changes, message in (
        ({"d_z": 0}, "d_z is 0"),
        ({"horizon": 0}, "horizon is 0"),
        ({"objective": "other"}, "choose steer or selector"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **changes)


def test_batch_order_changes_nothing() -> None:
    policy = tiny_policy(dtype=torch.float64)
    examples = examples_of(policy)[:9]
    order = list(range(9))
    random.Random(0).shuffle(order)

    def measured(rows: Sequence[int]) -> torch.Tensor:
        return continuation_logprobs(policy, [examples[i] for i in rows], None, 4)

    torch.testing.assert_close(measured(order), measured(range(9))[order], rtol=0, atol=1e-10)
