"""One step of GRPO or of the whole I²B-LPO (METHOD §0), every stage of it a function.

    question → M rollouts → forks → latents → branches → verify
             → group advantages → S_IB → Top-N → update

Without branches and scores it is GRPO. Each stage hands on records, so a notebook can stop between
any two. A step depends on the weights and (seed, step) alone, never on what was drawn before.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from i2b_lpo.config import RunConfig
from i2b_lpo.infra.memory import lowering
from i2b_lpo.method.filters import kept_share, renormalise
from i2b_lpo.method.grpo import VARIANTS, advantages, informative_groups, overlong_penalty
from i2b_lpo.method.methods import METHODS
from i2b_lpo.method.metrics import rep_n
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.branching import grow_trees
from i2b_lpo.rollout.rollouts import Reward
from i2b_lpo.rollout.scoring import filter_traces, score_traces
from i2b_lpo.tasks.task import Task
from i2b_lpo.trace import Trace
from i2b_lpo.training.batch import trajectories_of
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.processes import together, unsharded
from i2b_lpo.training.updating import update, without_z

__all__ = ["StepRecord", "advantages_of", "reward_table", "select", "train_step"]


@dataclass(frozen=True)
class StepRecord:
    """Everything one step makes: trees, verdict rewards (Q, G), advantages (Q, G), metrics."""

    traces: list[Trace]
    rewards: Tensor
    advantages: Tensor
    metrics: dict[str, float]


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


def advantages_of(
    traces: Sequence[Trace], rewards: Tensor, config: RunConfig, *, kept: Tensor | None = None
) -> Tensor:
    """Advantages (Q, G) as the variant defines them, overlong penalty included.

    Over all G trajectories, or with `kept` (Q, G) over only the kept ones.
    """
    variant = VARIANTS[config.grpo.variant]
    if variant.overlong_cache:
        longest = config.rollout.max_new_tokens
        cache = max(1, int(variant.overlong_cache * longest))
        lengths = torch.tensor([[len(r) for r in t.rollouts] for t in traces])
        rewards = rewards + overlong_penalty(lengths, max_length=longest, cache=cache)
    if kept is not None:
        return renormalise(rewards, kept, scale=variant.scale)
    return advantages(rewards, scale=variant.scale)


def select(
    traces: Sequence[Trace], advantages: Tensor, learner: Learner
) -> tuple[list[Trace], Tensor]:
    """S_IB of every trajectory, and the filter; advantages again if requested (METHOD §5).

    Advantages are of all G, then come scores, then the filter [D].
    """
    config = learner.config
    if config.ib.estimator == "none":
        return list(traces), advantages
    with learner.accelerator.autocast():
        scored = score_traces(
            learner.policy, traces, config.ib, micro_tokens=config.grpo.micro_tokens
        )
    filtered = filter_traces(scored, config.ib)
    if config.ib.renormalise:
        kept = torch.tensor([[r.kept for r in t.rollouts] for t in filtered])
        advantages = advantages_of(filtered, reward_table(filtered), config, kept=kept)
    return filtered, advantages


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, for dropout and random rewards; restores them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def train_step(
    learner: Learner, task: Task, step: int, *, reward: Reward | None = None
) -> StepRecord:
    """Step `step` of a run: sample, branch, verify, score by group, select, update.

    `reward` replaces the verifier.
    """
    accelerator = learner.accelerator
    ranks, rank = accelerator.num_processes, accelerator.process_index
    seed = (learner.config.seed * 1_000_003 + step) * ranks + rank
    with _seeded(seed % 2**32, learner.policy.device):
        return _train_step(learner, task, step, seed, reward)


def _train_step(
    learner: Learner, task: Task, step: int, seed: int, reward: Reward | None
) -> StepRecord:
    config, accelerator = learner.config, learner.accelerator
    rank, ranks = accelerator.process_index, accelerator.num_processes
    begin = time.perf_counter()
    # Questions, never rollouts, are dealt to the processes: a group stays whole.
    questions = task.batch(step, config.questions, seed=config.seed)[rank::ranks]
    settings = config.rollout
    learner.policy.model.eval()
    tight = (
        f"while decoding {settings.batch} rows at a time; try --set "
        f"rollout.batch={max(1, settings.batch // 2)}."
    )
    with together(accelerator), unsharded(learner.scorer):
        with lowering(tight), accelerator.autocast():  # the precision of the update's passes
            traces = grow_trees(
                learner.policy,
                questions,
                Sampling(settings.max_new_tokens, settings.temperature, settings.top_p),
                config.branch,
                rollouts=settings.rollouts,
                steering=learner.steering,
                generator=torch.Generator().manual_seed(seed),
                batch=settings.batch,
                reward=reward,
            )
        sampled = time.perf_counter()
        rewards = reward_table(traces, step=step)
        traces, found = select(traces, advantages_of(traces, rewards, config), learner)
        method, rows = METHODS[config.method], found.tolist()
        each = None if method.advantages is None else method.advantages(traces, rows, config)
        weights = None if method.weights is None else method.weights(traces, rows, config)
    selected = time.perf_counter()
    drop = ~informative_groups(rewards) & VARIANTS[config.grpo.variant].drop_uniform
    trajectories = trajectories_of(
        traces, found, per_token=each, weights=weights, dropped=drop.tolist()
    )
    if config.grpo.logprob == "plain":  # π_old is the policy before the first of the updates
        trajectories = without_z(learner, trajectories)
    parts, size = [], rewards.shape[1]
    for part in range(config.grpo.updates):  # whole groups: every updates-th question
        chosen = [t for i, t in enumerate(trajectories) if i // size % config.grpo.updates == part]
        parts.append(update(learner, chosen, step=step))
    metrics = {name: fmean(p[name] for p in parts) for name in parts[0]}
    metrics["trained_tokens"] *= len(parts)  # the one that is a sum
    seconds = {"rollout": sampled - begin, "update": time.perf_counter() - selected}
    if config.ib.estimator != "none":
        seconds["score"] = selected - sampled
    metrics = {"step": float(step), **_summary(gather_object(traces), task), **metrics}
    metrics |= {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}
    return StepRecord(traces, rewards, found, metrics)


def _summary(traces: Sequence[Trace], task: Task) -> dict[str, float]:
    # A root is what the policy does without z: entropy, length and the like are theirs.
    rollouts = [r for t in traces for r in t.rollouts if r.branch is None]
    rewards = [[r.reward or 0.0 for r in t.rollouts] for t in traces]
    tokens = sum(map(len, rollouts))
    summary = {
        "reward": fmean(r for row in rewards for r in row),
        "solved": fmean(any(r.correct for r in t.rollouts) for t in traces),
        "uniform_groups": fmean(len(set(row)) == 1 for row in rewards),
        "entropy": sum(h for r in rollouts for h in r.entropies) / tokens,
        "length": tokens / len(rollouts),
        "finished": fmean(r.finished for r in rollouts),
        "rep4": fmean(rep_n(r.ids, 4) for r in rollouts),
        "new_tokens": float(sum(t.new_tokens() for t in traces)),
    }
    branches = [r for t in traces for r in t.rollouts if r.branch is not None]
    if branches:
        summary["root_reward"] = fmean(r.reward or 0.0 for r in rollouts)
        summary["branch_reward"] = fmean(r.reward or 0.0 for r in branches)
        summary["kept"] = fmean(
            kept_share([r.kept for r in t.rollouts], t.branch_sets()) for t in traces
        )
    if rollouts[0].score is not None:
        found = [r.score.value for t in traces for r in t.rollouts if r.score is not None]
        summary["S_IB"] = fmean(found)
    labels = [[task.label(t.question, r.text) for r in t.rollouts] for t in traces]
    if all(found is not None for row in labels for found in row):
        summary["distinct_strategies"] = fmean(
            len({found.signature for found in row if found}) for row in labels
        )
    return summary
