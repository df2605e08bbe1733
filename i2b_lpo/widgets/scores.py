"""Score designer: S_IB with other weights, other filters, and which branches they keep."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import ipywidgets

from i2b_lpo.config import IBConfig
from i2b_lpo.method.ib import ESTIMATORS, Evidence
from i2b_lpo.trace import Score, Trace
from i2b_lpo.views import markup
from i2b_lpo.views.base import View
from i2b_lpo.views.ib import ib_scatter
from i2b_lpo.views.text import number, percent, visible
from i2b_lpo.views.tree import branch_tree
from i2b_lpo.widgets.base import Shown, Widget, control, row, table

__all__ = ["ScoreDesigner"]

CONTROLS = ("estimator", "beta_ib", "cost_weight", "clip_nats", "filter", "keep")
SHUFFLES = 20  # of the control


class ScoreDesigner(Widget):
    """Scored trees with your own settings: their scores, and the branches that are kept.

    The evidence was measured once; no control needs another pass of the model. Next to each filter
    you see what it keeps when S_IB is shuffled among the branches of each tree.

    Args:
        traces: scored trees.
        evidence: for each tree, for each of its trajectories (`scoring.gather_evidence`).
        settings: those that the trees were scored with; the controls start there.

    Attributes:
        estimator, beta_ib, cost_weight, clip_nats, filter, keep: the controls, as `IBConfig` names
            them; only estimators that read this evidence can be chosen.
        tree: which tree is drawn.
        traces: the trees as currently scored and filtered.

    Raises:
        ValueError: no tree has a branch, there is no such estimator or filter, or evidence and
            settings don't give the scores that the trees have.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        evidence: Sequence[Sequence[Evidence]],
        settings: IBConfig | None = None,
    ) -> None:
        from i2b_lpo.method.checks import check
        from i2b_lpo.method.filters import FILTERS

        super().__init__()
        self._start, self._evidence = settings or IBConfig(), evidence
        self.traces = list(traces)
        start, sizes = self._start, [len(s) for trace in traces for s in trace.branch_sets()]
        check(start)
        if not sizes:
            raise ValueError("No tree has a branch to keep or prune; grow branches first.")
        if not _fit(self.traces, evidence, start):
            raise ValueError(
                "Evidence and settings don't give the scores that these trees have: score them "
                "with these settings, and gather the evidence with the same policy."
            )
        reads = _reads(start.estimator)
        self.estimator = control(
            ipywidgets.Dropdown, "Estimator", "How S_IB is computed from the evidence",
            options=[e for e in ESTIMATORS if _reads(e) == reads], value=start.estimator,
        )  # fmt: skip
        self.filter = control(
            ipywidgets.Dropdown, "Filter", "Which branches of each set are kept",
            options=list(FILTERS), value=start.filter,
        )  # fmt: skip
        self.keep = control(
            ipywidgets.IntSlider, "N, kept", "Branches kept of each branch set",
            min=1, max=max(*sizes, start.keep), value=start.keep,
        )  # fmt: skip
        self.beta_ib = _slider("β_IB", "Worth of information about the answer", start.beta_ib, 3)
        self.cost_weight = _slider("λ", "Price of the description excess", start.cost_weight, 6)
        self.clip_nats = _slider("κ (nat)", "The most that a token costs", start.clip_nats, 12)
        answer, _, advantage = reads  # without a cost, no λ and κ; A·H has no weight at all
        self.beta_ib.disabled = advantage
        self.cost_weight.disabled = self.clip_nats.disabled = not answer
        self.tree = control(
            ipywidgets.Dropdown, "Tree", "Whose branches are drawn below", width="680px",
            options=[(f"{i} · {visible(t.question.text, 90)}", i) for i, t in enumerate(traces)],
        )  # fmt: skip
        self.comparison, self.scatter, self.branches = ipywidgets.HTML(), Shown(), Shown()
        for name in CONTROLS:
            getattr(self, name).observe(self._score, "value")
        self.tree.observe(self._draw_tree, "value")
        self.panel.children = [
            row(self.estimator, self.filter, self.keep),
            row(self.beta_ib, self.cost_weight, self.clip_nats),
            *(self.comparison, self.scatter, self.tree, self.branches),
        ]
        self._score()

    @property
    def settings(self) -> IBConfig:
        """What the controls say."""
        return replace(self._start, **{name: getattr(self, name).value for name in CONTROLS})

    def _score(self, change: Any = None) -> None:
        from i2b_lpo.method.filters import FILTERS
        from i2b_lpo.rollout.scoring import filter_traces

        now, rng = self.settings, random.Random(0)
        self.keep.disabled = now.filter == "none"
        scored = _scored(self.traces, self._evidence, now)
        self.traces = filter_traces(scored, now)
        shuffles = [_shuffled(scored, rng) for _ in range(SHUFFLES)]
        count, _, every = _kept(scored, replace(now, filter="none"))
        rows = [("filter", "branches kept", "correct among them", "by shuffled S_IB")]
        for name in FILTERS:
            kept, right, share = _kept(scored, replace(now, filter=name))
            chance = fmean(_kept(other, replace(now, filter=name))[2] for other in shuffles)
            rows.append((name, str(kept), f"{right} ({percent(share)})", percent(chance)))
            if name == now.filter:
                self._told = (
                    f"{name} keeps {kept} of {count} branches. Correct are {percent(share)} of "
                    f"them, {percent(every)} of all branches, and {percent(chance)} of those it "
                    f"keeps by shuffled S_IB (mean of {SHUFFLES} shuffles)."
                )
        said = f'<p role="status">{markup.text(self._told)}</p>'
        self.comparison.value = said + table(rows)
        self._view = ib_scatter(self.traces, roots=False)
        self.scatter.show(self._view)
        self._draw_tree()

    def _draw_tree(self, change: Any = None) -> None:
        self._drawn = branch_tree(self.traces[self.tree.value])
        self.branches.show(self._drawn)

    @property
    def view(self) -> View | None:
        """The scores by their parts."""
        return self._view

    def describe(self) -> str:
        """The settings, what the filter keeps, the scores and the tree."""
        now = self.settings
        return visible(
            f"Score designer: {now.estimator}, β_IB = {number(now.beta_ib, 2)}, λ = "
            f"{number(now.cost_weight, 2)}, κ = {number(now.clip_nats, 1)} nat, N = {now.keep}: "
            f"{self._told} {self._view.describe()} Tree {self.tree.value}. {self._drawn.describe()}"
        )


def _slider(label: str, tip: str, value: float, high: float) -> Any:
    low = min(0.5, value) if label.startswith("κ") else 0.0  # κ has to be above 0
    return control(
        ipywidgets.FloatSlider, label, tip, value=value, min=low, max=max(high, value),
        step=high / 24, continuous_update=False,
    )  # fmt: skip


def _reads(estimator: str) -> tuple[bool, bool, bool]:
    """Which evidence an estimator needs."""
    needs = ESTIMATORS[estimator]
    return needs.answer, needs.conditioned, needs.advantage


def _fit(
    traces: Sequence[Trace], evidence: Sequence[Sequence[Evidence]], settings: IBConfig
) -> bool:
    """Whether the scores come from this evidence and these settings."""
    if [len(part) for part in evidence] != [len(trace.rollouts) for trace in traces]:
        return False
    return all(
        old.score and new.score and abs(old.score.value - new.score.value) < 1e-3
        for before, after in zip(traces, _scored(traces, evidence, settings), strict=True)
        for old, new in zip(before.rollouts, after.rollouts, strict=True)
    )


def _scored(
    traces: Sequence[Trace], evidence: Sequence[Sequence[Evidence]], settings: IBConfig
) -> list[Trace]:
    score = ESTIMATORS[settings.estimator].score
    pairs = zip(traces, evidence, strict=True)
    return [_with_scores(trace, [score(own, settings) for own in part]) for trace, part in pairs]


def _shuffled(traces: Sequence[Trace], rng: random.Random) -> list[Trace]:
    """The scores of each tree's branches, shuffled."""
    dealt = []
    for trace in traces:
        scores = [rollout.score for rollout in trace.rollouts]
        branches = [i for members in trace.branch_sets() for i in members]
        for i, j in zip(branches, rng.sample(branches, len(branches)), strict=True):
            scores[i] = trace.rollouts[j].score
        dealt.append(_with_scores(trace, scores))
    return dealt


def _with_scores(trace: Trace, scores: Sequence[Score | None]) -> Trace:
    pairs = zip(trace.rollouts, scores, strict=True)
    return replace(trace, rollouts=tuple(replace(rollout, score=s) for rollout, s in pairs))


def _kept(traces: Sequence[Trace], settings: IBConfig) -> tuple[int, int, float]:
    """How many branches a filter keeps, how many of them are correct, and their share."""
    from i2b_lpo.rollout.scoring import filter_traces

    rollouts = [r for trace in filter_traces(traces, settings) for r in trace.rollouts]
    right = [r.correct for r in rollouts if r.kept and r.branch]
    return len(right), sum(right), fmean(right)
