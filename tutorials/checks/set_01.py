"""Checks of exercise set 01, token entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]

# --- 1: entropy from logits ----------------------------------------------------------------------


def _logits() -> list[Case]:
    chance = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(5, 11, generator=chance, dtype=torch.float64)  # (T, 9 + 2 padded)
    ruled_out = logits.clone()
    ruled_out[:, 4] = -torch.inf  # a token of probability 0
    return [(logits, 9), (logits[:2] + 7, 11), (torch.zeros(3, 4), 4), (ruled_out, 9)]


@exercise(_logits)
def token_entropies(logits: Tensor, vocab_size: int) -> Tensor:
    log_pi = logits[:, :vocab_size].log_softmax(-1)
    pi = log_pi.exp()
    return -(pi * log_pi.masked_fill(pi == 0, 0.0)).sum(-1)


def _sum(pi: Tensor) -> Tensor:
    return -torch.special.xlogy(pi, pi).sum(-1)


@token_entropies.mistake("this is in bits: you took log2. METHOD §1 takes the natural log, nats.")
def bits(logits: Tensor, vocab_size: int) -> Tensor:
    return _sum(logits[:, :vocab_size].softmax(-1)) / math.log(2)


@token_entropies.mistake(
    "the padded ids are counted: keep only the first vocab_size logits of a row."
)
def padded_counted(logits: Tensor, vocab_size: int) -> Tensor:
    return _sum(logits.softmax(-1))


@token_entropies.mistake(
    "the padded ids are removed after the softmax, so π no longer sums to 1: remove their logits."
)
def cut_after_softmax(logits: Tensor, vocab_size: int) -> Tensor:
    return _sum(logits.softmax(-1)[:, :vocab_size])


@token_entropies.mistake("the sign is wrong: log π is negative, so H = −Σ π log π is not.")
def sign(logits: Tensor, vocab_size: int) -> Tensor:
    return -_sum(logits[:, :vocab_size].softmax(-1))


@token_entropies.mistake(
    "you took the mean over the vocabulary; H is a sum over v. (π is the weight of the mean.)"
)
def mean_over_v(logits: Tensor, vocab_size: int) -> Tensor:
    return _sum(logits[:, :vocab_size].softmax(-1)) / vocab_size


@token_entropies.mistake(
    "a token with probability 0 made a NaN: 0 · log 0 counts as 0 (page 01, section 2)."
)
def zero_times_log_zero(logits: Tensor, vocab_size: int) -> Tensor:
    pi = logits[:, :vocab_size].softmax(-1)
    return -(pi * pi.log()).sum(-1)


@token_entropies.mistake(
    "the softmax runs over the wrong dimension: over the tokens t instead of the vocabulary v."
)
def softmax_over_t(logits: Tensor, vocab_size: int) -> Tensor:
    return _sum(logits[:, :vocab_size].softmax(0))


# --- 2: which row predicts which token -----------------------------------------------------------


def _passes() -> list[Case]:
    rows = torch.arange(60, dtype=torch.float64)
    return [(rows.reshape(1, 20, 3), 8), (rows.reshape(1, 15, 4), 1), (rows.reshape(1, 10, 6), 9)]


@exercise(_passes)
def solution_rows(logits: Tensor, start: int) -> Tensor:
    return logits[0, start - 1 : -1]


@solution_rows.mistake(
    "one row too late: row i predicts token i + 1, so token 0 is predicted by row start − 1."
)
def too_late(logits: Tensor, start: int) -> Tensor:
    return logits[0, start:]


@solution_rows.mistake("one row too early: row start − 2 predicts the prompt's last token.")
def too_early(logits: Tensor, start: int) -> Tensor:
    return logits[0, range(start - 2, logits.shape[1] - 2)]


@solution_rows.mistake("the last row is left in: it predicts a token after the end.")
def last_row_in(logits: Tensor, start: int) -> Tensor:
    return logits[0, start - 1 :]


@solution_rows.mistake("the prompt's rows are left in: return only those of the solution's tokens.")
def prompt_in(logits: Tensor, start: int) -> Tensor:
    return logits[0, :-1]


@solution_rows.mistake("the batch dimension is still there: return (T, V), not (1, T, V).")
def batch_left(logits: Tensor, start: int) -> Tensor:
    return logits[:, start - 1 : -1]


# --- 3: two means --------------------------------------------------------------------------------


def _rollouts() -> list[Case]:
    return [([[1.0, 0.0, 0.2, 0.0], [0.9]],), ([[0.1, 0.3], [0.5, 0.0, 0.0], [0.7]],)]


@exercise(_rollouts)
def two_means(entropies: list[list[float]]) -> tuple[float, float]:
    tokens = [h for rollout in entropies for h in rollout]
    means = [sum(rollout) / len(rollout) for rollout in entropies]
    return sum(tokens) / len(tokens), sum(means) / len(means)


@two_means.mistake("the two are in the wrong order: the mean over tokens comes first.")
def swapped(entropies: list[list[float]]) -> tuple[float, float]:
    over_tokens, over_rollouts = two_means.right(entropies)
    return over_rollouts, over_tokens


@two_means.mistake(
    "both are the mean over rollouts: in the first mean every token counts once, so a long "
    "rollout counts more."
)
def both_over_rollouts(entropies: list[list[float]]) -> tuple[float, float]:
    return (two_means.right(entropies)[1],) * 2


@two_means.mistake(
    "short rollouts were padded with zeros, and the padding is counted: divide by the number of "
    "real tokens."
)
def padding_counted(entropies: list[list[float]]) -> tuple[float, float]:
    longest = max(map(len, entropies))
    means = [sum(rollout) / longest for rollout in entropies]
    return (sum(means) / len(means),) * 2


@two_means.mistake("the second is a sum over rollouts: divide it by their number.")
def not_divided(entropies: list[list[float]]) -> tuple[float, float]:
    over_tokens, over_rollouts = two_means.right(entropies)
    return over_tokens, over_rollouts * len(entropies)


# --- 4: enrichment -------------------------------------------------------------------------------


def _words() -> list[Case]:
    long = [0.01 * t for t in range(40)]
    long[3], long[20] = 1.4, 1.2
    is_word = [t in (3, 30) for t in range(40)]
    return [
        ([0.0, 1.3, 0.1, 0.0], [False, True, False, False], 0.25),
        (long, is_word, 0.05),
        (long[:30], is_word[:30], 0.05),
        ([0.2, 0.9, 0.0, 0.8, 0.1], [True, True, False, False, False], 0.4),
    ]


def _top(entropies: list[float], size: int) -> list[int]:
    return sorted(range(len(entropies)), key=lambda t: -entropies[t])[:size]


@exercise(_words)
def enrichment(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    size = math.ceil(fraction * len(entropies) - 1e-9)
    omega = _top(entropies, size)
    among = sum(is_word[t] for t in omega) / len(omega)
    return among / (sum(is_word) / len(is_word))


@enrichment.mistake(
    "Ω holds the lowest entropies: sorted() is ascending, so the top 5 % are at its end."
)
def lowest(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    return float(enrichment.right([-h for h in entropies], is_word, fraction))


@enrichment.mistake("|Ω| is rounded down. METHOD rounds up, so that every rollout has a candidate.")
def rounded_down(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    omega = _top(entropies, max(1, math.floor(fraction * len(entropies))))
    return float(sum(is_word[t] for t in omega) / len(omega) * len(is_word) / sum(is_word))


@enrichment.mistake(
    "this is the share of words in Ω alone. Divide it by the baseline, their share of all tokens."
)
def without_baseline(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    return float(enrichment.right(entropies, is_word, fraction) * sum(is_word) / len(is_word))


@enrichment.mistake(
    "this is the share of the words that Ω finds (recall). Return the share of Ω that is words, "
    "over the baseline."
)
def recall(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    omega = _top(entropies, math.ceil(fraction * len(entropies) - 1e-9))
    return sum(is_word[t] for t in omega) / sum(is_word)


@enrichment.mistake("the ratio is upside down: Ω's share over the baseline's, not the reverse.")
def upside_down(entropies: list[float], is_word: list[bool], fraction: float) -> float:
    ratio = enrichment.right(entropies, is_word, fraction)
    return 1 / ratio if ratio else math.inf


# --- 5: how many different branches --------------------------------------------------------------


def _distributions() -> list[Case]:
    four = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8], dtype=torch.float64)
    sure = torch.tensor([0.98, 0.01, 0.01, 0.0], dtype=torch.float64)
    return [(four, 3), (sure, 3), (four, 1), (torch.full((5,), 0.2).double(), 8)]


@exercise(_distributions)
def expected_distinct(pi: Tensor, k: int) -> float:
    return float((1 - (1 - pi) ** k).sum())


@expected_distinct.mistake(
    "1 − π^K is the chance that not all K draws are v. You want at least one: 1 − (1−π)^K."
)
def not_all(pi: Tensor, k: int) -> float:
    return float((1 - pi**k).sum())


@expected_distinct.mistake(
    "(1−π)^K is the chance that v is never drawn, so this counts the words that are missing."
)
def missing(pi: Tensor, k: int) -> float:
    return float(((1 - pi) ** k).sum())


@expected_distinct.mistake(
    "this is e^H, how many words the policy hesitates between. It doesn't depend on K; the number "
    "of different words in K draws does."
)
def choices(pi: Tensor, k: int) -> float:
    return float(_sum(pi).exp())


@expected_distinct.mistake(
    "K·π counts how often v is drawn, so it sums to K. A word drawn twice is one word."
)
def draws(pi: Tensor, k: int) -> float:
    return float((k * pi).sum())
