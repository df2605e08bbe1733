"""The section of the tour's page on one step: a question as GRPO's group and as I²B-LPO's tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from i2b_lpo.trace import Trace
from i2b_lpo.views import branch_tree, group_advantages, ib_scatter
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.text import signed

__all__ = ["one_step"]


def one_step(groups: Sequence[Trace], trees: Sequence[Trace]) -> dict[str, Any]:
    """What ``step.html`` shows; a part whose records are missing is None.

    Args:
        groups: what GRPO made in a step, each with its ``meta["advantages"]``.
        trees: what I²B-LPO made of the same questions in the same step.
    """
    tree = next(iter(sorted(trees, key=lambda tree: _telling(tree, groups))), None)
    group = next((g for g in groups if tree is None or g.question == tree.question), None)
    shown = tree or group
    scored = any(rollout.score is not None for t in trees for rollout in t.rollouts)
    return {
        "question": shown and shown.question,
        "group": group and group_advantages(group, group.meta["advantages"]),
        "tree": tree and branch_tree(tree),
        "ranking": _ranking(tree) if tree and tree.branch_sets() else None,
        "scatter": ib_scatter(trees) if scored else None,
    }


def _telling(tree: Trace, groups: Sequence[Trace]) -> tuple[bool, bool]:
    """Sorts first a tree with right and wrong branches at one fork and a mixed group beside it."""
    forks = [{tree.rollouts[i].reward for i in members} for members in tree.branch_sets()]
    group = next((g for g in groups if g.question == tree.question), None)
    rewards = set() if group is None else {rollout.reward for rollout in group.rollouts}
    return all(len(found) < 2 for found in forks), len(rewards) < 2


def _ranking(tree: Trace) -> list[tuple[str, ...]]:
    """The branches of each fork by S_IB."""
    advantages = tree.meta["advantages"]
    rows: list[tuple[str, ...]] = [
        ("fork of", "branch", "S_IB", "answer", "cost", "reward", "filter", "A")
    ]
    for members in tree.branch_sets():
        scored = [(i, tree.rollouts[i], tree.rollouts[i].score) for i in members]
        for i, rollout, score in sorted(scored, key=lambda m: -(m[2].value if m[2] else 0.0)):
            parts = (score.value, score.answer, score.cost) if score else ()
            shown = [signed(part, 2) for part in parts] or ["–"] * 3
            parent = "–" if rollout.branch is None else str(rollout.branch.parent)
            fate = "kept" if rollout.kept else "pruned"
            sign = reward_sign(rollout)[0]
            rows.append((parent, str(i), *shown, sign, fate, signed(advantages[i], 2)))
    return rows
