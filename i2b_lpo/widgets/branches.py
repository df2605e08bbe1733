"""Branch explorer: grow the tree of a question, read its trajectories, compare two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.trace import Question, Trace
from i2b_lpo.views import markup
from i2b_lpo.views.base import View
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.lanes import forks_of, lanes_of, order_of
from i2b_lpo.views.strip import entropy_strip, token_text
from i2b_lpo.views.text import signed, visible
from i2b_lpo.views.tree import branch_tree
from i2b_lpo.widgets.base import Clickable, Shown, Widget, control, row

if TYPE_CHECKING:
    from i2b_lpo.model.policy import Policy
    from i2b_lpo.model.steering import Steering

__all__ = ["BranchExplorer", "explore"]

NONE = -1  # no second trajectory


def explore(trace: Trace) -> BranchExplorer:
    """The explorer of a saved trace; needs no torch."""
    return BranchExplorer(trace=trace)


class BranchExplorer(Widget):
    """Grow a tree, choose a trajectory in it, compare it with another.

    A click on a lane, or `first`, chooses the trajectory to show; a Shift-click, or `second`, the
    one next to it.

    Args:
        policy: grows the trees; without it a saved trace is only read.
        steering: the policy's latents, for branches with z.
        trace: the tree to start with; by default one is grown from the initial controls.
        questions: what can be chosen; by default the running example and some of the bundled task.
        max_new_tokens: length limit of a trajectory.
        seed: of the first tree.

    Attributes:
        example, question, rule, rollouts, branches, fusion, gamma, decay, seed, grow: the controls
            of a new tree; only with a policy.
        first, second: which trajectories are shown.
        tree: the figure that can be clicked.
        trace: the tree as a record.

    Raises:
        ValueError: there is neither a policy nor a trace, or no trajectory in it.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        steering: Steering | None = None,
        *,
        trace: Trace | None = None,
        questions: Sequence[Question] = (),
        max_new_tokens: int = 160,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if policy is None and trace is None:
            raise ValueError("Give the explorer a policy to grow trees with, or a saved trace.")
        self._policy, self._steering, self._limit = policy, steering, max_new_tokens
        self._view: View | None = None
        self.trace = trace
        self.tree = Clickable(self._clicked)
        self.first = control(
            ipywidgets.Dropdown,
            "Trajectory",
            "Which trajectory is shown below; or click its lane",
            width="400px",
        )
        self.second = control(
            ipywidgets.Dropdown,
            "compare with",
            "Which trajectory is shown beside it; or click its lane with Shift held down",
            width="400px",
        )
        self.parting = ipywidgets.HTML()
        self.details = tuple(ipywidgets.HTML() for _ in range(2))
        self.strips = Shown()
        self.first.observe(self._choose, "value")
        self.second.observe(self._choose, "value")
        reading = [
            self.note,
            self.tree,
            row(self.first, self.second),
            self.parting,
            row(*self.details),
            self.strips,
        ]
        for detail in self.details:
            detail.layout = {"flex": "1 1 320px", "margin": "4px 12px"}
        if policy is None:
            self.panel.children = reading
        else:
            self.panel.children = [*self._controls(policy, questions, seed), *reading]
        if trace is None:
            self.grow.click()
        else:
            self._show(trace)

    def _controls(self, policy: Policy, questions: Sequence[Question], seed: int) -> list[Any]:
        from i2b_lpo.method.entropy import FORK_RULES
        from i2b_lpo.rollout.example import QUESTION
        from i2b_lpo.tasks.loading import load_task

        asked = questions or [QUESTION, *load_task("shop").questions("validation", 8, seed=0)]
        self._known = {question.text: question for question in asked}
        self.example = control(
            ipywidgets.Dropdown, "Examples", "Questions of the bundled task", width="680px",
            options=[(visible(text, 90), text) for text in self._known],
        )  # fmt: skip
        self.question = control(
            ipywidgets.Text, "Question", "An example, or your own in the same form", width="680px",
            value=asked[0].text,
        )  # fmt: skip
        self.example.observe(lambda change: setattr(self.question, "value", change.new), "value")
        self.rule = control(
            ipywidgets.Dropdown, "Fork rule", "How a fork is chosen from the entropies",
            options=list(FORK_RULES),
        )  # fmt: skip
        self.rollouts = control(
            ipywidgets.IntSlider, "M, roots", "First rollouts of the question",
            min=1, max=4, value=2,
        )  # fmt: skip
        self.branches = control(
            ipywidgets.IntSlider, "K, branches", "Branches of each fork", min=1, max=6, value=3
        )
        steering = self._steering
        names = ["none", *([] if steering is None else [steering.fusion_name])]
        self.fusion = control(
            ipywidgets.Dropdown, "Fusion", "How z enters; none re-samples without z",
            options=names, value=names[-1],
        )  # fmt: skip
        strength = None if steering is None else steering.strength
        self.gamma = control(
            ipywidgets.FloatSlider, "γ_0", "Strength of z at the fork",
            min=0, max=1, step=0.05, value=1.0 if strength is None else strength.gamma,
        )  # fmt: skip
        self.decay = control(
            ipywidgets.FloatLogSlider, "s_0 (tokens)", "How slowly z fades after the fork",
            base=2, min=-2, max=5, step=0.5,
            value=8.0 if strength is None or strength.decay is None else strength.decay,
        )  # fmt: skip
        self.seed = control(
            ipywidgets.BoundedIntText,
            "Seed",
            "The same seed draws the same tree",
            max=10**6,
            value=seed,
        )
        self.grow = control(
            ipywidgets.Button, "Grow the tree", "Sample the roots, fork them, sample the branches",
            button_style="primary",
        )  # fmt: skip
        self.fusion.observe(lambda _: self._able(), "value")
        self.grow.on_click(lambda _: self._grow(policy))
        self._able()
        return [
            self.example,
            self.question,
            row(self.rule, self.rollouts, self.branches),
            row(self.fusion, self.gamma, self.decay),
            row(self.seed, self.grow),
        ]

    def _able(self) -> None:
        self.gamma.disabled = self.decay.disabled = self.fusion.value == "none"

    def _grow(self, policy: Policy) -> None:
        import torch

        from i2b_lpo.config import BranchConfig, IBConfig
        from i2b_lpo.method.psa import Strength
        from i2b_lpo.model.sampling import Sampling
        from i2b_lpo.rollout.branching import grow_trees
        from i2b_lpo.rollout.scoring import filter_traces, score_traces
        from i2b_lpo.tasks.loading import own_question

        with self.working(self.grow, "Growing the tree …"):
            text = self.question.value.strip()
            question = self._known.get(text) or own_question(text)
            steering = self._steering
            if steering is not None:
                strength = Strength(self.gamma.value, self.decay.value)
                steering = replace(steering, strength=strength)
            config = BranchConfig(
                branches=self.branches.value, rule=self.rule.value, fusion=self.fusion.value
            )
            trees = grow_trees(
                policy,
                [question],
                Sampling(self._limit),
                config,
                rollouts=self.rollouts.value,
                steering=steering,
                generator=torch.Generator().manual_seed(self.seed.value),
            )
            self.note.say("Scoring the trajectories …")
            (tree,) = filter_traces(score_traces(policy, trees, IBConfig()), IBConfig())
            self._show(tree)

    def _show(self, trace: Trace) -> None:
        view = branch_tree(trace)
        self.trace, self._view = trace, view
        self.tree.show(view)
        order = order_of(trace, forks_of(trace))
        options = [(_name(trace, i), i) for i in order]
        best = max(
            (i for i in order if trace.rollouts[i].branch is not None),
            key=lambda i: trace.rollouts[i].reward or 0.0,
            default=NONE,
        )
        for chooser, choices, value in (
            (self.first, options, order[0]),
            (self.second, [("none", NONE), *options], best),
        ):
            chooser.unobserve(self._choose, "value")
            chooser.options = choices
            chooser.value = value
            chooser.observe(self._choose, "value")
        self._choose()

    def _clicked(self, x: float, y: float, shift: bool) -> None:
        assert self.trace is not None  # there is a figure to click
        lanes = lanes_of(self.trace, order_of(self.trace, forks_of(self.trace)))
        nearest = min(lanes, key=lambda i: abs(lanes[i] - y))
        (self.second if shift else self.first).value = nearest

    def _choose(self, change: Any = None) -> None:
        trace, one, other = self.trace, self.first.value, self.second.value
        assert trace is not None  # there is something to choose
        shown = [one] if other in (NONE, one) else [one, other]
        common = _common(trace, *shown) if len(shown) == 2 else 0
        for at, detail in enumerate(self.details):
            detail.value = _detail(trace, shown[at], common) if at < len(shown) else ""
            detail.layout.display = None if at < len(shown) else "none"
        told = _parting(trace, *shown) if len(shown) == 2 else ""
        self.parting.value = f"<p>{markup.text(told)}</p>" if told else ""
        self.strips.show(*(entropy_strip(trace, i) for i in shown if len(trace.rollouts[i])))

    @property
    def view(self) -> View | None:
        """The tree."""
        return self._view

    def describe(self) -> str:
        """The controls, the tree, and what is known about the chosen trajectories."""
        trace = self.trace
        if trace is None or self._view is None:
            return f"Branch explorer: no tree yet. {self.note.text}".strip()
        one, other = self.first.value, self.second.value
        shown = [one] if other in (NONE, one) else [one, other]
        told = [f"Trajectory {i}: {'; '.join(_facts(trace, i))}." for i in shown]
        if len(shown) == 2:
            told.append(_parting(trace, *shown))
        head = "Branch explorer of a saved trace. "
        if self._policy is not None:
            head = (
                f"Branch explorer: fork rule {self.rule.value}, M = {self.rollouts.value}, "
                f"K = {self.branches.value}, fusion {self.fusion.value}, seed {self.seed.value}. "
            )
        return visible(head + self._view.describe() + " " + " ".join(told))


def _name(trace: Trace, i: int) -> str:
    rollout = trace.rollouts[i]
    start = trace.start(i)
    born = "root" if rollout.branch is None else f"from {rollout.branch.parent} at token {start}"
    word = token_text(rollout.pieces[start]) if start < len(rollout) else "nothing"
    return f"{i} · {reward_sign(rollout)[0]} · {born} · {word}"


def _facts(trace: Trace, i: int) -> list[str]:
    """What is known about a trajectory besides its text, as plain phrases."""
    rollout, branch, score = trace.rollouts[i], trace.rollouts[i].branch, trace.rollouts[i].score
    cut = "" if rollout.finished else ", cut off"
    facts = [f"{len(rollout)} tokens{cut}"]
    if rollout.reward is not None:
        facts.append(f"reward {rollout.reward:g} ({rollout.reason or 'no reason'})")
    if score is not None:
        facts.append(
            f"S_IB {signed(score.value, 2)} = answer {signed(score.answer, 2)} "
            f"− cost {signed(score.cost, 2)}"
        )
    if branch is not None:
        facts.append(f"branch of {branch.parent} from token {trace.start(i)}")
        facts.append(f"fusion {branch.fusion}")
        facts.append("kept by the filter" if rollout.kept else "pruned by the filter")
        if branch.z:
            decay = "constant" if branch.decay is None else f"s_0 = {branch.decay:g}"
            facts.append(f"γ_0 = {branch.gamma:g}, {decay}")
    return facts


def _detail(trace: Trace, i: int, common: int) -> str:
    """A trajectory as HTML: its facts and its text, with the common part pale."""
    pieces = trace.rollouts[i].pieces
    before = "".join(pieces[:common])
    after = "".join(pieces[common:])
    facts = markup.text(" · ".join(_facts(trace, i)))
    return (
        f"<b>trajectory {i}</b><p>{facts}</p>"
        f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">'
        f'<span style="color:#595959">{markup.text(before)}</span>'
        f"{'<b>│</b>' if common else ''}{markup.text(after)}</pre>"
    )


def _common(trace: Trace, one: int, other: int) -> int:
    """Number of tokens that both begin with."""
    pairs = zip(trace.rollouts[one].ids, trace.rollouts[other].ids, strict=False)
    return next((t for t, (a, b) in enumerate(pairs) if a != b), _shorter(trace, one, other))


def _shorter(trace: Trace, one: int, other: int) -> int:
    return min(len(trace.rollouts[one]), len(trace.rollouts[other]))


def _parting(trace: Trace, one: int, other: int) -> str:
    """Where two trajectories part, in words."""
    t = _common(trace, one, other)
    if t == len(trace.rollouts[one]) == len(trace.rollouts[other]):
        return f"{one} and {other} are the same, token by token."
    words = [
        repr(token_text(rollout.pieces[t])) if t < len(rollout) else "nothing more"
        for rollout in (trace.rollouts[one], trace.rollouts[other])
    ]
    entropies = trace.rollouts[one].entropies
    h = f", H = {entropies[t]:.2f} nat there" if t < len(entropies) else ""
    return (
        f"{one} and {other} share {t} tokens (left of │) and part at token {t}{h}: {one} says "
        f"{words[0]}, {other} says {words[1]}."
    )
