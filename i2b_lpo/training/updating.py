"""The GRPO update: trajectories with advantages → packed micro-batches → one optimizer step.

Where time is usually lost and isn't here: padding (documents of like length share a micro-batch),
groups of equal reward (their gradient is exactly zero, so they take no pass), and a second pass for
old log-probs (decoding has measured them).

What fails leaves everything as it was: parameters and optimizer are touched only after every pass
of every process has succeeded and all numbers were found finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from i2b_lpo.config import RunConfig
from i2b_lpo.infra.memory import halving, one_pass
from i2b_lpo.method.grpo import VARIANTS, Variant, policy_loss
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.padding import micro_batches
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.steering import Steering
from i2b_lpo.trace import Rollout
from i2b_lpo.training.batch import Batch, Trajectory, pack
from i2b_lpo.training.processes import agree, gathered, put_gradients, shard, together, unsharded

__all__ = [
    "Learner",
    "TokenScorer",
    "build_learner",
    "update",
    "variant_of",
    "without_z",
]


class TokenScorer(nn.Module):
    """log π and H of each token as one module call: the root of what is sharded and autocast.

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


@dataclass(frozen=True)
class Learner:
    """A policy with what its update needs."""

    policy: Policy
    config: RunConfig
    accelerator: Accelerator
    scorer: Any  # TokenScorer, as accelerate and FSDP dress it
    optimizer: Any
    steering: Steering | None = None


def build_learner(
    policy: Policy,
    config: RunConfig,
    *,
    steering: Steering | None = None,
    accelerator: Accelerator | None = None,
    sharded: bool = False,
) -> Learner:
    """Prepare `policy` for training with AdamW; its model is trained in place.

    All processes begin with the weights of the first.

    Args:
        policy: what to train.
        config: settings of the run.
        steering: the latents of branches with z; only `grpo.train_psa` trains its fusion.
        accelerator: what knows of the other processes; default a new one.
        sharded: leave each process its part of weights, gradients and optimizer state (FSDP2); then
            sample, score and evaluate within `i2b_lpo.training.unsharded(learner.scorer)`.

    Raises:
        ValueError: half-precision weights, an unknown variant, sharding over one process, or
            questions that can't be dealt evenly: each process needs whole questions, as many in
            each of `grpo.updates` steps.
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
            f"process(es) × {config.grpo.updates} update(s); use a multiple of {share}: --set "
            f"questions={share * -(-config.questions // share)}."
        )
    if sharded and accelerator.num_processes == 1:
        raise ValueError(
            "Weights can't be sharded over one process; start several with torchrun "
            "--nproc_per_node, or leave --shard out (in Python shard, sharded)."
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
    optimizer = torch.optim.AdamW(_trained(scorer), lr=settings.learning_rate, weight_decay=0.0)
    return Learner(policy, config, accelerator, scorer, accelerator.prepare(optimizer), steering)


# A trajectory of the smallest size.
_IDLE = Trajectory((0,), Rollout((0,), ("",), (0.0,), (0.0,), (0.0,), "", False), 0.0)


def _trained(scorer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in scorer.parameters() if parameter.requires_grad]


def variant_of(config: RunConfig) -> Variant:
    """The GRPO variant that `config` names; ValueError lists the known ones."""
    name = config.grpo.variant
    if name not in VARIANTS:
        raise ValueError(f"Unknown grpo.variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def without_z(learner: Learner, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Prepare branches for `plain` training: π_old without z, and each token's weight.

    The weight is the detached min(C, π_old(o_t|q,o_<t) / π_old(o_t|q,o_<t,z)), both at the sampling
    temperature (METHOD §6). Trajectories without z, and those of advantage 0, stay as they are.

    π_old is the policy as it is now, so call it once for a batch, before the first update on any
    part of it. All processes take part. Where memory runs out, all passes are made again with half
    the tokens each.

    Raises:
        OutOfMemory: one trajectory alone doesn't fit.
    """
    steered = [i for i, s in enumerate(trajectories) if s.advantage and s.z]
    measured = halving(
        lambda tokens: _plain_logprobs(learner, [trajectories[i] for i in steered], tokens),
        learner.config.grpo.micro_tokens,
        agree=partial(agree, learner.accelerator),
    )
    ready, cap = list(trajectories), learner.config.grpo.ratio_cap
    for i, plain in zip(steered, measured, strict=True):
        own = plain.new_tensor(trajectories[i].rollout.logprobs[trajectories[i].start :])
        weight = (plain - own).exp().clamp(max=cap)
        ready[i] = replace(
            trajectories[i], old_logprobs=tuple(plain.tolist()), weights=tuple(weight.tolist())
        )
    return ready


def _plain_logprobs(
    learner: Learner, trajectories: Sequence[Trajectory], tokens: int
) -> list[Tensor]:
    """Log π without z of each trajectory's own tokens, float64, in passes of at most `tokens`."""
    policy, found = learner.policy, dict[int, Tensor]()
    scorer = TokenScorer(policy, learner.config.rollout.temperature)
    with torch.no_grad(), unsharded(learner.scorer):
        for rows in micro_batches(range(len(trajectories)), tokens, lambda i: len(trajectories[i])):
            part = [trajectories[i] for i in rows]
            with _one_pass(part), learner.accelerator.autocast():
                batch = pack(part, policy.pad_id, policy.device)
                logp, _ = scorer(batch)
            found |= {i: logp[at][batch.mask[at]].double() for at, i in enumerate(rows)}
    return [found[i] for i in range(len(trajectories))]


def _refuse_foreign(learner: Learner, trajectories: Sequence[Trajectory]) -> None:
    """Refuse trajectories with z that the learner would score by another π than their own."""
    plain, steering = learner.config.grpo.logprob == "plain", learner.steering
    own = None
    if steering is not None:
        strength = steering.strength
        own = steering.fusion_name, strength.gamma, strength.decay, steering.version
    for trajectory in trajectories:
        branch = trajectory.rollout.branch
        if branch is None or not branch.z:
            continue
        ready = trajectory.weights is not None
        if plain and trajectory.advantage and not ready:
            raise ValueError(
                "A branch with z isn't ready for grpo.logprob plain; call without_z on the whole "
                "batch, once, before its first update."
            )
        if not plain and ready:
            raise ValueError(
                "A branch was prepared by without_z, and grpo.logprob latent trains it with its z; "
                "give the trajectories as they were drawn."
            )
        drawn = branch.fusion, branch.gamma, branch.decay, branch.version
        if plain or drawn == own:
            continue
        has = "has no latents" if own is None else f"has {_latents(*own)}"
        raise ValueError(
            f"A branch was drawn with {_latents(*drawn)}, and the learner {has}: its ratios would "
            "be of another policy. Build the learner with the latents that the branches were drawn "
            "with, or draw them again."
        )


def _latents(fusion: str, gamma: float, decay: float | None, version: int) -> str:
    known = str(version or "unknown (it wasn't recorded)")
    return f"fusion {fusion}, γ_0 = {gamma}, s_0 = {decay}, latents of version {known}"


def _one_pass(trajectories: Sequence[Trajectory]) -> AbstractContextManager[None]:
    return one_pass(len(trajectories), len(trajectories) * max(map(len, trajectories)))


# --- the optimizer step -------------------------------------------------------------------------


def update(
    learner: Learner, trajectories: Sequence[Trajectory], *, step: int = 0
) -> dict[str, float]:
    """One optimizer step on `trajectories`; returns its metrics (loss, gradient norm, clipping).

    A trajectory of advantage 0 counts in the denominator and takes no pass: both its surrogate and
    its self-reward α A H have no gradient. If none is left on any process, no step is taken. Where
    memory runs out, all passes are made again with half the tokens each.

    Raises:
        ValueError: a branch was drawn with other latents than the learner's, or with z and isn't
            prepared for `plain` training. No parameter was changed; it is raised on all processes.
        FloatingPointError: a number, loss or gradient isn't finite; names step and tensor. No
            parameter was changed; it is raised on all processes.
        OutOfMemory: one trajectory alone doesn't fit. No parameter was changed.
    """
    config, accelerator, device = learner.config, learner.accelerator, learner.policy.device
    if not accelerator.sync_gradients:  # one state per process: other code may have set it
        raise RuntimeError(
            "accelerate is in the middle of accumulating gradients, so the optimizer would do "
            "nothing; end the other training's accumulate() block first."
        )
    stepped = learner.optimizer.param_groups[0]["params"]
    if any(p is not q for p, q in zip(_trained(learner.scorer), stepped, strict=True)):
        raise RuntimeError("The optimizer holds the sharded weights: leave `unsharded` first.")
    with together(accelerator):
        _refuse_foreign(learner, trajectories)
    kept = [trajectory for trajectory in trajectories if not trajectory.dropped]
    count = {
        "token": sum(s.new_tokens for s in kept),
        "sequence": len(kept),
        "constant": len(kept) * config.rollout.max_new_tokens,
    }[variant_of(config).reduction]
    active = [s for s in kept if s.advantage]
    # All processes divide by the sum of their counts.
    numbers = torch.tensor([count, len(active)], dtype=torch.float64, device=device)
    normaliser, working = accelerator.reduce(numbers).tolist()
    sums, norm = torch.zeros(4, dtype=torch.float64, device=device), 0.0
    if working:
        sums, gradients = halving(
            lambda tokens: _passes(learner, active, tokens, normaliser, step),
            config.grpo.micro_tokens,
            agree=partial(agree, accelerator),
        )
        put_gradients(accelerator, _trained(learner.scorer), gradients)
        norm = _take_step(learner, step)
    loss, tokens, clipped, ratios = accelerator.reduce(sums).tolist()
    return {
        "loss": loss,
        "grad_norm": norm,
        "clip_fraction": clipped / max(1, tokens),
        "mean_ratio": ratios / tokens if tokens else 1.0,
        "trained_tokens": tokens,
    }


def _passes(
    learner: Learner, trajectories: Sequence[Trajectory], tokens: int, normaliser: float, step: int
) -> tuple[Tensor, list[Tensor | None]]:
    """All passes of this process, at most `tokens` padded tokens each; nothing is left behind.

    Returns:
        Sums of loss, tokens, clipped tokens and ratios, (4,), and each parameter's gradient.
    """
    config, policy, scorer = learner.config, learner.policy, learner.scorer
    variant, plain = variant_of(config), config.grpo.logprob == "plain"
    loss, counted, clipped, ratios = 0.0, 0, 0.0, 0.0
    with unsharded(scorer):
        try:
            scorer.zero_grad(set_to_none=True)  # whatever other code may have left
            scorer.train()
            for rows in micro_batches(trajectories, tokens, len):
                with _one_pass(rows), ExitStack() as hold:
                    batch = pack(rows, policy.pad_id, policy.device)
                    given = {
                        "old log-probs": batch.old_logp,
                        "ratio weights": batch.weights,
                        "advantages": batch.advantages,
                    }
                    if batch.z is not None:
                        given["latents"] = batch.z
                    _refuse_non_finite(step, given)
                    logp, entropy = scorer(batch, hold)
                    _refuse_non_finite(step, {"log-probs": logp, "entropies": entropy})
                    result = policy_loss(
                        logp,
                        batch.old_logp,
                        batch.advantages,
                        batch.mask,
                        weight=batch.weights if plain else None,
                        entropy=entropy if config.grpo.alpha else None,
                        alpha=config.grpo.alpha,
                        clip_low=variant.clip_low,
                        clip_high=variant.clip_high,
                        dual_clip=variant.dual_clip,
                        reduction=variant.reduction,
                        normaliser=normaliser,
                    )
                    _refuse_non_finite(step, {"loss": result.loss})
                    learner.accelerator.backward(result.loss)
                loss += result.loss.item()
                counted += result.tokens
                clipped += result.clip_fraction * result.tokens
                ratios += result.mean_ratio * result.tokens
            gradients = [parameter.grad for parameter in _trained(scorer)]
        finally:
            scorer.zero_grad(set_to_none=True)
            scorer.eval()  # in training mode, gradient checkpointing switches the cache off
    sums = torch.tensor([loss, counted, clipped, ratios], dtype=torch.float64, device=policy.device)
    return sums, gradients


def _refuse_non_finite(step: int, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"Step {step}: {name}: not every number is finite; no parameter was changed. Take "
                "a lower --set optimizer.learning_rate=X, or start from an earlier policy."
            )


def _take_step(learner: Learner, step: int) -> float:
    """Refuse a gradient that isn't finite, clip it, step; returns the norm before clipping."""
    settings, trained = learner.config.optimizer, _trained(learner.scorer)
    gradients = {n: p.grad for n, p in learner.scorer.named_parameters() if p.grad is not None}
    norm = get_total_norm(list(gradients.values()))
    whole = gathered(norm)  # the same on all processes, so that all go on or none
    try:
        if not whole.isfinite():
            for name, gradient in gradients.items():
                _refuse_non_finite(step, {f"gradient of {name}": gathered(gradient)})
            _refuse_non_finite(step, {"gradient norm": whole})
        clip_grads_with_norm_(trained, settings.max_grad_norm, norm)
        for group in learner.optimizer.param_groups:
            warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
            group["lr"] = settings.learning_rate * warm
        learner.optimizer.step()
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
    return float(whole)
