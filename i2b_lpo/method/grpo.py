"""Group advantages and the variants of GRPO; pure tensor functions.

Not here: the loss (loss.py), what a method makes of the advantages (methods.py), S_IB (ib.py) and
the filter (filters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from i2b_lpo.method.loss import Reduction

__all__ = [
    "VARIANTS",
    "Scale",
    "Variant",
    "advantages",
    "informative_groups",
    "overlong_penalty",
]

Scale = Literal["std", "none"]
"""Divisor of the advantages, see `advantages`."""


@dataclass(frozen=True)
class Variant:
    """Settings of one form of GRPO; the defaults are those of METHOD §6.

    Attributes:
        source: where the values come from.
        scale: divisor of the advantages, see `advantages`.
        reduction: denominator of the loss, see `loss_normaliser`.
        clip_low: ε_low.
        clip_high: ε_high.
        dual_clip: see `policy_loss`.
        drop_uniform: whether groups of equal reward are left out, see `informative_groups`.
        overlong_cache: L_cache of `overlong_penalty` as a share of L_max; 0 means no penalty.
    """

    source: str
    scale: Scale = "std"
    reduction: Reduction = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    drop_uniform: bool = False
    overlong_cache: float = 0.0


_DAPO = "DAPO, arXiv 2503.14476"
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "grpo": Variant("METHOD §6 [C]"),
        "clip_higher": Variant(_DAPO, clip_high=0.28),
        "sequence_mean": Variant("GRPO, arXiv 2402.03300", reduction="sequence"),
        "dr_grpo": Variant(
            "Dr. GRPO, arXiv 2503.20783", scale="none", reduction="constant", dual_clip=None
        ),
        "dynamic_sampling": Variant(_DAPO, drop_uniform=True),
        "overlong_penalty": Variant(_DAPO + ": 4096 of 20480 tokens", overlong_cache=0.2),
        "dapo": Variant(
            _DAPO, clip_high=0.28, dual_clip=None, drop_uniform=True, overlong_cache=0.2
        ),
    }
)
"""The variants of METHOD §6 by name; `dapo` is the token mean with DAPO's other three.

One that changes a single thing keeps the rest of `grpo`, its dual clip of 3 [C] included. `dapo`
and `dr_grpo` are the methods of their papers, which have no dual clip; verl's recipe for DAPO adds
one of 10, which isn't meant here.
"""


def informative_groups(rewards: Tensor) -> Tensor:
    """Tell the groups whose rewards differ, the only ones that GRPO can learn from.

    Keeping just these is dynamic sampling (DAPO, arXiv 2503.14476; METHOD §6). DAPO compares
    verdicts, so call it before adding `overlong_penalty`.

    Args:
        rewards: shape ``(Q, G)``, or ``(G,)`` for one group.

    Returns:
        bool, shape ``(Q,)`` or ``()``.

    Raises:
        ValueError: if there is no group of at least two rewards, a reward isn't finite, or they are
            bool: rewards are numbers, with which to reckon.

    Example:
        >>> informative_groups(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
        tensor([ True, False])
    """
    if rewards.dtype == torch.bool:
        raise ValueError("rewards must be numbers, not bool: give torch.where(right, 1.0, 0.0).")
    if rewards.dim() not in (1, 2) or rewards.shape[-1] < 2:
        raise ValueError(
            "GRPO compares the answers of one group: give rewards of shape (Q, G) or (G,) with "
            f"G ≥ 2, got {tuple(rewards.shape)}."
        )
    if not bool(rewards.isfinite().all()):
        where = (~rewards.isfinite()).nonzero().tolist()
        raise ValueError(f"every reward must be finite; look at the positions {where}.")
    return rewards.amax(-1) != rewards.amin(-1)


def advantages(rewards: Tensor, *, scale: Scale = "std", epsilon: float = 1e-4) -> Tensor:
    r"""Advantage of every trajectory over its own group.

    .. math:: A_i = \frac{R_i - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon}

    with the standard deviation of ddof 1 and ε = 1e-4 [D] ([C] uses 1e-6); METHOD §6.
    ``scale="none"`` leaves the division out (Dr. GRPO, arXiv 2503.20783). A group of equal rewards
    has advantage exactly 0.

    Args:
        rewards: R, shape ``(Q, G)``, or ``(G,)`` for one group.
        scale: ``"std"`` or ``"none"``.
        epsilon: ε, not negative.

    Returns:
        Shape of `rewards`, float32 (float64 for float64 rewards).

    Raises:
        ValueError: if G < 2, a reward isn't finite or is bool, or `scale` or `epsilon` is out of
            range.

    Example:
        >>> advantages(torch.tensor([1, 0, 0, 1]))
        tensor([ 0.8659, -0.8659, -0.8659,  0.8659])
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}.")
    if not 0.0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon}.")
    informative = informative_groups(rewards)
    values = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    centred = values - values.mean(-1, keepdim=True)
    if scale == "std":
        centred = centred / (values.std(-1, correction=1, keepdim=True) + epsilon)
    # The mean of equal numbers can miss them by a rounding.
    return centred.masked_fill(~informative.unsqueeze(-1), 0.0)


def overlong_penalty(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    r"""Soft penalty for long responses, to be added to the reward.

    .. math:: \min\Big(0, \max\Big(-1, \frac{(L_{max} - L_{cache}) - |y|}{L_{cache}}\Big)\Big)

    DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13: L_max 20480, L_cache 4096): 0 up to
    L_max − L_cache tokens, then falling in a line to −1 at L_max.

    Args:
        lengths: ``|y|``, new tokens per response, any shape.
        max_length: L_max, in tokens.
        cache: L_cache, width of the soft zone, in tokens, between 1 and `max_length`.

    Returns:
        float32, shape of `lengths`, between −1 and 0.

    Raises:
        ValueError: if a length is negative or `cache` is not in 1..`max_length`.

    Example:
        >>> overlong_penalty(torch.tensor([10, 80, 90, 100, 200]), max_length=100, cache=20)
        tensor([ 0.0000,  0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 1 <= cache <= max_length:
        raise ValueError(f"cache must be between 1 and max_length={max_length}, got {cache}.")
    if bool((lengths < 0).any()):
        raise ValueError("lengths count tokens and can't be negative.")
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)
