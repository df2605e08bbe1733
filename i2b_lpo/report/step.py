"""The section of the tour's page on one step: a question as GRPO's group and as I²B-LPO's tree."""

from __future__ import annotations

from collections.abc import Sequence

from i2b_lpo.report.parts import asked, drawing, paragraph
from i2b_lpo.trace import Trace
from i2b_lpo.views import branch_tree, group_advantages, ib_scatter, markup
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.text import signed

__all__ = ["one_step"]


def one_step(groups: Sequence[Trace], trees: Sequence[Trace]) -> list[str]:
    """The section's parts as HTML; a part whose records are missing is left out.

    Args:
        groups: what GRPO made in a step, each with its ``meta["advantages"]``.
        trees: what I²B-LPO made of the same questions in the same step.
    """
    tree = next(iter(sorted(trees, key=lambda tree: _telling(tree, groups))), None)
    group = next((g for g in groups if tree is None or g.question == tree.question), None)
    shown = tree or group
    if shown is None:
        return [paragraph("No traces of a training step were kept.")]
    parts = [
        paragraph(
            "In the first step both methods start from the same weights and get the same "
            "questions: what differs here is the method, and the luck of the draw. Shown is the "
            "first question where right and wrong stand side by side, if there is one."
        ),
        asked(shown.question),
    ]
    if group is not None:
        parts += ["<h3>GRPO: a group</h3>\n", _advantages(group)]
    if tree is not None:
        parts += ["<h3>I²B-LPO: a tree</h3>\n", *_tree(tree)]
    if any(rollout.score is not None for t in trees for rollout in t.rollouts):
        parts += [
            "<h3>S_IB over the whole step</h3>\n",
            drawing(
                ib_scatter(trees),
                "scatter",
                "Every solution of the step by the two parts of its score. Up: its reasoning makes "
                "the verified answer likelier. Right: it spends more, in length, repetition and "
                "surprise. An open mark was pruned. The filter compares only branches of the same "
                "fork, so a pruned branch may score higher than a kept one of another fork.",
            ),
        ]
    return parts


def _telling(tree: Trace, groups: Sequence[Trace]) -> tuple[bool, bool]:
    """Sorts first a tree with right and wrong branches at one fork and a mixed group beside it."""
    forks = [{tree.rollouts[i].reward for i in members} for members in tree.branch_sets()]
    group = next((g for g in groups if g.question == tree.question), None)
    rewards = set() if group is None else {rollout.reward for rollout in group.rollouts}
    return all(len(found) < 2 for found in forks), len(rewards) < 2


def _advantages(group: Trace) -> str:
    return drawing(
        group_advantages(group, group.meta["advantages"]),
        "group",
        "Right solutions get a positive advantage, wrong ones a negative one, the rarer kind the "
        "larger. All tokens of a solution share it: the update can't tell a good step from a bad "
        "one in the same solution.",
    )


def _tree(tree: Trace) -> list[str]:
    parts = [
        drawing(
            branch_tree(tree),
            "tree",
            "Each lane is a solution, a token a box, bright where H is high. At a diamond the "
            "decision was taken again, each time with another z; what a branch shares with its "
            "parent isn't drawn, nor trained, twice. Point at a lane to read it.",
        )
    ]
    if tree.branch_sets():
        parts += [
            "<h3>How S_IB ranks the branches</h3>\n",
            paragraph(
                "Each fork's branches, best first. S_IB is the answer's part less the cost. The "
                "advantage A comes from right and wrong alone; the score only decides which "
                "branches take part in the update."
            ),
            markup.table(_ranking(tree)),
        ]
    return parts


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
