"""γ designer: how strongly z acts, token by token, and what share of a head it gets."""

from __future__ import annotations

from typing import Any

import ipywidgets

from i2b_lpo.views.base import View
from i2b_lpo.views.gamma import gamma_curves
from i2b_lpo.views.text import number, signed
from i2b_lpo.widgets.base import Shown, Widget, control, row

__all__ = ["GammaDesigner"]


class GammaDesigner(Widget):
    r"""Sliders for γ(s) = γ_0 exp(−s/s_0), or constant, and the slot's weight that results.

    A head whose score of the slot lies :math:`\delta` above the logsumexp of its tokens' scores
    gives the slot the share :math:`g(s) = \mathrm{sigmoid}(\delta + \log\gamma(s))` (METHOD §4).

    Args:
        tokens: how far the curves go.

    Attributes:
        gamma, decay, constant, lead, tokens: the controls.
    """

    def __init__(self, tokens: int = 30) -> None:
        super().__init__()
        self.gamma = control(
            ipywidgets.FloatSlider, "γ_0", "Strength of z at the fork",
            min=0, max=1, step=0.05, value=1.0,
        )  # fmt: skip
        self.decay = control(
            ipywidgets.FloatLogSlider, "s_0 (tokens)", "Tokens until γ has fallen to 37 %",
            base=2, min=-2, max=5, step=0.5, value=8.0,
        )  # fmt: skip
        self.constant = control(
            ipywidgets.Checkbox, "constant γ", "The control: γ never fades", value=False
        )
        self.lead = control(
            ipywidgets.FloatSlider, "δ, slot's lead", "Slot's score above all tokens' together",
            min=-4, max=4, step=0.25, value=0.0,
        )  # fmt: skip
        self.tokens = control(
            ipywidgets.IntSlider, "tokens", "How far the curves go", min=5, max=60, value=tokens
        )
        self.curves = Shown()
        for part in (self.gamma, self.decay, self.constant, self.lead, self.tokens):
            part.observe(self._draw, "value")
        self.panel.children = [
            row(self.gamma, self.decay, self.constant),
            row(self.lead, self.tokens),
            self.curves,
        ]
        self._draw()

    def _draw(self, change: Any = None) -> None:
        import torch

        from i2b_lpo.method.psa import Strength

        self.decay.disabled = self.constant.value
        strength = Strength(self.gamma.value, None if self.constant.value else self.decay.value)
        log_gamma = strength.log_gamma(torch.arange(self.tokens.value + 1, dtype=torch.float64))
        self._share = torch.sigmoid(self.lead.value + log_gamma).tolist()
        self._view = gamma_curves(
            {"γ(s)": log_gamma.exp().tolist(), "share of the latent g(s)": self._share},
            title="γ(s), and the share g(s) that a head gives the latent",
            axis="γ(s), g(s)",
        )
        self.curves.show(self._view)

    @property
    def view(self) -> View | None:
        """The curves."""
        return self._view

    def describe(self) -> str:
        """The settings and both curves."""
        fades = "constant" if self.constant.value else f"s_0 = {number(self.decay.value, 2)} tokens"
        return (
            f"γ designer: γ_0 = {number(self.gamma.value, 2)}, {fades}, δ = "
            f"{signed(self.lead.value, 2)}: the latent gets {number(self._share[0], 2)} of the "
            f"head at the fork, {number(self._share[-1], 2)} after {len(self._share) - 1} tokens. "
            f"{self._view.describe()}"
        )
