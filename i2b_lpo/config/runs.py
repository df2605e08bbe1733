"""All settings of a training, the tour, an evaluation and a sampling, nested by stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from i2b_lpo.config.sections import (
    NO_IB,
    BranchConfig,
    CheckpointConfig,
    EvaluationConfig,
    GRPOConfig,
    IBConfig,
    OptimizerConfig,
    RolloutConfig,
    at_least,
    check_seed,
    need,
)

__all__ = ["EvaluateConfig", "RunConfig", "SampleConfig", "TourConfig"]


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        method: an entry of `i2b_lpo.method.METHODS`. Choose it by `--method` (in Python
            `i2b_lpo.method.with_method`), which also sets what the method owns.
        policy, task, data, device: what the command line loads, and where: names or folders, a
            local copy of a benchmark's data (its folder) and cpu or cuda. In Python, `train` is
            given them.
        questions: in a step, over all processes.
        gradient_checkpointing: compute activations again in the backward pass; less memory.
        shard: split weights, gradients and optimizer state over the processes (FSDP2).
    """

    method: str = "grpo"
    policy: str = "tiny-base"
    task: str = "shop"
    data: str = ""
    device: str = "cpu"
    seed: int = 0
    steps: int = 60
    questions: int = 12
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)
    ib: IBConfig = NO_IB
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    gradient_checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(1, self, "", "steps", "questions")
        need(
            self.rollout.temperature > 0,
            "rollout.temperature must be above 0; training needs samples.",
        )
        need(
            not self.grpo.train_psa or (self.branch.branches > 0 and self.branch.fusion != "none"),
            "grpo.train_psa has nothing to train: no branch has a z, see branch.branches and "
            "branch.fusion.",
        )
        need(
            self.group >= 2,
            f"rollout.rollouts is {self.rollout.rollouts}; a group needs at least 2.",
        )

    @property
    def group(self) -> int:
        """G, the trajectories of a question: M rollouts, and K branches of each in each round."""
        latest = total = self.rollout.rollouts
        for _ in range(self.branch.rounds):
            latest *= self.branch.branches
            total += latest
        return total

    def idle(self) -> dict[str, str]:
        """The settings that the others make ineffective → why."""
        idle = {f"branch.{name}": why for name, why in self.branch.idle().items()}
        idle |= {f"ib.{name}": why for name, why in self.ib.idle().items()}
        if not self.branch.branches or self.branch.fusion == "none":
            idle |= dict.fromkeys(("grpo.logprob", "grpo.ratio_cap"), "no branch has a z")
        elif self.grpo.logprob == "latent":
            idle["grpo.ratio_cap"] = "grpo.logprob is latent"
        return idle

    def to_json(self) -> dict[str, Any]:
        """All settings as a plain dict."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TourConfig:
    """The tour: one training by each method on the task `shop`, and how they are measured.

    Attributes:
        latents: folder of the policy's latents; "" takes its own.
        evaluation: of the policy before and after.
    """

    policy: str = "tiny-base"
    latents: str = ""
    seed: int = 0
    steps: int = 60
    questions: int = 12
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        need(
            self.grpo.alpha == 0,
            f"grpo.alpha is {self.grpo.alpha}; the tour's methods set it, leave it out.",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """What `i2b-lpo evaluate` measures; policy, task, data and device as in `RunConfig`."""

    policy: str = "tiny-base"
    task: str = "shop"
    data: str = ""
    device: str = "cpu"
    split: str = "validation"
    seed: int = 0
    questions: int = 150
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(1, self, "", "questions")


@dataclass(frozen=True)
class SampleConfig:
    """What `i2b-lpo rollout` samples; policy, task, data and device as in `RunConfig`.

    Attributes:
        question: your own question of the bundled task; "" takes one of `task` and `split`.
    """

    policy: str = "tiny-base"
    task: str = "shop"
    data: str = ""
    device: str = "cpu"
    split: str = "validation"
    question: str = ""
    seed: int = 0
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(rollouts=1))
    branch: BranchConfig = field(default_factory=BranchConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def idle(self) -> dict[str, str]:
        """The settings that the others make ineffective → why."""
        idle = {f"branch.{name}": why for name, why in self.branch.idle().items()}
        if self.question:
            idle |= dict.fromkeys(("task", "data", "split"), "you gave your own question")
        return idle
