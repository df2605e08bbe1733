"""Where the trajectories of a tree are drawn: their order, and which forks lead to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from i2b_lpo.trace import Trace

__all__ = ["Fork", "Layout", "forks_of", "lanes_of", "layout_of", "nesting", "order_of"]

ACROSS = 640  # pixels of the token axis in a notebook, about
ROOM = 0.4  # lanes are 1 apart, and this much more before a root


@dataclass(frozen=True)
class Fork:
    """A fork: its parent, its token t, the entropy H_t there, and its branch set B_i."""

    parent: int
    t: int
    entropy: float | None
    members: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where everything of a tree stands.

    Attributes:
        forks: in the order of their branch sets.
        order: the trajectories from top to bottom.
        lane: trajectory → its height, from 0 down, in this order.
        longest: tokens of the longest trajectory, at least 1.
        pixel: tokens in one pixel.
        stems: (parent, t) of each fork → where its line goes down, in tokens.
    """

    forks: list[Fork]
    order: list[int]
    lane: dict[int, float]
    longest: int
    pixel: float
    stems: dict[tuple[int, int], float]


def layout_of(trace: Trace) -> Layout:
    """The layout of a tree of at least one trajectory."""
    forks = forks_of(trace)
    order = order_of(trace, forks)
    longest = max(1, *map(len, trace.rollouts))
    pixel = longest / ACROSS
    stems = {(f.parent, f.t): f.t - 9 * pixel * nesting(forks, f) for f in forks}
    return Layout(forks, order, lanes_of(trace, order), longest, pixel, stems)


def forks_of(trace: Trace) -> list[Fork]:
    """The forks of a tree, in the order of their branch sets."""
    found = []
    for members in trace.branch_sets():
        branch = trace.rollouts[members[0]].branch
        assert branch is not None  # only branches are in branch sets
        parent, t = trace.rollouts[branch.parent], trace.start(members[0])
        entropy = parent.entropies[t] if t < len(parent) else None
        found.append(Fork(branch.parent, t, entropy, tuple(members)))
    return found


def order_of(trace: Trace, forks: Sequence[Fork]) -> list[int]:
    """The trajectories from top to bottom; later forks are closer, so that no lines cross."""
    below: dict[int, list[Fork]] = defaultdict(list)
    for fork in sorted(forks, key=lambda f: -f.t):
        below[fork.parent].append(fork)
    order = []
    waiting = [i for i, rollout in enumerate(trace.rollouts) if rollout.branch is None][::-1]
    while waiting:
        order.append(waiting.pop())
        children = [i for fork in below[order[-1]] for i in fork.members]
        waiting += children[::-1]
    return order


def lanes_of(trace: Trace, order: Sequence[int]) -> dict[int, float]:
    """The height of each lane, from 0 down, with a gap before each root."""
    lane: dict[int, float] = {}
    y = 0.0
    for i in order:
        y += ROOM * (trace.rollouts[i].branch is None and y > 0)
        lane[i] = y
        y += 1
    return lane


def nesting(forks: Sequence[Fork], fork: Fork) -> int:
    """How many rounds of forks at the same token follow: how far left its line is."""
    inner = [f for f in forks if f.parent in fork.members and f.t == fork.t]
    return 1 + max(nesting(forks, f) for f in inner) if inner else 0
