"""The CVAE, its ELBO, the samplers and the reports against slow loops and METHOD §3."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal

from i2b_lpo.method.latent import (
    Gaussian,
    LatentModel,
    cluster_weights,
    elbo,
    kl_per_dimension,
    masked_mean,
    selector_log_prob,
)
from i2b_lpo.method.samplers import SAMPLERS

E, D, B = 7, 5, 4
COUPLED = ("independent", "antithetic", "spread")  # the samplers that follow the prior


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(mean: Any, std: Any) -> Gaussian:
    mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, std))
    return Independent(Normal(mean, std), 1)


def random_gaussian(seed: int, b: int = B, d_z: int = D) -> Gaussian:
    return gaussian(draw(b, d_z, seed=seed), (0.5 * draw(b, d_z, seed=seed + 1)).exp())


def model(dtype: torch.dtype = torch.float64, *, seed: int = 0, standardised: bool = True) -> Any:
    torch.manual_seed(seed)
    made = LatentModel(E, D, width=16).to(dtype)
    if standardised:
        made.standardise(embeddings())
    return made


def embeddings(n: int = 40, seed: int = 5) -> Tensor:
    """Of very different sizes per dimension, off centre, the last constant up to rounding."""
    scales = torch.tensor([1e-2, 0.1, 1.0, 10.0, 1e3, 2.0, 1e-12], dtype=torch.float64)
    return draw(n, E, seed=seed) * scales + torch.arange(1.0, E + 1.0, dtype=torch.float64)


def slow_kl(q: Gaussian, p: Gaussian) -> list[list[float]]:
    """log(σ_p/σ_q) + (σ_q² + (μ_q − μ_p)²) / (2σ_p²) − ½, one number at a time."""
    table = []
    for b in range(len(q.mean)):
        row = []
        for d in range(q.mean.shape[1]):
            m_q, s_q = float(q.mean[b, d]), float(q.stddev[b, d])
            m_p, s_p = float(p.mean[b, d]), float(p.stddev[b, d])
            row.append(math.log(s_p / s_q) + (s_q**2 + (m_q - m_p) ** 2) / (2 * s_p**2) - 0.5)
        table.append(row)
    return table


# --- pooling ---------------------------------------------------------------------------------


def test_masked_mean_is_the_mean_of_the_tokens_that_count() -> None:
    states = draw(3, 6, E)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]])
    got = masked_mean(states, mask)
    for b in range(3):
        for d in range(E):
            kept = [float(states[b, t, d]) for t in range(6) if mask[b, t] == 1]
            assert got[b, d].item() == pytest.approx(math.fsum(kept) / len(kept), abs=1e-14)
    assert torch.equal(got, masked_mean(states, mask.bool()))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(0, 6),
    left=st.booleans(),
    filler=st.sampled_from([0.0, 1e6, math.inf, math.nan]),
)
def test_padding_changes_nothing(lengths: list[int], extra: int, left: bool, filler: float) -> None:
    width = max(lengths) + extra
    rows = [draw(n, E, seed=n) for n in lengths]
    states = torch.full((len(rows), width, E), filler, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        states[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    alone = torch.stack([row.mean(0) for row in rows])
    torch.testing.assert_close(masked_mean(states, mask), alone, rtol=0, atol=1e-12)


def test_masked_mean_sums_half_precision_in_float32() -> None:
    states = torch.ones(1, 1001, 1, dtype=torch.bfloat16)
    got = masked_mean(states, torch.ones(1, 1001))
    assert got.dtype == torch.float32
    assert got.item() == 1.0  # bfloat16 has no 1001


@pytest.mark.parametrize(
    ("states", "mask", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3), "shape"),
        (torch.zeros(2, 3, 1), torch.ones(2, 4), "shape"),
        (torch.zeros(2, 3, 1), torch.full((2, 3), 0.5), "only 0 and 1"),
        (torch.zeros(2, 3, 1), torch.tensor([[1, 0, 0], [0, 0, 0]]), r"rows \[1\]"),
    ],
)
def test_masked_mean_refuses(states: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_mean(states, mask)


# --- the model -------------------------------------------------------------------------------


def test_a_fresh_model_starts_near_a_standard_normal() -> None:
    torch.manual_seed(0)
    fresh = LatentModel(64, 16)
    prefix, continuation = torch.randn(200, 64), torch.randn(200, 64)
    for got in (fresh.prior(prefix), fresh.posterior(prefix, continuation)):
        assert got.batch_shape == (200,) and got.event_shape == (16,)
        assert got.mean.abs().max() < 0.5
        assert got.stddev.min() > 0.6 and got.stddev.max() < 1.6


def test_standardised_embeddings_have_mean_0_and_deviation_1_or_are_constant() -> None:
    made = model()
    got = made.coordinates(embeddings())
    torch.testing.assert_close(got.mean(0), torch.zeros(E, dtype=torch.float64), rtol=0, atol=1e-9)
    wanted = torch.tensor([1.0] * (E - 1) + [0.0], dtype=torch.float64)
    torch.testing.assert_close(got.std(0, correction=0), wanted, rtol=1e-9, atol=1e-9)
    assert made.scale[-1] == 1.0  # the constant dimension


def test_the_prior_sees_standardised_embeddings() -> None:
    plain, made = model(standardised=False), model()
    raw = embeddings(B, seed=9)
    shifted = (raw - embeddings().mean(0)) / made.scale
    torch.testing.assert_close(made.prior(raw).mean, plain.prior(shifted).mean)
    z = draw(B, D)
    torch.testing.assert_close(made.reconstruct(raw, z), plain.reconstruct(shifted, z))


def test_standardise_acts_once() -> None:
    made = model()
    with pytest.raises(ValueError, match="already"):
        made.standardise(embeddings())


def test_standardise_refuses_equal_embeddings_and_changes_nothing() -> None:
    made = model(standardised=False)
    for bad in (torch.ones(3, E), torch.ones(0, E), torch.ones(3, E + 1)):
        with pytest.raises(ValueError, match=r"differ|shape"):
            made.standardise(bad)
    assert bool((made.centre == 0).all()) and bool((made.scale == 1).all())


def test_sigma_stays_bounded_and_can_be_trained_back() -> None:
    made = model(standardised=False)
    for shift in (-30.0, 30.0):
        with torch.no_grad():
            made.prior_net[-1].weight.zero_()
            made.prior_net[-1].bias.fill_(shift)
        sigma = made.prior(draw(B, E)).stddev
        assert math.exp(-3.0) <= sigma.min() and sigma.max() <= math.exp(3.0)
        with torch.no_grad():
            made.prior_net[-1].bias.fill_(shift / 5)
        (gradient,) = torch.autograd.grad(
            made.prior(draw(B, E)).stddev.sum(), made.prior_net[-1].bias
        )
        assert bool((gradient[D:] > 0).all())


def test_the_prior_depends_on_the_prefix_and_the_posterior_on_both() -> None:
    made = model()
    prefix, other = embeddings(B, seed=1), embeddings(B, seed=2)
    assert not torch.allclose(made.prior(prefix).mean, made.prior(other).mean)
    base = made.posterior(prefix, other)
    assert not torch.allclose(base.mean, made.posterior(other, other).mean)
    assert not torch.allclose(base.mean, made.posterior(prefix, prefix).mean)
    assert not torch.allclose(base.mean, made.posterior(other, prefix).mean)


def test_the_reconstruction_depends_on_the_prefix_and_on_z() -> None:
    made, prefix, z = model(), embeddings(B, seed=1), draw(B, D)
    base = made.reconstruct(prefix, z)
    assert not torch.allclose(base, made.reconstruct(prefix, draw(B, D, seed=1)))
    assert not torch.allclose(base, made.reconstruct(embeddings(B, seed=2), z))


def test_rows_of_a_batch_dont_meet() -> None:
    made = model()
    prefix, continuation = embeddings(B, seed=1), embeddings(B, seed=2)
    whole = made.posterior(prefix, continuation)
    for b in range(B):
        alone = made.posterior(prefix[b : b + 1], continuation[b : b + 1])
        torch.testing.assert_close(whole.mean[b], alone.mean[0])
        torch.testing.assert_close(whole.stddev[b], alone.stddev[0])


def test_state_dict_round_trip_keeps_the_buffers() -> None:
    made = model(torch.float32)
    other = LatentModel(E, D, width=16)
    other.load_state_dict(made.state_dict())
    raw = embeddings(B).float()
    assert torch.equal(other.centre, made.centre) and torch.equal(other.scale, made.scale)
    assert not torch.equal(other.scale, torch.ones(E))
    assert torch.equal(other.prior(raw).mean, made.prior(raw).mean)
    with pytest.raises(ValueError, match="already"):
        other.standardise(embeddings())


def test_half_precision_embeddings_are_taken() -> None:
    got = model(torch.float32).prior(embeddings(B).bfloat16())
    assert got.mean.dtype == torch.float32


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, E + 1), torch.zeros(E), torch.full((2, E), math.nan)]
)
def test_bad_embeddings_are_refused(bad: Tensor) -> None:
    made, good = model(), embeddings(2)
    calls: list[Callable[[], object]] = [
        lambda: made.prior(bad),
        lambda: made.posterior(bad, good),
        lambda: made.posterior(good, bad),
        lambda: made.reconstruct(bad, draw(2, D)),
        lambda: selector_log_prob(made, good, bad, draw(2, D)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"finite and of shape \\(B, {E}\\)"):
            call()


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_are_checked(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LatentModel(*sizes)


# --- ELBO ------------------------------------------------------------------------------------


def test_kl_is_the_closed_form_of_posterior_against_prior() -> None:
    q, p = random_gaussian(0), random_gaussian(10)
    wanted = torch.tensor(slow_kl(q, p), dtype=torch.float64)
    got = elbo(torch.zeros(B, dtype=torch.float64), q, p)
    torch.testing.assert_close(got.kl, wanted.sum(1))
    torch.testing.assert_close(got.kl_per_dimension, wanted.mean(0))
    torch.testing.assert_close(kl_per_dimension(q, p), wanted.mean(0))
    torch.testing.assert_close(got.loss, wanted.sum(1).mean())


def test_kl_agrees_with_monte_carlo_and_is_not_reversed() -> None:
    q, p = gaussian([[0.0, 1.0]], [[0.3, 1.0]]), gaussian([[1.0, 0.0]], [[1.0, 2.0]])
    torch.manual_seed(0)
    z = q.sample((200_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).mean().item()
    backwards = math.fsum(slow_kl(p, q)[0])
    got = elbo(torch.zeros(1, dtype=torch.float64), q, p).kl.item()
    assert got == pytest.approx(estimate, rel=0.01)
    assert abs(got - backwards) > 5.0  # a wide prior costs little, a wide posterior much


def test_kl_is_0_between_equal_distributions() -> None:
    q = random_gaussian(3)
    torch.testing.assert_close(kl_per_dimension(q, q), torch.zeros(D, dtype=torch.float64))


def test_the_loss_weighs_its_parts() -> None:
    q, p, log_prob = random_gaussian(0), random_gaussian(10), draw(B, seed=4)
    kl = math.fsum(x for row in slow_kl(q, p) for x in row) / B
    for beta in (0.0, 0.3, 2.0):
        got = elbo(log_prob, q, p, beta_kl=beta)
        assert got.loss.item() == pytest.approx(-log_prob.mean().item() + beta * kl)
        assert torch.equal(got.log_prob, log_prob)


def test_free_bits_bound_the_batch_mean_of_each_dimension() -> None:
    # Dimension 0 speaks for one example only (KL 2 and 0), dimension 1 for none.
    q = gaussian([[2.0, 0.0], [0.0, 0.0]], torch.ones(2, 2))
    p = gaussian(torch.zeros(2, 2), torch.ones(2, 2))
    none = torch.zeros(2, dtype=torch.float64)
    assert elbo(none, q, p, free_bits=0.5).loss.item() == pytest.approx(1.0 + 0.5)
    assert elbo(none, q, p, free_bits=0.5, beta_kl=0.1).loss.item() == pytest.approx(0.15)
    got = elbo(none, q, p, free_bits=5.0)
    assert got.loss.item() == pytest.approx(10.0)
    torch.testing.assert_close(got.kl, torch.tensor([2.0, 0.0], dtype=torch.float64))  # as it is


def test_below_the_free_bits_the_kl_has_no_gradient() -> None:
    mean = torch.tensor([[2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    q = Independent(Normal(mean, torch.ones(1, 2, dtype=torch.float64)), 1)
    p = gaussian(torch.zeros(1, 2), torch.ones(1, 2))
    elbo(torch.zeros(1, dtype=torch.float64), q, p, free_bits=0.5).loss.backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.tensor([[2.0, 0.0]], dtype=torch.float64))


def test_selector_log_prob_is_minus_the_squared_distance_in_standardised_coordinates() -> None:
    made = model()
    prefix, continuation, z = embeddings(B, seed=1), embeddings(B, seed=2), draw(B, D)
    rebuilt = made.reconstruct(prefix, z)
    got = selector_log_prob(made, prefix, continuation, z)
    for b in range(B):
        parts = [
            ((continuation[b, j] - made.centre[j]) / made.scale[j] - rebuilt[b, j]).item() ** 2
            for j in range(E)
        ]
        assert got[b].item() == pytest.approx(-math.fsum(parts))


def test_gradients_reach_every_network_and_one_step_lowers_the_loss() -> None:
    made = model()
    prefix, continuation, noise = embeddings(B, seed=1), embeddings(B, seed=2), draw(B, D)

    def loss() -> Tensor:
        q = made.posterior(prefix, continuation)
        z = q.mean + q.stddev * noise
        scores = selector_log_prob(made, prefix, continuation, z)
        return elbo(scores, q, made.prior(prefix)).loss

    before = loss()
    before.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        with torch.no_grad():
            parameter -= 1e-4 * parameter.grad
    assert loss() < before


def test_the_parts_are_detached_and_the_record_shows_itself() -> None:
    q = gaussian([[1.0]], [[1.0]])
    log_prob = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    got = elbo(log_prob, q, gaussian([[0.0]], [[1.0]]))
    assert got.loss.requires_grad
    assert not (got.log_prob.requires_grad or got.kl.requires_grad)
    assert repr(got) == "Elbo(loss=3.5000, log_prob=-3.0000, kl=0.5000 over 1 dimensions)"


@pytest.mark.parametrize(
    ("log_prob", "p", "options", "message"),
    [
        (torch.zeros(B, 1), random_gaussian(0), {}, "log-prob"),
        (torch.zeros(B + 1), random_gaussian(0), {}, "log-prob"),
        (torch.full((B,), -math.inf), random_gaussian(0), {}, "finite log-prob"),
        (torch.zeros(B), random_gaussian(0, d_z=D + 1), {}, "one shape"),
        (torch.zeros(B), random_gaussian(0, b=1), {}, "one shape"),
        (torch.zeros(B), random_gaussian(0), {"beta_kl": -1.0}, "beta_kl"),
        (torch.zeros(B), random_gaussian(0), {"free_bits": math.nan}, "free_bits"),
    ],
)
def test_elbo_refuses(log_prob: Tensor, p: Gaussian, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elbo(log_prob, random_gaussian(1), p, **options)


# --- samplers --------------------------------------------------------------------------------


def closest_pair(points: Tensor) -> float:
    return min(float((a - b).norm()) for a, b in combinations(points, 2))


def in_prior_units(z: Tensor, prior: Gaussian) -> Tensor:
    return (z - prior.mean[:, None]) / prior.stddev[:, None]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samplers_are_deterministic_and_keep_the_priors_dtype(
    name: str, k: int, dtype: torch.dtype
) -> None:
    made = random_gaussian(0)
    prior = Independent(Normal(made.mean.to(dtype), made.stddev.to(dtype)), 1)
    torch.manual_seed(1)
    first = SAMPLERS[name](prior, k, seeded(7))
    torch.manual_seed(2)
    again = SAMPLERS[name](prior, k, seeded(7))
    assert first.shape == (B, k, D) and first.dtype == dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, SAMPLERS[name](prior, k, seeded(8)))
    exact = SAMPLERS[name](made, k, seeded(7))
    torch.testing.assert_close(first.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_doesnt_depend_on_the_rows_behind_it_or_on_its_neighbours_content(name: str) -> None:
    full = random_gaussian(0, b=5, d_z=3)
    few = gaussian(full.mean[:2], full.stddev[:2])
    torch.testing.assert_close(
        SAMPLERS[name](few, 3, seeded(1)), SAMPLERS[name](full, 3, seeded(1))[:2], rtol=0, atol=0
    )
    mean = full.mean.clone()
    mean[0] += 9.0
    changed = SAMPLERS[name](gaussian(mean, full.stddev), 3, seeded(1))
    assert torch.equal(changed[1:], SAMPLERS[name](full, 3, seeded(1))[1:])


@pytest.mark.parametrize("name", COUPLED)
def test_latents_move_and_stretch_with_the_prior(name: str) -> None:
    prior = random_gaussian(0)
    unit = gaussian(torch.zeros(B, D), torch.ones(B, D))
    wanted = SAMPLERS[name](unit, 3, seeded(2))
    torch.testing.assert_close(
        in_prior_units(SAMPLERS[name](prior, 3, seeded(2)), prior), wanted, rtol=1e-9, atol=1e-9
    )


def test_standard_normal_ignores_the_prior() -> None:
    got = [SAMPLERS["standard_normal"](random_gaussian(seed), 3, seeded(2)) for seed in (0, 20)]
    assert torch.equal(*got)
    many = SAMPLERS["standard_normal"](random_gaussian(0, b=2000), 3, seeded(2))
    assert abs(many.mean().item()) < 0.02 and many.std().item() == pytest.approx(1.0, abs=0.02)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_matched_latents_have_the_lengths_of_draws_from_the_prior_at_their_own_prefix(
    seed: int, k: int, b: int, d_z: int
) -> None:
    std = (3.0 * torch.rand(b, d_z, generator=seeded(seed), dtype=torch.float64) - 1.5).exp()
    prior = gaussian(5.0 * draw(b, d_z, seed=seed), std)
    got = SAMPLERS["matched"](prior, k, seeded(seed + 1))
    pool = SAMPLERS["independent"](prior, 2 * k, seeded(seed + 1))  # the same draws
    for row in range(b):
        for z, loud in zip(got[row].tolist(), pool[row, :k].tolist(), strict=True):
            assert math.hypot(*z) == pytest.approx(math.hypot(*loud), rel=1e-9)


def test_the_direction_of_a_matched_latent_knows_nothing_of_the_prior() -> None:
    # Far off centre and stretched: a direction that followed the prior would show either.
    prior = gaussian(torch.tensor([[9.0, -3.0, 0.0]]), torch.tensor([[0.1, 1.0, 5.0]]))
    z = SAMPLERS["matched"](prior, 20_000, seeded(2))[0]
    direction = z / z.norm(dim=-1, keepdim=True)
    assert bool((direction.mean(0).abs() < 0.02).all())
    spread = direction.T @ direction / len(direction)  # uniform on the sphere: I / d_z
    torch.testing.assert_close(spread, torch.eye(3).double() / 3, rtol=0, atol=0.02)
    assert abs(torch.corrcoef(torch.stack([z.norm(dim=-1), direction[:, 0]]))[0, 1]) < 0.03


@pytest.mark.parametrize("name", COUPLED)
def test_the_first_latent_is_distributed_as_the_prior(name: str) -> None:
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.1, 5.0])
    first = SAMPLERS[name](gaussian(mean.repeat(4000, 1), std.repeat(4000, 1)), 3, seeded(3))[:, 0]
    unit = (first - mean) / std
    assert bool((unit.mean(0).abs() < 0.06).all())
    assert bool(((unit.std(0) - 1).abs() < 0.05).all())
    assert (unit.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.02)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_antithetic_latents_share_as_little_as_they_can(k: int) -> None:
    prior = random_gaussian(0, b=6000, d_z=2)
    unit = in_prior_units(SAMPLERS["antithetic"](prior, k, seeded(4)), prior)
    zero = torch.zeros(6000, 2, dtype=torch.float64)
    torch.testing.assert_close(unit.sum(1), zero, rtol=0, atol=1e-9)
    for i in range(k):  # every one of them is a draw from the prior
        assert unit[:, i].std().item() == pytest.approx(1.0, abs=0.03)
        for j in range(i):
            product = (unit[:, i] * unit[:, j]).mean().item()
            assert product == pytest.approx(-1 / (k - 1), abs=0.04)


def test_independent_latents_are_uncorrelated() -> None:
    prior = random_gaussian(0, b=6000, d_z=2)
    unit = in_prior_units(SAMPLERS["independent"](prior, 3, seeded(4)), prior)
    for i, j in combinations(range(3), 2):
        assert abs((unit[:, i] * unit[:, j]).mean().item()) < 0.04


def brute_spread(candidates: list[list[float]], k: int) -> list[int]:
    chosen = [0]
    while len(chosen) < k:
        distances = [
            min(math.dist(candidate, candidates[i]) for i in chosen) for candidate in candidates
        ]
        chosen.append(max(range(len(candidates)), key=distances.__getitem__))
    return chosen


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_spread_is_greedy_farthest_point_in_units_of_the_prior(
    seed: int, k: int, b: int, d_z: int
) -> None:
    # Scales from 0.05 to 20: distances in plain z would be decided by the widest dimension.
    std = (3.0 * torch.rand(b, d_z, generator=seeded(seed), dtype=torch.float64) - 1.5).exp()
    prior = gaussian(draw(b, d_z, seed=seed), std)
    got = SAMPLERS["spread"](prior, k, seeded(seed + 1))
    pool = SAMPLERS["independent"](prior, 8 * k, seeded(seed + 1))  # the same draws
    for row in range(b):
        unit = in_prior_units(pool, prior)[row].tolist()
        wanted = pool[row, brute_spread(unit, k)]
        torch.testing.assert_close(got[row], wanted, rtol=1e-9, atol=1e-9)


def test_coupled_latents_lie_farther_apart_than_independent_ones() -> None:
    prior = random_gaussian(0, b=300, d_z=8)
    mean = {}
    for name in COUPLED:
        unit = in_prior_units(SAMPLERS[name](prior, 3, seeded(6)), prior)
        mean[name] = sum(closest_pair(row) for row in unit) / 300
    assert mean["independent"] * 1.15 < mean["antithetic"]
    assert mean["antithetic"] * 1.05 < mean["spread"]


def test_only_spread_leaves_the_priors_shell() -> None:
    prior = random_gaussian(0, b=400, d_z=8)
    lengths = {
        name: in_prior_units(SAMPLERS[name](prior, 3, seeded(6)), prior).square().sum(-1).mean(0)
        for name in COUPLED
    }  # the expectation under the prior is d_z
    for name in ("independent", "antithetic"):
        torch.testing.assert_close(lengths[name], torch.full((3,), 8.0).double(), rtol=0.1, atol=0)
    assert lengths["spread"][0] == pytest.approx(8.0, rel=0.1)
    assert bool((lengths["spread"][1:] > 10.0).all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="at least one latent"):
        SAMPLERS[name](random_gaussian(0), 0, seeded())
    with pytest.raises(ValueError, match="means"):
        SAMPLERS[name](gaussian(torch.zeros(D), torch.ones(D)), 2, seeded())


def test_the_table_cant_be_changed() -> None:
    with pytest.raises(TypeError):
        SAMPLERS["mine"] = SAMPLERS["spread"]  # type: ignore[index]


@given(st.lists(st.sampled_from(["split", "grid", "round", "guess"]), min_size=1, max_size=30))
def test_every_label_weighs_the_same(labels: list[str]) -> None:
    weights = cluster_weights(labels)
    assert weights.mean().item() == pytest.approx(1.0)
    totals = {
        label: math.fsum(w for w, x in zip(weights.tolist(), labels, strict=True) if x == label)
        for label in labels
    }
    for total in totals.values():
        assert total == pytest.approx(len(labels) / len(totals))
    within = {(x, round(w, 12)) for w, x in zip(weights.tolist(), labels, strict=True)}
    assert len(within) == len(totals)  # equal within a label


def test_cluster_weights_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="at least one label"):
        cluster_weights([])
