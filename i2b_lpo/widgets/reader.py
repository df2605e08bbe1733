"""Entropy reader: type a problem, see where the policy hesitates and between what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.trace import Trace
from i2b_lpo.views import markup
from i2b_lpo.views.base import View
from i2b_lpo.views.strip import entropy_strip, token_text
from i2b_lpo.views.text import number, visible
from i2b_lpo.widgets.base import Shown, Widget, control, row, table

if TYPE_CHECKING:
    from i2b_lpo.model.policy import Policy

__all__ = ["EntropyReader"]

TOP = 8  # tokens of the vocabulary that are listed


class EntropyReader(Widget):
    """A problem of your own, the policy's answer coloured by entropy, and each token's rivals.

    Args:
        policy: what answers.
        max_new_tokens: length limit of the answer.

    Attributes:
        question, way, temperature, seed, read: the controls of an answer.
        token: whose rivals are listed.
        trace: the answer as a record.
    """

    def __init__(self, policy: Policy, *, max_new_tokens: int = 160) -> None:
        from i2b_lpo.rollout.example import QUESTION

        super().__init__()
        self._policy, self._limit = policy, max_new_tokens
        self._view: View | None = None
        self.trace: Trace | None = None
        self.rivals: list[tuple[str, float]] = []
        self.question = control(
            ipywidgets.Text, "Problem", "A problem of the bundled form; a wrong one shows the form",
            width="680px", value=QUESTION.text,
        )  # fmt: skip
        self.way = control(
            ipywidgets.Dropdown, "Decoding", "Take the likeliest token, or draw one",
            options=["greedy", "sample"],
        )  # fmt: skip
        self.temperature = control(
            ipywidgets.FloatSlider, "Temperature", "Of drawing; H is always taken at 1",
            min=0.1, max=2, step=0.1, value=1.0, disabled=True,
        )  # fmt: skip
        self.seed = control(
            ipywidgets.BoundedIntText, "Seed", "The same seed draws the same answer",
            max=10**6, disabled=True,
        )  # fmt: skip
        self.read = control(
            ipywidgets.Button, "Answer it", "Let the policy answer", button_style="primary"
        )
        self.token = control(
            ipywidgets.IntSlider, "t, token", "Whose rivals are listed", min=0, max=0,
            continuous_update=False,
        )  # fmt: skip
        self.strip, self.top = Shown(), ipywidgets.HTML()
        self.way.observe(self._able, "value")
        self.read.on_click(self._read)
        self.token.observe(self._list, "value")
        self.panel.children = [
            self.question,
            row(self.way, self.temperature, self.seed),
            row(self.read),
            self.note,
            self.strip,
            self.token,
            self.top,
        ]
        self.read.click()

    def _able(self, change: Any) -> None:
        self.temperature.disabled = self.seed.disabled = change.new == "greedy"

    def _read(self, button: Any) -> None:
        import torch

        from i2b_lpo.model.sampling import Sampling
        from i2b_lpo.rollout.rollouts import roll_out
        from i2b_lpo.tasks.loading import own_question

        with self.working(self.read, "The policy answers …"):
            question = own_question(self.question.value)
            greedy = self.way.value == "greedy"
            (trace,) = roll_out(
                self._policy,
                [question],
                Sampling(self._limit, temperature=0.0 if greedy else self.temperature.value),
                generator=torch.Generator().manual_seed(self.seed.value),
            )
            self.trace, self._view = trace, entropy_strip(trace)
            self.strip.show(self._view)
            rollout = trace.rollouts[0]
            # The first token that is a real choice is where the eye should fall.
            highest = max(range(len(rollout)), key=rollout.entropies.__getitem__)
            self.token.value, self.token.max = 0, len(rollout) - 1
            self.token.value = highest
            self._list()

    def _list(self, change: Any = None) -> None:
        import torch

        from i2b_lpo.method.entropy import token_entropy

        if self.trace is None:
            return
        policy, t = self._policy, self.token.value
        rollout = self.trace.rollouts[0]
        ids = torch.tensor([[*self.trace.prompt_ids, *rollout.ids[:t]]], device=policy.device)
        with torch.no_grad():
            logits = policy.model(ids).logits[0, -1, : policy.vocab_size]
        shares, tokens = logits.double().softmax(-1).topk(TOP)
        pieces = policy.pieces(tokens.tolist())
        self.rivals = list(zip(map(token_text, pieces), shares.tolist(), strict=True))
        self.entropy = float(token_entropy(logits))
        rows = [("token", "π"), *((piece, number(p, 3)) for piece, p in self.rivals)]
        self.top.value = (
            f"<p>{markup.text(self._told())}</p>{table([tuple(line) for line in rows])}"
        )

    def _told(self) -> str:
        assert self.trace is not None  # said of an answer
        t = self.token.value
        said = token_text(self.trace.rollouts[0].pieces[t])
        first = ", ".join(f"'{piece}' {number(p, 2)}" for piece, p in self.rivals[:4])
        return (
            f"Token {t} is '{said}'; before it was drawn, H = {number(self.entropy, 2)} nat, and "
            f"the likeliest tokens were {first}."
        )

    @property
    def view(self) -> View | None:
        """The strip of entropies."""
        return self._view

    def describe(self) -> str:
        """The problem, its strip and the rivals of the chosen token."""
        if self.trace is None or self._view is None:
            return f"Entropy reader: no answer yet. {self.note.text}".strip()
        way = self.way.value
        if way == "sample":
            way += f" at temperature {self.temperature.value:g}, seed {self.seed.value}"
        return visible(
            f"Entropy reader: {self.trace.question.text} ({way}) "
            f"{self._view.describe()} {self._told()}"
        )
