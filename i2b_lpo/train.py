"""The training loop: question → rollouts → verify → group advantages → GRPO update.

Each stage is a function that hands on plain records, so a notebook can stop between any two. A
step depends on (seed, step) alone, never on what was drawn before. Where time is usually lost and
isn't here: padding (documents of like length share a micro-batch), groups of equal reward (their
gradient is exactly zero, so they take no pass), and a second pass for old log-probs (decoding has
measured them).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from i2b_lpo.config import RunConfig
from i2b_lpo.decode import Sampling
from i2b_lpo.grpo import (
    VARIANTS,
    Variant,
    advantages,
    informative_groups,
    overlong_penalty,
    policy_loss,
)
from i2b_lpo.logprobs import policy_logprobs
from i2b_lpo.metrics import rep_n
from i2b_lpo.policy import Policy, save_policy
from i2b_lpo.rollout import roll_out
from i2b_lpo.tasks import Task
from i2b_lpo.trace import Rollout, Trace

__all__ = [
    "Batch",
    "Learner",
    "Sample",
    "StepRecord",
    "build_learner",
    "micro_batches",
    "pack",
    "reward_table",
    "samples_of",
    "score",
    "train",
    "train_step",
    "update",
]


@dataclass(frozen=True)
class Sample:
    """One trajectory as the update sees it; a dropped one doesn't count in the denominator."""

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    advantage: float
    dropped: bool = False

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.rollout)


@dataclass(frozen=True)
class Batch:
    """Samples as right-padded tensors, (B, T); `mask` is True on new tokens only."""

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    old_logp: Tensor
    advantages: Tensor  # (B,)


@dataclass(frozen=True)
class StepRecord:
    """Everything one step made: traces, verdict rewards (Q, G), advantages (Q, G), metrics."""

    traces: list[Trace]
    rewards: Tensor
    advantages: Tensor
    metrics: dict[str, float]


class TokenScorer(nn.Module):
    """log π and H of each token as one module call, so that DDP and FSDP see a forward pass."""

    def __init__(self, policy: Policy, temperature: float) -> None:
        super().__init__()
        self.model = policy.model
        self.vocab_size = policy.vocab_size
        self.temperature = temperature

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return policy_logprobs(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            batch.mask,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
        )


@dataclass(frozen=True)
class Learner:
    """A policy with what its update needs."""

    policy: Policy
    config: RunConfig
    accelerator: Accelerator
    scorer: Any  # TokenScorer, as accelerate wraps it
    optimizer: Any


def build_learner(
    policy: Policy, config: RunConfig, *, accelerator: Accelerator | None = None
) -> Learner:
    """Prepare `policy` for training with AdamW; its model is trained in place.

    Raises:
        ValueError: an unknown variant, or questions that can't be dealt evenly: each process needs
            whole questions, as many in each of `grpo.updates` optimizer steps.
    """
    _variant(config)
    accelerator = accelerator or Accelerator(cpu=policy.device.type == "cpu")
    share = accelerator.num_processes * config.grpo.updates
    if config.questions % share:
        raise ValueError(
            f"{config.questions} questions a step can't be dealt to {accelerator.num_processes} "
            f"process(es) × {config.grpo.updates} update(s); use a multiple of {share}."
        )
    if config.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable()
    scorer = TokenScorer(policy, config.rollout.temperature)
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=config.optimizer.learning_rate, weight_decay=0.0
    )
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    return Learner(policy, config, accelerator, scorer, optimizer)


# --- from traces to tensors ---------------------------------------------------------------------


def samples_of(
    traces: Sequence[Trace], scores: Tensor, *, dropped: Sequence[bool] | None = None
) -> list[Sample]:
    """Pair every rollout with its advantage; `scores` is (Q, G), `dropped` one flag a group."""
    flags = dropped or [False] * len(traces)
    return [
        Sample(trace.prompt_ids, rollout, 0.0 if flag else advantage, flag)
        for trace, row, flag in zip(traces, scores.tolist(), flags, strict=True)
        for rollout, advantage in zip(trace.rollouts, row, strict=True)
    ]


def pack(samples: Sequence[Sample], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Right-pad samples into one batch. Positions line up: column t of every tensor is token t."""
    width = max(map(len, samples))
    shape = (len(samples), width)
    ids = torch.full(shape, pad_id)
    attention = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    old = torch.zeros(shape)
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), len(sample)
        ids[row, :end] = torch.tensor([*sample.prompt_ids, *sample.rollout.ids])
        attention[row, :end] = 1
        mask[row, start:end] = True
        old[row, start:end] = torch.tensor(sample.rollout.logprobs)
    weights = torch.tensor([sample.advantage for sample in samples])
    return Batch(*(t.to(device) for t in (ids, attention, mask, old, weights)))


def micro_batches(samples: Sequence[Sample], tokens: int) -> list[list[Sample]]:
    """Split samples, sorted by length, into batches of at most `tokens` padded tokens each."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=len):  # so each sample is the longest of its batch so far
        if batches and (len(batches[-1]) + 1) * len(sample) <= tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


# --- one step -----------------------------------------------------------------------------------


def reward_table(traces: Sequence[Trace], *, step: int = 0) -> Tensor:
    """Verdict rewards as a table, (Q, G).

    Raises:
        FloatingPointError: a reward is missing, NaN or infinite; names step and question.
    """
    for trace in traces:
        for rollout in trace.rollouts:
            if rollout.reward is None or not math.isfinite(rollout.reward):
                raise FloatingPointError(
                    f"Step {step}: the reward of question {trace.question.id} is "
                    f"{rollout.reward}; no parameter was changed. Give finite rewards."
                )
    return torch.tensor([[r.reward for r in t.rollouts] for t in traces], dtype=torch.float32)


def score(traces: Sequence[Trace], rewards: Tensor, config: RunConfig) -> Tensor:
    """Advantages (Q, G) as the variant takes them, overlong penalty included."""
    variant = _variant(config)
    if variant.overlong_cache:
        longest = config.rollout.max_new_tokens
        cache = max(1, int(variant.overlong_cache * longest))
        lengths = torch.tensor([[len(r) for r in t.rollouts] for t in traces])
        rewards = rewards + overlong_penalty(lengths, max_length=longest, cache=cache)
    return advantages(rewards, scale=variant.scale)


def update(learner: Learner, samples: Sequence[Sample], *, step: int = 0) -> dict[str, float]:
    """One optimizer step on `samples`; returns its metrics (loss, gradient norm, clipping).

    A sample of advantage 0 counts in the denominator and takes no pass: both its surrogate and its
    self-reward α A H have no gradient. If none is left, no step is taken.

    Raises:
        FloatingPointError: loss or gradient isn't finite; names step and tensor. No parameter was
            changed.
    """
    config, accelerator, device = learner.config, learner.accelerator, learner.policy.device
    variant = _variant(config)
    kept = [sample for sample in samples if not sample.dropped]
    count = {
        "token": sum(len(s.rollout) for s in kept),
        "sequence": len(kept),
        "constant": len(kept) * config.rollout.max_new_tokens,
    }[variant.reduction]
    batches = micro_batches([s for s in kept if s.advantage], config.grpo.micro_tokens)
    # All processes divide by the sum of their counts, and make equally many passes.
    gathered = accelerator.gather(torch.tensor([[float(count), len(batches)]], device=device))
    normaliser, rounds = gathered[:, 0].sum().item(), int(gathered[:, 1].max())
    batches += [[replace(samples[0], advantage=0.0)]] * (rounds - len(batches))
    learner.scorer.train()
    loss, tokens, clipped, ratios = 0.0, 0, 0.0, 0.0
    for at, part in enumerate(batches):
        batch = pack(part, learner.policy.pad_id, device)
        # DDP averages gradients after the last pass; we want their sum.
        last = at == rounds - 1
        with nullcontext() if last else accelerator.no_sync(learner.scorer):
            logp, entropy = learner.scorer(batch)
            _refuse_non_finite(learner, step, {"log-probs": logp, "entropies": entropy})
            result = policy_loss(
                logp,
                batch.old_logp,
                batch.advantages,
                batch.mask,
                entropy=entropy if config.grpo.alpha else None,
                alpha=config.grpo.alpha,
                clip_low=variant.clip_low,
                clip_high=variant.clip_high,
                reduction=variant.reduction,
                normaliser=normaliser,
            )
            _refuse_non_finite(learner, step, {"loss": result.loss})
            accelerator.backward(result.loss * accelerator.num_processes)
        loss += result.loss.item()
        tokens += result.tokens
        clipped += result.clip_fraction * result.tokens
        ratios += result.mean_ratio * result.tokens
    norm = _take_step(learner, step) if rounds else 0.0
    return {
        "loss": loss,
        "grad_norm": norm,
        "clip_fraction": clipped / max(1, tokens),
        "mean_ratio": ratios / tokens if tokens else 1.0,
        "trained_tokens": float(tokens),
    }


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
    settings = learner.config.optimizer
    norm = float(
        learner.accelerator.clip_grad_norm_(learner.scorer.parameters(), settings.max_grad_norm)
    )
    if not math.isfinite(norm):
        named = learner.scorer.named_parameters()
        gradients = {f"gradient of {n}": p.grad for n, p in named if p.grad is not None}
        _refuse_non_finite(learner, step, gradients)
    for group in learner.optimizer.param_groups:
        group["lr"] = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return norm


def train_step(learner: Learner, task: Task, step: int) -> StepRecord:
    """Step `step` of a run: sample, verify, score by group, update."""
    config, accelerator = learner.config, learner.accelerator
    variant = _variant(config)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    begin = time.perf_counter()
    # Questions, never rollouts, are dealt to the processes: a group stays whole.
    questions = task.batch(step, config.questions, seed=config.seed)[rank::ranks]
    settings = config.rollout
    learner.policy.model.eval()
    traces = roll_out(
        learner.policy,
        questions,
        Sampling(settings.max_new_tokens, settings.temperature, settings.top_p),
        samples=settings.samples,
        generator=torch.Generator().manual_seed((config.seed * 1_000_003 + step) * ranks + rank),
        batch=settings.batch,
    )
    sampled = time.perf_counter()
    rewards = reward_table(traces, step=step)
    scores = score(traces, rewards, config)
    drop = ~informative_groups(rewards) & variant.drop_uniform
    metrics: dict[str, float] = {}
    for part in range(config.grpo.updates):
        rows = slice(part, None, config.grpo.updates)
        chosen = samples_of(traces[rows], scores[rows], dropped=drop[rows].tolist())
        metrics = update(learner, chosen, step=step)
    seconds = {"rollout": sampled - begin, "update": time.perf_counter() - sampled}
    metrics = {"step": float(step), **_summary(traces, task), **metrics}
    metrics |= {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}
    return StepRecord(traces, rewards, scores, metrics)


def _summary(traces: Sequence[Trace], task: Task) -> dict[str, float]:
    rollouts = [r for t in traces for r in t.rollouts]
    rewards = [[r.reward or 0.0 for r in t.rollouts] for t in traces]
    tokens = sum(map(len, rollouts))
    summary = {
        "reward": fmean(r for row in rewards for r in row),
        "solved": fmean(max(row) > 0 for row in rewards),
        "uniform_groups": fmean(len(set(row)) == 1 for row in rewards),
        "entropy": sum(h for r in rollouts for h in r.entropies) / tokens,
        "length": tokens / len(rollouts),
        "finished": fmean(r.finished for r in rollouts),
        "rep4": fmean(rep_n(r.ids, 4) for r in rollouts),
    }
    labels = [[task.label(t.question, r.text) for r in t.rollouts] for t in traces]
    if all(found is not None for row in labels for found in row):
        summary["distinct_strategies"] = fmean(
            len({found.signature for found in row if found}) for row in labels
        )
    return summary


def _variant(config: RunConfig) -> Variant:
    name = config.grpo.variant
    if name not in VARIANTS:
        raise ValueError(f"Unknown grpo.variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


# --- the loop -----------------------------------------------------------------------------------


def train(
    config: RunConfig,
    policy: Policy,
    task: Task,
    *,
    output: Path | None = None,
    on_step: Callable[[Learner, StepRecord], None] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `policy` in place for `config.steps` steps; returns the metrics of each.

    With `output`, writes `config.json`, one line of `metrics.jsonl` a step, and at the end the
    policy as a Hugging Face folder `policy/`. `on_step` sees each step's whole record.
    """
    learner = build_learner(policy, config)
    main = learner.accelerator.is_main_process
    lines = None
    if output is not None and main:
        output.mkdir(parents=True, exist_ok=True)
        config.save(output / "config.json")
        lines = (output / "metrics.jsonl").open("w", encoding="ascii")
    history: list[dict[str, float]] = []
    bar = tqdm(range(config.steps), desc="train", unit="step", disable=not (progress and main))
    try:
        for step in bar:
            record = train_step(learner, task, step)
            history.append(record.metrics)
            shown = {k: f"{record.metrics[k]:.3f}" for k in ("reward", "entropy")}
            bar.set_postfix(shown)
            if lines is not None:
                lines.write(json.dumps(record.metrics) + "\n")
                lines.flush()
            if on_step is not None:
                on_step(learner, record)
    finally:
        if lines is not None:
            lines.close()
    policy.model.eval()
    if output is not None and main:
        save_policy(policy, output / "policy")
    return history
