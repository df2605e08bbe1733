"""Ways to draw K latents at one prefix (METHOD §3), and the controls among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from i2b_lpo.method.latent import Gaussian

__all__ = ["SAMPLERS", "Sampler"]

Sampler: TypeAlias = Callable[[Gaussian, int, torch.Generator], Tensor]
"""``(prior, k, generator) -> z``: k latents for each of the prior's B prefixes, (B, k, d_z)."""

_CANDIDATES = 8  # of `spread`, for each latent it keeps


def _noise(prior: Gaussian, k: int, generator: torch.Generator) -> Tensor:
    """Draw N(0, I) of shape ``(B, k, d_z)``; the latents of a row don't depend on later rows."""
    if prior.mean.dim() != 2 or k < 1:
        raise ValueError(
            "a sampler needs a prior of means (B, d_z) and at least one latent, "
            f"got {tuple(prior.mean.shape)} and k={k}."
        )
    b, d_z = prior.mean.shape
    noise = torch.empty(b, k, d_z, dtype=torch.float64)  # so that every precision gets the same
    for row in noise:  # the last values of one large draw would depend on its size
        row.normal_(generator=generator)
    return noise.to(prior.mean)


def _place(prior: Gaussian, noise: Tensor) -> Tensor:
    return prior.mean[:, None] + prior.stddev[:, None] * noise  # (B, k, d_z)


def _independent(prior: Gaussian, k: int, generator: torch.Generator) -> Tensor:
    return _place(prior, _noise(prior, k, generator))


def _antithetic(prior: Gaussian, k: int, generator: torch.Generator) -> Tensor:
    noise = _noise(prior, k, generator)
    if k > 1:  # one latent has nothing to differ from
        noise = (noise - noise.mean(1, keepdim=True)) * (k / (k - 1)) ** 0.5
    return _place(prior, noise)


def _spread(prior: Gaussian, k: int, generator: torch.Generator) -> Tensor:
    # The noise is z in units of σ_p: a dimension that is wide under the prior doesn't decide alone.
    candidates = _noise(prior, _CANDIDATES * k, generator)  # (B, C, d_z)
    rows = torch.arange(len(candidates), device=candidates.device)
    chosen = [torch.zeros_like(rows)]
    nearest = torch.full_like(candidates[..., 0], torch.inf)  # (B, C), to the closest chosen one
    for _ in range(k - 1):
        newest = candidates[rows, chosen[-1]].unsqueeze(1)  # (B, 1, d_z)
        nearest = nearest.minimum((candidates - newest).square().sum(-1))
        chosen.append(nearest.argmax(1))
    return _place(prior, candidates[rows[:, None], torch.stack(chosen, 1)])


def _matched(prior: Gaussian, k: int, generator: torch.Generator) -> Tensor:
    drawn, noise = _noise(prior, 2 * k, generator).chunk(2, 1)  # (B, k, d_z) both
    length = _place(prior, drawn).norm(dim=-1, keepdim=True)
    z: Tensor = length * noise / noise.norm(dim=-1, keepdim=True)
    return z


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "independent": _independent,
        "antithetic": _antithetic,
        "spread": _spread,
        "standard_normal": _noise,
        "matched": _matched,
    }
)
"""Ways to draw k latents at one prefix (METHOD §3); each raises ValueError for k < 1.

* ``independent``: k draws from P(z|c) [P].
* ``antithetic``: each distributed as P(z|c), any two correlated by −1/(k−1), the least possible for
  all k; a mirrored pair for k = 2 [D].
* ``spread``: the farthest k of 8k draws, greedily, by the distance in units of σ_p [D]. The first
  is an ordinary draw; the others lie farther out than the prior's own.
* ``standard_normal``: N(0, I) whatever the prefix, a control [D]. Trained priors are several times
  as long, so it is also a quiet one.
* ``matched``: a random direction with the norm of a draw from P(z|c), the control that is as loud
  as z: what differs is the direction alone [D].

The generator is a CPU one; z comes back on the prior's device and dtype.
"""
