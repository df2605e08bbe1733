"""Token entropy, with one definition for every use, and the choice of forks.

Not here: sampling (decoding.py) and the entropy of whole training batches, which logprobs.py
computes with the same formula without holding the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["FORK_RULES", "choose_fork", "expected_surprisal", "token_entropy", "top_fraction"]


def token_entropy(logits: Tensor, vocab_size: int | None = None) -> Tensor:
    r"""Entropy of the next-token distribution at temperature 1, before top-p.

    .. math:: H_t = -\sum_v \pi(v|\cdot) \log \pi(v|\cdot)

    Formula [P]; natural logarithm and raw logits [C] (METHOD §1). Half-precision logits are
    computed in float32, float64 stays float64. A logit of −inf is a token with probability 0 and
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
    return expected_surprisal(log_p, log_p.exp())


def expected_surprisal(log_p: Tensor, p: Tensor) -> Tensor:
    """−Σ p log p of given distributions, (..., V) → (...): `token_entropy` without its checks."""
    # No term is negative, so unlike logsumexp − Σ p·logit nothing cancels; the floor makes 0·(−inf)
    # a 0.
    floored = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    with torch.autocast(log_p.device.type, enabled=False):  # which would sum in half precision
        negative: Tensor = torch.linalg.vecdot(p, floored)  # (...)
    # Subtracted from zero, because negating a certain token's 0 would print as −0.
    return 0.0 - negative


def top_fraction(entropies: Sequence[float], fraction: float = 0.05) -> list[int]:
    r"""The candidates Ω for a fork: the positions of the highest entropies of one rollout.

    .. math:: \Omega = \{t : H_t \text{ in the top 5 % of this rollout}\}

    METHOD §2 [S]. ⌈fraction·T⌉ positions, at least one, which may be the first token of the
    answer; of equal entropies the earlier position comes first.

    Returns:
        Positions in ascending order.

    Example:
        >>> top_fraction([0.1, 1.2, 0.0, 0.9], fraction=0.5)
        [1, 3]
    """
    if not entropies or not 0 < fraction <= 1:
        raise ValueError(
            f"Give a rollout of at least one token and a fraction above 0 and up to 1, got "
            f"{len(entropies)} tokens and {fraction}."
        )
    count = math.ceil(fraction * len(entropies) - 1e-9)  # 0.05 · 20 is one position, not two
    order = sorted(range(len(entropies)), key=lambda t: -entropies[t])
    return sorted(order[: max(1, count)])


_Rule = Callable[[Sequence[float], float], list[int]]

FORK_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "top_fraction": top_fraction,
        "argmax": lambda entropies, _: top_fraction(entropies, 1 / len(entropies)),
        "uniform": lambda entropies, _: list(range(len(entropies))),
    }
)
"""Candidates Ω by rule: the default [S], what [C] does, and the control. t* ~ Uniform(Ω)."""


def choose_fork(
    entropies: Sequence[float],
    rule: str = "top_fraction",
    *,
    fraction: float = 0.05,
    generator: torch.Generator,
) -> int:
    """Position t* of a fork, drawn uniformly from the rule's candidates Ω (METHOD §2 [S]).

    The token at the fork is decided again [D]: the prefix ends before it, so that the uncertain
    decision is the first one a branch takes.

    Args:
        entropies: H_t of the tokens that may be decided again, in nats.
        rule: an entry of `FORK_RULES`.
        fraction: share of the tokens in Ω, for `top_fraction`.
        generator: source of randomness (on the CPU).

    Raises:
        ValueError: unknown rule, no tokens, or a fraction out of range.
    """
    if rule not in FORK_RULES:
        raise ValueError(f"Unknown fork rule {rule!r}; choose one of {', '.join(FORK_RULES)}.")
    candidates = FORK_RULES[rule](entropies, fraction) if entropies else top_fraction(entropies)
    return candidates[int(torch.randint(len(candidates), (), generator=generator))]
