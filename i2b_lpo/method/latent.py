"""Latents: the CVAE behind z, its ELBO, and reports on what they carry.

Not here: ways to draw K latents (samplers.py), the embedder and the training loop
(training/latents.py), pseudo self-attention (psa.py), the fork at which latents are drawn
(branching.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

__all__ = [
    "Elbo",
    "Gaussian",
    "LatentModel",
    "cluster_weights",
    "elbo",
    "kl_per_dimension",
    "masked_mean",
    "selector_log_prob",
]

Gaussian: TypeAlias = Independent[Normal]
"""A prior or posterior: batch shape (B,), event shape (d_z,)."""

_LOG_SCALE = 3.0  # bound of |log σ|: σ stays within 0.05..20
_CONSTANT = 1e-6  # a dimension varying less than this share of the widest counts as constant


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Embed each sequence as Σ_t m_t h_t / Σ_t m_t, the mean of its tokens' hidden states.

    METHOD §3 [D]. Padding never counts, whatever stands there; in [C] it does (METHOD §7, fault 8).

    Args:
        states: h, shape ``(B, T, d)``.
        mask: m, 1 on the tokens that count, shape ``(B, T)``.

    Returns:
        Shape ``(B, d)``, float32 (float64 for float64 states).

    Raises:
        ValueError: if shapes disagree, the mask holds anything but 0 and 1, or a row has no token.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if states.dim() != 3 or mask.shape != states.shape[:2]:
        raise ValueError(
            "give states of shape (B, T, d) and a mask of shape (B, T), "
            f"got {tuple(states.shape)} and {tuple(mask.shape)}."
        )
    counted = mask.bool()
    if not bool((mask == counted).all()):
        raise ValueError("mask must hold only 0 and 1.")
    lengths = counted.sum(1, keepdim=True)  # (B, 1)
    if bool((lengths == 0).any()):
        rows = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"leave out the rows {rows}: they have no token to take a mean of.")
    values = states.to(torch.promote_types(states.dtype, torch.float32))
    return values.masked_fill(~counted[..., None], 0.0).sum(1) / lengths


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, raw = parameters.chunk(2, -1)
    # tanh, not a clamp: an extreme scale keeps a gradient that can bring it back.
    return Independent(Normal(mean, (_LOG_SCALE * (raw / _LOG_SCALE).tanh()).exp()), 1)


class LatentModel(nn.Module):
    r"""The CVAE: prior P(z|c) [P], posterior Q(z|c, continuation) [C] and the `selector`'s g [C].

    .. math:: P(z|c) = N(\mu_p, \mathrm{diag}\,\sigma_p^2), \quad
              Q(z|c, \mathrm{continuation}) = N(\mu_q, \mathrm{diag}\,\sigma_q^2), \quad
              \log\sigma = 3 \tanh(x / 3)

    Three ReLU MLPs of width 256 [C] (METHOD §3) with two hidden layers; the bound on σ is [D].
    Both distributions start near N(0, I). Fresh weights come from torch's global random state.

    Args:
        embedding: size of an embedding.
        d_z: size of z.
        width: size of the hidden layers.

    Attributes:
        centre: mean of the training embeddings, ``(embedding,)``; 0 until `standardise`.
        scale: their standard deviation, ``(embedding,)``; 1 until `standardise`.

    Raises:
        ValueError: if a size is below 1; in every method, if an embedding isn't finite and of
            shape ``(B, embedding)``.

    Example:
        >>> model = LatentModel(embedding=6, d_z=4)
        >>> prefix, continuation = torch.zeros(2, 6), torch.ones(2, 6)
        >>> z = model.posterior(prefix, continuation).rsample()  # (B, d_z)
        >>> model.prior(prefix).log_prob(z).shape, model.reconstruct(prefix, z).shape
        (torch.Size([2]), torch.Size([2, 6]))
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, embedding: int, d_z: int, width: int = 256) -> None:
        super().__init__()
        if min(embedding, d_z, width) < 1:
            raise ValueError(
                f"embedding, d_z and width must be at least 1, got {embedding}, {d_z}, {width}."
            )
        self.embedding, self.d_z, self.width = embedding, d_z, width
        self.register_buffer("centre", torch.zeros(embedding))
        self.register_buffer("scale", torch.ones(embedding))
        self.prior_net = _mlp(embedding, width, 2 * d_z)
        self.posterior_net = _mlp(2 * embedding, width, 2 * d_z)
        self.reconstruction_net = _mlp(embedding + d_z, width, embedding)

    @torch.no_grad()
    def standardise(self, embeddings: Tensor) -> None:
        """Set `centre` and `scale`, once, from training embeddings ``(N, embedding)``.

        Give prefixes and continuations together. A constant dimension keeps scale 1.

        Raises:
            ValueError: if the embeddings don't differ, or `standardise` was called before.
        """
        if bool((self.centre != 0).any()):
            raise ValueError("this model is standardised already; make a new one to train again.")
        self.coordinates(embeddings)  # for its checks
        if not bool((embeddings != embeddings[:1]).any()):
            raise ValueError("standardise needs training embeddings that differ from each other.")
        values = embeddings.to(torch.float64)
        scale = values.std(0, correction=0)
        self.centre.copy_(values.mean(0))
        self.scale.copy_(scale.masked_fill(scale <= _CONSTANT * scale.max(), 1.0))

    def coordinates(self, embeddings: Tensor) -> Tensor:
        """Return embeddings ``(B, embedding)`` standardised: (e − centre) / scale."""
        if embeddings.shape[1:] != self.centre.shape or not bool(embeddings.isfinite().all()):
            raise ValueError(
                f"embeddings must be finite and of shape (B, {self.embedding}), "
                f"got {tuple(embeddings.shape)}."
            )
        return (embeddings.to(self.centre) - self.centre) / self.scale

    def prior(self, prefix_embedding: Tensor) -> Gaussian:
        """Return P(z|c) for prefixes ``(B, embedding)``."""
        return _gaussian(self.prior_net(self.coordinates(prefix_embedding)))

    def posterior(self, prefix_embedding: Tensor, continuation_embedding: Tensor) -> Gaussian:
        """Return Q(z|c, continuation) for prefixes and continuations, both ``(B, embedding)``."""
        pair = self.coordinates(prefix_embedding), self.coordinates(continuation_embedding)
        return _gaussian(self.posterior_net(torch.cat(pair, -1)))

    def reconstruct(self, prefix_embedding: Tensor, z: Tensor) -> Tensor:
        """Return g(e_c, z), standardised, from e_c ``(B, embedding)`` and z ``(B, d_z)``."""
        pair = self.coordinates(prefix_embedding), z
        reconstruction: Tensor = self.reconstruction_net(torch.cat(pair, -1))
        return reconstruction


@dataclass(frozen=True, repr=False)
class Elbo:
    """The negative ELBO of a batch and, detached, its parts, in nats.

    Attributes:
        loss: scalar tensor to call ``backward`` on.
        log_prob: log π(continuation|c, z), ``(B,)``.
        kl: KL(Q‖P) before free bits, ``(B,)``.
        kl_per_dimension: its batch mean per dimension, ``(d_z,)``.
    """

    loss: Tensor
    log_prob: Tensor
    kl: Tensor
    kl_per_dimension: Tensor

    def __repr__(self) -> str:
        return (
            f"Elbo(loss={self.loss.item():.4f}, log_prob={self.log_prob.mean().item():.4f}, "
            f"kl={self.kl.mean().item():.4f} over {len(self.kl_per_dimension)} dimensions)"
        )


def _kl(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(Q‖P) of each example and dimension, ``(B, d_z)``."""
    if posterior.mean.dim() != 2 or posterior.mean.shape != prior.mean.shape:
        raise ValueError(
            "posterior and prior need means of one shape (B, d_z), "
            f"got {tuple(posterior.mean.shape)} and {tuple(prior.mean.shape)}."
        )
    return kl_divergence(posterior.base_dist, prior.base_dist)


def elbo(
    log_prob: Tensor,
    posterior: Gaussian,
    prior: Gaussian,
    *,
    beta_kl: float = 1.0,
    free_bits: float = 0.0,
) -> Elbo:
    r"""Negative ELBO of a batch, the loss of both objectives.

    .. math:: -E_Q[\log \pi(\mathrm{continuation}|c, z)] + \beta_{KL} \sum_d
              \max\big(\lambda, \mathrm{mean}_b\, KL(Q_{bd} \| P_{bd})\big)

    METHOD §3 [D]; [C] has the KL reversed. Free bits λ bound the batch mean, not each example's
    KL (Kingma et al. 2016, arXiv 1606.04934): a dimension may be silent for one continuation and
    speak for another. Below λ the KL has no gradient. With λ > 0 the losses of micro-batches
    don't average to the whole batch's.

    Args:
        log_prob: log π(continuation|c, z) in nats, the sum over the continuation's tokens, at one
            z ~ Q (``rsample``) per example; or `selector_log_prob`; shape ``(B,)``.
        posterior: Q(z|c, continuation).
        prior: P(z|c).
        beta_kl: β_KL, not negative.
        free_bits: λ in nats per dimension, not negative.

    Raises:
        ValueError: if shapes differ, B is 0, a log-prob isn't finite, or a setting is out of range.

    Example:
        >>> p = Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1)
        >>> q = Independent(Normal(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)), 1)
        >>> elbo(torch.tensor([-3.0]), q, p, free_bits=0.25)  # 3 + 0.5 + 0.25
        Elbo(loss=3.7500, log_prob=-3.0000, kl=0.5000 over 2 dimensions)
    """
    if not all(isfinite(setting) and setting >= 0.0 for setting in (beta_kl, free_bits)):
        raise ValueError(
            f"beta_kl and free_bits must be finite and not negative, got {beta_kl}, {free_bits}."
        )
    kl = _kl(posterior, prior)  # (B, d_z)
    if log_prob.shape != kl.shape[:1] or len(kl) == 0 or not bool(log_prob.isfinite().all()):
        raise ValueError(
            f"give one finite log-prob for each of the {len(kl)} examples (at least one), "
            f"got the shape {tuple(log_prob.shape)}."
        )
    per_dimension = kl.mean(0)  # (d_z,)
    loss = -log_prob.mean() + beta_kl * per_dimension.clamp_min(free_bits).sum()
    return Elbo(loss, log_prob.detach(), kl.detach().sum(1), per_dimension.detach())


def selector_log_prob(
    model: LatentModel, prefix_embedding: Tensor, continuation_embedding: Tensor, z: Tensor
) -> Tensor:
    """Return −‖e − g(e_c, z)‖² of the `selector` objective, ``(B,)``, to be given to `elbo`.

    METHOD §3 [C]; in standardised coordinates, summed over them [D]. It trains no projection of
    PSA. Takes e_c and e ``(B, embedding)`` and one z ~ Q per example, ``(B, d_z)``.
    """
    error = model.coordinates(continuation_embedding) - model.reconstruct(prefix_embedding, z)
    return -error.square().sum(-1)


def kl_per_dimension(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """Return the mean KL(Q‖P) of each dimension in nats, ``(d_z,)``; a ValueError if shapes differ.

    A dimension near 0 is unused.
    """
    return _kl(posterior, prior).mean(0)


def cluster_weights(labels: Sequence[str]) -> Tensor:
    """Weigh N training traces so that every label has the same total weight; the mean is 1.

    Balances them over what the labeller or a clustering distinguishes (METHOD §3 [D]).

    Returns:
        N / (number of labels · count of the own label), float64, ``(N,)``.

    Raises:
        ValueError: if there is no label.

    Example:
        >>> cluster_weights(["split", "split", "split", "grid"])
        tensor([0.6667, 0.6667, 0.6667, 2.0000], dtype=torch.float64)
    """
    if not labels:
        raise ValueError("cluster_weights needs at least one label.")
    counts = Counter(labels)
    weights = [len(labels) / (len(counts) * counts[label]) for label in labels]
    return torch.tensor(weights, dtype=torch.float64)
