"""All settings of a run, nested by stage, and the presets with the source of each value.

`[C]` and `[D]` as in the method's notes: read in the released code, decided here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2b_lpo.safety import redact
from i2b_lpo.storage import write_text

__all__ = [
    "PRESETS",
    "BranchConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "IBConfig",
    "LatentConfig",
    "OptimizerConfig",
    "RolloutConfig",
    "RunConfig",
    "preset",
]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class RolloutConfig:
    """First rollouts: `samples` M per question, and how their tokens are drawn.

    Attributes:
        batch: rows decoded at a time; it bounds the memory.
        max_prompt_tokens: questions with longer prompts are left out, counted and listed [C].
    """

    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 160
    batch: int = 128
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        _need(self.samples >= 1, f"rollout.samples is {self.samples}; give at least 1.")
        _need(self.temperature > 0, "rollout.temperature must be above 0; training needs samples.")


@dataclass(frozen=True)
class BranchConfig:
    """Forks and branches: METHOD §2–§4.

    Attributes:
        samples: K branches per fork; 0 is GRPO without branches.
        rounds: 1 forks the rollouts, 2 their branches too, …
        rule: an entry of `i2b_lpo.entropy.FORK_RULES`.
        fraction: share of a rollout's tokens that `top_fraction` chooses from.
        fusion: an entry of `i2b_lpo.psa.FUSIONS`, or "none" for plain re-sampling from the fork.
        latents: folder of the trained latents; "" takes the policy's own.
        sampler: an entry of `i2b_lpo.latent.SAMPLERS`.
    """

    samples: int = 0
    rounds: int = 1
    rule: str = "top_fraction"
    fraction: float = 0.05
    fusion: str = "psa"
    latents: str = ""
    sampler: str = "spread"

    def __post_init__(self) -> None:
        _need(self.samples >= 0, f"branch.samples is {self.samples}; give 0 (none) or more.")
        _need(self.rounds >= 1, f"branch.rounds is {self.rounds}; give at least 1.")
        _need(0 < self.fraction <= 1, f"branch.fraction is {self.fraction}; give 0 to 1.")


@dataclass(frozen=True)
class GRPOConfig:
    """The update of METHOD §6.

    Attributes:
        variant: an entry of `i2b_lpo.grpo.VARIANTS`: how advantages are scaled, which denominator
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
        _need(self.updates >= 1, f"grpo.updates is {self.updates}; give at least 1.")
        _need(
            self.logprob in ("latent", "plain"),
            f"grpo.logprob is {self.logprob!r}; choose latent or plain.",
        )
        _need(self.ratio_cap > 0, f"grpo.ratio_cap is {self.ratio_cap}; give a positive number.")
        _need(
            not self.train_psa or self.logprob == "latent",
            "grpo.train_psa needs grpo.logprob latent: without z the fusion gets no gradient.",
        )
        _need(self.micro_tokens >= 1, f"grpo.micro_tokens is {self.micro_tokens}; give at least 1.")


@dataclass(frozen=True)
class IBConfig:
    """The information bottleneck of METHOD §5; the numbers were chosen on validation [D].

    Attributes:
        estimator: an entry of `i2b_lpo.ib.ESTIMATORS`; "none" computes no score.
        beta_ib: β_IB, what information about the answer is worth.
        cost_weight: λ, what the description excess costs.
        clip_nats: κ in nats, the most that one token adds to the description.
        filter: an entry of `i2b_lpo.ib.FILTERS`; "none" keeps every branch.
        keep: N, branches kept of each branch set.
        renormalise: advantages again over the kept ones.
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
            _need(
                0 <= value < math.inf, f"ib.{name} is {value}; give a finite number from 0 upwards."
            )
        _need(
            0 < self.clip_nats < math.inf,
            f"ib.clip_nats is {self.clip_nats}; give a finite number of nats above 0.",
        )
        _need(self.keep >= 1, f"ib.keep is {self.keep}; keep at least 1 branch of each set.")
        _need(
            self.estimator != "none" or self.filter == "none",
            f"ib.filter {self.filter!r} needs scores; name an ib.estimator.",
        )


NO_IB = IBConfig(estimator="none", filter="none")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without weight decay, constant rate after a short warm-up."""

    learning_rate: float = 4e-4
    warmup_steps: int = 5
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _need(
            0 < self.learning_rate < 1,
            f"optimizer.learning_rate is {self.learning_rate}; give a number between 0 and 1.",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How a policy is measured: greedy, and `samples` at the training temperature."""

    questions: int = 150
    samples: int = 8

    def __post_init__(self) -> None:
        _need(self.questions >= 1, "evaluation.questions must be at least 1.")
        _need(self.samples >= 1, "evaluation.samples must be at least 1.")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its newest checkpoints stay.

    Attributes:
        every: steps from one checkpoint to the next; a run that a signal ends, and a finished one,
            are saved too. 0 saves nothing.
        keep: checkpoints that stay. One takes 12 bytes a parameter: weights and AdamW's moments.
    """

    every: int = 10
    keep: int = 2

    def __post_init__(self) -> None:
        _need(self.every >= 0, f"checkpoint.every is {self.every}; give 0 (none) or more steps.")
        _need(self.keep >= 1, f"checkpoint.keep is {self.keep}; keep at least 1.")


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        questions: in a step, over all processes.
        gradient_checkpointing: compute activations again in the backward pass; less memory.
        shard: split weights, gradients and optimizer state over the processes (FSDP2).
    """

    policy: str = "tiny-base"
    task: str = "shop"
    seed: int = 0
    steps: int = 60
    questions: int = 12
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)
    ib: IBConfig = NO_IB
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    gradient_checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        _need(self.steps >= 1, f"steps is {self.steps}; give at least 1.")
        _need(self.questions >= 1, f"questions is {self.questions}; give at least 1.")
        _need(
            self.rollout.samples * (1 + self.branch.samples) >= 2,
            f"rollout.samples is {self.rollout.samples}; a group needs at least 2.",
        )

    def with_method(self, name: str) -> RunConfig:
        """These settings under another method: `grpo`, or `i2b-lpo` with groups of the same size.

        I²B-LPO with K = 3 branches a rollout [C]: M = G/(1+K) first rollouts, forks, latents with
        PSA, S_IB, the Top-2 filter and the self-reward term (METHOD §0).

        Raises:
            ValueError: unknown name, or a group that 1+K doesn't divide.
        """
        if name == "grpo":
            return dataclasses.replace(self, branch=BranchConfig(), ib=NO_IB)
        _need(name == "i2b-lpo", f"Unknown method {name!r}; choose grpo or i2b-lpo.")
        branches = 3
        first, rest = divmod(self.rollout.samples, 1 + branches)
        _need(
            rest == 0,
            f"rollout.samples is {self.rollout.samples}; I²B-LPO needs a multiple of "
            f"{1 + branches}: each first rollout with its {branches} branches.",
        )
        return dataclasses.replace(
            self,
            rollout=dataclasses.replace(self.rollout, samples=first),
            branch=BranchConfig(samples=branches),
            ib=IBConfig(),
            grpo=dataclasses.replace(self.grpo, alpha=0.005),
        )

    def to_json(self) -> dict[str, Any]:
        """All settings as a plain dict."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write all settings as JSON, secrets replaced."""
        write_text(path, json.dumps(redact(self.to_json()), indent=2) + "\n")


@dataclass(frozen=True)
class LatentConfig:
    """How latents are trained (METHOD §3); the values are tuned on the bundled policies [D].

    Attributes:
        source: the policy whose rollouts are learnt from; "" is the steered policy itself.
        objective: `steer` (the frozen policy with the fusion is the decoder) or `selector`.
        fusion: an entry of `i2b_lpo.psa.FUSIONS`.
        d_z: dimensions of z.
        questions, samples: train questions and rollouts of each.
        forks: forks taken from each rollout.
        horizon: tokens of a continuation that are learnt from; beyond it γ has faded.
        gamma, decay: γ_0 and s_0.
        selector_steps: steps of the `selector` objective, which `steer` starts from.
        fusion_first: share of the steps in which only the fusion learns; then the CVAE joins, and
            β_KL rises from 0 to `beta_kl` over a quarter of the steps.
        free_bits: nats per dimension below which the KL costs nothing more.
    """

    source: str = ""
    objective: str = "steer"
    fusion: str = "psa"
    seed: int = 0
    d_z: int = 8
    questions: int = 600
    samples: int = 4
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
        for name in ("d_z", "questions", "samples", "forks", "horizon", "steps", "batch"):
            _need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give at least 1.")
        _need(
            self.objective in ("steer", "selector"),
            f"objective is {self.objective!r}; choose steer or selector.",
        )


PRESETS: dict[str, RunConfig] = {
    # Bundled policy and task on a laptop CPU. Values tuned on validation [D].
    "tiny": RunConfig(),
    # One GPU of 24 GB. Sampling from [C]; fewer questions and tokens, a higher rate [D].
    "qwen2.5-0.5b": RunConfig(
        policy="Qwen/Qwen2.5-0.5B-Instruct",
        task="gsm8k",
        steps=200,
        questions=16,
        rollout=RolloutConfig(temperature=0.9, top_p=0.9, max_new_tokens=512, batch=128),
        grpo=GRPOConfig(micro_tokens=16384),
        optimizer=OptimizerConfig(learning_rate=2e-6),
        gradient_checkpointing=True,
    ),
    # 8 GPUs: 32 questions, G=8, rate 1e-6, T=0.9, top-p 0.9, response 4096, bf16, gradient
    # checkpointing, all [C].
    "qwen2.5-7b": RunConfig(
        policy="Qwen/Qwen2.5-7B",
        task="math",
        steps=400,
        questions=32,
        rollout=RolloutConfig(temperature=0.9, top_p=0.9, max_new_tokens=4096, batch=64),
        grpo=GRPOConfig(micro_tokens=16384),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        gradient_checkpointing=True,
    ),
}
"""Runs by name: one dial. Change single values with `dataclasses.replace`."""


def preset(name: str) -> RunConfig:
    """A preset by name; ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
