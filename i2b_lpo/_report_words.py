"""Sentences of the tour's page: what the methods do, and what was found.

They claim a direction only where an interval does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2b_lpo.metrics import Interval
from i2b_lpo.views.text import fitting_digits, interval, label, signed

__all__ = ["Differences", "beside", "difference", "method_steps", "reading", "verdict"]

Differences = Mapping[str, Interval]
"""Metric → paired difference with its interval."""

VARIETY = ("entropy", "distinct strategies")


def difference(found: Interval) -> str:
    """A difference with its interval and signs.

    Example:
        >>> print(difference(Interval(0.25, -0.125, 0.625, n=8)))
        +0.250 [−0.125, +0.625]
    """
    ends = (found.mean, found.low, found.high)
    mean, low, high = (signed(end, fitting_digits(*ends)) for end in ends)
    return f"{mean} [{low}, {high}]"


def reading(found: Interval) -> str:
    """What a paired difference, second policy less first, says of the second.

    Example:
        >>> reading(Interval(0.25, -0.125, 0.625, n=8)), reading(Interval(2.0, 1.0, 3.0, n=8))
        ('unclear', 'higher')
    """
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "unclear"


def beside(
    evaluations: Mapping[str, Mapping[str, Any]], between: Differences, metrics: Sequence[str]
) -> list[tuple[str, ...]]:
    """Metrics of all policies as a table, with the paired difference of the last two.

    Args:
        evaluations: policy → `Evaluation.to_json()`.
        between: last policy − the one before; without it its columns are left out.
        metrics: the rows; one that a policy wasn't measured by is left out.
    """
    *_, first, second = evaluations
    more = (f"{second} − {first}", f"{second} is") if between else ()
    rows: list[tuple[str, ...]] = [("metric", *evaluations, *more)]
    for metric in metrics:
        if not all(metric in found["metrics"] for found in evaluations.values()):
            continue
        cells = [interval(found["metrics"][metric]) for found in evaluations.values()]
        if between:
            cells += [difference(between[metric]), reading(between[metric])]
        rows.append((label(metric), *cells))
    return rows


def verdict(grpo: Differences, ours: Differences, between: Differences) -> str:
    """What happened to accuracy and variety: GRPO and I²B-LPO against the base, then each other.

    Args:
        grpo: GRPO − base.
        ours: I²B-LPO − base.
        between: I²B-LPO − GRPO.
    """
    if not (grpo and ours and between):
        return (
            "Compare the intervals below: without shared questions there is no paired difference."
        )
    said = [f"Beside the base, {_alone('GRPO', grpo)}; {_alone('I²B-LPO', ours)}."]
    if grpo["pass@1"].low > 0 and _variety(grpo)[1]:
        said.append(
            "GRPO's policy has become surer of itself; what it no longer tries, it can no longer "
            "learn from. This narrowing, the collapse of entropy, is what I²B-LPO sets out to "
            "prevent."
        )
    more, less = _variety(between)
    variety = (
        "more of one kind of variety and less of another"
        if more and less
        else "more variety"
        if more
        else "less variety"
        if less
        else "no clear difference in variety"
    )
    said.append(f"Beside GRPO, I²B-LPO {_accuracy(between['pass@1'])}, with {variety}.")
    return " ".join(said)


def _variety(found: Differences) -> tuple[bool, bool]:
    """Whether a measure of variety rose, and whether one fell."""
    known = [found[metric] for metric in VARIETY if metric in found]
    return any(cell.low > 0 for cell in known), any(cell.high < 0 for cell in known)


def _accuracy(found: Interval) -> str:
    if found.low > 0:
        return "answers better"
    return "answers worse" if found.high < 0 else "shows no clear difference in accuracy"


def _alone(name: str, found: Differences) -> str:
    lost = "and lost variety" if _variety(found)[1] else "with no clear loss of variety"
    return f"{name} {_accuracy(found['pass@1'])} {lost}"


def method_steps(grpo: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """One training step in order: the name of each part, who takes it, and what it does.

    Args:
        grpo: `RunConfig.to_json()` of the GRPO run.
        ours: the same of the I²B-LPO run.
    """
    many, roots = (c.get("rollout", {}).get("samples", "several") for c in (grpo, ours))
    branches = ours.get("branch", {}).get("samples", "several")
    kept = ours.get("ib", {}).get("keep", "some")
    alpha = ours.get("grpo", {}).get("alpha", "α")
    temperature = grpo.get("rollout", {}).get("temperature", 1.0)
    both, only = "both", "I²B-LPO only"
    return [
        ("Question", both, f"A step takes {grpo.get('questions', 'some')} questions that have a "
         "verified answer."),
        ("First rollouts", both, f"GRPO writes {many} solutions to each, I²B-LPO only {roots}, "
         f"token by token, drawn at temperature {temperature}. A token's entropy H, in nats, says "
         "how open the choice was: 0 if only one token was possible, log 2 ≈ 0.69 for two equal "
         "ones."),
        ("Fork", only, "Each of these first solutions is cut where the policy hesitated: before "
         "one of the tokens with the highest H. The decision taken there is taken again."),
        ("Latents and branches", only, f"At each fork {branches} latents z are drawn, short lists "
         "of numbers. A latent enters every attention layer (pseudo self-attention, PSA), fully at "
         "the fork and ever less after it, and pushes its branch one way or another. First "
         "solutions, the roots, and their branches make a tree."),
        ("Verify", both, "The number in the box is compared with the verified answer: reward 1 or "
         "0. Nothing else is rewarded."),
        ("Group advantages", both, "The solutions of one question form a group. A solution's "
         "advantage A is its reward minus the group's mean, divided by the group's standard "
         "deviation. If all are right, or all wrong, there is nothing to learn."),
        ("S_IB and filter", only, "A score says what a solution tells about the verified answer, "
         f"less what it costs in length, repetition and surprise. Of each fork's {branches} "
         f"branches the {kept} with the highest score stay; the others take no part in the "
         "update."),
        ("Update", both, "Tokens of solutions with A > 0 become more likely, those of solutions "
         "with A < 0 less. I²B-LPO trains only a branch's own tokens, and adds a small term (α = "
         f"{alpha}) that wants more entropy where A > 0 and less where A < 0."),
    ]  # fmt: skip
