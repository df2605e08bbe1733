"""Group designer: rewards set by hand, and what GRPO makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.config import GRPOConfig, RolloutConfig, RunConfig
from i2b_lpo.views import markup
from i2b_lpo.views.base import View
from i2b_lpo.views.group import group_advantages, reward_sign
from i2b_lpo.views.text import number, signed, visible
from i2b_lpo.widgets.base import Shown, Widget, control, row, table

if TYPE_CHECKING:
    from torch import Tensor

    from i2b_lpo.trace import Trace

__all__ = ["GroupDesigner"]


class GroupDesigner(Widget):
    r"""A group whose rewards are ticked, its advantages, and how hard each token is pushed.

    The push on a token is ∂J/∂log π at ρ = 1, with this group as the whole batch; its weight is the
    same at A = 1: :math:`m_{it} / (D n_i)` (METHOD §6).

    Args:
        trace: the group to start with.
        max_new_tokens: L, length limit of a rollout.

    Attributes:
        rewards: a checkbox for each rollout, ticked where it is right.
        variant: an entry of `grpo.VARIANTS`.
        trace: the group as it is now.
        advantages, weights, pushes: A of each rollout, weight of and push on each of its tokens.
        loss: −J.

    Raises:
        ValueError: the group has fewer than two rollouts.
    """

    def __init__(self, trace: Trace, *, max_new_tokens: int = 160) -> None:
        from i2b_lpo.method.grpo import VARIANTS

        super().__init__()
        self.trace, self._limit = trace, max_new_tokens
        self.variant = control(
            ipywidgets.Dropdown, "Variant", "Advantages, penalty and denominator of the loss",
            options=list(VARIANTS),
        )  # fmt: skip
        self.rewards = [
            control(
                ipywidgets.Checkbox, f"{i} right", f"Whether rollout {i} earns 1 or 0",
                width="88px", value=rollout.correct, indent=False,
            )
            for i, rollout in enumerate(self.trace.rollouts)
        ]  # fmt: skip
        self.told, self.bars, self.table = ipywidgets.HTML(), Shown(), ipywidgets.HTML()
        for part in (self.variant, *self.rewards):
            part.observe(self._draw, "value")
        self.panel.children = [self.variant, row(*self.rewards), self.told, self.bars, self.table]
        self._draw()

    def _draw(self, change: Any = None) -> None:
        import torch

        from i2b_lpo.method.grpo import VARIANTS, informative_groups
        from i2b_lpo.training.step import advantages_of, reward_table

        pairs = zip(self.trace.rollouts, self.rewards, strict=True)
        rollouts = tuple(replace(rollout, reward=float(box.value)) for rollout, box in pairs)
        self.trace = replace(self.trace, rollouts=rollouts)
        config = RunConfig(
            rollout=RolloutConfig(max_new_tokens=self._limit),
            grpo=GRPOConfig(variant=self.variant.value),
        )
        rewards = reward_table([self.trace])  # (1, G)
        drops = VARIANTS[self.variant.value].drop_uniform
        self._dropped = drops and not informative_groups(rewards).item()
        (found,) = 0 * rewards if self._dropped else advantages_of([self.trace], rewards, config)
        self.advantages: list[float] = found.tolist()
        self.loss, self.pushes = self._learn(found)
        _, self.weights = self._learn(torch.ones_like(found))
        self._view = group_advantages(self.trace, self.advantages)
        self.bars.show(self._view)
        self.told.value = f'<p role="status">{markup.text(self._words())}</p>'
        self.table.value = table(self._rows())

    def _learn(self, advantages: Tensor) -> tuple[float, list[float]]:
        """The loss at ρ = 1, and the push on each token of a rollout."""
        import torch

        from i2b_lpo.method.grpo import VARIANTS
        from i2b_lpo.method.loss import loss_normaliser, policy_loss
        from i2b_lpo.model.padding import mark

        if self._dropped:
            return 0.0, [0.0] * len(advantages)
        reduction = VARIANTS[self.variant.value].reduction
        spans = [(self.trace.start(i), len(r)) for i, r in enumerate(self.trace.rollouts)]
        mask = mark(spans, max(end for _, end in spans))  # (G, T)
        longest = self._limit if reduction == "constant" else None
        logp = torch.zeros(mask.shape, requires_grad=True)
        loss = policy_loss(
            logp, logp, advantages, mask, reduction=reduction,
            normaliser=loss_normaliser(mask, reduction, max_length=longest),
        ).loss  # fmt: skip
        (slope,) = torch.autograd.grad(loss, logp)
        return loss.item(), (-slope.sum(1) / mask.sum(1).clamp_min(1)).tolist()

    def _words(self) -> str:
        right, count = sum(box.value for box in self.rewards), len(self.rewards)
        said = f"{right} of {count} right"
        if self._dropped:
            return f"{said}: {self.variant.value} leaves the group out, and it teaches nothing."
        if not any(self.advantages):
            return f"{said}: nothing to compare; every advantage is 0, the group teaches nothing."
        up = [a for a in self.advantages if a > 0]
        down = [a for a in self.advantages if a < 0]
        lengths = [len(r) - self.trace.start(i) for i, r in enumerate(self.trace.rollouts)]
        short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
        ratio = self.weights[short] / self.weights[long]
        times = f"{number(ratio, 2)} times as much" if abs(ratio - 1) > 0.005 else "as much"
        why = ", for nothing but their length" if right in (0, count) else ""
        return (
            f"{said}: {len(up)} praised (A up to {signed(max(up), 2)}), {len(down)} blamed "
            f"(down to {signed(min(down), 2)}){why}. A token of rollout {short}, the shortest, "
            f"weighs {times} as one of {long}, the longest. The loss at ρ = 1 is "
            f"{signed(self.loss, 3)}."
        )

    def _rows(self) -> list[tuple[str, ...]]:
        columns = zip(self.trace.rollouts, self.advantages, self.weights, self.pushes, strict=True)
        return [
            ("rollout", "reward", "A", "its tokens", "weight of one", "push on one"),
            *(
                (
                    str(i),
                    reward_sign(rollout)[0],
                    signed(a, 2),
                    str(len(rollout) - self.trace.start(i)),
                    number(weight, 5),
                    signed(push, 5),
                )
                for i, (rollout, a, weight, push) in enumerate(columns)
            ),
        ]

    @property
    def view(self) -> View | None:
        """The advantages."""
        return self._view

    def describe(self) -> str:
        """The variant, what the group teaches, advantages, weights and pushes."""
        numbers = ", ".join(f"{row[0]} {row[4]} and {row[5]}" for row in self._rows()[1:])
        return visible(
            f"Group designer, {self.variant.value}: {self._words()} {self._view.describe()} Weight "
            f"of a token and push on it: {numbers}."
        )
