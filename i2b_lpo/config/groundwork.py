"""Settings for what a run builds on: a policy's latents, and a policy from random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from i2b_lpo.config.sections import at_least, check_seed, need

__all__ = ["LatentConfig", "PretrainConfig"]


@dataclass(frozen=True)
class LatentConfig:
    """How latents are trained (METHOD §3); the values are tuned on the bundled policies [D].

    Attributes:
        policy, task, data, device: as in `RunConfig`; the policy is the one to be steered.
        source: the policy whose rollouts are used for training; "" is the steered policy itself.
        objective: `steer` (the frozen policy with the fusion is the decoder) or `selector`.
        fusion: an entry of `i2b_lpo.method.FUSIONS`.
        d_z: dimensions of z.
        questions, rollouts: train questions and rollouts of each.
        temperature, max_new_tokens: how these rollouts are drawn.
        forks: forks taken from each rollout.
        horizon: tokens of a continuation that are used; beyond it γ has faded.
        gamma, decay: γ_0 and s_0 in tokens; None for a γ that doesn't fade (`inf` in a file).
        selector_steps: steps of the `selector` objective, from which `steer` starts.
        fusion_first: share of the steps in which only the fusion learns; then the CVAE joins, and
            β_KL rises from 0 to `beta_kl` over a quarter of the steps.
        free_bits: nats per dimension below which the KL costs nothing more.
    """

    policy: str = "tiny-base"
    source: str = ""
    task: str = "shop"
    data: str = ""
    device: str = "cpu"
    objective: str = "steer"
    fusion: str = "psa"
    seed: int = 0
    d_z: int = 8
    questions: int = 600
    rollouts: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 160
    forks: int = 2
    rule: str = "top_fraction"
    horizon: int = 8
    steps: int = 500
    batch: int = 64
    learning_rate: float = 2e-3
    beta_kl: float = 0.4
    selector_steps: int = 400
    fusion_first: float = 0.5
    free_bits: float = 0.1
    gamma: float = 1.0
    decay: float | None = 0.5

    def __post_init__(self) -> None:
        check_seed(self.seed)
        names = ("d_z", "questions", "rollouts", "max_new_tokens", "forks", "horizon", "steps")
        at_least(1, self, "", *names, "batch")
        need(
            0 < self.temperature < math.inf,
            f"temperature is {self.temperature}; give a positive number.",
        )
        at_least(0, self, "", "selector_steps", "beta_kl", "free_bits")
        need(
            self.objective in ("steer", "selector"),
            f"objective is {self.objective!r}; choose steer or selector.",
        )
        for name in ("fusion_first", "gamma"):
            value = getattr(self, name)
            need(0 <= value <= 1, f"{name} is {value}; give a number from 0 to 1.")
        need(
            self.decay is None or 0 < self.decay < math.inf,
            f"decay is {self.decay}; give a positive number of tokens, or None.",
        )
        need(
            0 < self.learning_rate < 1,
            f"learning_rate is {self.learning_rate}; give a number between 0 and 1.",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """How the base policy is trained. Scheduled by steps, so a slow machine gets the same policy.

    Attributes:
        task: the source of solved examples: `shop`, or another task that has some.
        shop_share: for the task `shop`, the share of shopping questions; the rest are single
            products.
        steps, tokens: optimizer steps, and tokens (prompt and solution) in each.
        muon_lr: learning rate of the matrices (torch.optim.Muon).
        adamw_lr: learning rate of embeddings and norms.
        habit_from: share of the steps after which solutions choose strategies by habit; before
            that, for practice. So the policy does well even what it seldom does.
        warmup, decay: shares of the steps with rising and falling rate; constant between.
    """

    task: str = "shop"
    shop_share: float = 0.75
    steps: int = 2000
    tokens: int = 2300
    muon_lr: float = 2e-2
    adamw_lr: float = 2e-3
    habit_from: float = 0.6
    warmup: float = 0.02
    decay: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(1, self, "", "steps")
        need(
            256 <= self.tokens <= 16_384,
            f"tokens is {self.tokens}; give 256 to 16384, a fraction of a pool.",
        )
        for name in ("shop_share", "habit_from", "warmup", "decay"):
            value = getattr(self, name)
            need(0 <= value <= 1, f"{name} is {value}; give a share from 0 to 1.")
        for name in ("muon_lr", "adamw_lr"):
            value = getattr(self, name)
            need(0 < value < 1, f"{name} is {value}; give a number between 0 and 1.")

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others → why."""
        return {} if self.task == "shop" else {"shop_share": f"it is of shop, not {self.task}"}
