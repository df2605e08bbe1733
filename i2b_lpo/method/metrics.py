"""Accuracy, diversity and interval estimates from the samples of one question, or one per question.

Everything takes plain lists or arrays and returns plain numbers. A *group* is the `n` sampled
answers to one question; average over questions with `bootstrap_interval`, which also says how far
the mean can be trusted. The paper reports pass@1, pass@16 or pass@256, Distinct-1/-4,
1 − Self-BLEU and 1 − Self-ROUGE [P] without its estimators; those below are the field's usual [D].

Deliberately left out: tokenisation (pass token ids or words, never text) and verification (pass
verdicts, or an `equivalent` function).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Indel
from sacrebleu.metrics.bleu import BLEU

__all__ = [
    "FORK",
    "SURE",
    "Interval",
    "Tokens",
    "avg_at_k",
    "bootstrap_interval",
    "distinct_n",
    "maj_at_k",
    "paired_differences",
    "pass_at_k",
    "rep_n",
    "self_bleu",
    "self_rouge_l",
]


@runtime_checkable
class _Array(Protocol):
    def tolist(self) -> Any: ...


SURE = 0.05  #: nats; a token of at most this entropy is all but decided
FORK = 0.7  #: nats; a token above it counts as a fork in every figure and table

Tokens: TypeAlias = Sequence[Hashable] | _Array
"""One sequence of tokens, ids or words: a list, a tuple or a one-dimensional array or tensor."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that at least one of `k` samples drawn from `n` is correct.

    `pass@k = 1 − C(n−c, k) / C(n, k)`, the unbiased estimator of Chen et al. 2021
    (arXiv 2107.03374) [D]. It is one quotient of exact integers, so it is rounded only once.

    Args:
        n: samples drawn for the question.
        c: how many of them are correct.
        k: size of the imagined draw without replacement.

    Raises:
        ValueError: unless 0 ≤ c ≤ n and 1 ≤ k ≤ n. For k > n no estimate exists; the released
            code's answer there, 1 [C], is a fault.

    Example:
        >>> round(pass_at_k(8, 3, 4), 10)
        0.9285714286
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got c={c} correct of n={n} samples.")
    _check_k(k, n)
    draws = comb(n, k)
    return (draws - comb(n - c, k)) / draws


def avg_at_k(correct: Sequence[bool | int | float] | npt.NDArray[Any]) -> float:
    """Return the share of correct samples: avg@k with k = `len(correct)`, equal to pass@1 [D].

    Args:
        correct: (k,) one verdict per sample, True/1 or False/0.

    Raises:
        ValueError: if there is no verdict, or one is neither 0 nor 1 (such as a shaped reward).

    Example:
        >>> avg_at_k([True, False, False, True])
        0.5
    """
    verdicts = np.asarray(correct)
    if verdicts.ndim != 1 or verdicts.size == 0 or not np.isin(verdicts, (0, 1)).all():
        raise ValueError("avg@k needs a flat, non-empty list of verdicts, each 0 or 1.")
    return float(verdicts.mean(dtype=np.float64))


def maj_at_k(
    answers: Sequence[str | None], gold: str, k: int, equivalent: Callable[[str, str], bool]
) -> float:
    """Return the expected correctness of the majority vote among the first `k` answers.

    Votes count per equivalence class of answers, not per string as in [C]. If several classes
    share the most votes, the result is the share of them that equal `gold`: the expected value of
    a fair draw among the tied [D]. Letting the first-seen class win would make the score depend on
    the order of the samples, and a drawn winner would add noise. If nobody votes it is 0.

    Args:
        answers: (n,) extracted answers in sampling order; None (no answer found) casts no vote.
            Samples are exchangeable, so for k < n the first k are as good a draw as any.
        gold: the verified answer `a`.
        k: number of samples that take part, at most n.
        equivalent: `equivalent(reference, answer)`, an equivalence relation. An answer is compared
            with the first member of each class, so a relation that is not transitive makes classes
            depend on the order; equal strings share a class without being compared.

    Raises:
        ValueError: unless 1 ≤ k ≤ n.

    Example:
        >>> same = lambda a, b: float(a) == float(b)
        >>> maj_at_k(["0.5", "2", ".50", None], gold="0.50", k=4, equivalent=same)
        1.0
        >>> maj_at_k(["0.5", "2", ".50", None], gold="0.50", k=2, equivalent=same)
        0.5
    """
    _check_k(k, len(answers))
    votes: Counter[str] = Counter()  # first member of a class → its votes
    for answer, count in Counter(a for a in answers[:k] if a is not None).items():
        votes[next((first for first in votes if equivalent(first, answer)), answer)] += count
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(equivalent(gold, winner) for winner in winners) / len(winners)


def distinct_n(sequences: Iterable[Tokens], n: int) -> float:
    """Return Distinct-n of a pool: different n-grams / all n-grams (Li et al. 2016) [D].

    No n-gram crosses from one sequence into the next. The ratio falls as the pool grows: compare
    only pools of about the same number of tokens. If no sequence has n tokens it is 0.

    Args:
        sequences: the pool, each a sequence of tokens.
        n: n-gram length in tokens; the paper shows 1 and 4 [P].

    Raises:
        ValueError: if the pool is empty, n < 1, or a sequence is text.

    Example:
        >>> distinct_n([["a", "b", "a"], ["a", "b"]], n=1)
        0.4
    """
    grams = [gram for sequence in _pool(sequences, minimum=1) for gram in _ngrams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def rep_n(sequence: Tokens, n: int = 4) -> float:
    """Return the repetition of one sequence, `1 − unique / total` over its n-grams [S].

    It is in [0, 1), and 0 if no n-gram occurs twice, hence also if T < n.

    Args:
        sequence: (T,) tokens.
        n: n-gram length in tokens.

    Raises:
        ValueError: if n < 1 or the sequence is text.

    Example:
        >>> rep_n([1, 2, 1, 2, 1, 2, 1])
        0.5
    """
    grams = list(_ngrams(_as_sequence(sequence), n))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(sequences: Iterable[Tokens]) -> float:
    """Return Self-BLEU of a group: the mean BLEU-4 of each sequence against all the others.

    Zhu et al. 2018 (arXiv 1802.01886) [D]; diversity is reported as 1 − Self-BLEU [I]. BLEU is
    sacrebleu's sentence BLEU: clipped precisions for n = 1 … 4, brevity penalty against the
    closest length, "exp" smoothing (the i-th order without a match counts as 2^−i matches; no
    match at all gives 0), and orders longer than the sequence left out, so that a short copy
    scores 1 too. An empty sequence matches only another empty one. A larger group offers more
    references and so scores higher: compare only groups of the same size.

    Args:
        sequences: (G, T_i) the group, at least 2 sequences of tokens.

    Raises:
        ValueError: if there are fewer than 2 sequences, or one is text.

    Example:
        >>> round(self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]), 3)
        0.669
    """
    # sacrebleu splits text at blanks, so each token becomes the decimal digits of its number.
    lines = [" ".join(map(str, ids)) for ids in _numbered(_pool(sequences, minimum=2))]
    bleu = BLEU(tokenize="none", effective_order=True)
    scores = []
    for i, line in enumerate(lines):
        others = lines[:i] + lines[i + 1 :]
        scores.append(bleu.sentence_score(line, others).score / 100 if line else "" in others)
    return min(1.0, float(np.mean(scores)))  # a perfect sacrebleu score is 100.00000000000004


def self_rouge_l(sequences: Iterable[Tokens]) -> float:
    """Return Self-ROUGE-L of a group: the mean ROUGE-L F1 over all pairs of its sequences.

    `F1(x, y) = 2 LCS(x, y) / (|x| + |y|)`, LCS the length of the longest common subsequence (Lin
    2004); two empty sequences count as equal. The mean over pairs, not the best match, keeps the
    expected value the same for every group size [D]. Diversity is reported as 1 − Self-ROUGE-L [I].

    Args:
        sequences: (G, T_i) the group, at least 2 sequences of tokens.

    Raises:
        ValueError: if there are fewer than 2 sequences, or one is text.

    Example:
        >>> self_rouge_l([[1, 2, 3, 4], [1, 9, 3, 4]])
        0.75
    """
    # Indel similarity is 1 − (insertions + deletions) / (|x| + |y|), which is exactly ROUGE-L F1.
    pairs = combinations(_numbered(_pool(sequences, minimum=2)), 2)
    return float(np.mean([Indel.normalized_similarity(x, y) for x, y in pairs]))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` questions with its confidence interval; `dataclasses.asdict` suits JSON.

    Example:
        >>> print(Interval(mean=0.3121, low=0.271, high=0.352, n=200))
        0.312 [0.271, 0.352]
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Format as `mean [low, high]`; a tiny negative difference reads 0.000, not -0.000."""
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over questions with a percentile bootstrap interval (Efron 1979) [D].

    Questions are resampled, not samples: the samples of one question are not independent. To
    compare two methods on the same questions, pass their differences `a − b`. With a single
    question low = mean = high.

    Args:
        values: (Q,) one finite number per question; their order does not matter.
        level: share of the resampled means inside the interval.
        resamples: number of resampled means.
        seed: seed of the numpy Generator that draws the questions.

    Raises:
        ValueError: if values is not a flat list of at least one finite number, level is not
            between 0 and 1, or resamples < 1.

    Example:
        >>> print(bootstrap_interval([0.0, 0.5, 0.5, 1.0, 1.0]))
        0.600 [0.300, 0.900]
    """
    questions = np.asarray(values, dtype=np.float64)
    if questions.ndim != 1 or questions.size == 0 or not np.isfinite(questions).all():
        raise ValueError("The bootstrap needs a flat list of one finite value for each question.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 2000 is usual.")
    # Sorted, so that with one seed the interval depends only on the values, not on their order.
    questions = np.sort(questions)
    drawn = np.random.default_rng(seed).integers(questions.size, size=(resamples, questions.size))
    means = questions[drawn].mean(axis=1)  # (resamples,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(questions.mean()), float(low), float(high), questions.size)


def paired_differences(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]
) -> dict[str, Interval]:
    """Return after − before for each metric in both, paired by question, with its interval.

    Args:
        before: metric → one number per question (`Evaluation.values`).
        after: the same for another policy, on the same questions in the same order.

    Raises:
        ValueError: the two were measured on different numbers of questions.

    Example:
        >>> print(paired_differences({"pass@1": [0.0, 0.5]}, {"pass@1": [0.5, 1.0]})["pass@1"])
        0.500 [0.500, 0.500]
    """
    if any(len(before[name]) != len(after[name]) for name in before.keys() & after.keys()):
        raise ValueError("A paired difference needs both policies measured on the same questions.")
    return {
        name: bootstrap_interval([b - a for a, b in zip(old, after[name], strict=True)])
        for name, old in before.items()
        if name in after
    }


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and n={n}, got {k}; draw more samples or lower k.")


def _as_sequence(tokens: Tokens) -> Sequence[Hashable]:
    if isinstance(tokens, str):
        raise ValueError("Pass a sequence of tokens, not text: split it or use the tokenizer.")
    if isinstance(tokens, _Array):
        # Elements of a torch tensor hash by identity: as they are, no two would be equal.
        values: list[Hashable] = tokens.tolist()
        return values
    return tokens


def _pool(sequences: Iterable[Tokens], minimum: int) -> list[Sequence[Hashable]]:
    pool = [_as_sequence(tokens) for tokens in sequences]
    if len(pool) < minimum:
        raise ValueError(f"This metric needs at least {minimum} sequence(s), got {len(pool)}.")
    return pool


def _ngrams(sequence: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"The n-gram length must be at least 1, got n={n}.")
    return zip(*(sequence[start:] for start in range(n)), strict=False)


def _numbered(pool: Iterable[Sequence[Hashable]]) -> list[list[int]]:
    # rapidfuzz compares tokens by hash, with which "a" equals 97: equal numbers mean equal tokens.
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(token, len(numbers)) for token in tokens] for tokens in pool]
