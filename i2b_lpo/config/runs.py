"""All settings of each command, nested by stage, and the presets with the source of each value.

`[C]` and `[D]` as in the method's notes: read in the released code, decided here. Files of them
are in `i2b_lpo.config.files`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from i2b_lpo.config.groundwork import LatentConfig, PretrainConfig
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

__all__ = [
    "METHODS",
    "NO_IB",
    "PRESETS",
    "BranchConfig",
    "CheckpointConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "IBConfig",
    "LatentConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RolloutConfig",
    "RunConfig",
    "SampleConfig",
    "TourConfig",
    "preset",
]


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        policy, task, data, device: what the command line loads, and where: names or folders, a
            local copy of a benchmark's data (its folder) and cpu or cuda. In Python, `train` is
            given them.
        questions: in a step, over all processes.
        gradient_checkpointing: compute activations again in the backward pass; less memory.
        shard: split weights, gradients and optimizer state over the processes (FSDP2).
    """

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

    def with_method(self, name: str) -> RunConfig:
        """These settings under another method: `grpo`, or `i2b-lpo` with groups of the same size.

        I²B-LPO with K = 3 branches a rollout [C]: M = G/(1+K) first rollouts, forks, latents with
        PSA, S_IB, the Top-2 filter and the self-reward term (METHOD §0).

        A method owns M, `branch`, `ib`, `grpo.alpha` and `grpo.train_psa` and sets them anew,
        whatever they were; of them only G is kept. So the last method alone counts, and your own
        values of these come after it.

        Raises:
            ValueError: unknown name, or a group that 1+K doesn't divide.
        """
        need(name in METHODS, f"Unknown method {name!r}; choose {' or '.join(METHODS)}.")
        branches, alpha = (3, 0.005) if name == "i2b-lpo" else (0, 0.0)
        first, rest = divmod(self.group, 1 + branches)
        need(
            rest == 0,
            f"A group has {self.group} trajectories (rollout.rollouts is {self.rollout.rollouts}); "
            f"I²B-LPO needs a multiple of {1 + branches}: each first rollout with its {branches} "
            "branches.",
        )
        return dataclasses.replace(
            self,
            rollout=dataclasses.replace(self.rollout, rollouts=first),
            branch=BranchConfig(branches=branches),
            ib=IBConfig() if branches else NO_IB,
            grpo=dataclasses.replace(self.grpo, alpha=alpha, train_psa=False),
        )

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others → why."""
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


METHODS = ("grpo", "i2b-lpo")
"""The names that ``--method`` takes."""


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
        for method in METHODS:
            self.run(method)  # refuses here what a training would refuse later

    def run(self, method: str) -> RunConfig:
        """The training by one of the methods; without checkpoints, heavier than the minutes."""
        run = RunConfig(
            policy=self.policy,
            seed=self.seed,
            steps=self.steps,
            questions=self.questions,
            rollout=self.rollout,
            grpo=self.grpo,
            optimizer=self.optimizer,
            checkpoint=CheckpointConfig(every=0),
        ).with_method(method)
        latents = self.latents if run.branch.branches else ""
        return dataclasses.replace(run, branch=dataclasses.replace(run.branch, latents=latents))


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
        """The settings that change nothing beside the others → why."""
        idle = {f"branch.{name}": why for name, why in self.branch.idle().items()}
        if self.question:
            idle |= dict.fromkeys(("task", "data", "split"), "you gave your own question")
        return idle


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
"""Runs by name: one dial. Change single values by `dataclasses.replace` or `--set`."""


def preset(name: str) -> RunConfig:
    """A preset by name; ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
