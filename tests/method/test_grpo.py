"""Advantages and GRPO loss against golden numbers, slow loops and the properties of METHOD §6."""

from __future__ import annotations

import math
import random
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from i2b_lpo.method.grpo import VARIANTS, advantages, informative_groups, overlong_penalty
from i2b_lpo.method.loss import PolicyLoss, Reduction, loss_normaliser, policy_loss

Ragged = list[list[float]]
REDUCTIONS: tuple[Reduction, ...] = ("token", "sequence", "constant")
LONGEST = 8  # L of the constant reduction

# The golden batch. Only differences of log-probs enter the loss, so these may be the old policy's.
OLD = [[-1.0, -0.5, -2.0], [-0.3, -0.7], [-1.2], [-0.1, -0.2, -0.3]]
LOG_RATIOS = [[-0.1, 0.4, 0.0], [0.0, -0.2], [0.3], [-0.05, 0.05, -0.5]]
REWARDS = [1.0, 0.0, 0.0, 1.0]


def pad(rows: Ragged, side: str = "right", width: int = 0, filler: float = 0.0) -> Tensor:
    width = max(width, *(len(row) for row in rows))
    table = torch.full((len(rows), width), filler, dtype=torch.float64)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        table[i, start : start + len(row)] = torch.tensor(row, dtype=torch.float64)
    return table


def ones_like(rows: Ragged) -> Ragged:
    return [[1.0] * len(row) for row in rows]


def added(left: Ragged, right: Ragged) -> Ragged:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(left, right, strict=True)]


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden_loss(reduction: Reduction, scale: Any = "std", **options: Any) -> float:
    mask = pad(ones_like(OLD))
    length = LONGEST if reduction == "constant" else None
    return policy_loss(
        pad(added(OLD, LOG_RATIOS)),
        pad(OLD),
        advantages(double(REWARDS), scale=scale),
        mask,
        clip_low=0.2,
        clip_high=0.28,
        reduction=reduction,
        normaliser=loss_normaliser(mask, reduction, max_length=length),
        **options,
    ).loss.item()


def slow_loss(
    logp: Ragged,
    old: Ragged,
    a: list[float] | Ragged,
    entropy: Ragged,
    *,
    alpha: float,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    reduction: Reduction,
) -> float:
    """METHOD §6's −J, one token at a time."""
    total = 0.0
    for row, old_row, given_a, h_row in zip(logp, old, a, entropy, strict=True):
        of_row = 0.0
        each = given_a if isinstance(given_a, list) else [given_a] * len(row)
        for new, before, h, a_i in zip(row, old_row, h_row, each, strict=True):
            ratio = math.exp(new - before)
            term = min(ratio * a_i, min(max(ratio, 1 - clip_low), 1 + clip_high) * a_i)
            if a_i < 0 and dual_clip is not None:
                term = max(term, dual_clip * a_i)
            of_row += term + alpha * a_i * h
        total += of_row / len(row) if reduction == "sequence" else of_row
    sequences = len(logp)
    tokens = sum(len(row) for row in logp)
    return (
        -total
        / {"token": tokens, "sequence": sequences, "constant": LONGEST * sequences}[reduction]
    )


# --- advantages -----------------------------------------------------------------------------------


def test_golden_advantages() -> None:
    expected = double([0.86587543, -0.86587543, -0.86587543, 0.86587543])
    torch.testing.assert_close(advantages(double(REWARDS)), expected, rtol=0, atol=5e-9)
    assert advantages(double(REWARDS), scale="none").tolist() == [0.5, -0.5, -0.5, 0.5]


def test_advantages_equal_a_loop_over_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(5, 6, generator=generator, dtype=torch.float64)
    for group, got in zip(rewards.tolist(), advantages(rewards, epsilon=0.01), strict=True):
        mean = sum(group) / 6
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 5)
        torch.testing.assert_close(got, double([(r - mean) / (std + 0.01) for r in group]))


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_have_exactly_no_advantage(scale: Any, dtype: torch.dtype) -> None:
    rewards = torch.full((1, 6), 0.1, dtype=dtype)
    assert rewards.mean() != rewards[0, 0] or dtype == torch.float32  # the rounding is real
    assert advantages(rewards, scale=scale, epsilon=0.0).tolist() == [[0.0] * 6]


def test_dtype_of_advantages() -> None:
    assert advantages(torch.tensor([1, 0])).dtype == torch.float32
    for refusing in (advantages, informative_groups):
        with pytest.raises(ValueError, match=r"numbers, not bool: give torch\.where\(right, 1\.0"):
            refusing(torch.tensor([True, False]))
    assert advantages(torch.tensor([1.0, 0.0], dtype=torch.bfloat16)).dtype == torch.float32
    assert advantages(double([1.0, 0.0])).dtype == torch.float64


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=8),
    st.integers(-8, 8),
    st.randoms(use_true_random=False),
)
def test_shift_and_order_of_a_group(values: list[int], shift: int, random: Any) -> None:
    rewards = double([value / 4 for value in values])
    order = list(range(len(values)))
    random.shuffle(order)
    for scale in ("std", "none"):
        base = advantages(rewards, scale=scale)
        torch.testing.assert_close(advantages(rewards + shift, scale=scale), base)
        torch.testing.assert_close(advantages(rewards[order], scale=scale), base[order])
        torch.testing.assert_close(base.sum(), double([0.0])[0])


@pytest.mark.parametrize("shape", [(1,), (3, 1), (0,), (2, 2, 2), ()])
def test_group_of_one_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="GRPO compares the answers of one group"):
        advantages(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_reward_that_is_not_finite_is_named(bad: float) -> None:
    rewards = torch.zeros(2, 3)
    rewards[1, 2] = bad
    with pytest.raises(ValueError, match=r"finite.*\[\[1, 2\]\]"):
        advantages(rewards)
    with pytest.raises(ValueError, match=r"finite.*\[\[1, 2\]\]"):
        informative_groups(rewards)


def test_settings_of_advantages() -> None:
    with pytest.raises(ValueError, match="scale must be"):
        advantages(torch.zeros(2), scale="var")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon"):
        advantages(torch.zeros(2), epsilon=-1e-4)


# --- variants -------------------------------------------------------------------------------------


def test_informative_groups() -> None:
    rewards = double([0.1] * 6 + [0, 0, 0, 0, 0, 1] + [1] * 6).reshape(3, 6)
    assert informative_groups(rewards).tolist() == [False, True, False]
    assert informative_groups(torch.tensor([0, 1])).item() is True


def test_overlong_penalty() -> None:
    lengths = torch.tensor([[0, 16384], [16385, 18432], [20480, 30000]])
    expected = torch.tensor([[0.0, 0.0], [-1 / 4096, -0.5], [-1.0, -1.0]])
    torch.testing.assert_close(overlong_penalty(lengths, max_length=20480, cache=4096), expected)
    for cache in (0, 11):
        with pytest.raises(ValueError, match="cache must be between"):
            overlong_penalty(lengths, max_length=10, cache=cache)
    with pytest.raises(ValueError, match="lengths"):
        overlong_penalty(lengths - 1, max_length=10, cache=5)


def test_variants_differ_from_grpo_as_named() -> None:
    def settings_of(name: str) -> dict[str, Any]:
        return {key: value for key, value in vars(VARIANTS[name]).items() if key != "source"}

    base = settings_of("grpo")
    assert (base["clip_low"], base["clip_high"], base["reduction"]) == (0.2, 0.2, "token")
    changes = {name: dict(settings_of(name).items() - base.items()) for name in VARIANTS}
    assert changes == {
        "grpo": {},
        "clip_higher": {"clip_high": 0.28},
        "sequence_mean": {"reduction": "sequence"},
        "dr_grpo": {"scale": "none", "reduction": "constant", "dual_clip": None},
        "dynamic_sampling": {"drop_uniform": True},
        "overlong_penalty": {"overlong_cache": 0.2},
        "dapo": {
            "clip_high": 0.28,
            "drop_uniform": True,
            "overlong_cache": 0.2,
            "dual_clip": None,
        },
    }
    with pytest.raises(TypeError):
        VARIANTS["mine"] = VARIANTS["grpo"]  # type: ignore[index]


# --- the loss -------------------------------------------------------------------------------------


def test_golden_losses() -> None:
    assert golden_loss("sequence") == pytest.approx(0.0709876393, abs=5e-11)
    assert golden_loss("token") == pytest.approx(-0.2525738461, abs=5e-11)
    assert golden_loss("constant", scale="none") == pytest.approx(-0.0410199850, abs=5e-11)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Ragged, Ragged, list[float], Ragged]:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))

    def ragged(low: float, high: float) -> Ragged:
        return [draw(st.lists(st.floats(low, high), min_size=n, max_size=n)) for n in lengths]

    old = ragged(-3.0, -0.1)
    logp = added(old, ragged(-2.0, 2.0))
    size = len(lengths)
    a = draw(st.lists(st.sampled_from([-1.3, -0.4, 0.0, 0.7, 2.0]), min_size=size, max_size=size))
    return logp, old, a, ragged(0.0, 5.0)


@settings(max_examples=150, deadline=None)
@given(
    problems(),
    st.sampled_from(REDUCTIONS),
    st.sampled_from([0.0, 0.005, -0.5]),
    st.sampled_from([3.0, 1.5, None]),
)
def test_loss_equals_the_loop(
    problem: tuple[Ragged, Ragged, list[float], Ragged],
    reduction: Reduction,
    alpha: float,
    dual_clip: float | None,
) -> None:
    logp, old, a, entropy = problem
    options: dict[str, Any] = dict(
        alpha=alpha, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip, reduction=reduction
    )
    mask = pad(ones_like(logp))
    length = LONGEST if reduction == "constant" else None
    result = policy_loss(
        pad(logp),
        pad(old),
        double(a),
        mask,
        entropy=pad(entropy),
        normaliser=loss_normaliser(mask, reduction, max_length=length),
        **options,
    )
    expected = slow_loss(logp, old, a, entropy, **options)
    assert result.loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(REDUCTIONS), st.sampled_from([0.0, 0.05]), st.randoms())
def test_each_token_has_its_own_advantage(
    problem: tuple[Ragged, Ragged, list[float], Ragged],
    reduction: Reduction,
    alpha: float,
    chance: random.Random,
) -> None:
    logp, old, a, entropy = problem
    each = [[chance.choice([-1.3, -0.4, 0.0, 0.7, 2.0]) for _ in row] for row in logp]
    options: dict[str, Any] = dict(
        alpha=alpha, clip_low=0.2, clip_high=0.28, dual_clip=3.0, reduction=reduction
    )
    mask = pad(ones_like(logp))
    length = LONGEST if reduction == "constant" else None
    options["normaliser"] = loss_normaliser(mask, reduction, max_length=length)

    def loss(values: Tensor) -> Tensor:
        return policy_loss(pad(logp), pad(old), values, mask, entropy=pad(entropy), **options).loss

    del (slow := dict(options))["normaliser"]
    expected = slow_loss(logp, old, each, entropy, **slow)
    torch.testing.assert_close(loss(pad(each)), double([expected])[0], rtol=1e-12, atol=1e-12)
    spread = double(a)[:, None].expand(mask.shape)
    assert torch.equal(loss(spread), loss(double(a)))  # (B,) is the same for all its tokens


def loss_and_gradients(
    logp: Tensor, old: Tensor, a: Tensor, mask: Tensor, entropy: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    logp, entropy = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    loss = policy_loss(logp, old, a, mask, entropy=entropy, **options).loss
    grad_logp, grad_entropy = torch.autograd.grad(loss, (logp, entropy), materialize_grads=True)
    return loss.detach(), grad_logp, grad_entropy


@settings(max_examples=100, deadline=None)
@given(
    problems(),
    st.sampled_from(REDUCTIONS),
    st.sampled_from(["left", "right"]),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -7.0]),
)
def test_masked_entries_never_matter(
    problem: tuple[Ragged, Ragged, list[float], Ragged],
    reduction: Reduction,
    side: str,
    extra: int,
    empty_rows: int,
    filler: float,
) -> None:
    logp, old, a, entropy = problem
    length = LONGEST if reduction == "constant" else None

    def outcome(side: str, width: int, filler: float, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        nothing: Ragged = [[]] * rows
        mask = pad(ones_like(logp) + nothing, side, width)
        loss, *gradients = loss_and_gradients(
            pad(logp + nothing, side, width, filler),
            pad(old + nothing, side, width, filler),
            double(a + [filler] * rows),
            mask,
            pad(entropy + nothing, side, width, filler),
            alpha=0.1,
            reduction=reduction,
            normaliser=loss_normaliser(mask, reduction, max_length=length),
        )
        for gradient in gradients:
            assert gradient[mask == 0].count_nonzero() == 0
        of_logp, of_entropy = (gradient[mask == 1] for gradient in gradients)
        return loss, of_logp, of_entropy

    plain = outcome("right", 0, 0.0, 0)
    padded = outcome(side, 5 + extra, filler, empty_rows)
    for got, want in zip(padded, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_micro_batches_add_up_to_the_batch(reduction: Reduction, alpha: float) -> None:
    """Eight sequences of a linear policy as 1 × 8, 2 × 4 and 4 × 2."""
    generator = torch.Generator().manual_seed(2)
    lengths = [7, 1, 3, 5, 2, 7, 4, 6]
    features = torch.randn(8, 7, 5, generator=generator, dtype=torch.float64)  # (B, T, d)
    ids = torch.randint(11, (8, 7), generator=generator)
    old = -2.4 + 0.5 * torch.randn(8, 7, generator=generator, dtype=torch.float64)
    a = advantages(torch.rand(2, 4, generator=generator, dtype=torch.float64)).flatten()
    mask = pad([[1.0] * n for n in lengths])
    matrix = 0.3 * torch.randn(11, 5, generator=generator, dtype=torch.float64)
    length = LONGEST if reduction == "constant" else None

    def gradient(size: int) -> tuple[Tensor, float]:
        weight = matrix.clone().requires_grad_()
        normaliser = loss_normaliser(mask, reduction, max_length=length)
        total = 0.0
        for part in torch.arange(8).split(size):
            log_p = (features[part] @ weight.T).log_softmax(-1)  # (b, T, V)
            result = policy_loss(
                log_p.gather(-1, ids[part, :, None]).squeeze(-1),
                old[part],
                a[part],
                mask[part],
                entropy=-(log_p.exp() * log_p).sum(-1),
                alpha=alpha,
                reduction=reduction,
                normaliser=normaliser,
            )
            result.loss.backward()
            total += result.loss.item()
        assert weight.grad is not None
        return weight.grad, total

    whole, loss = gradient(8)
    assert whole.abs().max() > 1e-3
    for size in (4, 2):
        parts, total = gradient(size)
        assert (parts - whole).abs().max() <= 1e-12 * whole.abs().max()
        assert total == pytest.approx(loss, rel=1e-12)


def test_normalisers() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert loss_normaliser(mask) == 4
    assert loss_normaliser(mask, "sequence") == 2
    assert loss_normaliser(mask, "constant", max_length=8) == 16
    assert loss_normaliser(mask.bool()) == 4
    for arguments in (("constant",), ("nothing",)):
        with pytest.raises(ValueError, match=r"max_length|reduction must be"):
            loss_normaliser(mask, *arguments)
    with pytest.raises(ValueError, match="max_length"):
        loss_normaliser(mask, "token", max_length=8)
    with pytest.raises(ValueError, match="max_length"):
        loss_normaliser(mask, "constant", max_length=0)
    with pytest.raises(ValueError, match="only 0 and 1"):
        loss_normaliser(mask * 2)


def test_default_normaliser_is_this_batch() -> None:
    mask = pad(ones_like(OLD))
    arguments = (pad(added(OLD, LOG_RATIOS)), pad(OLD), advantages(double(REWARDS)), mask)
    for reduction in ("token", "sequence"):
        expected = golden_loss(reduction)
        got = policy_loss(*arguments, clip_high=0.28, reduction=reduction)
        assert got.loss.item() == pytest.approx(expected, rel=1e-12)


# Which tokens learn: ρ = 0.5, 1 and 2 for either sign of A, and 4 beyond the dual clip.
LEARNS = {1.0: [True, True, False, False], -1.0: [False, True, True, False]}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_clip_stops_only_moves_that_already_went_far(sign: float) -> None:
    ratios = double([0.5, 1.0, 2.0, 4.0])
    logp = ratios.log()[None].requires_grad_()
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    result = policy_loss(logp, zeros, double([sign]), zeros + 1)
    result.loss.backward()
    expected = torch.where(torch.tensor(LEARNS[sign]), -sign * ratios / 4, 0.0)
    torch.testing.assert_close(logp.grad, expected[None])
    assert result.clip_fraction == 0.5
    # Without the dual clip the last token of a bad trajectory learns too.
    free = policy_loss(logp.detach(), zeros, double([sign]), zeros + 1, dual_clip=None)
    assert free.clip_fraction == (0.5 if sign > 0 else 0.25)


def test_the_two_clips_are_not_swapped() -> None:
    def clipped(log_ratio: float, a: float) -> float:
        table = torch.zeros(1, 1, dtype=torch.float64)
        result = policy_loss(
            table + log_ratio, table, double([a]), table + 1, clip_low=0.1, clip_high=0.4
        )
        return -result.loss.item() / a

    assert clipped(1.0, 1.0) == pytest.approx(1.4)
    assert clipped(-1.0, -1.0) == pytest.approx(0.9)
    assert clipped(2.0, -1.0) == pytest.approx(3.0)


def test_self_reward_term_learns_through_the_entropy_only() -> None:
    logp, old, entropy = pad(added(OLD, LOG_RATIOS)), pad(OLD), pad(OLD).neg().requires_grad_()
    a = advantages(double(REWARDS)).requires_grad_()
    mask = pad(ones_like(OLD))
    logp.requires_grad_()
    old.requires_grad_()
    result = policy_loss(logp, old, a, mask, entropy=entropy, alpha=0.005)
    result.loss.backward()
    torch.testing.assert_close(entropy.grad, -0.005 * a.detach()[:, None] * mask / 9)
    assert a.grad is None
    assert old.grad is None
    with_term, logp.grad = logp.grad, None
    policy_loss(logp, old, a, mask).loss.backward()
    assert with_term is not None and logp.grad is not None
    assert torch.equal(with_term, logp.grad)


def test_without_alpha_entropies_are_reported_and_stay_out_of_the_graph() -> None:
    logp = pad(OLD).requires_grad_()
    entropy = pad(OLD).neg().requires_grad_()
    mask = pad(ones_like(OLD))
    result = policy_loss(logp, pad(OLD), double(REWARDS), mask, entropy=entropy)
    result.loss.backward()
    assert entropy.grad is None
    assert result.entropy == pytest.approx(-sum(map(sum, OLD)) / 9)


def test_zero_advantage_gives_exactly_zero_gradient() -> None:
    logp = pad(added(OLD, LOG_RATIOS)).requires_grad_()
    a = advantages(torch.full((4,), 0.1, dtype=torch.float64))
    result = policy_loss(logp, pad(OLD), a, pad(ones_like(OLD)))
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert logp.grad is not None
    assert logp.grad.count_nonzero() == 0
    assert result.clip_fraction == 0.0


def test_permuted_trajectories_have_permuted_gradients() -> None:
    order = [2, 0, 3, 1]
    tables = [pad(added(OLD, LOG_RATIOS)), pad(OLD), advantages(double(REWARDS))]
    tables += [pad(ones_like(OLD)), pad(OLD).neg()]
    base = loss_and_gradients(*tables, alpha=0.1)
    moved = loss_and_gradients(*(table[order] for table in tables), alpha=0.1)
    torch.testing.assert_close(moved[0], base[0])
    assert torch.equal(moved[1], base[1][order])
    assert torch.equal(moved[2], base[2][order])


@pytest.mark.parametrize("a", [1.0, -1.0])
def test_huge_ratio_leaves_the_gradient_finite(a: float) -> None:
    logp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    result = policy_loss(logp, torch.tensor([[-500.0, -1.0]]), torch.tensor([a]), torch.ones(1, 2))
    result.loss.backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [[0.0, -a / 2]]


def test_diagnostics() -> None:
    result = policy_loss(
        pad(added(OLD, LOG_RATIOS)),
        pad(OLD, filler=9.0),
        advantages(double(REWARDS)),
        pad(ones_like(OLD)),
        clip_high=0.28,
    )
    flat = [x for row in LOG_RATIOS for x in row]
    assert result.tokens == 9
    assert result.mean_ratio == pytest.approx(sum(map(math.exp, flat)) / 9)
    assert result.approx_kl == pytest.approx(sum(math.exp(x) - 1 - x for x in flat) / 9)
    assert result.clip_fraction == pytest.approx(1 / 9)  # e^0.4 > 1.28 with A > 0
    assert result.entropy is None
    assert repr(result) == (
        "PolicyLoss(loss=-0.252574, tokens=9, clip_fraction=0.111111, mean_ratio=1.019365, "
        "approx_kl=0.030476, entropy=None)"
    )
    with pytest.raises(FrozenInstanceError):
        result.tokens = 3  # type: ignore[misc]


def test_micro_batch_without_tokens_is_harmless() -> None:
    logp = torch.full((2, 3), math.nan, requires_grad=True)
    result = policy_loss(logp, logp, torch.ones(2), torch.zeros(2, 3), normaliser=12)
    result.loss.backward()
    assert isinstance(result, PolicyLoss)
    assert (result.loss.item(), result.tokens, result.mean_ratio) == (0.0, 0, 0.0)
    assert logp.grad is not None
    assert logp.grad.count_nonzero() == 0


def test_half_precision_is_computed_in_float32() -> None:
    table = torch.full((1, 2), -1.0, dtype=torch.bfloat16)
    assert policy_loss(table, table, torch.ones(1), torch.ones(1, 2)).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(old_logp=torch.zeros(2, 4)), "old_logp must have shape"),
        (dict(advantages=torch.zeros(2, 4)), "advantages must have shape"),
        (
            dict(advantages=torch.tensor([0.0, math.nan])),
            r"advantages must be finite.*\[\[1, 0\], \[1, 1\]",
        ),
        (dict(entropy=torch.zeros(2), alpha=0.1), "entropy must have shape"),
        (dict(logp=torch.full((2, 3), math.nan)), r"logp must be finite.*\[\[0, 0\], \[0, 1\]"),
        (dict(old_logp=torch.full((2, 3), -math.inf)), "old_logp must be finite"),
        (dict(mask=torch.full((2, 3), 0.5)), "only 0 and 1"),
        (dict(mask=torch.ones(3)), "shape"),
        (dict(mask=torch.zeros(2, 3)), "no denominator"),
        (dict(normaliser=-1.0), "no denominator"),
        (dict(normaliser=math.nan), "no denominator"),
        (dict(reduction="constant"), "needs normaliser"),
        (dict(reduction="mean"), "reduction must be"),
        (dict(reduction="mean", normaliser=3), "reduction must be"),
        (dict(alpha=0.1), "alpha is not 0"),
        (dict(clip_low=1.2), "clip_low"),
        (dict(clip_high=-0.1), "clip_high"),
        (dict(dual_clip=1.0), "dual_clip"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = dict(
        logp=torch.zeros(2, 3),
        old_logp=torch.zeros(2, 3),
        advantages=torch.zeros(2),
        mask=torch.ones(2, 3),
    )
    with pytest.raises(ValueError, match=message):
        policy_loss(**(arguments | change))
