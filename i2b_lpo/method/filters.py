"""The filter: which branches of each set take part in the update (METHOD §5).

Advantages are computed on all G trajectories, then scores, then the filter [D]; `renormalise`
recomputes them over the kept ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

import torch
from torch import Tensor

from i2b_lpo.method.grpo import Scale, advantages
from i2b_lpo.trace import is_correct

__all__ = [
    "FILTERS",
    "Filter",
    "keep_all",
    "kept_share",
    "renormalise",
    "top_n",
    "within_outcome",
]

Filter = Callable[[Sequence[float], Sequence[float], Sequence[Sequence[int]], int], list[bool]]
"""A function of scores, rewards, branch sets and N like `top_n`."""


def top_n(
    scores: Sequence[float],
    rewards: Sequence[float],
    branch_sets: Sequence[Sequence[int]],
    keep: int,
) -> list[bool]:
    """Keep ``TopN_{j∈B_i} S_IB`` of each branch set [P]; roots are exempt [D].

    Of equal scores the one with the lower index stays. A set of N or fewer is kept whole. Keeping
    high S_IB keeps mostly correct branches: see `within_outcome`.

    Args:
        scores: S_IB of the G trajectories (a root's is not read).
        rewards: R of the G trajectories; this filter reads none.
        branch_sets: the branch sets B_i as lists of indices (`Trace.branch_sets`).
        keep: N, at least 1.

    Returns:
        One flag for each of the G trajectories; False where pruned.

    Raises:
        ValueError: `keep` is below 1, lengths differ, a branch's score isn't finite, or an index
            is out of range or in two sets.

    Example:
        >>> top_n([9.0, 0.1, 0.3, 0.2], [1, 0, 1, 1], [[1, 2, 3]], keep=2)
        [True, False, True, True]
    """
    kept = _all_kept(scores, rewards, branch_sets, keep)
    for members in branch_sets:
        for loser in _ranked(members, scores)[keep:]:
            kept[loser] = False
    return kept


def within_outcome(
    scores: Sequence[float],
    rewards: Sequence[float],
    branch_sets: Sequence[Sequence[int]],
    keep: int,
) -> list[bool]:
    """Keep the top ⌈n·N/K⌉ of the n correct branches of a set, and likewise of the wrong ones [D].

    So a set with both outcomes keeps both, and negative advantages survive; it may keep more than
    N of K, hence `kept_share`. `is_correct` says which are correct. Arguments, ties and errors as
    in `top_n`.

    Example:
        >>> within_outcome([9.0, 0.1, 0.3, 0.2], [1, 0, 1, 1], [[1, 2, 3]], keep=2)
        [True, True, True, True]
        >>> within_outcome([9.0, 0.1, 0.3, 0.2], [1, 0, 1, 1], [[1, 2, 3]], keep=1)
        [True, True, True, False]
    """
    kept = _all_kept(scores, rewards, branch_sets, keep)
    for members in branch_sets:
        for outcome in (True, False):
            same = [i for i in members if is_correct(rewards[i]) == outcome]
            quota = -(-len(same) * keep // len(members))  # ⌈n·N/K⌉ in whole numbers
            for loser in _ranked(same, scores)[quota:]:
                kept[loser] = False
    return kept


def keep_all(
    scores: Sequence[float],
    rewards: Sequence[float],
    branch_sets: Sequence[Sequence[int]],
    keep: int,
) -> list[bool]:
    """Keep every trajectory: scores without a filter. Arguments and errors as in `top_n`.

    Example:
        >>> keep_all([0.2, 0.1], [1, 0], [[0, 1]], keep=1)
        [True, True]
    """
    return _all_kept(scores, rewards, branch_sets, keep)


FILTERS: Mapping[str, Filter] = MappingProxyType(
    {"top_n": top_n, "within_outcome": within_outcome, "none": keep_all}
)
"""The filters of METHOD §5 by name; the first is the default."""


def kept_share(kept: Sequence[bool], branch_sets: Sequence[Sequence[int]]) -> float:
    """Share of the branches that the filter kept; 1 if there are none. Roots don't count.

    Example:
        >>> kept_share([True, True, False], [[1, 2]])
        0.5
    """
    branches = [i for members in branch_sets for i in members]
    return fmean(bool(kept[i]) for i in branches) if branches else 1.0


def _ranked(members: Sequence[int], scores: Sequence[float]) -> list[int]:
    return sorted(members, key=lambda i: (-scores[i], i))


def _all_kept(
    scores: Sequence[float],
    rewards: Sequence[float],
    branch_sets: Sequence[Sequence[int]],
    keep: int,
) -> list[bool]:
    if keep < 1:
        raise ValueError(f"keep is {keep}; keep at least 1 branch of each set.")
    if len(scores) != len(rewards):
        raise ValueError(
            f"The filter needs a score and a reward for each trajectory, got {len(scores)} and "
            f"{len(rewards)}."
        )
    branches = [i for members in branch_sets for i in members]
    if len(set(branches)) < len(branches) or any(not 0 <= i < len(scores) for i in branches):
        raise ValueError(f"Each branch must be one of {len(scores)} trajectories and in one set.")
    if bad := [i for i in branches if not math.isfinite(scores[i])]:
        raise ValueError(f"Every branch needs a finite score; look at the trajectories {bad}.")
    return [True] * len(scores)


def renormalise(rewards: Tensor, kept: Tensor, *, scale: Scale = "std") -> Tensor:
    r"""Advantages recomputed over only the kept trajectories of each group.

    `grpo.advantages` as if the pruned ones had never existed [D] (METHOD §5). The filter keeps
    mostly correct branches, so without this the kept advantages are mostly positive.
    Pruned trajectories get 0, and so does a group with fewer than two kept.

    Args:
        rewards: R, shape ``(Q, G)`` or ``(G,)``.
        kept: bool, same shape.
        scale: as in `grpo.advantages`.

    Returns:
        Shape of `rewards`, float32 (float64 for float64 rewards).

    Raises:
        ValueError: the shapes differ, `kept` isn't bool, or a kept reward isn't finite or is bool.

    Example:
        >>> renormalise(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([True, True, False, True]))
        tensor([ 0.5773, -1.1545,  0.0000,  0.5773])
    """
    if rewards.shape != kept.shape or kept.dtype != torch.bool or rewards.dim() not in (1, 2):
        raise ValueError(
            "renormalise needs rewards and a bool mask of one shape, (Q, G) or (G,), got "
            f"{tuple(rewards.shape)} and {tuple(kept.shape)} of {kept.dtype}."
        )
    if rewards.dtype == torch.bool:
        raise ValueError("rewards must be numbers, not bool: give torch.where(right, 1.0, 0.0).")
    if not bool(rewards[kept].isfinite().all()):
        raise ValueError("every kept reward must be finite; verify the trajectories first.")
    again = rewards.new_zeros(
        rewards.shape, dtype=torch.promote_types(rewards.dtype, torch.float32)
    )
    size = rewards.shape[-1]
    for row, flags, out in zip(
        rewards.view(-1, size), kept.view(-1, size), again.view(-1, size), strict=True
    ):
        if flags.sum() > 1:
            out[flags] = advantages(row[flags], scale=scale)
    return again
