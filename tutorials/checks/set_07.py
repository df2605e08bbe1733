"""Checks of exercise set 07, the whole method."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]

# --- 1: which tokens train -----------------------------------------------------------------------


def _trees() -> list[Case]:
    return [
        (3, [0, 4, 4], [9, 7, 6], 14),
        (2, [0, 0, 1, 5], [4, 6, 6, 6], 8),
        (5, [2], [4], 20),
    ]


def _between(first: list[int], last: list[int], width: int) -> Tensor:
    rows = [[a <= t < b for t in range(width)] for a, b in zip(first, last, strict=True)]
    return torch.tensor(rows)


@exercise(_trees)
def new_tokens(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    return _between([prompt + s for s in starts], [prompt + n for n in lengths], width)


@new_tokens.mistake(
    "the branch's prefix is in the mask. Its parent drew it once, so it counts once: m = 0 on the "
    "tokens that a trajectory inherits from its parent."
)
def prefix_in(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    return _between([prompt] * len(starts), [prompt + n for n in lengths], width)


@new_tokens.mistake(
    "padding is in the mask: m = 0 from the end of a trajectory on (METHOD §7, fault 2)."
)
def padding_in(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    return _between([prompt + s for s in starts], [width] * len(starts), width)


@new_tokens.mistake(
    "the prompt is left out of the arithmetic: starts and lengths count tokens of the answer, the "
    "columns begin with the prompt."
)
def prompt_forgotten(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    return _between(starts, lengths, width)


@new_tokens.mistake(
    "the mask marks prompt and prefix too: m = 1 only on a trajectory's own tokens."
)
def prompt_in(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    return _between([0] * len(starts), [prompt + n for n in lengths], width)


@new_tokens.mistake(
    "one column too early: these are the rows that PREDICT the new tokens. The mask marks the "
    "tokens themselves."
)
def one_early(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    first = [prompt + s - 1 for s in starts]
    return _between(first, [prompt + n - 1 for n in lengths], width)


@new_tokens.mistake(
    "a length is used as the number of new tokens; it counts the inherited ones too, so a branch "
    "ends at prompt + length."
)
def length_after_start(prompt: int, starts: list[int], lengths: list[int], width: int) -> Tensor:
    pairs = zip(starts, lengths, strict=True)
    return _between([prompt + s for s in starts], [prompt + s + n for s, n in pairs], width)


# --- 2: advantages, then the filter --------------------------------------------------------------

Sets = dict[int, list[int]]


def _groups() -> list[Case]:
    R = torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 0], dtype=torch.float64)
    S = torch.tensor([0.9, -0.1, 0.7, -1.1, 1.0, -0.14, -0.15, -0.12], dtype=torch.float64)
    sets = {0: [2, 3, 4], 1: [5, 6, 7]}
    low = torch.tensor([-0.9, -0.2, 0.8, 0.5, 0.6, -0.4, 0.1, -0.3]).double()  # a poor root
    return [(R, S, sets, 2), (R, low, sets, 1), (R[:4], S[:4], {0: [1, 2, 3]}, 2)]


def _advantages(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def _keep(scores: Tensor, members: list[int], keep: int) -> set[int]:
    return set(sorted(members, key=lambda i: -float(scores[i]))[:keep])


def _kept(scores: Tensor, sets: Sets, keep: int) -> Tensor:
    branches = {i for members in sets.values() for i in members}
    best = {i for members in sets.values() for i in _keep(scores, members, keep)}
    return torch.tensor([i not in branches or i in best for i in range(len(scores))])


@exercise(_groups)
def select(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    return _advantages(rewards) * _kept(scores, sets, keep)


@select.mistake(
    "the filter came before the advantages: mean and std are of only the kept ones, so a pruned "
    "failure no longer counts. Advantages come from all G, then the filter [D]."
)
def filter_first(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    kept = _kept(scores, sets, keep)
    found = torch.zeros_like(rewards)
    found[kept] = _advantages(rewards[kept])
    return found


@select.mistake(
    "roots compete with their branches and can be pruned. They are exempt: only a root trains the "
    "prefix [D]."
)
def roots_compete(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    best = {i for root, rest in sets.items() for i in _keep(scores, [root, *rest], keep)}
    return _advantages(rewards) * torch.tensor([i in best for i in range(len(rewards))])


@select.mistake(
    "Top-N is taken over all branches of the question. It is N of EACH branch set, so that no fork "
    "loses everything it tried."
)
def over_all(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    everyone = {0: [i for members in sets.values() for i in members]}
    return _advantages(rewards) * _kept(scores, everyone, keep * len(sets))


@select.mistake("the lowest S_IB are kept: a high score is good, so sort in descending order.")
def lowest(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    return select.right(rewards, -scores, sets, keep)


@select.mistake("pruned branches keep their advantage, so they still train: set theirs to 0.")
def nothing_pruned(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    return _advantages(rewards)


@select.mistake(
    "branches are ranked by reward. Rewards can't tell two right ones apart: rank by S_IB."
)
def by_reward(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    return select.right(rewards, rewards, sets, keep)


@select.mistake("roots get 0 too: only pruned branches do; roots always train.")
def roots_blanked(rewards: Tensor, scores: Tensor, sets: Sets, keep: int) -> Tensor:
    found = select.right(rewards, scores, sets, keep).clone()
    found[list(sets)] = 0.0
    return found


# --- 3: with z and without -----------------------------------------------------------------------


def _log_probs() -> list[Case]:
    new = torch.tensor([-0.4, -1.0, -0.1, -2.0, -0.7], dtype=torch.float64)
    old_z = torch.tensor([-0.5, -0.9, -0.1, -4.0, -0.2], dtype=torch.float64)
    old_plain = torch.tensor([-1.9, -0.3, -0.1, -2.1, -0.8], dtype=torch.float64)
    return [
        (mode, *(part[rows] for part in (new, old_z, old_plain)), cap)
        for mode in ("latent", "plain")
        for rows, cap in ((slice(0, 5), 2.0), (slice(0, 3), 1.5))
    ]


@exercise(_log_probs)
def ratio_and_weight(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    if mode == "latent":
        return (new - old_z).exp(), torch.ones_like(new)
    return (new - old_plain).exp(), (old_plain - old_z).exp().clamp(max=cap)


@ratio_and_weight.mistake(
    "in `latent` the old log-probs are without z, though the new ones are with it. ρ is then not 1 "
    "before the first update: both sides need the same distribution."
)
def old_without_z(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    rho = (new - old_plain).exp()
    return rho, ratio_and_weight.right(mode, new, old_z, old_plain, cap)[1]


@ratio_and_weight.mistake(
    "in `plain` the old log-probs are those of sampling, with z, but the new ones are without: "
    "the gap that [C] ignores. Measure π_old without z."
)
def old_with_z(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    rho = (new - old_z).exp()
    return rho, ratio_and_weight.right(mode, new, old_z, old_plain, cap)[1]


@ratio_and_weight.mistake(
    "the weight is upside down: π_old without z over π_old with z. A token that only z made likely "
    "must weigh less."
)
def upside_down(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    if mode == "latent":
        return (new - old_z).exp(), torch.ones_like(new)
    return (new - old_plain).exp(), (old_z - old_plain).exp().clamp(max=cap)


@ratio_and_weight.mistake("the weight has no bound: clip it at C, so that no token dominates.")
def no_cap(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    return ratio_and_weight.right(mode, new, old_z, old_plain, math.inf)


@ratio_and_weight.mistake(
    "`latent` has no gap to correct, since new and old are both with z: its weight is 1."
)
def weight_everywhere(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    rho, _ = ratio_and_weight.right(mode, new, old_z, old_plain, cap)
    return rho, (old_plain - old_z).exp().clamp(max=cap)


@ratio_and_weight.mistake("`plain` has no weight: its tokens were drawn with z, so it needs one.")
def no_weight(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    return ratio_and_weight.right(mode, new, old_z, old_plain, cap)[0], torch.ones_like(new)


@ratio_and_weight.mistake("C bounds the ratio ρ; it belongs on the weight. ρ has its own clip.")
def capped_ratio(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    rho, weight = no_cap(mode, new, old_z, old_plain, cap)
    return rho.clamp(max=cap), weight


# --- 4: the loss of a step -----------------------------------------------------------------------


def _steps() -> list[Case]:
    terms = torch.tensor([[0.9, 0.8, 0.9, 9.0], [-0.5, -0.9, 9.0, 9.0], [-0.9, -0.7, -0.9, -0.2]])
    H = torch.tensor([[0.1, 2.0, 0.0, 7.0], [1.3, 0.2, 7.0, 7.0], [0.4, 0.3, 1.1, 0.2]])
    A = torch.tensor([0.9, -0.5, -0.9])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    kept = torch.tensor([True, True, False])
    all_kept = torch.ones(3, dtype=torch.bool)
    given = terms.double(), H.double(), A.double(), mask
    return [(*given, kept, 0.5), (*given, all_kept, 0.2), (*given, kept, 0.0)]


@exercise(_steps)
def step_loss(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    counted = mask & kept[:, None]
    return -(terms + alpha * advantages[:, None] * entropy)[counted].mean()


@step_loss.mistake(
    "pruned branches are in the denominator: their tokens don't count in Σ|m| either."
)
def pruned_counted(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    inside = (terms + alpha * advantages[:, None] * entropy)[mask & kept[:, None]]
    return -inside.sum() / mask.sum()


@step_loss.mistake("pruned branches are trained: leave out the rows that the filter has pruned.")
def pruned_trained(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return -(terms + alpha * advantages[:, None] * entropy)[mask].mean()


@step_loss.mistake(
    "the entropy is added without A: that is Entropy-Reg, which raises H everywhere. The "
    "self-reward is α A H."
)
def entropy_bonus(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return -(terms + alpha * entropy)[mask & kept[:, None]].mean()


@step_loss.mistake(
    "the self-reward is subtracted from J: it is added, inside the braces of METHOD §6."
)
def subtracted(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return step_loss.right(terms, entropy, advantages, mask, kept, -alpha)


@step_loss.mistake("the self-reward is missing: each token adds α A H to its term.")
def no_self_reward(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return step_loss.right(terms, entropy, advantages, mask, kept, 0.0)


@step_loss.mistake("this is J; an optimizer minimises, so the loss is −J.")
def not_negated(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return -step_loss.right(terms, entropy, advantages, mask, kept, alpha)


@step_loss.mistake("padding or prefix is counted: use the mask for sum and denominator.")
def mask_ignored(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    return step_loss.right(terms, entropy, advantages, torch.ones_like(mask), kept, alpha)


@step_loss.mistake(
    "this is a mean of each trajectory's mean: divide the sum over all kept tokens once, by Σ|m|."
)
def per_trajectory(
    terms: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor, alpha: float
) -> Tensor:
    inside = (terms + alpha * advantages[:, None] * entropy).masked_fill(~mask, 0.0)
    return -(inside.sum(1) / mask.sum(1))[kept].mean()


# --- 5: an equal budget --------------------------------------------------------------------------


def _runs() -> list[Case]:
    dear = [90, 100, 110, 120, 100], [0.1, 0.3, 0.4, 0.5, 0.6]
    cheap = [60, 60, 70, 60, 70], [0.1, 0.2, 0.35, 0.45, 0.55]
    long = [50, 50, 50, 50, 50, 50, 50], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    falling = [80, 80, 80, 80], [0.1, 0.6, 0.5, 0.9]
    return [(*dear, *cheap), (*cheap, *dear), (*long, *cheap), (*falling, [100, 160], [0.3, 0.2])]


def _at(tokens: list[int], values: list[float], budget: int) -> float:
    done = sum(total <= budget for total in accumulate(tokens))
    return values[done - 1]


@exercise(_runs)
def at_equal_tokens(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    budget = min(sum(tokens_a), sum(tokens_b))
    return _at(tokens_a, values_a, budget), _at(tokens_b, values_b, budget)


@at_equal_tokens.mistake(
    "these are the values at the end of each run. One of them has spent more tokens by then: read "
    "both at the smaller total."
)
def at_the_end(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    return values_a[-1], values_b[-1]


@at_equal_tokens.mistake(
    "these are the values at equal steps. A step of one method writes more tokens than a step of "
    "the other: compare at equal tokens."
)
def at_equal_steps(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    last = min(len(values_a), len(values_b)) - 1
    return values_a[last], values_b[last]


@at_equal_tokens.mistake(
    "one step too far: that step overdrew the budget. Take the last one that didn't."
)
def one_too_far(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    budget, found = min(sum(tokens_a), sum(tokens_b)), []
    for tokens, values in ((tokens_a, values_a), (tokens_b, values_b)):
        done = sum(total <= budget for total in accumulate(tokens))
        found.append(values[min(done, len(values) - 1)])
    return found[0], found[1]


@at_equal_tokens.mistake(
    "the best value within the budget is a choice made after the fact: take the last one."
)
def best_so_far(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    a, b = at_equal_tokens.right(tokens_a, values_a, tokens_b, values_b)
    return max(values_a[: values_a.index(a) + 1]), max(values_b[: values_b.index(b) + 1])


@at_equal_tokens.mistake("the two are in the wrong order: run a comes first.")
def exchanged(
    tokens_a: list[int], values_a: list[float], tokens_b: list[int], values_b: list[float]
) -> tuple[float, float]:
    a, b = at_equal_tokens.right(tokens_a, values_a, tokens_b, values_b)
    return b, a
