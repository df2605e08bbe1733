"""Checks of exercise set 06, GRPO."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]

# --- 1: group advantages -------------------------------------------------------------------------


def _rewards() -> list[Case]:
    few = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)
    wide = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0, 1, 1]])
    alike = torch.tensor([[0.9] * 8, [0.0] * 8, [1.0] * 8, [0.9] * 7 + [0.1]])
    return [(few, 1e-4), (wide.double(), 0.01), (alike, 1e-4)]


@exercise(_rewards)
def group_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    mean = rewards.mean(1, keepdim=True)
    found = (rewards - mean) / (rewards.std(1, keepdim=True) + epsilon)
    differ = (rewards != rewards[:, :1]).any(1, keepdim=True)
    return torch.where(differ, found, torch.zeros_like(found))


def _blanked(rewards: Tensor, found: Tensor) -> Tensor:
    return found.masked_fill(rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True), 0.0)


@group_advantages.mistake(
    "ε is missing. With a small standard deviation it bounds A; METHOD §6 adds it to std."
)
def no_epsilon(rewards: Tensor, epsilon: float) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    return _blanked(rewards, centred / rewards.std(1, keepdim=True))


@group_advantages.mistake(
    "ε is missing, so a group of equal rewards is 0/0: NaN, and one NaN spoils the whole batch."
)
def no_epsilon_nan(rewards: Tensor, epsilon: float) -> Tensor:
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)


@group_advantages.mistake(
    "the standard deviation is divided by G (ddof 0). METHOD §6 divides by G − 1: ddof 1."
)
def wrong_ddof(rewards: Tensor, epsilon: float) -> Tensor:
    std = rewards.std(1, correction=0, keepdim=True)
    return _blanked(rewards, (rewards - rewards.mean(1, keepdim=True)) / (std + epsilon))


@group_advantages.mistake(
    "mean and std are of the whole batch. GRPO compares the answers to ONE question: use those of "
    "the group, one row."
)
def over_the_batch(rewards: Tensor, epsilon: float) -> Tensor:
    return _blanked(rewards, (rewards - rewards.mean()) / (rewards.std() + epsilon))


@group_advantages.mistake(
    "mean and std run down the columns, over different questions: a group is a row, dimension 1."
)
def down_the_columns(rewards: Tensor, epsilon: float) -> Tensor:
    std = rewards.std(0, keepdim=True)
    return _blanked(rewards, (rewards - rewards.mean(0, keepdim=True)) / (std + epsilon))


@group_advantages.mistake(
    "you divided by the variance: take its square root, the standard deviation."
)
def variance(rewards: Tensor, epsilon: float) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    return _blanked(rewards, centred / (rewards.var(1, keepdim=True) + epsilon))


@group_advantages.mistake(
    "the mean is not subtracted, so a wrong answer gets 0 instead of a negative advantage."
)
def not_centred(rewards: Tensor, epsilon: float) -> Tensor:
    return _blanked(rewards, rewards / (rewards.std(1, keepdim=True) + epsilon))


@group_advantages.mistake(
    "eight rewards of 0.9 get −0.0006 instead of 0: their mean is off by rounding. Set "
    "groups of equal rewards to exactly 0."
)
def bare_formula(rewards: Tensor, epsilon: float) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + epsilon)


# --- 2: the clipped term -------------------------------------------------------------------------


def _tokens() -> list[Case]:
    rho = torch.tensor([0.4, 0.75, 0.9, 1.0, 1.1, 1.24, 1.5, 2.5, 4.0], dtype=torch.float64)
    return [
        (rho, torch.ones_like(rho), 0.2, 0.28),
        (rho, -torch.ones_like(rho), 0.2, 0.28),
        (rho[::2], torch.tensor([0.9, -0.9, 0.0, -2.0, 1.2]).double(), 0.3, 0.2),
    ]


@exercise(_tokens)
def clipped_term(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    held = ratio.clamp(1 - low, 1 + high)
    term = torch.minimum(ratio * advantage, held * advantage)
    return torch.where(advantage < 0, torch.maximum(term, 3 * advantage), term)


def _dual(term: Tensor, advantage: Tensor) -> Tensor:
    return torch.where(advantage < 0, torch.maximum(term, 3 * advantage), term)


@clipped_term.mistake(
    "this is ρ A, the ratio without a clip: nothing stops a token once it has been pushed enough."
)
def unclipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return ratio * advantage


@clipped_term.mistake(
    "for A > 0 it is ρ A without the clip; only the dual clip for A < 0 is there."
)
def only_dual(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return _dual(ratio * advantage, advantage)


@clipped_term.mistake(
    "this is clip(ρ) A alone. Without the min a token that moved the WRONG way is not pulled back."
)
def no_min(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return _dual(ratio.clamp(1 - low, 1 + high) * advantage, advantage)


@clipped_term.mistake(
    "for A < 0 the clip acts on the wrong side: the min is taken over the ratios. Multiply by A "
    "first; a negative A reverses the order."
)
def wrong_side(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    held = ratio.clamp(1 - low, 1 + high)
    return _dual(torch.minimum(ratio, held) * advantage, advantage)


@clipped_term.mistake(
    "max instead of min: the surrogate takes the worse of the two, so that it never overstates."
)
def maximum(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    held = ratio.clamp(1 - low, 1 + high)
    return _dual(torch.maximum(ratio * advantage, held * advantage), advantage)


@clipped_term.mistake("ε_low and ε_high are swapped: the range is 1 − low to 1 + high.")
def swapped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return clipped_term.right(ratio, advantage, high, low)


@clipped_term.mistake(
    "the dual clip is missing: for A < 0 a term falls without end as ρ grows; keep it at 3 A."
)
def no_dual(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


@clipped_term.mistake(
    "the dual clip acts for A > 0 too, and lifts each term to 3 A: it is only for A < 0."
)
def dual_everywhere(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    term = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return torch.maximum(term, 3 * advantage)


# --- 3: the loss of a batch ----------------------------------------------------------------------


def _terms() -> list[Case]:
    terms = torch.tensor([[0.5, 1.0, -0.25], [2.0, math.nan, math.nan], [1.5, -1.0, math.inf]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    more = torch.nn.functional.pad(terms, (0, 5), value=7.0)
    return [
        (terms.double(), mask),
        (more.double(), torch.nn.functional.pad(mask, (0, 5))),
        (torch.tensor([[3.0, 1.0, 0.0, 4.0]]).double(), torch.tensor([[0, 1, 1, 0]]).bool()),
    ]


@exercise(_terms)
def batch_loss(terms: Tensor, mask: Tensor) -> Tensor:
    return -terms[mask].mean()


@batch_loss.mistake(
    "this is a mean per sequence, then over sequences. Use the token mean: each new token "
    "weighs 1/Σ|m|, so a long rollout weighs more."
)
def per_sequence(terms: Tensor, mask: Tensor) -> Tensor:
    sums = terms.masked_fill(~mask, 0.0).sum(1)
    return -(sums / mask.sum(1)).mean()


@batch_loss.mistake(
    "you divided by all cells B·T, so wider padding makes the loss smaller: divide by Σ|m|."
)
def over_all_cells(terms: Tensor, mask: Tensor) -> Tensor:
    return -terms.masked_fill(~mask, 0.0).mean()


@batch_loss.mistake("you divided by the number of sequences B: divide by the new tokens, Σ|m|.")
def over_sequences(terms: Tensor, mask: Tensor) -> Tensor:
    return -terms.masked_fill(~mask, 0.0).sum() / len(mask)


@batch_loss.mistake("this is J, which should grow. An optimizer minimises: the loss is −J.")
def not_negated(terms: Tensor, mask: Tensor) -> Tensor:
    return terms[mask].mean()


@batch_loss.mistake("this is a sum: divide by the number of new tokens, Σ|m|.")
def summed(terms: Tensor, mask: Tensor) -> Tensor:
    return -terms[mask].sum()


@batch_loss.mistake("the padding is counted: only tokens with m = 1 belong to the sum.")
def padding_counted(terms: Tensor, mask: Tensor) -> Tensor:
    return -terms.mean()


@batch_loss.mistake(
    "terms × mask makes NaN where padding holds NaN or inf (0 · inf is NaN): take the counted "
    "terms with terms[mask], or masked_fill the others first."
)
def times_mask(terms: Tensor, mask: Tensor) -> Tensor:
    return -(terms * mask).sum() / mask.sum()


# --- 4: what the clip stops ----------------------------------------------------------------------


def _batches() -> list[Case]:
    rho = torch.tensor(
        [[0.5, 1.0, 1.25, 1.5, 2.0], [0.5, 0.7, 1.5, 1.6, 4.0], [0.1, 9.0, 1.0, 9.0, 9.0]]
    ).double()
    A = torch.tensor([0.9, -0.9, 0.0]).double()
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    return [(rho, A, mask), (rho[:2], -A[:2], mask[:2]), (rho[1:], A[:2], mask[1:])]


@exercise(_batches)
def clipped_share(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    a = advantages[:, None]
    up = (a > 0) & (ratio > 1.2)
    down = (a < 0) & ((ratio < 0.8) | (ratio > 3))
    return float((up | down)[mask].double().mean())


def _share(stopped: Tensor, mask: Tensor) -> float:
    return float(stopped[mask].double().mean())


@clipped_share.mistake(
    "this counts all tokens outside 0.8…1.2. The clip stops a token only on the side to which A "
    "pushes: above 1.2 for A > 0, below 0.8 for A < 0. The others are pulled back."
)
def both_sides(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    return _share((ratio < 0.8) | (ratio > 1.2), mask)


@clipped_share.mistake(
    "the sides are swapped: A > 0 pushes ρ up, so its clip is at 1.2; A < 0 pushes it down."
)
def turned_around(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    return float(clipped_share.right(ratio, -advantages, mask))


@clipped_share.mistake(
    "only A > 0 is considered: with A < 0 a token is stopped below 0.8 and, dually, above 3."
)
def only_positive(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    return _share((advantages[:, None] > 0) & (ratio > 1.2), mask)


@clipped_share.mistake("the dual clip is not counted: with A < 0 a token above ρ = 3 is stopped.")
def no_dual_counted(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    a = advantages[:, None]
    return _share(((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8)), mask)


@clipped_share.mistake(
    "tokens with A = 0 are counted as stopped: they have no gradient that a clip could stop."
)
def zero_counted(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    a = advantages[:, None]
    return _share(((a > 0) & (ratio > 1.2)) | ((a <= 0) & ((ratio < 0.8) | (ratio > 3))), mask)


@clipped_share.mistake("padding is in the mean: only tokens with m = 1 count, above and below.")
def padding_in(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    return float(clipped_share.right(ratio, advantages, torch.ones_like(mask)))


# --- 5: pass@k -----------------------------------------------------------------------------------


def _counts() -> list[Case]:
    return [(8, 3, 1), (8, 3, 4), (8, 3, 8), (8, 0, 4), (8, 8, 2), (8, 6, 4), (10, 1, 2)]


@exercise(_counts)
def pass_at_k(n: int, c: int, k: int) -> float:
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.mistake(
    "1 − (1 − c/n)^k draws with replacement: one right answer may be drawn twice, so it is too "
    "low. Draw k of the n without replacement."
)
def with_replacement(n: int, c: int, k: int) -> float:
    return float(1 - (1 - c / n) ** k)


@pass_at_k.mistake(
    "this is 1 as soon as one of all n is right, whatever k is: that is pass@n. Only k are drawn."
)
def any_of_n(n: int, c: int, k: int) -> float:
    return float(c > 0)


@pass_at_k.mistake("this is pass@1, the share of right answers: it doesn't depend on k.")
def share(n: int, c: int, k: int) -> float:
    return c / n


@pass_at_k.mistake(
    "this is the chance that all k are wrong: 1 minus it is the chance of at least one right."
)
def all_wrong(n: int, c: int, k: int) -> float:
    return math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.mistake(
    "this is the chance that all k are right. pass@k asks for at least one: start from 'none'."
)
def all_right(n: int, c: int, k: int) -> float:
    return math.comb(c, k) / math.comb(n, k)
