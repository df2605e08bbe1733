r"""How a latent z enters the policy: pseudo self-attention (PSA) and its controls.

Everything here is a formula on tensors; `inject.py` puts it into a model. A fusion turns each row's
z into an `Injection` once; the strength γ(s) then decides, row by row, how much of it acts.

PSA, from the paper's figure [P], in our form [D] (METHOD §4), per layer and for the row `s` tokens
after the fork:

.. math::
    \tilde h = h/\mathrm{RMS}(h) \odot (w + \gamma(s)\, U_n z), \qquad
    \mathrm{slot} = q \cdot k_z/\sqrt{d_{head}} + \log\gamma(s), \quad k_z = U_k z,\; v_z = U_v z

What the sources leave open and we chose [D]: the slot's key takes no rotary position and passes no
k_norm (its length is learnt), tokens keep their positions, and every layer has a slot.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

__all__ = [
    "FUSIONS",
    "PSA",
    "Fusion",
    "Injection",
    "InputFusion",
    "ResidualFusion",
    "Shape",
    "SoftmaxFusion",
    "Strength",
    "attend_with_slot",
    "slot_gate",
    "tokens_since_fork",
]


@dataclass(frozen=True)
class Strength:
    r"""Injection strength :math:`\gamma(s) = \gamma_0 e^{-s/s_0}`, or constant [S, form D].

    Attributes:
        gamma: γ_0, between 0 and 1; a constant, never a parameter.
        decay: s_0 in tokens; None for a constant γ.
    """

    gamma: float = 1.0
    decay: float | None = 8.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"γ_0 is {self.gamma}; give a number from 0 to 1.")
        if self.decay is not None and not 0.0 < self.decay < math.inf:
            raise ValueError(f"s_0 is {self.decay} tokens; give a positive number, or None.")

    def log_gamma(self, since: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Log γ(s) for s = `since` tokens after the fork, −∞ for rows before it; shape of `since`.

        The sum log γ_0 − s/s_0 never takes the logarithm of a tensor that may be 0. It is computed
        in the widest of float32, the type of `since` and `dtype`: give the model's.

        >>> Strength(gamma=1.0, decay=2.0).log_gamma(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([-inf,  0., -1.])
        """
        start = math.log(self.gamma) if self.gamma > 0 else -math.inf
        wide = torch.promote_types(dtype, torch.float32)
        steps = since.to(torch.promote_types(since.dtype, wide))
        value = torch.full_like(steps, start)
        if self.decay is not None:
            value = value - steps / self.decay
        return value.masked_fill(since < 0, -math.inf)


def tokens_since_fork(columns: int, p: int | Tensor) -> Tensor:
    """How many tokens s lie between the fork and each of a row's columns; negative before it.

    The fork is after p tokens, and s = 0 is the row of token p − 1 (counted from 0), because it
    predicts the first token of the branch (METHOD §4).

    >>> tokens_since_fork(5, 3)
    tensor([-2, -1,  0,  1,  2])
    """
    return torch.arange(columns) - (p - 1)


@dataclass(frozen=True)
class Shape:
    """The sizes of a policy that a fusion needs; `vocab` counts the rows of its embedding."""

    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True)
class Injection:
    """What a fusion makes of z, one row per latent; L layers, B rows, d the hidden size.

    Attributes:
        strength: γ(s).
        keys: k_z, (L, B, kv_heads, head_dim).
        values: v_z, of the same shape.
        norms: U_n z, added to the weight of each layer's attention norm, (L, B, d).
        embedding: added to the token embedding, (B, d).
        residual: added to the hidden state after each of the last n layers, (n, B, d).
        logits: z (B, d_z) and the matrix W (V, d_z) whose product is added to the logits.
    """

    strength: Strength
    keys: Tensor | None = None
    values: Tensor | None = None
    norms: Tensor | None = None
    embedding: Tensor | None = None
    residual: Tensor | None = None
    logits: tuple[Tensor, Tensor] | None = None

    def check_rows(self, rows: int) -> None:
        """Refuse a batch of another size, which one latent would be spread over in silence.

        Raises:
            ValueError: there isn't one latent for each of the `rows` rows.
        """
        layered = (self.keys, self.values, self.norms, self.residual)
        found = {t.shape[1] for t in layered if t is not None}
        found |= {len(t) for t in (self.embedding, self.logits and self.logits[0]) if t is not None}
        if found != {rows}:
            raise ValueError(
                f"{rows} rows are given {' and '.join(map(str, sorted(found)))} latent(s); give "
                "each row its own."
            )

    def select(self, rows: Tensor) -> Injection:
        """The injection of some rows, in the order of `rows` (indices, may repeat)."""
        layered = {n: getattr(self, n) for n in ("keys", "values", "norms", "residual")}
        return dataclasses.replace(
            self,
            **{name: t[:, rows] for name, t in layered.items() if t is not None},
            embedding=None if self.embedding is None else self.embedding[rows],
            logits=None if self.logits is None else (self.logits[0][rows], self.logits[1]),
        )


class Fusion(nn.Module, ABC):
    """A way for z to enter: a map from latents to an `Injection`."""

    @abstractmethod
    def forward(self, z: Tensor, strength: Strength) -> Injection:
        """Project the latents z, (B, d_z)."""


def _maps(*shape: int) -> nn.Parameter:
    """Projection matrices (..., out, d_z), small: a fresh fusion hardly disturbs the policy."""
    return nn.Parameter(torch.randn(shape) * (0.1 / math.sqrt(shape[-1])))


class PSA(Fusion):
    """Pseudo self-attention: an extra slot of keys and values, and a shift of the norm weight [P].

    Ancestors: Ziegler et al. 2019 (arXiv 1908.06938), Fang et al. 2021 (arXiv 2101.00828).
    """

    def __init__(self, shape: Shape, d_z: int) -> None:
        super().__init__()
        self.heads = (shape.kv_heads, shape.head_dim)
        size = shape.kv_heads * shape.head_dim
        self.U_k = _maps(shape.layers, size, d_z)
        self.U_v = _maps(shape.layers, size, d_z)
        self.U_n = _maps(shape.layers, shape.hidden, d_z)

    def forward(self, z: Tensor, strength: Strength) -> Injection:
        """k_z = U_k z, v_z = U_v z and U_n z of every layer."""
        keys, values, norms = (
            torch.einsum("loz,bz->lbo", u, z) for u in (self.U_k, self.U_v, self.U_n)
        )
        heads = (*keys.shape[:2], *self.heads)
        return Injection(strength, keys=keys.view(heads), values=values.view(heads), norms=norms)


class InputFusion(Fusion):
    """Control `input`: h⁰ += γ W z at the token embedding (INPUT in arXiv 2101.00828)."""

    def __init__(self, shape: Shape, d_z: int) -> None:
        super().__init__()
        self.W = _maps(shape.hidden, d_z)

    def forward(self, z: Tensor, strength: Strength) -> Injection:
        """W z for the embedding."""
        return Injection(strength, embedding=z @ self.W.t())


class SoftmaxFusion(Fusion):
    """Control `softmax`: logits += γ W z (SOFTMAX in arXiv 2101.00828)."""

    def __init__(self, shape: Shape, d_z: int) -> None:
        super().__init__()
        self.W = _maps(shape.vocab, d_z)

    def forward(self, z: Tensor, strength: Strength) -> Injection:
        """Z and W; their product is taken where the logits are."""
        return Injection(strength, logits=(z, self.W))


class ResidualFusion(Fusion):
    """Control `residual`: what [C] calls PSA, an addition after each of the last 4 layers."""

    def __init__(self, shape: Shape, d_z: int) -> None:
        super().__init__()
        self.W = _maps(min(4, shape.layers), shape.hidden, d_z)

    def forward(self, z: Tensor, strength: Strength) -> Injection:
        """W_l z for the last layers."""
        return Injection(strength, residual=torch.einsum("ldz,bz->lbd", self.W, z))


FUSIONS: Mapping[str, type[Fusion]] = MappingProxyType(
    {"psa": PSA, "input": InputFusion, "softmax": SoftmaxFusion, "residual": ResidualFusion}
)
"""Fusions by name, all with the constructor ``(shape, d_z)``; "none" is re-sampling without z."""


def attend_with_slot(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    r"""Attention of one head over ``[k_z; K]`` and ``[v_z; V]``, written out (METHOD §4 [D]).

    .. math:: \mathrm{softmax}([q \cdot k_z/\sqrt d + \log\gamma\,;\; qK^T/\sqrt d])\,[v_z; V]

    The model's own attention computes the same with an extra cache column and a mask column that
    holds log γ; this form is for reading and for testing against.

    Args:
        query: q, ``(..., d)``.
        keys: K, ``(..., T, d)``, the tokens this row may see.
        values: V, ``(..., T, d)``.
        key_z: k_z, ``(..., d)``.
        value_z: v_z, ``(..., d)``.
        log_gamma: log γ(s), ``(...)``; −∞ closes the slot.

    Returns:
        The head's output, ``(..., d)``.

    Example:
        >>> one = torch.ones(2)
        >>> attend_with_slot(one, one[None], 0 * one[None], one, 4 * one, torch.tensor(0.0))
        tensor([2., 2.])
    """
    scale = query.shape[-1] ** -0.5
    slot = (query * key_z).sum(-1) * scale + log_gamma  # (...)
    scores = (keys @ query.unsqueeze(-1)).squeeze(-1) * scale  # (..., T)
    weights = torch.cat([slot.unsqueeze(-1), scores], -1).softmax(-1)  # (..., 1 + T)
    both = torch.cat([value_z.unsqueeze(-2), values], -2)
    return (weights.unsqueeze(-2) @ both).squeeze(-2)


def slot_gate(query: Tensor, keys: Tensor, key_z: Tensor, log_gamma: Tensor) -> Tensor:
    r"""The slot's softmax weight g, by which PSA is a merge: o' = (1 − g) o + g v_z (METHOD §4).

    .. math:: g = \mathrm{sigmoid}\big(q \cdot k_z/\sqrt d + \log\gamma
              - \mathrm{logsumexp}(qK^T/\sqrt d)\big)

    Arguments as in `attend_with_slot`; returns shape ``(...)``, between 0 and 1.
    """
    scale = query.shape[-1] ** -0.5
    scores = (keys @ query.unsqueeze(-1)).squeeze(-1) * scale
    return torch.sigmoid((query * key_z).sum(-1) * scale + log_gamma - scores.logsumexp(-1))
