"""Checks of exercise set 02, forks and branches."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]

# --- 1: Ω ----------------------------------------------------------------------------------------


def _entropies() -> list[Case]:
    long = [0.01 * (t % 7) for t in range(45)]  # 5 % are 2.25 tokens
    long[30], long[4], long[17] = 1.4, 1.2, 0.9
    certain = [0.0] * 6  # a rank has its two candidates here, a threshold none or all
    return [
        ([0.1, 1.2, 0.0, 0.9, 0.3], 0.4), (long, 0.05), ([1.0, 0.2, 0.1], 0.05), (certain, 0.2),
        ([0.5, 0.1, 0.7, 0.5, 0.5], 0.4),
    ]  # fmt: skip


@exercise(_entropies)
def candidates(entropies: list[float], fraction: float) -> list[int]:
    return sorted(_highest(entropies, max(1, math.ceil(fraction * len(entropies)))))


def _highest(entropies: list[float], size: int) -> list[int]:
    return sorted(range(len(entropies)), key=lambda t: -entropies[t])[:size]


@candidates.mistake(
    "this is a threshold: it takes all equal entropies, however many. Ω is a rank: ⌈fraction·T⌉ "
    "positions and no more, and of equal entropies the earlier ones."
)
def threshold(entropies: list[float], fraction: float) -> list[int]:
    size = max(1, math.ceil(fraction * len(entropies)))
    floor = sorted(entropies)[-size]
    return [t for t, h in enumerate(entropies) if h >= floor]


@candidates.mistake("of equal entropies you take the later positions; take the earlier ones.")
def later(entropies: list[float], fraction: float) -> list[int]:
    size = max(1, math.ceil(fraction * len(entropies)))
    return sorted(sorted(range(len(entropies)), key=lambda t: entropies[t])[-size:])


@candidates.mistake(
    "|Ω| is rounded down, and a short rollout gets no candidate at all. Round up: at least one."
)
def rounded_down(entropies: list[float], fraction: float) -> list[int]:
    return sorted(_highest(entropies, int(fraction * len(entropies))))


@candidates.mistake(
    "|Ω| is rounded to the nearest integer. 2.25 tokens make 3 candidates: round up."
)
def rounded(entropies: list[float], fraction: float) -> list[int]:
    return sorted(_highest(entropies, max(1, round(fraction * len(entropies)))))


@candidates.mistake("these are the lowest entropies: forks belong where the policy hesitates.")
def lowest(entropies: list[float], fraction: float) -> list[int]:
    size = max(1, math.ceil(fraction * len(entropies)))
    return sorted(sorted(range(len(entropies)), key=lambda t: entropies[t])[:size])


@candidates.mistake("these are the entropies themselves; Ω holds positions t.")
def values(entropies: list[float], fraction: float) -> list[float]:
    return [entropies[t] for t in candidates.right(entropies, fraction)]


@candidates.mistake("the positions are in the order of their entropies; give them in ascending t.")
def unsorted(entropies: list[float], fraction: float) -> list[int]:
    return _highest(entropies, max(1, math.ceil(fraction * len(entropies))))


# --- 2: the prefix -------------------------------------------------------------------------------


def _forks() -> list[Case]:
    prompt, ids = [101, 102, 103], [7, 8, 9, 10, 11]
    return [(prompt, ids, 2), (prompt, ids, 0), ([5], ids, 4)]


@exercise(_forks)
def prefix_before(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    return [*prompt, *ids[:t_star]], len(prompt) + t_star


@prefix_before.mistake(
    "you took the token after the fork: your prefix ends with o_t*, so the decision is already "
    "made. End it before o_t*, which is decided again (METHOD §2 [D])."
)
def kept(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    return [*prompt, *ids[: t_star + 1]], len(prompt) + t_star + 1


@prefix_before.mistake(
    "the prefix contains o_t*, which must be decided again, and p isn't its number of tokens."
)
def kept_but_not_counted(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    return [*prompt, *ids[: t_star + 1]], len(prompt) + t_star


@prefix_before.mistake(
    "p leaves out the prompt: it counts all tokens before the fork, prompt included."
)
def prompt_not_counted(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    return [*prompt, *ids[:t_star]], t_star


@prefix_before.mistake("the prompt is missing: c is what the policy has read, the prompt included.")
def without_prompt(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    return ids[:t_star], t_star


@prefix_before.mistake(
    "one token too few: token t* − 1 is no longer in question. (Token p − 1 is read again, but it "
    "stays in the prefix.)"
)
def too_short(prompt: list[int], ids: list[int], t_star: int) -> tuple[list[int], int]:
    p = len(prompt) + t_star - 1
    return [*prompt, *ids][:p], p


# --- 3: the mask ---------------------------------------------------------------------------------


def _trees() -> list[Case]:
    return [(3, [0, 0, 2, 4], [5, 6, 4, 7]), (1, [0, 1], [2, 2])]


def _columns(prompt: int, lengths: list[int]) -> Tensor:
    return torch.arange(prompt + max(lengths))[None]  # (1, width)


@exercise(_trees)
def update_mask(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    rows = []
    for start, length in zip(starts, lengths, strict=True):
        rest = max(lengths) - length
        rows.append([0] * (prompt + start) + [1] * (length - start) + [0] * rest)
    return torch.tensor(rows)


def _between(first: Tensor, end: Tensor, prompt: int, lengths: list[int]) -> Tensor:
    column = _columns(prompt, lengths)
    return ((column >= first[:, None]) & (column < end[:, None])).long()


@update_mask.mistake(
    "the prefix is in the mask: a branch is trained on its new tokens only. Its parent's tokens "
    "belong to the parent, and would be trained K + 1 times."
)
def prefix_in(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    first, end = torch.full((len(starts),), prompt), prompt + torch.tensor(lengths)
    return _between(first, end, prompt, lengths)


@update_mask.mistake(
    "padding is in the mask (METHOD §7, fault 2): rows end at prompt + length, not at the last "
    "column. Then Σm depends on the longest neighbour."
)
def padding_in(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    first = prompt + torch.tensor(starts)
    return _between(first, torch.full_like(first, prompt + max(lengths)), prompt, lengths)


@update_mask.mistake("the prompt is in the mask: nobody drew its tokens, so they have no gradient.")
def prompt_in(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    end = prompt + torch.tensor(lengths)
    return _between(torch.zeros_like(end), end, prompt, lengths)


@update_mask.mistake(
    "the first new token is left out: the token at the fork was decided again, so it is new."
)
def fork_left_out(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    first, end = prompt + torch.tensor(starts), prompt + torch.tensor(lengths)
    return _between(first + (torch.tensor(starts) > 0), end, prompt, lengths)


@update_mask.mistake("the prompt isn't counted: token t of a trajectory is in column prompt + t.")
def not_shifted(prompt: int, starts: list[int], lengths: list[int]) -> Tensor:
    return _between(torch.tensor(starts), torch.tensor(lengths), prompt, lengths)


# --- 4: a batch of prefixes ----------------------------------------------------------------------


def _prefixes() -> list[Case]:
    return [([[5, 6, 7], [8], [9, 4]], 0), ([[3, 2], [1, 2]], 99)]


Batch = tuple[Tensor, Tensor, Tensor]


@exercise(_prefixes)
def left_padded(rows: list[list[int]], pad_id: int) -> Batch:
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[pad_id] * gap + row for gap, row in zip(gaps, rows, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    positions = [[0] * gap + list(range(width - gap)) for gap in gaps]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(positions)


@left_padded.mistake(
    "padding is on the right, so rows draw their next token in different columns. Right-align: put "
    "padding on the left."
)
def on_the_right(rows: list[list[int]], pad_id: int) -> Batch:
    width = max(map(len, rows))
    ids = [row + [pad_id] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    positions = [[*range(len(row)), *[0] * (width - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(positions)


@left_padded.mistake(
    "the positions count columns, padding included: a row's first real token has position 0, "
    "wherever it is. No error warns you (page 02, section 5)."
)
def columns(rows: list[list[int]], pad_id: int) -> Batch:
    ids, mask, positions = left_padded.right(rows, pad_id)
    return ids, mask, torch.arange(ids.shape[1]).expand_as(positions)


@left_padded.mistake("the mask is 1 on padding: other rows' lengths then change this row's logits.")
def attended(rows: list[list[int]], pad_id: int) -> Batch:
    ids, mask, positions = left_padded.right(rows, pad_id)
    return ids, torch.ones_like(mask), positions


@left_padded.mistake("the mask is upside down: 1 on tokens, 0 on padding.")
def upside_down(rows: list[list[int]], pad_id: int) -> Batch:
    ids, mask, positions = left_padded.right(rows, pad_id)
    return ids, 1 - mask, positions


@left_padded.mistake("the positions start at 1; the first token has position 0.")
def from_one(rows: list[list[int]], pad_id: int) -> Batch:
    ids, mask, positions = left_padded.right(rows, pad_id)
    return ids, mask, positions + mask


@left_padded.mistake("padding has the position −1; models look positions up, so clamp at 0.")
def below_zero(rows: list[list[int]], pad_id: int) -> Batch:
    ids, mask, _ = left_padded.right(rows, pad_id)
    return ids, mask, mask.cumsum(-1) - 1


# --- 5: an equal budget --------------------------------------------------------------------------


def _budgets() -> list[Case]:
    return [
        ([50, 60, 60, 20, 5], [0, 30, 40, 0, 0], 100),  # costs 50 30 20 20 5: exactly 100 for three
        ([40, 90, 30], [0, 0, 10], 65),
        ([80], [0], 50),
        ([30, 40], [0, 20], 500),
    ]


@exercise(_budgets)
def affordable(lengths: list[int], starts: list[int], budget: int) -> int:
    costs = [length - start for length, start in zip(lengths, starts, strict=True)]
    return sum(total <= budget for total in accumulate(costs))


@affordable.mistake(
    "the prefix is paid for again: a branch costs only its own tokens, length − start."
)
def prefix_paid(lengths: list[int], starts: list[int], budget: int) -> int:
    return int(affordable.right(lengths, [0] * len(starts), budget))


@affordable.mistake("the trajectory that breaks the budget is counted: stop before it.")
def one_too_many(lengths: list[int], starts: list[int], budget: int) -> int:
    return min(int(affordable.right(lengths, starts, budget)) + 1, len(lengths))


@affordable.mistake(
    "you skip a trajectory that is too expensive and continue. Then the budget favours short ones; "
    "stop at the first that doesn't fit."
)
def skipping(lengths: list[int], starts: list[int], budget: int) -> int:
    taken = 0
    for length, start in zip(lengths, starts, strict=True):
        if length - start <= budget:
            budget -= length - start
            taken += 1
    return taken


@affordable.mistake("a budget that is met exactly is not exceeded: use ≤.")
def strictly(lengths: list[int], starts: list[int], budget: int) -> int:
    return int(affordable.right(lengths, starts, budget - 1))


@affordable.mistake("each trajectory is compared with the whole budget: add up the costs.")
def not_added(lengths: list[int], starts: list[int], budget: int) -> int:
    return sum(n - start <= budget for n, start in zip(lengths, starts, strict=True))
