"""Score and group designer: the library's own scores, advantages and losses, by other means."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets
import pytest
import torch
from test_widgets import HOSTILE, data, everything, saved_trace, trajectory
from tiny import tiny_policy

from i2b_lpo.config import BranchConfig, IBConfig
from i2b_lpo.method.grpo import VARIANTS
from i2b_lpo.method.ib import ESTIMATORS, Evidence
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.branching import grow_trees
from i2b_lpo.rollout.scoring import filter_traces, gather_evidence, score_traces
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace
from i2b_lpo.widgets import GroupDesigner, ScoreDesigner, Widget

pytestmark = pytest.mark.slow

START = IBConfig(beta_ib=0.7, cost_weight=1.25, clip_nats=3.0, keep=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(seed=1)


@pytest.fixture(scope="module")
def trees(policy: Policy) -> list[Trace]:
    """Four trees of two roots and two branch sets of three; what has an even digit sum is right."""
    return grow_trees(
        policy, load_task("shop").questions("validation", 4, seed=0), Sampling(24),
        BranchConfig(branches=3, fusion="none"), rollouts=2,
        generator=torch.Generator().manual_seed(0),
        reward=lambda question, text: float(sum(map(ord, text)) % 2),
    )  # fmt: skip


def stored(policy: Policy, trees: Sequence[Trace], settings: IBConfig) -> list[Trace]:
    """The trees as a run leaves them: scored with a pass of their own, and filtered."""
    return filter_traces(score_traces(policy, trees, settings), settings)


def designer(policy: Policy, trees: Sequence[Trace], settings: IBConfig) -> ScoreDesigner:
    saved = stored(policy, trees, settings)
    return ScoreDesigner(saved, gather_evidence(policy, saved, settings.estimator), settings)


def written(gains: Sequence[float], rewards: Sequence[float], first: int = 0) -> Any:
    """A root and its branches with answers of known worth, and their evidence at cost 0."""
    root = trajectory(("a", "b"), first, score=Score(0.0, 0.0, 0.0))
    branches = [
        replace(
            trajectory(("a", "b"), first, score=Score(gain, gain, 0.0)),
            branch=Branch(0, p=2, fusion="none", z=(), gamma=0.0, decay=None),
            reward=reward,
        )
        for gain, reward in zip(gains, rewards, strict=True)
    ]
    trace = replace(saved_trace(), prompt_ids=(1, 2), rollouts=(root, *branches))
    evidence = [
        Evidence(ids=(1,), logprobs=(0.0,), entropies=(0.0,), answer=math.log(0.1 + gain),
                 prior=math.log(0.1))
        for gain in (0.0, *gains)
    ]  # fmt: skip
    return trace, evidence


# --- score designer -----------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ["top_n", "within_outcome", "none"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_settings_of_the_trees_give_their_own_scores_and_decisions(
    policy: Policy, trees: list[Trace], estimator: str, filter: str
) -> None:
    settings = replace(START, estimator=estimator, filter=filter)
    saved = stored(policy, trees, settings)
    widget = ScoreDesigner(saved, gather_evidence(policy, saved, estimator), settings)
    assert widget.traces == saved
    assert widget.settings == settings
    assert any(not rollout.kept for t in saved for rollout in t.rollouts) == (filter != "none")


CHANGES = [
    {"beta_ib": 2.0}, {"cost_weight": 0.0}, {"clip_nats": 0.5}, {"keep": 2},
    {"filter": "within_outcome"}, {"filter": "none"},
    {"estimator": "answer_log_ratio", "cost_weight": 5.0},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_other_settings_give_what_a_run_with_them_gives(
    policy: Policy, trees: list[Trace], changes: dict[str, Any]
) -> None:
    widget = designer(policy, trees, START)
    before, said = data(widget), widget.describe()
    for name, value in changes.items():
        getattr(widget, name).value = value
    assert widget.traces == stored(policy, trees, replace(START, **changes))
    assert data(widget) != before and widget.describe() != said
    for name in changes:
        getattr(widget, name).value = getattr(START, name)
    assert data(widget) == before and widget.describe() == said


def test_a_score_is_the_formula_of_the_method(policy: Policy, trees: list[Trace]) -> None:
    widget = designer(policy, trees, START)
    widget.beta_ib.value, widget.cost_weight.value, widget.clip_nats.value = 2.0, 0.25, 1.5
    (row, *_), (trace, *_) = gather_evidence(policy, trees, "answer_information"), widget.traces
    right = [len(r) for r in trace.rollouts if r.reward] or [len(r) for r in trace.rollouts]
    for rollout, own in zip(trace.rollouts, row, strict=True):
        grams = [rollout.ids[t : t + 4] for t in range(len(rollout) - 3)]
        excess = (
            sum(min(-logp, 1.5) for logp in rollout.logprobs_t1) / statistics.median(right)
            + (1 - len(set(grams)) / len(grams) if grams else 0)
            + max(0, len(rollout) / statistics.median(right) - 1)
        )
        assert own.answer is not None and own.prior is not None and rollout.score is not None
        assert rollout.score.answer == pytest.approx(
            2 * (math.exp(own.answer) - math.exp(own.prior))
        )
        assert rollout.score.cost == pytest.approx(0.25 * min(excess, 4))


def test_the_words_count_the_branches_against_all_and_against_chance() -> None:
    # In each of 60 trees one of four branches is right and has the best score.
    pairs = [written((0.1, 0.5, 0.2, 0.3), (0, 1, 0, 0), first) for first in range(60)]
    settings = IBConfig(cost_weight=0.0, keep=1)
    widget = ScoreDesigner([t for t, _ in pairs], [e for _, e in pairs], settings)
    said = r"top_n keeps 60 of 240 branches. Correct are 100.0 % of them, 25.0 % of all branches"
    assert said in widget.describe()
    found = re.search(r"and ([\d.]+) % of those it keeps by shuffled", widget.describe())
    assert found and 20 < float(found[1]) < 30  # 1200 drawn at 25 %: 1.25 % is one deviation
    assert widget.comparison.value.count("<tr>") == 4
    widget.filter.value = "none"
    assert "240 of 240 branches. Correct are 25.0 % of them, 25.0 % of all" in widget.describe()
    assert "and 25.0 % of those it keeps by shuffled" in widget.describe()
    # The reward sets how many right ones stay: a shuffled score keeps as many.
    widget.filter.value, widget.keep.value = "within_outcome", 2
    assert "180 of 240 branches. Correct are 33.3 % of them" in widget.describe()
    assert "and 33.3 % of those it keeps by shuffled" in widget.describe()


def test_the_scatter_has_the_branches_and_no_root(policy: Policy, trees: list[Trace]) -> None:
    widget = designer(policy, trees, START)
    assert widget.view is not None
    points = [
        (x, y, symbol)
        for drawn in widget.view.figure.data
        if drawn.hovertext is not None
        for x, y, symbol in zip(drawn.x, drawn.y, drawn.marker.symbol, strict=True)
    ]
    branches = [r for t in widget.traces for r in t.rollouts if r.branch and r.score]
    assert sorted((x, y, "open" in symbol) for x, y, symbol in points) == sorted(
        (r.score.cost, r.score.answer, not r.kept) for r in branches if r.score
    )
    assert len(points) == 24 and "8 roots left out." in widget.describe()


def test_the_tree_that_is_chosen_is_drawn(policy: Policy, trees: list[Trace]) -> None:
    widget = designer(policy, trees, START)
    scatter, first = widget.scatter.outputs, widget.branches.outputs
    widget.tree.value = 2
    assert widget.branches.outputs != first and widget.scatter.outputs == scatter
    assert trees[2].question.text[:20] in json.dumps(widget.branches.outputs[0]["data"])
    assert "Tree 2. Branch tree" in widget.describe()
    widget.beta_ib.value = 3.0
    score = widget.traces[2].rollouts[-1].score
    assert score is not None and f"S_IB {score.value:+.2f}".replace("-", "−") in widget.describe()


def test_a_control_that_does_nothing_is_disabled(policy: Policy, trees: list[Trace]) -> None:
    def disabled(estimator: str) -> list[bool]:
        widget = designer(policy, trees, replace(START, estimator=estimator))
        return [p.disabled for p in (widget.beta_ib, widget.cost_weight, widget.clip_nats)]

    assert disabled("answer_log_ratio") == [False, False, False]
    assert disabled("answer_conditioned") == [False, True, True]
    assert disabled("advantage_entropy") == [True, True, True]
    widget = designer(policy, trees, START)
    assert list(widget.estimator.options) == ["answer_information", "answer_log_ratio"]
    assert not widget.keep.disabled
    widget.filter.value = "none"
    assert widget.keep.disabled


def test_what_does_not_belong_to_the_trees_is_refused(policy: Policy, trees: list[Trace]) -> None:
    saved = stored(policy, trees, START)
    evidence = gather_evidence(policy, saved, START.estimator)
    for traces, given, settings in (
        (saved, evidence, replace(START, cost_weight=1.0)),
        (saved, evidence[::-1], START),
        (saved, evidence[:-1], START),
        (trees, evidence, START),  # not scored
    ):
        with pytest.raises(ValueError, match="don't give the scores that these trees have"):
            ScoreDesigner(traces, given, settings)
    with pytest.raises(ValueError, match="choose one of answer_information"):
        ScoreDesigner(saved, evidence, replace(START, estimator="mine"))
    bare = [replace(t, rollouts=t.rollouts[:2]) for t in saved]
    with pytest.raises(ValueError, match="grow branches first"):
        ScoreDesigner(bare, [row[:2] for row in evidence], START)


# --- group designer -----------------------------------------------------------------------------


def group(samples: int = 8, longest: int = 160) -> Trace:
    """Rollouts whose lengths rise in equal steps, every second one right."""
    rollouts = []
    for i in range(samples):
        n = longest * (i + 1) // samples
        zeros = (0.0,) * n
        rollouts.append(Rollout((0,) * n, ("·",) * n, zeros, zeros, zeros, "", True, (i + 1) % 2))
    return Trace(Question("made up", "", ""), (0,), tuple(rollouts))


def by_hand(rewards: Sequence[float], scale: str) -> list[float]:
    mean = statistics.fmean(rewards)
    std = 1 if scale == "none" else statistics.stdev(rewards) + 1e-4
    return [(reward - mean) / std for reward in rewards]


@pytest.mark.parametrize("variant", VARIANTS)
def test_advantages_weights_and_loss_are_those_of_the_variant(variant: str) -> None:
    widget = GroupDesigner(group(longest=80), max_new_tokens=80)  # 10, 20, … 80 tokens
    widget.variant.value = variant
    for box, right in zip(widget.rewards, (1, 1, 0, 0, 0, 0, 1, 0), strict=True):
        box.value = bool(right)
    lengths, settings = range(10, 90, 10), VARIANTS[variant]
    rewards = [1.0, 1, 0, 0, 0, 0, 1, 0]
    if settings.overlong_cache:  # from 64 tokens on, −1 at 80
        rewards = [r - max(0, (n - 64) / 16) for r, n in zip(rewards, lengths, strict=True)]
    weights = {
        "token": [1 / 360] * 8, "sequence": [1 / (8 * n) for n in lengths],
        "constant": [1 / (8 * 80)] * 8,
    }[settings.reduction]  # fmt: skip
    advantages = by_hand(rewards, settings.scale)
    pushes = [a * w for a, w in zip(advantages, weights, strict=True)]
    assert widget.advantages == pytest.approx(advantages, abs=1e-5)
    assert widget.weights == pytest.approx(weights, rel=1e-4)
    assert widget.pushes == pytest.approx(pushes, rel=1e-4)
    loss = -sum(p * n for p, n in zip(pushes, lengths, strict=True))
    assert widget.loss == pytest.approx(loss, abs=1e-5)
    assert f"+{max(advantages):.2f}" in widget.describe()
    assert "3 of 8 right" in widget.describe()
    times = "8.00 times as much" if settings.reduction == "sequence" else "as much"
    assert f"rollout 0, the shortest, weighs {times} as one of 7, the longest" in widget.describe()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_uniform_group_teaches_nothing_but_length(variant: str, right: bool) -> None:
    widget = GroupDesigner(group(4))
    widget.variant.value = variant
    for box in widget.rewards:
        box.value = right
    said = widget.describe()
    if variant == "overlong_penalty":
        assert "blamed" in said and "for nothing but their length" in said
        assert widget.advantages[0] > 0 > widget.advantages[-1]
        return
    assert widget.advantages == widget.pushes == [0.0] * 4 and widget.loss == 0
    assert f"{4 * right} of 4 right" in said and "teaches nothing" in said
    dropped = VARIANTS[variant].drop_uniform
    assert (f"{variant} leaves the group out" in said) == dropped
    assert (widget.weights == [0.0] * 4) == dropped


def test_each_tick_changes_the_bars_and_back() -> None:
    widget = GroupDesigner(group())
    before, said = data(widget), widget.describe()
    for at, box in enumerate(widget.rewards):
        box.value = not box.value
        assert data(widget) != before and widget.describe() != said
        assert widget.trace.rollouts[at].reward == float(box.value)
        box.value = not box.value
        assert data(widget) == before and widget.describe() == said


def test_a_trace_is_where_it_begins_and_a_prefix_counts_once() -> None:
    trace = saved_trace()
    trace = replace(
        trace, rollouts=tuple(replace(r, reward=float(i > 0)) for i, r in enumerate(trace.rollouts))
    )
    widget = GroupDesigner(trace)
    assert widget.trace.rollouts == trace.rollouts and trace.rollouts[0].reward == 0
    assert [box.value for box in widget.rewards] == [False, True, True]
    assert widget.advantages == pytest.approx(by_hand([0, 1, 1], "std"), abs=1e-6)
    # Branches share 1 of their 3 tokens with the root: 3 + 2 + 2 are new.
    assert widget.weights == pytest.approx([1 / 7] * 3)
    widget.variant.value = "sequence_mean"
    assert widget.weights == pytest.approx([1 / 9, 1 / 6, 1 / 6])
    assert trace.rollouts[0].reward == 0  # the given one isn't touched
    with pytest.raises(ValueError, match="compares the answers of one group"):
        GroupDesigner(group(1))


# --- both ---------------------------------------------------------------------------------------


@pytest.fixture
def widgets(policy: Policy, trees: list[Trace]) -> list[Widget]:
    return [designer(policy, trees, START), GroupDesigner(group())]


def test_controls_have_labels_and_the_cell_has_words(widgets: list[Widget]) -> None:
    for widget in widgets:
        controls = [
            part for part in everything(widget.panel)
            if isinstance(part, ipywidgets.ValueWidget) and not isinstance(part, ipywidgets.HTML)
        ]  # fmt: skip
        assert len(controls) >= 7
        assert all(part.description and part.tooltip for part in controls)
        bundle = widget._repr_mimebundle_()
        assert bundle["text/plain"] == widget.describe() and "\n" not in widget.describe()
        assert bundle["application/vnd.jupyter.widget-view+json"]
        assert bundle["application/vnd.plotly.v1+json"]
        assert 'role="status"' in "".join(
            part.value for part in everything(widget.panel) if isinstance(part, ipywidgets.HTML)
        )


def test_hostile_text_stays_text() -> None:
    trace, evidence = written((0.1, 0.5), (0, 1))
    text = "".join(HOSTILE)
    root, *branches = trace.rollouts
    named = replace(
        trace,
        question=replace(trace.question, text=text, answer=text),
        rollouts=(replace(root, text=text, pieces=(text, "b")), *branches),
    )
    for widget in (
        ScoreDesigner([named], [evidence], IBConfig(cost_weight=0.0)), GroupDesigner(named),
    ):  # fmt: skip
        shown = [out for part in everything(widget.panel) for out in getattr(part, "outputs", ())]
        drawn = json.dumps([out["data"]["application/vnd.plotly.v1+json"] for out in shown])
        assert "<img" not in drawn and "<script" not in drawn and "&lt;img" in drawn
        for part in everything(widget.panel):
            said = str(getattr(part, "value", "")) + str(getattr(part, "options", ""))
            assert "\u202e" not in said + widget.describe() and "\0" not in said
            if isinstance(part, ipywidgets.HTML):
                assert "<img" not in part.value and "<script" not in part.value
