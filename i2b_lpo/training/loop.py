"""The training loop: steps, metrics, checkpoints, signals, and what a run leaves behind.

A run that was killed goes on from a checkpoint as if nothing had been, because a step depends on
the weights and its number alone (step.py, checkpoint.py).
"""

from __future__ import annotations

import json
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from i2b_lpo.config import RUN, RunConfig, refuse_old, write_run
from i2b_lpo.infra.files import write_text
from i2b_lpo.infra.signals import Interrupted, Signals
from i2b_lpo.method.checks import check
from i2b_lpo.model.policy import Policy, save_policy
from i2b_lpo.model.steering import Steering, load_steering, save_steering
from i2b_lpo.rollout.rollouts import Reward
from i2b_lpo.tasks.domains import domain_named
from i2b_lpo.tasks.task import Task, without_long_prompts
from i2b_lpo.training.checkpoint import (
    CHECKPOINTS,
    METRICS,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from i2b_lpo.training.learner import Learner, build_learner
from i2b_lpo.training.processes import gathered, launcher_gone, unsharded
from i2b_lpo.training.step import StepRecord, train_step

__all__ = ["train"]

LATENTS = "latents"
FIRST = 3  # steps after which a run that has earned nothing says so


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
    check(config)
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
