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
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from i2b_lpo.infra.memory import halving, one_pass
from i2b_lpo.method.grpo import VARIANTS
from i2b_lpo.method.loss import policy_loss
from i2b_lpo.model.padding import micro_batches
from i2b_lpo.training.batch import Trajectory, pack
from i2b_lpo.training.learner import Learner, TokenScorer
from i2b_lpo.training.processes import agree, gathered, put_gradients, together, unsharded

__all__ = ["update", "without_z"]


def without_z(learner: Learner, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Prepare branches for `plain` training: π_old without z, and each token's weight.

    The weight is the detached min(C, π_old(o_t|q,o_<t) / π_old(o_t|q,o_<t,z)), both at the sampling
    temperature (METHOD §6); a weight that the trajectory already has multiplies it. Trajectories
    without z, and those of advantage 0, stay as they are.

    π_old is the policy as it is now, so call it once for a batch, before the first update on any
    part of it. All processes take part. Where memory runs out, all passes are made again with half
    the tokens each.

    Raises:
        OutOfMemory: one trajectory alone doesn't fit.
    """
    steered = [i for i, t in enumerate(trajectories) if t.active and t.z]
    measured = halving(
        lambda tokens: _logprobs_without_z(learner, [trajectories[i] for i in steered], tokens),
        learner.config.grpo.micro_tokens,
        agree=partial(agree, learner.accelerator),
    )
    ready, cap = list(trajectories), learner.config.grpo.ratio_cap
    for i, without in zip(steered, measured, strict=True):
        trajectory = trajectories[i]
        own = without.new_tensor(trajectory.rollout.logprobs[trajectory.start :])
        weights = (without - own).exp().clamp(max=cap)
        if trajectory.weights is not None:
            weights = weights * weights.new_tensor(trajectory.weights)
        ready[i] = replace(
            trajectory,
            old_logprobs=tuple(without.tolist()),
            weights=tuple(weights.tolist()),
        )
    return ready


def _logprobs_without_z(
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
        if plain and trajectory.active and trajectory.old_logprobs is None:
            raise ValueError(
                "A branch with z isn't ready for grpo.logprob plain; call without_z on the whole "
                "batch, once, before its first update."
            )
        if not plain and trajectory.old_logprobs is not None:
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
    if any(p is not q for p, q in zip(learner.trained().values(), stepped, strict=True)):
        raise RuntimeError("The optimizer holds the sharded weights: leave `unsharded` first.")
    with together(accelerator):
        _refuse_foreign(learner, trajectories)
    kept = [trajectory for trajectory in trajectories if not trajectory.dropped]
    count = {
        "token": sum(t.new_tokens for t in kept),
        "sequence": len(kept),
        "constant": len(kept) * config.rollout.max_new_tokens,
    }[VARIANTS[config.grpo.variant].reduction]
    active = [t for t in kept if t.active]
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
        put_gradients(accelerator, list(learner.trained().values()), gradients)
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
    variant = VARIANTS[config.grpo.variant]
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
                        weight=batch.weights,
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
            gradients = [parameter.grad for parameter in learner.trained().values()]
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
    settings = learner.config.optimizer
    gradients = {n: p.grad for n, p in learner.scorer.named_parameters() if p.grad is not None}
    norm = get_total_norm(list(gradients.values()))
    whole = gathered(norm)  # the same on all processes, so that all go on or none
    try:
        if not whole.isfinite():
            for name, gradient in gradients.items():
                _refuse_non_finite(step, {f"gradient of {name}": gathered(gradient)})
            _refuse_non_finite(step, {"gradient norm": whole})
        clip_grads_with_norm_(learner.trained().values(), settings.max_grad_norm, norm)
        for group in learner.optimizer.param_groups:
            warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
            group["lr"] = settings.learning_rate * warm
        learner.optimizer.step()
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
    return float(whole)
