"""Latent explorer: move z by hand and see which word the policy would say at the fork."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from math import hypot
from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.tasks.shop import STRATEGIES
from i2b_lpo.trace import Question
from i2b_lpo.views.base import View
from i2b_lpo.views.categories import category_styles
from i2b_lpo.views.latents import latent_map
from i2b_lpo.views.text import number, signed, visible
from i2b_lpo.views.words import next_word
from i2b_lpo.widgets.base import Clickable, Shown, Widget, control, row

if TYPE_CHECKING:
    from torch import Tensor

    from i2b_lpo.model.policy import Policy
    from i2b_lpo.model.steering import Steering

__all__ = ["LatentExplorer"]

BETWEEN, PRIOR = "between two strategies", "draw from the prior"


class LatentExplorer(Widget):
    """A latent z between two strategies or from the prior, and the word at the fork with it.

    Between two, z = (1 − share) z_from + share z_to, where a strategy's z is the mean of its
    latents, the large marker on the map. A click on the map, or `second`, chooses the strategy to
    go to; a Shift-click, or `first`, the one to start from.

    Args:
        policy: whose words.
        steering: the policy's latents.
        latents: strategy → its latents, (n, d_z), or one of (d_z,); at least two strategies.
        between: the strategies of share 0 and 1 initially; by default the first two strategies.
        question: the question's text.
        prefix: the answer up to the fork.
        words: the possible words there; by default the bundled task's strategies.

    Attributes:
        source, first, second, share, gamma, seed, draw: the controls.
        z: the current latent, (d_z,).
        with_z, without_z: π(word|c, z) and π(word|c) by word.

    Raises:
        ValueError: fewer than two strategies, too many to tell apart or an unknown one; latents
            with a wrong shape, not finite or all equal; words that are empty or begin another one.
    """

    def __init__(
        self,
        policy: Policy,
        steering: Steering,
        latents: Mapping[str, Tensor],
        *,
        between: tuple[str, str] | None = None,
        question: str | None = None,
        prefix: str | None = None,
        words: Sequence[str] = tuple(STRATEGIES),
    ) -> None:
        from i2b_lpo.rollout import example
        from i2b_lpo.training.latents import Example

        super().__init__()
        self._policy, self._steering = policy, steering
        self._latents = _checked(latents, steering)
        if unknown := [name for name in between or () if name not in self._latents]:
            known = ", ".join(map(repr, self._latents))
            raise ValueError(f"There are no latents of {unknown[0]!r}; choose from {known}.")
        asked = Question("typed", question or example.QUESTION.text, "", "")
        texts = [example.PREFIX if prefix is None else prefix, *words]
        before, *ids = (policy.tokenizer.encode(text, add_special_tokens=False) for text in texts)
        _check_words(dict(zip(words, ids, strict=True)))
        c = (*policy.prompt_ids(asked.text), *before)
        self._examples = [
            Example(asked, c, tuple(rest), word) for word, rest in zip(words, ids, strict=True)
        ]
        self._make_controls(*between or list(self._latents)[:2])
        self.bars, self.map = Shown(), Clickable(self._clicked)
        self.without_z = self._chances(None)
        self._compute()
        self.panel.children = [
            row(self.source, self.gamma),
            row(self.first, self.second, self.share),
            row(self.draw, self.seed),
            self.bars,
            self.map,
        ]

    def _make_controls(self, first: str, second: str) -> None:
        names = [(visible(name, 40), name) for name in self._latents]
        self.source = control(
            ipywidgets.Dropdown, "z comes from", "From between two strategies, or from P(z|c)",
            options=[BETWEEN, PRIOR],
        )  # fmt: skip
        self.gamma = control(
            ipywidgets.FloatSlider, "γ_0", "Strength of z at the fork", min=0, max=1, step=0.05,
            value=self._steering.strength.gamma, continuous_update=False,
        )  # fmt: skip
        self.first = control(
            ipywidgets.Dropdown, "from", "Strategy at share 0; or Shift and click", options=names,
            value=first,
        )  # fmt: skip
        self.second = control(
            ipywidgets.Dropdown, "to", "Strategy at share 1; or click the map", options=names,
            value=second,
        )  # fmt: skip
        self.share = control(
            ipywidgets.FloatSlider, "share of to", "z = (1 − share) z_from + share z_to", min=0,
            max=1, step=0.05, value=0.5, continuous_update=False,
        )  # fmt: skip
        says = "The same seed draws the same z"
        self.seed = control(ipywidgets.BoundedIntText, "Seed", says, max=10**6)
        says = "Draw z from the prior; again: by the next seed"
        self.draw = control(ipywidgets.Button, "Draw z", says)
        self.draw.on_click(self._draw_z)
        for part in (self.source, self.first, self.second, self.share, self.gamma, self.seed):
            part.observe(self._compute, "value")

    def _draw_z(self, button: Any) -> None:
        if self.source.value == PRIOR:
            self.seed.value += 1
        self.source.value = PRIOR

    def _clicked(self, x: float, y: float, shift: bool) -> None:
        # The map draws the points of each label as one trace, in the order of their looks.
        drawn = zip(category_styles(self._latents), self._map.figure.data, strict=False)
        away = [
            (hypot(x - a, y - b), name)
            for name, points in drawn
            for a, b in zip(points.x, points.y, strict=True)
        ]
        self.source.value = BETWEEN
        (self.first if shift else self.second).value = min(away)[1]

    def _chances(self, z: Tensor | None) -> dict[str, float]:
        """π(word|c, z) of each word; at γ_0 = 0 nothing is injected."""
        import torch

        from i2b_lpo.training.latents import continuation_logprobs

        injection = None
        if z is not None and self.gamma.value > 0:
            strength = replace(self._steering.strength, gamma=self.gamma.value)
            steering = replace(self._steering, strength=strength)
            injection = steering.injection(z.expand(len(self._examples), -1))
        longest = max(len(e.rest) for e in self._examples)
        with torch.no_grad():
            logp = continuation_logprobs(self._policy, self._examples, injection, longest)
        return {e.label: float(p) for e, p in zip(self._examples, logp.exp(), strict=True)}

    def _latent(self) -> Tensor:
        import torch

        if self.source.value == PRIOR:
            chance = torch.Generator().manual_seed(self.seed.value)
            c = self._examples[0].prefix
            return self._steering.draw(self._policy, [c], 1, generator=chance)[0, 0]
        start, end = (self._latents[part.value].mean(0) for part in (self.first, self.second))
        z: Tensor = (1 - self.share.value) * start + self.share.value * end
        return z

    def _compute(self, change: Any = None) -> None:
        drawn = self.source.value == PRIOR
        self.first.disabled = self.second.disabled = self.share.disabled = drawn
        self.seed.disabled = not drawn
        self.z = self._latent()
        self.with_z = self._chances(self.z)
        self._map = latent_map(
            [z for rows in self._latents.values() for z in rows.tolist()],
            [name for name, rows in self._latents.items() for _ in rows],
            here=self.z.tolist(),
            title="Latents z by strategy",
        )
        self._view = next_word(
            self.with_z, self.without_z, title=f"The word at the fork, z = {self._told()}"
        )
        self.bars.show(self._view)
        self.map.show(self._map)

    def _told(self) -> str:
        if self.source.value == PRIOR:
            return f"draw {self.seed.value} of P(z|c)"
        share = self.share.value
        parts = ((1 - share, self.first.value), (share, self.second.value))
        return " + ".join(f"{number(part, 2)} {visible(name, 20)}" for part, name in parts)

    @property
    def view(self) -> View | None:
        """The bars."""
        return self._view

    def describe(self) -> str:
        """The latent and its strength, the words with it and without, and the map."""
        numbers = ", ".join(signed(value, 2) for value in self.z.tolist())
        return visible(
            f"Latent explorer: γ_0 = {number(self.gamma.value, 2)}, z = ({numbers}). "
            f"{self._view.describe()} {self._map.describe()}"
        )


def _checked(latents: Mapping[str, Tensor], steering: Steering) -> dict[str, Tensor]:
    """Each strategy's latents as (n, d_z), in the fusion's precision and on its device."""
    import torch

    if len(latents) < 2:
        raise ValueError(f"Give the latents of at least two strategies, got {len(latents)}.")
    d_z, weight = steering.cvae.d_z, next(steering.fusion.parameters())
    found = {}
    for name, given in latents.items():
        z = torch.as_tensor(given)
        if z.dim() not in (1, 2) or z.shape[-1] != d_z or not z.numel():
            raise ValueError(
                f"The latents of {name!r} have the shape {tuple(z.shape)}; this steering needs "
                f"(n, {d_z}) or ({d_z},)."
            )
        if not bool(z.isfinite().all()):
            raise ValueError(f"The latents of {name!r} must be finite; look at what inferred them.")
        found[name] = z.detach().reshape(-1, d_z).to(weight)
    return found


def _check_words(ids: Mapping[str, list[int]]) -> None:
    """Refuse words whose probabilities mean nothing, or overlap."""
    if not ids or not all(ids.values()):
        raise ValueError("Give the explorer at least one word to look for, and no empty one.")
    for one, other in permutations(ids, 2):
        if ids[other][: len(ids[one])] == ids[one]:
            raise ValueError(f"{other!r} begins with {one!r}; give words of which only one fits.")
