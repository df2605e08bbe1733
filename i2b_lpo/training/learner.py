"""The learner: a policy with everything its update needs, for one process or several."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from i2b_lpo.config import RunConfig
from i2b_lpo.method.checks import check
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.steering import Steering
from i2b_lpo.trace import Rollout
from i2b_lpo.training.batch import Batch, Trajectory, pack
from i2b_lpo.training.processes import shard, unsharded

__all__ = ["Learner", "TokenScorer", "build_learner", "trained"]


class TokenScorer(nn.Module):
    """log π and H of each token as one module call: the root of sharding and autocast.

    With `steering`, tokens after a fork are scored with their branch's z.
    """

    def __init__(
        self, policy: Policy, temperature: float, steering: Steering | None = None
    ) -> None:
        super().__init__()
        self.model = policy.model
        self.fusion = None if steering is None else steering.fusion
        self.strength = None if steering is None else steering.strength
        self.vocab_size = policy.vocab_size
        self.temperature = temperature

    def forward(self, batch: Batch, hold: ExitStack | None = None) -> tuple[Tensor, Tensor]:
        """See `i2b_lpo.model.policy_logprobs`."""
        injection = None
        if self.fusion is not None and batch.z is not None:
            dtype = next(self.fusion.parameters()).dtype
            injection = self.fusion(batch.z.to(dtype), self.strength)
        return policy_logprobs(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            batch.mask,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            injection=injection,
            since=batch.since,
            hold=hold,
        )


# A trajectory of the smallest size.
_IDLE = Trajectory((0,), Rollout((0,), ("",), (0.0,), (0.0,), (0.0,), "", False), 0.0)


@dataclass(frozen=True)
class Learner:
    """A policy with everything its update needs."""

    policy: Policy
    config: RunConfig
    accelerator: Accelerator
    scorer: Any  # TokenScorer, as accelerate and FSDP dress it
    optimizer: Any
    steering: Steering | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer trains, by name; within `unsharded` the whole parameters."""
        return trained(self.accelerator.unwrap_model(self.scorer))


def build_learner(
    policy: Policy,
    config: RunConfig,
    *,
    steering: Steering | None = None,
    accelerator: Accelerator | None = None,
    sharded: bool = False,
) -> Learner:
    """Prepare `policy` for training with AdamW; its model is trained in place.

    All processes start with the first one's weights.

    Args:
        policy: what to train.
        config: settings of the run.
        steering: the latents of branches with z; only `grpo.train_psa` trains its fusion.
        accelerator: knows the other processes; default a new one.
        sharded: leave each process its part of weights, gradients and optimizer state (FSDP2); then
            sample, score and evaluate within `i2b_lpo.training.unsharded(learner.scorer)`.

    Raises:
        ValueError: an unknown name in `config`, half-precision weights, sharding over one process,
            or questions that can't be dealt evenly: each process needs whole questions, as many
            in each of `grpo.updates` steps.
    """
    check(config)
    if policy.model.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{policy.name} is in {policy.model.dtype}, too coarse for small updates: load it with "
            "dtype=torch.float32; on a GPU the passes still run in bfloat16."
        )
    on_cpu = policy.device.type == "cpu"
    accelerator = accelerator or Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16")
    share = accelerator.num_processes * config.grpo.updates
    if config.questions % share:
        raise ValueError(
            f"{config.questions} questions per step can't be dealt to {accelerator.num_processes} "
            f"process(es) × {config.grpo.updates} update(s); use a multiple of {share}: --set "
            f"questions={share * -(-config.questions // share)}."
        )
    if sharded and accelerator.num_processes == 1:
        raise ValueError(
            "Weights can't be sharded over one process; start several with torchrun "
            "--nproc_per_node, or omit --shard (in Python shard, sharded)."
        )
    if config.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable()
    if config.grpo.train_psa and steering is None:
        raise ValueError("grpo.train_psa has nothing to train: branch with a fusion and latents.")
    if steering is not None:
        steering.fusion.requires_grad_(config.grpo.train_psa)
    with_z = steering if config.grpo.logprob == "latent" else None
    scorer: Any = (
        accelerator.prepare_model(  # placement and autocast, without DDP: see processes.py
            TokenScorer(policy, config.rollout.temperature, with_z), evaluation_mode=True
        )
    )
    if steering is not None:
        for part in (steering.cvae, steering.fusion):
            part.to(policy.device)
    broadcast([parameter.data for parameter in scorer.parameters()])
    if sharded:
        shard(scorer, policy.model.get_decoder().layers, policy.device)
        with torch.no_grad(), unsharded(scorer):  # FSDP's root is the module that runs first
            scorer(pack([_IDLE], policy.pad_id, policy.device))
    settings = config.optimizer
    parameters = trained(scorer).values()
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    return Learner(policy, config, accelerator, scorer, accelerator.prepare(optimizer), steering)


def trained(scorer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a scorer that are trained, by name."""
    return {name: p for name, p in scorer.named_parameters() if p.requires_grad}
