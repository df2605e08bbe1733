"""The filter of branch sets by brute force, and advantages over what it kept."""

from __future__ import annotations

import itertools
import math
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from i2b_lpo.method.filters import FILTERS, kept_share, renormalise
from i2b_lpo.method.grpo import Scale, advantages

# --- filters ------------------------------------------------------------------------------------


@st.composite
def groups(draw: Any) -> tuple[list[float], list[float], list[list[int]], int]:
    """Roots and branch sets in any interleaving, few distinct scores so that ties are common."""
    sizes = draw(st.lists(st.integers(1, 5), max_size=4))
    roots = draw(st.integers(0, 3))
    total = roots + sum(sizes)
    places = draw(st.permutations(range(total)))
    sets, at = [], roots
    for size in sizes:
        sets.append(sorted(places[at : at + size]))
        at += size
    scores = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=total, max_size=total))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=total, max_size=total))
    return scores, rewards, sets, draw(st.integers(1, 4))


def best_subset(members: list[int], scores: list[float], count: int) -> tuple[int, ...]:
    """By brute force: the highest sum; among equals the earliest indices."""
    subsets = itertools.combinations(sorted(members), min(count, len(members)))
    return min(subsets, key=lambda s: (sorted(-scores[i] for i in s), s))


@given(groups())
def test_top_n_keeps_the_best_of_each_set_and_every_root(
    group: tuple[list[float], list[float], list[list[int]], int],
) -> None:
    scores, rewards, sets, keep = group
    kept = FILTERS["top_n"](scores, rewards, sets, keep)
    expected = set(range(len(scores))) - {i for members in sets for i in members}
    for members in sets:
        expected |= set(best_subset(members, scores, keep))
        assert sum(kept[i] for i in members) == min(keep, len(members))
    assert {i for i, flag in enumerate(kept) if flag} == expected


@given(groups())
def test_within_outcome_keeps_its_quota_of_right_and_of_wrong(
    group: tuple[list[float], list[float], list[list[int]], int],
) -> None:
    scores, rewards, sets, keep = group
    kept = FILTERS["within_outcome"](scores, rewards, sets, keep)
    expected = set(range(len(scores))) - {i for members in sets for i in members}
    for members in sets:
        for reward in (0.0, 1.0):
            same = [i for i in members if rewards[i] == reward]
            quota = math.ceil(len(same) * keep / len(members))
            if same:
                expected |= set(best_subset(same, scores, quota))
                assert any(kept[i] for i in same)  # no outcome vanishes from a set
    assert {i for i, flag in enumerate(kept) if flag} == expected
    branches = [i for members in sets for i in members]
    share = sum(kept[i] for i in branches) / len(branches) if branches else 1.0
    assert kept_share(kept, sets) == pytest.approx(share)


def test_ties_go_to_the_lower_index() -> None:
    for name in ("top_n", "within_outcome"):
        kept = FILTERS[name]([0.0] * 4, [1.0] * 4, [[1, 2, 3]], 2)
        assert kept == [True, True, True, False]


@pytest.mark.parametrize("partial", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_part_of_a_reward_is_not_right(partial: float) -> None:
    rewards, scores = [0.0, 1.0, partial, 1.5, partial], [0.0, 0.1, 0.2, 0.3, 0.4]
    # ⌈2·1/4⌉ = 1 of the two right ones, 1 and 3, and 1 of the others
    kept = FILTERS["within_outcome"](scores, rewards, [[1, 2, 3, 4]], 1)
    assert kept == [True, False, False, True, True]


def test_a_roots_score_is_not_read() -> None:
    assert FILTERS["top_n"]([math.nan, 0.2, 0.1], [0, 0, 0], [[1, 2]], 1) == [True, True, False]


@pytest.mark.parametrize("name", FILTERS)
def test_filters_refuse_what_makes_no_sense(name: str) -> None:
    keep = FILTERS[name]
    with pytest.raises(ValueError, match="at least 1"):
        keep([1.0, 2.0], [0, 1], [[0, 1]], 0)
    with pytest.raises(ValueError, match="a score and a reward"):
        keep([1.0, 2.0], [0], [[0]], 1)
    with pytest.raises(ValueError, match=r"finite score.*\[1\]"):
        keep([1.0, math.nan], [0, 1], [[0, 1]], 1)
    for sets in ([[0, 2]], [[0, 1], [1]], [[-1]]):
        with pytest.raises(ValueError, match="in one set"):
            keep([1.0, 2.0], [0, 1], sets, 1)


def test_without_a_filter_all_stay() -> None:
    assert FILTERS["none"]([3.0, 1.0, 2.0], [0, 1, 0], [[0, 1, 2]], 1) == [True] * 3


# --- advantages again ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["std", "none"])
def test_renormalise_is_the_group_formula_over_the_kept_ones(scale: Scale) -> None:
    rng = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 2, (40, 8), generator=rng).double()
    rewards[:10] += torch.rand(10, 8, generator=rng, dtype=torch.float64)
    kept = torch.rand(40, 8, generator=rng) < 0.6
    kept[0], kept[1] = False, torch.arange(8) == 3
    found = renormalise(rewards, kept, scale=scale)
    for row in range(40):
        expected = torch.zeros(8, dtype=torch.float64)
        own = rewards[row][kept[row]].tolist()
        if len(set(own)) >= 2:
            divisor = stdev(own) + 1e-4 if scale == "std" else 1.0
            expected[kept[row]] = torch.tensor(
                [(r - fmean(own)) / divisor for r in own], dtype=torch.float64
            )
        torch.testing.assert_close(found[row], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(renormalise(rewards[row], kept[row], scale=scale), found[row])


def test_renormalise_with_all_kept_changes_nothing() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1]])
    kept = torch.ones_like(rewards, dtype=torch.bool)
    torch.testing.assert_close(renormalise(rewards, kept), advantages(rewards))


def test_equal_kept_rewards_have_no_advantage_at_all() -> None:
    for count in range(4, 40):
        rewards = torch.full((count,), 0.1)
        rewards[0] = 1.0
        kept = torch.ones(count, dtype=torch.bool)
        kept[0] = False
        assert not renormalise(rewards, kept).any()


def test_a_pruned_reward_is_never_read() -> None:
    kept = torch.tensor([True, True, False])
    clean = renormalise(torch.tensor([1.0, 0.0, 0.0]), kept)
    for odd in (math.nan, math.inf, 1e30):
        assert torch.equal(renormalise(torch.tensor([1.0, 0.0, odd]), kept), clean)


def test_renormalise_refuses_wrong_masks_and_rewards() -> None:
    rewards = torch.tensor([1.0, 0.0])
    for kept in (torch.ones(3, dtype=torch.bool), torch.ones(2)):
        with pytest.raises(ValueError, match="bool mask"):
            renormalise(rewards, kept)
    with pytest.raises(ValueError, match="finite"):
        renormalise(torch.tensor([1.0, math.nan]), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="numbers, not bool"):
        renormalise(torch.tensor([True, False]), torch.ones(2, dtype=torch.bool))
