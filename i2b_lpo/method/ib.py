r"""Information bottleneck: S_IB with several estimators.

``S_IB(o) = β_IB I(o;a) − I(q;o)`` [P]: reward what a trajectory tells about the verified answer,
charge for what it spends on the question beyond that. The paper's estimator is unknown, so one
table holds several [D]; METHOD §5. Score, filter (filters.py) and self-reward (α in
`loss.policy_loss`) are three separate switches.

Formulas only: numbers in, numbers out. The model passes that measure them are in scoring.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from types import MappingProxyType
from typing import Protocol

from i2b_lpo.method.metrics import rep_n
from i2b_lpo.trace import Score

__all__ = [
    "ESTIMATORS",
    "MAX_EXCESS",
    "MAX_GAIN",
    "Estimator",
    "Evidence",
    "Weights",
    "advantage_entropy",
    "answer_conditioned",
    "answer_information",
    "answer_log_ratio",
    "description_excess",
    "reference_length",
]

MAX_GAIN = 12.0
"""Where `answer_log_ratio` cuts its gain off, in nats per answer token."""

MAX_EXCESS = 4.0
"""Where the description excess is cut off: a trajectory that bad loses to any other one anyway."""


class Weights(Protocol):
    """The three numbers of METHOD §5, as `config.IBConfig` holds them."""

    @property
    def beta_ib(self) -> float:
        """β_IB, what information about the answer is worth."""

    @property
    def cost_weight(self) -> float:
        """λ, what excess description costs."""

    @property
    def clip_nats(self) -> float:
        """κ in nats: the most that one token adds to the description."""


@dataclass(frozen=True)
class Evidence:
    """What the estimators read of one trajectory; T tokens, all in nats at temperature 1.

    Attributes:
        ids: the tokens o_t, length T.
        logprobs: log π(o_t|q, o_<t), length T.
        entropies: H(o_t|q), length T.
        advantage: A over the whole group, before the filter.
        reference: T_ref in tokens, see `reference_length`.
        answer: ``log π(a|q,o)/|a|``, and
        prior: ``log π(a|q)/|a|``: means over the ``|a|`` tokens of the verified answer.
        conditioned: H(o_t|q,a), length T.
    """

    ids: Sequence[int]
    logprobs: Sequence[float]
    entropies: Sequence[float]
    advantage: float = 0.0
    reference: float = 1.0
    answer: float | None = None
    prior: float | None = None
    conditioned: Sequence[float] | None = None


# --- the parts ----------------------------------------------------------------------------------


def reference_length(lengths: Sequence[int], correct: Sequence[bool]) -> float:
    """T_ref: the median length of the group's correct traces, or of all if none is correct [D].

    Args:
        lengths: T of the G trajectories in tokens.
        correct: whether each of them is.

    Raises:
        ValueError: the group is empty, the two differ in length, or T_ref would be 0.

    Example:
        >>> reference_length([10, 12, 90], [True, True, False])
        11.0
    """
    if not lengths or len(lengths) != len(correct):
        raise ValueError(
            f"T_ref needs a length and a verdict for each trajectory, got {len(lengths)} and "
            f"{len(correct)}."
        )
    right = [n for n, ok in zip(lengths, correct, strict=True) if ok]
    reference = float(median(right or lengths))
    if reference <= 0:
        raise ValueError("T_ref is 0: the trajectories of this group hold no tokens.")
    return reference


def description_excess(
    logprobs: Sequence[float], ids: Sequence[int], reference: float, *, clip_nats: float
) -> float:
    r"""Description length that gains nothing: surprise, repetition and length beyond the usual.

    .. math:: \mathrm{excess}(o) = \frac{1}{T_{ref}} \sum_t \min(-\log\pi(o_t|q,o_{<t}), \kappa)
              + \mathrm{rep4}(o) + (T/T_{ref} - 1)_+

    METHOD §5 [D]. Loops are cheap in nats, so repetition and length count separately; κ keeps one
    odd token from outweighing all others.

    Args:
        logprobs: log π of the T tokens in nats, at temperature 1.
        ids: the T tokens.
        reference: T_ref in tokens, above 0.
        clip_nats: κ in nats, above 0.

    Returns:
        A number ≥ 0, in nats per reference token.

    Raises:
        ValueError: lengths differ, a log-prob isn't a finite number, or T_ref or κ isn't positive.

    Example:
        >>> description_excess([-0.5, -9.0], [1, 2], reference=2.0, clip_nats=1.5)
        1.0
    """
    if len(logprobs) != len(ids):
        raise ValueError(f"{len(ids)} tokens need as many log-probs, got {len(logprobs)}.")
    if not (reference > 0 and clip_nats > 0):
        raise ValueError(f"T_ref and κ must be above 0, got {reference} and {clip_nats}.")
    if not all(map(math.isfinite, logprobs)):
        raise ValueError("every log-prob must be finite; a drawn token can't have probability 0.")
    nats = math.fsum(min(-value, clip_nats) for value in logprobs)
    return nats / reference + rep_n(list(ids), 4) + max(0.0, len(ids) / reference - 1.0)


# --- the estimators -----------------------------------------------------------------------------


def answer_information(evidence: Evidence, weights: Weights) -> Score:
    r"""How much more likely the trajectory makes the verified answer, less its excess description.

    .. math:: S_{IB}(o) = \beta_{IB} \big[ \pi(a|q,o)^{1/|a|} - \pi(a|q)^{1/|a|} \big]
              - \lambda\, \min(\mathrm{excess}(o), E)

    METHOD §5 [D], the default, but with the answer's probability per token where METHOD has its
    logarithm (`answer_log_ratio`). In nats, the difference between two hopeless wrong traces
    outweighs everything else; as probabilities both are near 0, and the gain is bounded without
    clipping. Compared in benchmarks/results/ib_ranking.md. With E = `MAX_EXCESS`:
    −β_IB − λE ≤ S_IB ≤ β_IB.

    Raises:
        ValueError: the evidence has no finite log-probs of the answer, or `description_excess`
            refuses it.
    """
    answer, prior = _answer_logprobs(evidence)
    gain = math.exp(answer) - math.exp(prior)
    return _score(weights.beta_ib * gain, _cost(evidence, weights))


def answer_log_ratio(evidence: Evidence, weights: Weights) -> Score:
    r"""METHOD's own form of `answer_information`, with the logarithm.

    .. math:: S_{IB}(o) = \beta_{IB} \frac{\log\pi(a|q,o) - \log\pi(a|q)}{|a|}
              - \lambda\, \min(\mathrm{excess}(o), E)

    METHOD §5 [D]. Bounded: the quotient is cut off at ±`MAX_GAIN`, the excess at `MAX_EXCESS`.
    The bound is wide because log π(a|q) alone is worth several nats per token: a narrow one would
    make right and wrong trajectories equal.

    Raises:
        ValueError: as `answer_information`.
    """
    answer, prior = _answer_logprobs(evidence)
    gain = max(-MAX_GAIN, min(answer - prior, MAX_GAIN))
    return _score(weights.beta_ib * gain, _cost(evidence, weights))


def advantage_entropy(evidence: Evidence, weights: Weights) -> Score:
    r"""Token mean of A·H_t: the released code's only information bottleneck, as a score.

    .. math:: S_{IB}(o) = \frac{1}{T} \sum_t A\, H_t

    METHOD §5: Σ_t A_t H_t [C], from IBRO, arXiv 2507.18391; the mean, because with one A per
    trajectory the sum would reward length [D]. It needs no pass, and its differentiable form is the
    self-reward term. It has one part: the cost is 0. ``|S_IB| ≤ |A| log V``.
    """
    return _score(evidence.advantage * _mean(evidence.entropies), 0.0)


def answer_conditioned(evidence: Evidence, weights: Weights) -> Score:
    r"""Uncertainty that knowing the answer would have removed (IBRO's form).

    .. math:: S_{IB}(o) = \frac{1}{T} \sum_t \big[ H(o_t|q) - \beta_{IB} H(o_t|q,a) \big]
              = \beta_{IB} \bar I(o;a|q) - (\beta_{IB} - 1) \bar H(o|q)

    METHOD §5, after IBRO, arXiv 2507.18391 [C]; bars are token means. The right-hand side gives
    the two parts. Bounded by log V and −β_IB log V.

    Raises:
        ValueError: the evidence has no conditioned entropies, or not one for each token.
    """
    given = evidence.conditioned
    if given is None or len(given) != len(evidence.entropies):
        raise ValueError(
            "answer_conditioned needs H(o_t|q,a) of each token: measure it with the answer in the "
            "prompt first."
        )
    free = _mean(evidence.entropies)
    answer = weights.beta_ib * (free - _mean(given))
    return _score(answer, (weights.beta_ib - 1.0) * free)


def _answer_logprobs(evidence: Evidence) -> tuple[float, float]:
    answer, prior = evidence.answer, evidence.prior
    if answer is None or prior is None or not (math.isfinite(answer) and math.isfinite(prior)):
        raise ValueError(
            "this estimator needs finite log π(a|q,o) and log π(a|q): measure them first "
            "(scoring.answer_logprobs)."
        )
    return answer, prior


def _cost(evidence: Evidence, weights: Weights) -> float:
    excess = description_excess(
        evidence.logprobs, evidence.ids, evidence.reference, clip_nats=weights.clip_nats
    )
    return weights.cost_weight * min(excess, MAX_EXCESS)


def _score(answer: float, cost: float) -> Score:
    return Score(value=answer - cost, answer=answer, cost=cost)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


@dataclass(frozen=True)
class Estimator:
    """An estimator of S_IB and the model passes it needs.

    Attributes:
        score: evidence and weights → score.
        answer: whether it reads `Evidence.answer` and `Evidence.prior`.
        conditioned: whether it reads `Evidence.conditioned`.
        advantage: whether it reads `Evidence.advantage`.
    """

    score: Callable[[Evidence, Weights], Score]
    answer: bool = False
    conditioned: bool = False
    advantage: bool = False


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "answer_information": Estimator(answer_information, answer=True),
        "answer_log_ratio": Estimator(answer_log_ratio, answer=True),
        "advantage_entropy": Estimator(advantage_entropy, advantage=True),
        "answer_conditioned": Estimator(answer_conditioned, conditioned=True),
    }
)
"""The estimators of METHOD §5 by name; the first is the default."""
