"""The GRPO loss with its self-reward term, per token; pure tensor functions.

A batch has one loss, however it is cut: give every micro-batch the whole batch's denominator
(`loss_normaliser`) and add up the losses.

Not here: log-probs and entropies (logprobs.py), advantages (grpo.py), the optimiser and the
averaging over processes (updating.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["PolicyLoss", "Reduction", "loss_normaliser", "policy_loss"]

Reduction = Literal["token", "sequence", "constant"]
"""Denominator of the loss, see `loss_normaliser`."""

_MAX_LOG_RATIO = 20.0
"""Far beyond every clip; a larger ratio could overflow, and its zero gradient become NaN."""


@dataclass(frozen=True, repr=False)
class PolicyLoss:
    """The loss of one (micro-)batch and what it looked like, over this call's counted tokens.

    Attributes:
        loss: −J, a scalar tensor to call ``backward`` on.
        tokens: number of counted tokens Σ|m|; the weight for averaging the figures below.
        clip_fraction: share of tokens whose surrogate gradient a clip has stopped.
        mean_ratio: mean of ρ.
        approx_kl: mean of ρ − 1 − log ρ, an estimate of KL(π_old ‖ π_θ) in nats.
        entropy: mean of H in nats; None if no entropies were given.
    """

    loss: Tensor
    tokens: int
    clip_fraction: float
    mean_ratio: float
    approx_kl: float
    entropy: float | None

    def __repr__(self) -> str:
        entropy = "None" if self.entropy is None else f"{self.entropy:.6f}"
        return (
            f"PolicyLoss(loss={self.loss.item():.6f}, tokens={self.tokens}, "
            f"clip_fraction={self.clip_fraction:.6f}, mean_ratio={self.mean_ratio:.6f}, "
            f"approx_kl={self.approx_kl:.6f}, entropy={entropy})"
        )


def _check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be 'token', 'sequence' or 'constant', got {reduction!r}.")


def _as_bool(mask: Tensor) -> Tensor:
    """Turn a mask of zeros and ones into bool, refusing anything else."""
    if mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must have shape (B, T) and hold only 0 and 1.")
    return mask.bool()


def loss_normaliser(
    mask: Tensor, reduction: Reduction = "token", *, max_length: int | None = None
) -> int:
    r"""Denominator D of the loss; add it up over micro-batches and processes.

    * ``token``: Σ|m|, the number of new tokens (METHOD §6 [C]).
    * ``sequence``: the number B of sequences with a new token (arXiv 2402.03300).
    * ``constant``: L·B with a fixed L, so that no length is preferred (Dr. GRPO, arXiv 2503.20783).

    Args:
        mask: m, 1 on new tokens only, shape ``(B, T)``.
        reduction: one of the three names.
        max_length: L in tokens, for ``constant`` only: the longest response that may be sampled.

    Returns:
        The denominator; 0 if the mask counts nothing.

    Raises:
        ValueError: if the mask holds anything but 0 and 1, the name is unknown, or `max_length` is
            missing for ``constant`` or given for another reduction.

    Example:
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
        >>> loss_normaliser(mask), loss_normaliser(mask, "sequence")
        (5, 2)
        >>> loss_normaliser(mask, "constant", max_length=8)
        16
    """
    _check_reduction(reduction)
    if (max_length is not None) != (reduction == "constant") or (
        max_length is not None and max_length < 1
    ):
        raise ValueError(
            "give max_length, a positive number of tokens, with reduction='constant' and only then."
        )
    counted = _as_bool(mask)
    if reduction == "token":
        return int(counted.sum())
    return int(counted.any(1).sum()) * (max_length or 1)


def _counted(name: str, values: Tensor, counted: Tensor) -> Tensor:
    """Blank the entries that don't count, before any arithmetic can spread a NaN from them."""
    if values.shape != counted.shape:
        raise ValueError(
            f"{name} must have shape {tuple(counted.shape)} as the mask says, "
            f"got {tuple(values.shape)}."
        )
    blanked = values.masked_fill(~counted, 0.0)
    if not bool(blanked.isfinite().all()):
        where = (~blanked.isfinite()).nonzero()[:5].tolist()
        raise ValueError(f"{name} must be finite where it counts; look at the positions {where}.")
    return blanked.to(torch.promote_types(blanked.dtype, torch.float32))


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    weight: Tensor | None = None,
    entropy: Tensor | None = None,
    alpha: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    reduction: Reduction = "token",
    normaliser: float | None = None,
) -> PolicyLoss:
    r"""GRPO loss −J with clipping, dual clip and the self-reward term; no KL term.

    .. math:: J = \frac{1}{D} \sum_i \frac{1}{n_i} \sum_t m_{it} \Big\{ w_{it}
              \min\big(\rho_{it} A_{it},
              \mathrm{clip}(\rho_{it}, 1-\epsilon_{low}, 1+\epsilon_{high}) A_{it}\big)
              + \alpha A_{it} H_{it} \Big\}, \quad \rho = \pi_\theta / \pi_{old}

    METHOD §6 [C]: token mean (D = Σ|m|, n_i = 1), gradient of the self-reward term through H
    only. With ``sequence`` n_i = ``|m_i|`` and D is the number of sequences; with ``constant``
    n_i = 1 and D = L·B (see `loss_normaliser`). Where A < 0 the surrogate is at least
    ``dual_clip``·A. Entries with m = 0 never matter, whatever stands there.

    Micro-batches whose `normaliser` is the whole batch's add up to the whole batch's loss.

    Args:
        logp: log π_θ of the tokens in nats, with gradient, shape ``(B, T)``.
        old_logp: log π_old of the same tokens, treated as constant, shape ``(B, T)``.
        advantages: A of each token, treated as constant, shape ``(B, T)``; ``(B,)`` gives all
            tokens of a trajectory the same one, as GRPO does.
        mask: m, 1 on new tokens, 0 on prompt, branch prefix and padding, shape ``(B, T)``.
        weight: w, a constant factor on each token's surrogate (not on the H term, not on Σ|m|), as
            for branches that were sampled with z and are trained without; shape ``(B, T)``; None
            is 1 everywhere.
        entropy: H in nats, with gradient if α ≠ 0, shape ``(B, T)``.
        alpha: α; with 0 the entropies are only reported.
        clip_low: ε_low, between 0 and 1.
        clip_high: ε_high, not negative.
        dual_clip: bound on ρ for A < 0, above 1; None for no bound.
        reduction: ``token``, ``sequence`` or ``constant``.
        normaliser: D of the whole batch; None takes it from this mask, which ``constant`` forbids.

    Returns:
        The loss and its diagnostics.

    Raises:
        ValueError: if shapes differ, a counted entry isn't finite, the mask holds anything but 0
            and 1 or counts nothing, α ≠ 0 without entropies, or a setting is out of range.

    Example:
        >>> logp = torch.tensor([[-1.0, -0.5], [-0.3, -0.7]])
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> policy_loss(logp, logp, torch.tensor([1.0, -1.0]), mask).loss  # -(1 + 1 - 1) / 3
        tensor(-0.3333)
    """
    _check_reduction(reduction)
    if not (0.0 <= clip_low <= 1.0 and 0.0 <= clip_high < float("inf")):
        raise ValueError(
            f"clip_low must be in 0..1 and clip_high not negative, got {clip_low} and {clip_high}."
        )
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip must be above 1, or None for no bound, got {dual_clip}.")
    if alpha != 0.0 and entropy is None:
        raise ValueError("alpha is not 0: give the entropies for the self-reward term.")
    if normaliser is None:
        if reduction == "constant":
            raise ValueError(
                "reduction='constant' needs normaliser=loss_normaliser(mask, 'constant', "
                "max_length=L) of the whole batch."
            )
        normaliser = loss_normaliser(mask, reduction)
    if not (isfinite(normaliser) and normaliser > 0):
        raise ValueError(
            f"the loss has no denominator ({normaliser}): skip a batch in which no token counts."
        )
    counted = _as_bool(mask)  # (B, T)
    lengths = counted.sum(1)  # (B,)
    new = _counted("logp", logp, counted)
    old = _counted("old_logp", old_logp.detach(), counted)
    h = None if entropy is None else _counted("entropy", entropy, counted)
    if advantages.shape == lengths.shape:
        advantages = advantages[:, None].masked_fill(lengths[:, None] == 0, 0.0).expand(mask.shape)
    a = _counted("advantages", advantages.detach(), counted)  # (B, T)

    log_ratio = (new - old).clamp(max=_MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    low, high = 1.0 - clip_low, 1.0 + clip_high
    objective = torch.minimum(ratio * a, ratio.clamp(low, high) * a)  # (B, T)
    stopped = torch.where(a > 0, ratio > high, (ratio < low) & (a < 0))
    if dual_clip is not None:
        objective = torch.where(a < 0, torch.maximum(objective, dual_clip * a), objective)
        stopped = stopped | ((a < 0) & (ratio > dual_clip))
    if weight is not None:
        objective = objective * _counted("weight", weight.detach(), counted)
    if h is not None and alpha != 0.0:
        objective = objective + alpha * a * h
    per_sequence = objective.masked_fill(~counted, 0.0).sum(1)  # (B,)
    if reduction == "sequence":
        per_sequence = per_sequence / lengths.clamp_min(1)

    tokens = int(lengths.sum())

    def mean(values: Tensor) -> float:
        return float(values.detach()[counted].sum()) / max(tokens, 1)

    return PolicyLoss(
        loss=-per_sequence.sum() / normaliser,
        tokens=tokens,
        clip_fraction=mean(stopped),
        mean_ratio=mean(ratio),
        approx_kl=mean(ratio - 1.0 - log_ratio),
        entropy=None if h is None else mean(h),
    )
