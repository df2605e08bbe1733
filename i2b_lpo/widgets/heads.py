"""Head explorer: what z does to every attention head, token by token after the fork."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.views.attention import head_detail, head_grid
from i2b_lpo.views.base import View
from i2b_lpo.views.strip import token_text
from i2b_lpo.views.text import number, visible
from i2b_lpo.widgets.base import Clickable, Shown, Widget, control, row

if TYPE_CHECKING:
    from torch import Tensor

    from i2b_lpo.method.psa import Injection
    from i2b_lpo.model.policy import Policy
    from i2b_lpo.model.steering import Steering

__all__ = ["HeadExplorer"]


class HeadExplorer(Widget):
    """The grid of heads at one row after the fork, and one head over the tokens.

    A click on a cell of the grid, or `layer` and `head`, chooses the head.

    Args:
        policy: whose heads; its weights are read with "eager" attention, then it is restored.
        steering: the policy's latents, with a fusion that has a slot.
        latents: name → z, (d_z,); by default three draws from the prior at the fork.
        question: the question's text.
        prefix: what comes before the fork.
        continuation: what follows it.

    Attributes:
        latent, gamma, since, layer, head: the controls.

    Raises:
        ValueError: the fusion has no slot in the attention, or there is no latent.
    """

    def __init__(
        self,
        policy: Policy,
        steering: Steering,
        *,
        latents: Mapping[str, Tensor] | None = None,
        question: str | None = None,
        prefix: str | None = None,
        continuation: str | None = None,
    ) -> None:
        import torch

        from i2b_lpo.rollout import example

        super().__init__()
        if steering.fusion_name != "psa":
            raise ValueError(
                f"The fusion {steering.fusion_name!r} has no slot in the attention; give latents "
                "of the fusion 'psa'."
            )
        prefix = example.PREFIX if prefix is None else prefix
        if continuation is None:
            continuation = example.FOUR[-1].removeprefix(example.PREFIX)
        encode = policy.tokenizer.encode
        before = policy.prompt_ids(question or example.QUESTION.text)
        before = [*before, *encode(prefix, add_special_tokens=False)]
        self._ids = [*before, *encode(continuation, add_special_tokens=False)]
        self._p, self._policy, self._steering = len(before), policy, steering
        if latents is None:
            drawn = steering.draw(policy, [before], 3, generator=torch.Generator().manual_seed(0))[
                0
            ]
            latents = {f"draw {i} of P(z|c)": z for i, z in enumerate(drawn)}
        if not latents:
            raise ValueError("Give the head explorer at least one latent.")
        self._latents = dict(latents)
        self._make_controls()
        self.grid, self.detail = Clickable(self._clicked), Shown()
        self._without = self._attend(None)
        for part in (self.latent, self.gamma):
            part.observe(self._compute, "value")
        self.since.observe(self._draw, "value")
        for part in (self.layer, self.head):
            part.observe(self._draw_head, "value")
        self.panel.children = [
            row(self.latent, self.gamma, self.since),
            self.note,
            self.grid,
            row(self.layer, self.head),
            self.detail,
        ]
        self._compute()
        slot = self._with[:, :, 0, 0]
        at = divmod(int((slot - 0.5).abs().argmin()), slot.shape[1])
        self.layer.value, self.head.value = at

    def _make_controls(self) -> None:
        layers = self._policy.model.config.num_hidden_layers
        heads = self._policy.model.config.num_attention_heads
        self.latent = control(
            ipywidgets.Dropdown, "z", "Which latent acts",
            options=[(visible(name, 40), name) for name in self._latents],
        )  # fmt: skip
        self.gamma = control(
            ipywidgets.FloatSlider, "γ_0", "Strength of z at the fork",
            min=0, max=1, step=0.05, value=self._steering.strength.gamma, continuous_update=False,
        )  # fmt: skip
        self.since = control(
            ipywidgets.IntSlider, "s, tokens since", "Which row: 0 decides the token at the fork",
            min=0, max=len(self._ids) - self._p, continuous_update=False,
        )  # fmt: skip
        self.layer = control(
            ipywidgets.IntSlider, "Layer", "Which layer; or click the grid", max=layers - 1
        )
        self.head = control(
            ipywidgets.IntSlider, "Head", "Which head of it; or click the grid", max=heads - 1
        )

    def _attend(self, injection: Injection | None) -> Tensor:
        """Weights of the rows from p−1 on, (layers, heads, rows, 1 + T); column 0 is the slot."""
        import torch

        from i2b_lpo.method.psa import tokens_since_fork
        from i2b_lpo.model.inject import injected, slot_mask

        model = self._policy.model
        ids = torch.tensor([self._ids], device=self._policy.device)
        place = torch.arange(ids.shape[1], device=ids.device)[None]
        mask, log_gamma = torch.ones_like(ids), torch.zeros(ids.shape, device=ids.device)
        if injection is not None:
            since = tokens_since_fork(ids.shape[1], self._p)[None].to(ids.device)
            log_gamma = injection.strength.log_gamma(since, model.dtype)
            mask = slot_mask(mask, log_gamma, model.dtype)
        with torch.no_grad(), _eager(model), injected(model, injection, log_gamma):
            out = model(
                ids, attention_mask=mask, position_ids=place, use_cache=False,
                output_attentions=True,
            )  # fmt: skip
        after = (tokens_since_fork(ids.shape[1], self._p) >= 0).nonzero()[:, 0]
        rows = torch.stack(out.attentions)[:, 0][:, :, after].double()
        return torch.nn.functional.pad(rows, (1, 0)) if injection is None else rows

    def _compute(self, change: Any = None) -> None:
        strength = replace(self._steering.strength, gamma=self.gamma.value)
        z = self._latents[self.latent.value]
        steering = replace(self._steering, strength=strength)
        self._with = self._attend(steering.injection(z[None]))
        self._draw()

    def _draw(self, change: Any = None) -> None:
        at = self.since.value
        self._view = head_grid(
            self._with[:, :, at, 0].tolist(),
            self._without[:, :, at, 0].tolist(),
            title=f"z = {self.latent.value}, s = {at}",
        )
        self.grid.show(self._view)
        self._draw_head()

    def _draw_head(self, change: Any = None) -> None:
        at, layer, head = self.since.value, self.layer.value, self.head.value
        end = self._p + at  # tokens that the row sees
        self._detail = head_detail(
            self._with[layer, head, at, : end + 1].tolist(),
            self._without[layer, head, at, 1 : end + 1].tolist(),
            self._policy.pieces(self._ids[:end]),
            layer,
            head,
        )
        self.detail.show(self._detail)

    def _clicked(self, x: float, y: float, shift: bool) -> None:
        self.layer.value, self.head.value = round(y), round(x)

    @property
    def view(self) -> View | None:
        """The grid."""
        return self._view

    def describe(self) -> str:
        """The settings, the grid and the chosen head."""
        end = self._p + self.since.value
        (last,) = self._policy.pieces(self._ids[end - 1 : end])
        return visible(
            f"Head explorer: γ_0 = {number(self.gamma.value, 2)}, the row of token "
            f"'{token_text(last)}'. {self._view.describe()} {self._detail.describe()}"
        )


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Let the model return its attention weights; afterwards it attends as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
