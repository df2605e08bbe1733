"""The training loop: one step of GRPO or of the whole I²B-LPO (METHOD §0).

    question → M rollouts → forks → latents → branches → verify
             → group advantages → S_IB → Top-N → update

Without branches and scores it is GRPO.

Each stage is a function that hands on plain records, so a notebook can stop between any two. A
step depends on the weights and (seed, step) alone, never on what was drawn before: a run that was
killed goes on from a checkpoint as if nothing had been (`i2b_lpo.training.checkpoint`).
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from tqdm.auto import tqdm

from i2b_lpo.config import RUN, RunConfig, refuse_old, write_run
from i2b_lpo.infra.files import write_text
from i2b_lpo.infra.memory import lowering
from i2b_lpo.infra.signals import Interrupted, Signals
from i2b_lpo.method.filters import kept_share, renormalise
from i2b_lpo.method.grpo import advantages, informative_groups, overlong_penalty
from i2b_lpo.method.metrics import rep_n
from i2b_lpo.method.names import check_names
from i2b_lpo.model.decoding import Sampling
from i2b_lpo.model.policy import Policy, save_policy
from i2b_lpo.model.steering import Steering, load_steering, save_steering
from i2b_lpo.rollout.branching import grow_trees
from i2b_lpo.rollout.rollouts import Reward
from i2b_lpo.rollout.scoring import filter_traces, score_traces
from i2b_lpo.tasks.domains import domain_named
from i2b_lpo.tasks.task import Task, without_long_prompts
from i2b_lpo.trace import Trace
from i2b_lpo.training.batch import trajectories_of
from i2b_lpo.training.checkpoint import (
    CHECKPOINTS,
    METRICS,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from i2b_lpo.training.processes import gathered, launcher_gone, together, unsharded
from i2b_lpo.training.updating import Learner, build_learner, update, variant_of, without_z

__all__ = ["StepRecord", "advantages_of", "reward_table", "select", "train", "train_step"]

LATENTS = "latents"
FIRST = 3  # steps after which a run that has earned nothing says so


@dataclass(frozen=True)
class StepRecord:
    """Everything one step made: trees, verdict rewards (Q, G), advantages (Q, G), metrics."""

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
    """Advantages (Q, G) as the variant takes them, overlong penalty included.

    Of all G trajectories, or with `kept` (Q, G) of the kept ones alone.
    """
    variant = variant_of(config)
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
    """S_IB of every trajectory and the filter; advantages again if asked for (METHOD §5).

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
    """Seed the global generators, for dropout and rewards that draw; then they are as before."""
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

    `reward` takes the place of the verifier.
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
    variant = variant_of(config)
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
    selected = time.perf_counter()
    drop = ~informative_groups(rewards) & variant.drop_uniform
    trajectories = trajectories_of(traces, found, dropped=drop.tolist())
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


def train(
    config: RunConfig,
    policy: Policy,
    task: Task,
    *,
    steering: Steering | None = None,
    reward: Reward | None = None,
    output: Path | None = None,
    resume: bool = False,
    on_step: Callable[[Learner, StepRecord], None] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `policy` in place for `config.steps` steps; returns the metrics of each.

    Warns if no trajectory of the first steps earned anything, and says why that may be.

    Args:
        config: the settings of the run.
        policy: what is trained.
        task: where the questions come from.
        steering: the latents of branches with z; default those that `config` names.
        reward: your own reward of a text, in place of the verifier's 1 or 0.
        output: folder for `run.toml` (the settings, which repeat it), `metrics.jsonl` (one line a
            step), `checkpoints/` and at the end the policy as a Hugging Face folder `policy/`, with
            `grpo.train_psa` also its `latents/`, of the next version. With checkpoints, Ctrl-C and
            SIGTERM end the run after its current step, saved.
        resume: go on from the newest checkpoint in `output`; on a CPU bit for bit as if the run
            had never stopped.
        on_step: sees each step's whole record.
        stop: asked after each step; True ends the run there, saved, and returns.
        progress: show a bar.

    Raises:
        ValueError: an unknown name in `config`; the branches need latents and there are none: the
            message holds the command that makes them; `output` holds a run and `resume` wasn't
            given, or it holds another run than this one.
        Interrupted: a signal ended the run; it is a KeyboardInterrupt.
    """
    check_names(config)
    if resume and output is None:
        raise ValueError(
            "--resume goes on with the run in --output (in Python: resume=, output=); name its "
            "folder."
        )
    if steering is None and config.branch.branches and config.branch.fusion != "none":
        steering = load_steering(policy, config.branch.latents or None, run=config)
    task = without_long_prompts(
        task,
        lambda question: len(policy.prompt_ids(question)),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )
    learner = build_learner(policy, config, steering=steering, sharded=config.shard)
    main, saved = learner.accelerator.is_main_process, output if config.checkpoint.every else None
    history = [] if output is None else _begin(learner, task, output, resume)
    bar = tqdm(
        total=config.steps, initial=len(history), desc="train", unit="step",
        disable=not (progress and main),
    )  # fmt: skip
    reasons: Counter[str] = Counter()
    with bar, Signals() if saved else nullcontext(Signals()) as signals:
        for step in range(len(history), config.steps):
            record = train_step(learner, task, step, reward=reward)
            history.append(record.metrics)
            reasons.update(
                r.reason if r.finished else "cut off" for t in record.traces for r in t.rollouts
            )
            if main and len(history) == min(FIRST, config.steps) and _earned_nothing(history):
                asked = record.traces[0].question.domain
                warnings.warn(
                    _why_nothing(reasons, config.rollout.max_new_tokens, asked), stacklevel=2
                )
            bar.update()
            bar.set_postfix({k: f"{record.metrics[k]:.3f}" for k in ("reward", "entropy")})
            if output is not None and main:
                with (output / METRICS).open("a", encoding="ascii") as lines:
                    lines.write(json.dumps(record.metrics) + "\n")
            if on_step is not None:
                on_step(learner, record)
            gone = signal.SIGTERM if launcher_gone() else 0
            wish = (signals.received or gone, stop is not None and stop())
            wishes = gather_object([wish])  # all processes stop together
            number, halt = max(n for n, _ in wishes), any(h for _, h in wishes)
            last = number or halt or len(history) == config.steps
            if saved and (last or len(history) % config.checkpoint.every == 0):
                save_checkpoint(learner, task, saved, history)
            if number:
                raise Interrupted(
                    f"Stopped after {len(history)} of {config.steps} steps, saved in {output}; "
                    "the same command with --resume (resume=True in Python) goes on from there.",
                    number,
                )
            if halt:
                break
    policy.model.eval()
    # All processes take part in gathering what is sharded.
    weights = {name: gathered(p) for name, p in policy.model.named_parameters()}
    if output is not None and main:
        save_policy(policy, output / "policy", weights=weights if config.shard else None)
    if output is not None and config.grpo.train_psa and steering is not None:
        card = steering.card | {"train_psa_steps": len(history)}
        with unsharded(learner.scorer):
            if main:
                trained = replace(steering, version=steering.version + 1, card=card)
                save_steering(trained, output / LATENTS, dtype=torch.float32)
    return history


def _earned_nothing(history: Sequence[Mapping[str, float]]) -> bool:
    """No group of these steps had anything to compare, and none earned more than 0."""
    return all(row["uniform_groups"] == 1 and row["reward"] <= 0 for row in history)


def _why_nothing(reasons: Counter[str], limit: int, domain: str) -> str:
    known = {
        **domain_named(domain).told,
        "cut off": f"didn't end within rollout.max_new_tokens={limit} (raise it, if it isn't that "
        "the policy never writes an end token)",
        "own reward": "got nothing from the reward function (try it on a text that is right)",
    }
    count = sum(reasons.values())
    told = "; ".join(
        f"{number / count:.0%} {known.get(reason, 'gave an answer that could not be read')}"
        for reason, number in reasons.most_common()
    )
    return (
        f"No trajectory of the first steps earned a reward, so nothing has been learnt yet. Of "
        f"{count}, {told}. If texts and gold answers are as they should be, the questions are too "
        "hard for the policy as it is: take easier ones, more rollouts or a stronger policy."
    )


def _begin(learner: Learner, task: Task, output: Path, resume: bool) -> list[dict[str, float]]:
    """Open the folder of a run; returns the metrics of the steps already done."""
    config, accelerator = learner.config, learner.accelerator
    refuse_old(output)
    if resume and not (output / RUN).is_file():
        raise ValueError(
            f"{output} holds no run to go on with; start one without --resume (resume=False)."
        )
    if not resume and any((output / CHECKPOINTS).glob("step-*")):
        raise ValueError(
            f"{output} holds a run; go on with --resume (resume=True in Python), or choose another "
            "folder."
        )
    found = newest_checkpoint(output) if resume else None
    if found is not None and found.step > config.steps:
        raise ValueError(
            f"The run in {output} has done {found.step} steps, more than the "
            f"{config.steps} asked for; give --steps {found.step} or more (in Python steps)."
        )
    if resume and found is None:
        warnings.warn(f"{output} has no checkpoint yet; its first step comes next.", stacklevel=3)
    history = [] if found is None else restore(learner, task, found)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_run(config, output, "train")
        write_text(output / METRICS, "".join(json.dumps(row) + "\n" for row in history))
    accelerator.wait_for_everyone()  # before anybody looks into the folder again
    return history
