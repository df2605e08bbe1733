"""The GRPO update: samples with advantages → packed micro-batches → one optimizer step.

Where time is usually lost and isn't here: padding (documents of like length share a micro-batch),
groups of equal reward (their gradient is exactly zero, so they take no pass), and a second pass for
old log-probs (decoding has measured them).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from i2b_lpo.config import RunConfig
from i2b_lpo.grpo import VARIANTS, Variant, policy_loss
from i2b_lpo.logprobs import policy_logprobs
from i2b_lpo.padding import micro_batches
from i2b_lpo.policy import Policy
from i2b_lpo.samples import Batch, Sample, pack
from i2b_lpo.steering import Steering
from i2b_lpo.trace import Rollout

__all__ = [
    "Learner",
    "TokenScorer",
    "build_learner",
    "update",
    "variant_of",
    "without_z",
]


class TokenScorer(nn.Module):
    """log π and H of each token as one module call, so that DDP and FSDP see a forward pass.

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
        """See `i2b_lpo.logprobs.policy_logprobs`."""
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


@dataclass(frozen=True)
class Learner:
    """A policy with what its update needs."""

    policy: Policy
    config: RunConfig
    accelerator: Accelerator
    scorer: Any  # TokenScorer, as accelerate wraps it
    optimizer: Any
    steering: Steering | None = None


def build_learner(
    policy: Policy,
    config: RunConfig,
    *,
    steering: Steering | None = None,
    accelerator: Accelerator | None = None,
) -> Learner:
    """Prepare `policy` for training with AdamW; its model is trained in place.

    `steering` holds the latents of branches with z; only `grpo.train_psa` trains its fusion.

    Raises:
        ValueError: half-precision weights, an unknown variant, or questions that can't be dealt
            evenly: each process needs whole questions, as many in each of `grpo.updates` steps.
    """
    variant_of(config)
    if policy.model.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{policy.name} is in {policy.model.dtype}, too coarse for small updates: load it with "
            "dtype=torch.float32; on a GPU the passes run in bfloat16 all the same."
        )
    on_cpu = policy.device.type == "cpu"
    accelerator = accelerator or Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16")
    share = accelerator.num_processes * config.grpo.updates
    if config.questions % share:
        raise ValueError(
            f"{config.questions} questions a step can't be dealt to {accelerator.num_processes} "
            f"process(es) × {config.grpo.updates} update(s); use a multiple of {share}."
        )
    if config.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable()
    if config.grpo.train_psa and steering is None:
        raise ValueError("grpo.train_psa has nothing to train: branch with a fusion and latents.")
    if steering is not None:
        steering.fusion.requires_grad_(config.grpo.train_psa)
    with_z = steering if config.grpo.logprob == "latent" else None
    scorer = TokenScorer(policy, config.rollout.temperature, with_z)
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, weight_decay=0.0)
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    return Learner(policy, config, accelerator, scorer, optimizer, steering)


def variant_of(config: RunConfig) -> Variant:
    """The GRPO variant that `config` names; ValueError lists the known ones."""
    name = config.grpo.variant
    if name not in VARIANTS:
        raise ValueError(f"Unknown grpo.variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def without_z(learner: Learner, samples: Sequence[Sample]) -> list[Sample]:
    """Prepare branches for `plain` training: π_old without z, and each token's weight.

    The weight is the detached min(C, π_old(o_t|q,o_<t) / π_old(o_t|q,o_<t,z)), both at the sampling
    temperature (METHOD §6). Samples without z stay as they are.
    """
    ready = list(samples)
    steered = [
        i for i, s in enumerate(samples) if s.advantage and s.rollout.branch and s.rollout.branch.z
    ]
    policy, cap = learner.policy, learner.config.grpo.ratio_cap
    scorer = TokenScorer(policy, learner.config.rollout.temperature)
    tokens = learner.config.grpo.micro_tokens
    for rows in micro_batches(steered, tokens, lambda i: len(samples[i])):
        batch = pack([samples[i] for i in rows], policy.pad_id, policy.device)
        with torch.no_grad(), learner.accelerator.autocast():
            logp, _ = scorer(batch)
        for at, i in enumerate(rows):
            plain = logp[at][batch.mask[at]].double()
            own = plain.new_tensor(samples[i].rollout.logprobs[samples[i].start :])
            weight = (plain - own).exp().clamp(max=cap)
            ready[i] = replace(
                samples[i], old_logprobs=tuple(plain.tolist()), weights=tuple(weight.tolist())
            )
    return ready


# --- the optimizer step -------------------------------------------------------------------------


def update(learner: Learner, samples: Sequence[Sample], *, step: int = 0) -> dict[str, float]:
    """One optimizer step on `samples`; returns its metrics (loss, gradient norm, clipping).

    A sample of advantage 0 counts in the denominator and takes no pass: both its surrogate and its
    self-reward α A H have no gradient. If none is left, no step is taken.

    Raises:
        FloatingPointError: loss or gradient isn't finite; names step and tensor. No parameter was
            changed.
    """
    config, accelerator, device = learner.config, learner.accelerator, learner.policy.device
    variant = variant_of(config)
    kept = [sample for sample in samples if not sample.dropped]
    count = {
        "token": sum(s.new_tokens for s in kept),
        "sequence": len(kept),
        "constant": len(kept) * config.rollout.max_new_tokens,
    }[variant.reduction]
    active = [s for s in kept if s.advantage]
    if config.grpo.logprob == "plain":
        active = without_z(learner, active)
    batches = micro_batches(active, config.grpo.micro_tokens, len)
    # All processes divide by the sum of their counts, and make equally many passes.
    gathered = accelerator.gather(torch.tensor([[float(count), len(batches)]], device=device))
    normaliser, rounds = gathered[:, 0].sum().item(), int(gathered[:, 1].max())
    learner.optimizer.zero_grad(set_to_none=True)  # an update that was stopped may have left some
    learner.scorer.train()
    loss, tokens, clipped, ratios = 0.0, 0, 0.0, 0.0
    for at in range(rounds):
        batch = pack(batches[at] if at < len(batches) else [_IDLE], learner.policy.pad_id, device)
        # DDP averages gradients after the last pass; we want their sum.
        last = at == rounds - 1
        sync = nullcontext() if last else accelerator.no_sync(learner.scorer)
        with sync, ExitStack() as hold:
            logp, entropy = learner.scorer(batch, hold)
            numbers = {"log-probs": logp, "entropies": entropy, "old log-probs": batch.old_logp}
            _refuse_non_finite(learner, step, numbers)
            result = policy_loss(
                logp,
                batch.old_logp,
                batch.advantages,
                batch.mask,
                weight=batch.weights if config.grpo.logprob == "plain" else None,
                entropy=entropy if config.grpo.alpha else None,
                alpha=config.grpo.alpha,
                clip_low=variant.clip_low,
                clip_high=variant.clip_high,
                reduction=variant.reduction,
                normaliser=normaliser,
            )
            _refuse_non_finite(learner, step, {"loss": result.loss})
            accelerator.backward(result.loss * accelerator.num_processes)
        if at < len(batches):
            loss += result.loss.item()
            tokens += result.tokens
            clipped += result.clip_fraction * result.tokens
            ratios += result.mean_ratio * result.tokens
    norm = _take_step(learner, step) if rounds else 0.0
    learner.scorer.eval()  # in training mode, gradient checkpointing switches the cache off
    sums = torch.tensor([loss, tokens, clipped, ratios], dtype=torch.float64, device=device)
    loss, tokens, clipped, ratios = accelerator.reduce(sums).tolist()
    return {
        "loss": loss,
        "grad_norm": norm,
        "clip_fraction": clipped / max(1, tokens),
        "mean_ratio": ratios / tokens if tokens else 1.0,
        "trained_tokens": float(tokens),
    }


# Takes the pass of a process that has no sample left; its gradient is zero.
_IDLE = Sample((0,), Rollout((0,), ("",), (0.0,), (0.0,), (0.0,), "", False), 0.0)


def _refuse_non_finite(learner: Learner, step: int, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            learner.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"Step {step}: {name}: not every number is finite; no parameter was changed. Lower "
                "optimizer.learning_rate, or start from an earlier policy."
            )


def _take_step(learner: Learner, step: int) -> float:
    """Clip the gradient, refuse one that isn't finite, step; returns the norm before clipping."""
    if not learner.accelerator.sync_gradients:  # one state per process: other code may have set it
        raise RuntimeError(
            "accelerate is in the middle of accumulating gradients, so the optimizer would do "
            "nothing; end the other training's accumulate() block first."
        )
    settings = learner.config.optimizer
    named = learner.scorer.named_parameters()
    gradients = {f"gradient of {n}": p.grad for n, p in named if p.grad is not None}
    _refuse_non_finite(learner, step, gradients)  # before clipping, which would spread a NaN
    norm = learner.accelerator.clip_grad_norm_(learner.scorer.parameters(), settings.max_grad_norm)
    _refuse_non_finite(learner, step, {"gradient norm": norm})
    for group in learner.optimizer.param_groups:
        group["lr"] = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return float(norm)
