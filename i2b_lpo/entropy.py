"""Token entropy: the one definition behind choosing forks, the self-reward term and every plot.

Not here: sampling (decode.py) and the entropy of whole training batches, which logprobs.py
computes by the same formula without holding the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["token_entropy"]


def token_entropy(logits: Tensor, vocab_size: int | None = None) -> Tensor:
    r"""Entropy of the next-token distribution at temperature 1, before top-p.

    .. math:: H_t = -\sum_v \pi(v|\cdot) \log \pi(v|\cdot)

    Formula [P]; natural logarithm and raw logits [C] (METHOD.md §1). Half-precision logits are
    computed in float32, float64 stays float64. A logit of −inf is a token of probability 0 and
    adds nothing; NaN logits give NaN.

    Args:
        logits: raw logits, shape ``(..., V)``, not divided by a temperature.
        vocab_size: size of the tokenizer's vocabulary; ids from here on are padding of the
            embedding matrix and are excluded. ``None`` counts all V.

    Returns:
        Entropies in nats, shape ``(...)``, each between 0 and ``log(vocab_size)``.

    Raises:
        ValueError: if the logits are not floating point or ``vocab_size`` is not in 1..V.

    Example:
        >>> token_entropy(torch.zeros(2, 4))  # log 4
        tensor([1.3863, 1.3863])
        >>> token_entropy(torch.zeros(2, 4), vocab_size=1)
        tensor([0., 0.])
    """
    if logits.dim() == 0 or not logits.is_floating_point():
        raise ValueError(
            f"token_entropy needs floating-point logits of shape (..., V), "
            f"got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    vocabulary = logits.shape[-1]
    if vocab_size is not None and not 1 <= vocab_size <= vocabulary:
        raise ValueError(
            f"vocab_size must be between 1 and the {vocabulary} logits per token, got {vocab_size}."
        )
    counted = logits[..., :vocab_size]  # (..., vocab_size)
    log_p = counted.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # −Σ p·log p has no negative term, so unlike logsumexp − Σ p·logit nothing cancels; the floor
    # makes 0·(−inf) a 0.
    floored = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    with torch.autocast(log_p.device.type, enabled=False):  # which would sum in half precision
        negative: Tensor = torch.linalg.vecdot(log_p.exp(), floored)  # (...)
    # Subtracted from zero, because negating a certain token's 0 would print as −0.
    return 0.0 - negative
