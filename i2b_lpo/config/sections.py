"""The sections of a run's settings: one per stage; each checks its own values.

`[C]` and `[D]` as in docs/method.md: read in the released code, decided here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

__all__ = [
    "NO_IB",
    "BranchConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "IBConfig",
    "OptimizerConfig",
    "RolloutConfig",
    "at_least",
    "check_seed",
    "flat",
    "need",
]


SEEDS = 2**32


def flat(settings: Any) -> dict[str, Any]:
    """The values of a dataclass and of its sections by their dotted names, such as `ib.keep`."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{name}": part for name, part in flat(value).items()}
        else:
            found[field.name] = value
    return found


def need(condition: bool, message: str) -> None:
    """Raise a ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def check_seed(seed: int) -> None:
    """Refuse a seed too large to give every step's generator a 64-bit seed."""
    need(0 <= seed < SEEDS, f"seed is {seed}; give a whole number from 0 to {SEEDS - 1}.")


def at_least(least: int, section: object, prefix: str, *names: str) -> None:
    """Refuse a section's settings that are below `least`."""
    for name in names:
        value = getattr(section, name)
        need(value >= least, f"{prefix}{name} is {value}; give at least {least}.")


@dataclass(frozen=True)
class RolloutConfig:
    """First rollouts: `rollouts` M per question, and how their tokens are drawn.

    Attributes:
        batch: rows decoded at a time; it bounds the memory.
        max_prompt_tokens: questions with longer prompts are skipped, counted and listed [C].
    """

    rollouts: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 160
    batch: int = 128
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        at_least(1, self, "rollout.", "rollouts", "max_new_tokens", "batch", "max_prompt_tokens")
        need(
            0 <= self.temperature < math.inf,
            f"rollout.temperature is {self.temperature}; give 0 (greedy) or more.",
        )
        need(
            0 < self.top_p <= 1,
            f"rollout.top_p is {self.top_p}; give a number above 0 and up to 1.",
        )


@dataclass(frozen=True)
class BranchConfig:
    """Forks and branches: METHOD §2–§4.

    Attributes:
        branches: K per fork; 0 is GRPO without branches.
        rounds: 1 forks the rollouts, 2 their branches too, …
        rule: an entry of `i2b_lpo.method.FORK_RULES`.
        fraction: share of a rollout's tokens that `top_fraction` chooses from.
        fusion: an entry of `i2b_lpo.method.FUSIONS`, or "none" for re-sampling from the fork.
        latents: folder of the trained latents; "" uses the policy's own.
        sampler: an entry of `i2b_lpo.method.SAMPLERS`.
    """

    branches: int = 0
    rounds: int = 1
    rule: str = "top_fraction"
    fraction: float = 0.05
    fusion: str = "psa"
    latents: str = ""
    sampler: str = "spread"

    def __post_init__(self) -> None:
        need(self.branches >= 0, f"branch.branches is {self.branches}; give 0 (none) or more.")
        at_least(1, self, "branch.", "rounds")
        need(0 < self.fraction <= 1, f"branch.fraction is {self.fraction}; give 0 to 1.")

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others → why."""
        if not self.branches:
            names = [field.name for field in fields(self) if field.name != "branches"]
            return dict.fromkeys(names, "there are no branches (branch.branches is 0)")
        idle = {}
        if self.fusion == "none":
            idle = dict.fromkeys(("latents", "sampler"), "there is no z (branch.fusion is none)")
        if self.rule != "top_fraction":
            idle["fraction"] = f"branch.rule is {self.rule}"
        return idle


@dataclass(frozen=True)
class GRPOConfig:
    """The update of METHOD §6.

    Attributes:
        variant: an entry of `i2b_lpo.method.VARIANTS`: how advantages are scaled, which denominator
            and clip range the loss has, which groups are dropped.
        alpha: coefficient of the self-reward term α A H; 0 switches it off.
        updates: optimizer steps per batch of rollouts; 1 is on-policy.
        logprob: how branches sampled with z are trained: `latent`, with their z; `plain`, without
            it, each token weighted by the clipped ratio of π_old without and with z.
        ratio_cap: C, the bound of that ratio.
        train_psa: let the `latent` mode train the fusion too; its latents stay frozen.
        micro_tokens: padded tokens in one forward and backward pass; it bounds the memory and
            never changes the result.
    """

    variant: str = "grpo"
    alpha: float = 0.0
    updates: int = 1
    logprob: str = "latent"
    ratio_cap: float = 2.0
    train_psa: bool = False
    micro_tokens: int = 4096

    def __post_init__(self) -> None:
        at_least(1, self, "grpo.", "updates", "micro_tokens")
        need(math.isfinite(self.alpha), f"grpo.alpha is {self.alpha}; give a finite number.")
        need(
            self.logprob in ("latent", "plain"),
            f"grpo.logprob is {self.logprob!r}; choose latent or plain.",
        )
        need(self.ratio_cap > 0, f"grpo.ratio_cap is {self.ratio_cap}; give a positive number.")
        need(
            not self.train_psa or self.logprob == "latent",
            "grpo.train_psa needs grpo.logprob latent: without z the fusion gets no gradient.",
        )


@dataclass(frozen=True)
class IBConfig:
    """The information bottleneck of METHOD §5; the numbers were chosen on validation [D].

    Attributes:
        estimator: an entry of `i2b_lpo.method.ESTIMATORS`; "none" computes no score.
        beta_ib: β_IB, what information about the answer is worth.
        cost_weight: λ, what excess description costs.
        clip_nats: κ in nats, the most that one token adds to the description.
        filter: an entry of `i2b_lpo.method.ib.FILTERS`; "none" keeps every branch.
        keep: N, branches kept of each branch set.
        renormalise: recompute advantages over the kept ones.
    """

    estimator: str = "answer_information"
    beta_ib: float = 1.0
    cost_weight: float = 1.0
    clip_nats: float = 4.0
    filter: str = "top_n"
    keep: int = 2
    renormalise: bool = False

    def __post_init__(self) -> None:
        for name in ("beta_ib", "cost_weight"):
            value = getattr(self, name)
            need(
                0 <= value < math.inf, f"ib.{name} is {value}; give a finite number from 0 upwards."
            )
        need(
            0 < self.clip_nats < math.inf,
            f"ib.clip_nats is {self.clip_nats}; give a finite number of nats above 0.",
        )
        need(self.keep >= 1, f"ib.keep is {self.keep}; keep at least 1 branch of each set.")
        need(
            self.estimator != "none" or self.filter == "none",
            f"ib.filter {self.filter!r} needs scores; name an ib.estimator, or set ib.filter to "
            "none too.",
        )

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others → why."""
        if self.estimator == "none":
            names = [f.name for f in fields(self) if f.name not in ("estimator", "filter")]
            return dict.fromkeys(names, "nothing is scored (ib.estimator is none)")
        if self.filter == "none":
            return dict.fromkeys(
                ("keep", "renormalise"), "every branch is kept (ib.filter is none)"
            )
        return {}


NO_IB = IBConfig(estimator="none", filter="none")
"""No scores and no filter, as a run without branches has it."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without weight decay, constant rate after a short warm-up."""

    learning_rate: float = 4e-4
    warmup_steps: int = 5
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        need(
            0 < self.learning_rate < 1,
            f"optimizer.learning_rate is {self.learning_rate}; give a number between 0 and 1.",
        )
        at_least(0, self, "optimizer.", "warmup_steps")
        need(
            self.max_grad_norm > 0,
            f"optimizer.max_grad_norm is {self.max_grad_norm}; give a positive number, inf for "
            "no limit.",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How the tour measures a policy: greedy, and `samples` drawn as in training."""

    questions: int = 150
    samples: int = 8

    def __post_init__(self) -> None:
        at_least(1, self, "evaluation.", "questions", "samples")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its newest checkpoints stay.

    Attributes:
        every: steps from one checkpoint to the next; a finished run, and one that a signal ends,
            are saved too. 0 saves nothing.
        keep: checkpoints to keep. One takes 12 bytes per parameter: weights and AdamW's moments.
    """

    every: int = 10
    keep: int = 2

    def __post_init__(self) -> None:
        need(self.every >= 0, f"checkpoint.every is {self.every}; give 0 (none) or more steps.")
        need(self.keep >= 1, f"checkpoint.keep is {self.keep}; keep at least 1.")
