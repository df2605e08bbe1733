"""How a token is drawn from logits, and what is measured of it: no model here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from i2b_lpo.method.entropy import expected_surprisal

__all__ = ["Sampling", "draw"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: length limit in tokens.
        temperature: softmax temperature; 0 is greedy.
        top_p: draw from the smallest set of tokens that holds this much probability; of tokens
            equally likely it takes those with lower ids.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; give at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0 and up to 1.")


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of `logits`, (b, V), and measure it.

    Args:
        logits: at temperature 1.
        sampling: temperature and top-p.
        uniform: a random number in [0, 1) for each row, (b,); not needed where decoding is greedy.

    Returns:
        Token ids (b,), and (3, b) in nats, float32 or wider: H_t at temperature 1 (METHOD §1), and
        log π at the sampling temperature before top-p (at temperature 1 if greedy) and at
        temperature 1.

    Raises:
        FloatingPointError: the logits of a row aren't finite.
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # (b, V)
    p = log_p.exp()
    log_q, q = log_p, p
    greedy = sampling.temperature == 0
    if not greedy and sampling.temperature != 1:
        log_q = (log_p / sampling.temperature).log_softmax(-1)
        q = log_q.exp()
    if log_q[:, 0].isnan().any():  # one NaN logit makes the whole row NaN
        raise FloatingPointError("the logits are not finite.")
    if greedy:
        token = log_p.argmax(-1)
    else:
        if sampling.top_p < 1:
            q = _keep_nucleus(q, sampling.top_p)
        assert uniform is not None
        token = _inverse(q, uniform.to(q.device))
    own = token[:, None]
    taken = [values.gather(-1, own)[:, 0] for values in (log_q, log_p)]
    return token, torch.stack([expected_surprisal(log_p, p), *taken])


def _keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches `top_p`; (B, V).

    Of tokens equally likely the one with the lower id comes first, so the set is always
    the same [D].
    """
    sorted_probs, order = probs.sort(dim=-1, descending=True, stable=True)
    before = sorted_probs.cumsum(-1) - sorted_probs
    return probs.scatter(-1, order, sorted_probs.masked_fill(before >= top_p, 0.0))


def _inverse(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token per row by the inverse distribution function: (B, V), (B,) → (B,)."""
    # float64: a float32 `uniform` below 1 then stays below the total. A token of probability 0
    # is never drawn, since its step of the function has no height. (torch.multinomial is slow on
    # CPU: it draws V random numbers a row.)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    at = uniform.to(cdf.device, torch.float64)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, at, right=True)[:, 0]
