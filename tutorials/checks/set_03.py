"""Checks of exercise set 03, latents and their CVAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- 1: an embedding -----------------------------------------------------------------------------


def _states() -> list[Case]:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]])
    return [(_normal(0, 3, 4, 2), mask), (_normal(1, 1, 4, 3) + 5, mask[1:2])]


@exercise(_states)
def mean_embedding(states: Tensor, mask: Tensor) -> Tensor:
    rows = zip(states, mask.bool(), strict=True)
    return torch.stack([row[counted].mean(0) for row, counted in rows])


@mean_embedding.mistake(
    "padding counts (METHOD §7, fault 8): the mean runs over all columns, so an embedding depends "
    "on how long its neighbours are."
)
def all_columns(states: Tensor, mask: Tensor) -> Tensor:
    return states.mean(1)


@mean_embedding.mistake(
    "padding is left out of the sum but not of the count: divide by Σm, not by the width."
)
def by_width(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).mean(1)


@mean_embedding.mistake("this is the sum: a longer text gets a longer embedding. Divide by Σm.")
def not_divided(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(1)


@mean_embedding.mistake(
    "all rows were divided by the tokens of the whole batch; each has its own count, Σm of its row."
)
def by_batch(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(1) / mask.sum()


# --- 2: KL ---------------------------------------------------------------------------------------


def _gaussians() -> list[Case]:
    mu_q, mu_p = _normal(2, 3, 4), _normal(3, 3, 4)
    sigma_q, sigma_p = _normal(4, 3, 4).exp(), _normal(5, 3, 4).exp()
    one = torch.ones(1, 2, dtype=torch.float64)
    return [(mu_q, sigma_q, mu_p, sigma_p), (one, one / 4, 0 * one, one)]


@exercise(_gaussians)
def gaussian_kl(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    squares = (sigma_q**2 + (mu_q - mu_p) ** 2) / sigma_p**2
    return (squares - 1 + 2 * (sigma_p / sigma_q).log()) / 2


@gaussian_kl.mistake(
    "KL is the wrong way round: this is KL(P‖Q). The ELBO needs KL(Q‖P), the mean of "
    "log Q − log P under Q (METHOD §3)."
)
def reversed_kl(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    return gaussian_kl.right(mu_p, sigma_p, mu_q, sigma_q)


@gaussian_kl.mistake("σ is a standard deviation; the fraction needs its square, the variance.")
def not_squared(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    far = sigma_q + (mu_q - mu_p) ** 2
    return (sigma_p / sigma_q).log() + far / (2 * sigma_p) - 0.5


@gaussian_kl.mistake("the −½ is missing: KL(P‖P) must be 0.")
def without_half(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    return gaussian_kl.right(mu_q, sigma_q, mu_p, sigma_p) + 0.5


@gaussian_kl.mistake("the fraction is not halved: its denominator is 2σ_p².")
def not_halved(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    far = (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2)
    return gaussian_kl.right(mu_q, sigma_q, mu_p, sigma_p) + far


@gaussian_kl.mistake("the logarithm is upside down: log σ_p/σ_q. A Q that is sure must cost more.")
def log_upside_down(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    right = gaussian_kl.right(mu_q, sigma_q, mu_p, sigma_p)
    return right - 2 * (sigma_p / sigma_q).log()


@gaussian_kl.mistake("the dimensions are summed; return the KL of each dimension, (B, d_z).")
def summed(mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor) -> Tensor:
    return gaussian_kl.right(mu_q, sigma_q, mu_p, sigma_p).sum(-1)


# --- 3: free bits --------------------------------------------------------------------------------


def _kls() -> list[Case]:
    kl = torch.tensor([[0.9, 0.01, 0.3], [0.0, 0.03, 0.0]], dtype=torch.float64)
    return [(kl, 0.2), (kl, 0.05), (kl + 1, 0.2), (kl[:1], 0.0), (kl / 100, 0.2)]


@exercise(_kls)
def charged_kl(kl: Tensor, free_bits: float) -> Tensor:
    return torch.stack([column.mean().clamp(min=free_bits) for column in kl.T]).sum()


@charged_kl.mistake(
    "each example is compared with λ separately. Take the batch mean first: a dimension may "
    "speak for one continuation and be silent for another."
)
def each_example(kl: Tensor, free_bits: float) -> Tensor:
    return kl.clamp(min=free_bits).mean(0).sum()


@charged_kl.mistake("λ is compared with the sum of all dimensions; each dimension has its own λ.")
def whole_sum(kl: Tensor, free_bits: float) -> Tensor:
    return kl.mean(0).sum().clamp(min=free_bits)


@charged_kl.mistake(
    "λ is subtracted. Use max(λ, KL): the gradient is the same, the reported loss is not."
)
def subtracted(kl: Tensor, free_bits: float) -> Tensor:
    return (kl.mean(0) - free_bits).clamp(min=0).sum()


@charged_kl.mistake("this is min(λ, KL): it caps what z may know, instead of giving λ for free.")
def capped(kl: Tensor, free_bits: float) -> Tensor:
    return kl.mean(0).clamp(max=free_bits).sum()


@charged_kl.mistake("the free bits are not used: below λ a dimension is charged λ.")
def without_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    return kl.mean(0).sum()


# --- 4: mirrored pairs ---------------------------------------------------------------------------


def _priors() -> list[Case]:
    return [
        (_normal(6, 2, 3), _normal(7, 2, 3).exp(), _normal(8, 2, 4, 3)),
        (_normal(9, 1, 2) + 3, torch.full((1, 2), 0.5).double(), _normal(10, 1, 1, 2)),
    ]


@exercise(_priors)
def mirrored(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    both = torch.cat([noise, -noise], 1)
    return torch.einsum("bd,bkd->bkd", sigma, both) + mu.unsqueeze(1)


@mirrored.mistake(
    "mirrored at 0 instead of at μ_p: −z isn't a draw from P(z|c). z' = 2μ_p − z has the same "
    "distribution as z."
)
def at_zero(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    z = mu[:, None] + sigma[:, None] * noise
    return torch.cat([z, -z], 1)


@mirrored.mistake(
    "the second half repeats the first: nothing is mirrored, and K/2 branches are copies."
)
def repeated(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    z = mu[:, None] + sigma[:, None] * noise
    return torch.cat([z, z], 1)


@mirrored.mistake(
    "z ~ N(0, I): the noise was neither scaled by σ_p nor shifted by μ_p. That is the control, "
    "which the fusion doesn't hear."
)
def standard_normal(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    return torch.cat([noise, -noise], 1)


@mirrored.mistake("the noise is scaled by the variance; z = μ_p + σ_p · noise.")
def variance(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    return mirrored.right(mu, sigma**2, noise)


@mirrored.mistake("μ_p is missing: the latents lie around 0 instead of around the prior's mean.")
def not_shifted(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    return mirrored.right(0 * mu, sigma, noise)


# --- 5: coverage ---------------------------------------------------------------------------------


def _sets() -> list[Case]:
    names = ["Split", "Guess", "Round"]
    return [
        ([["Split", "Split", "Guess"], ["Guess", "other", "other"]], names),
        ([["Round", "Split"], ["Split", "Round"], ["other", "other"]], names),
    ]


@exercise(_sets)
def coverage(sets: list[list[str]], strategies: list[str]) -> float:
    found = [len([name for name in strategies if name in words]) for words in sets]
    return sum(found) / len(found)


@coverage.mistake(
    "all sets are pooled. Count within each set and average over sets: branches of different forks "
    "don't make each other more varied."
)
def together(sets: list[list[str]], strategies: list[str]) -> float:
    return float(len({w for words in sets for w in words} & set(strategies)))


@coverage.mistake("words that aren't a strategy are counted too.")
def any_word(sets: list[list[str]], strategies: list[str]) -> float:
    return sum(len(set(words)) for words in sets) / len(sets)


@coverage.mistake("a strategy that appears twice in a set is counted twice.")
def repeats(sets: list[list[str]], strategies: list[str]) -> float:
    return sum(sum(word in strategies for word in words) for words in sets) / len(sets)


@coverage.mistake("this is a share of K; return a number of strategies.")
def share(sets: list[list[str]], strategies: list[str]) -> float:
    found = [len(set(words) & set(strategies)) / len(words) for words in sets]
    return sum(found) / len(found)


@coverage.mistake("this is a sum over the sets; take the mean.")
def total(sets: list[list[str]], strategies: list[str]) -> float:
    return float(coverage.right(sets, strategies)) * len(sets)
