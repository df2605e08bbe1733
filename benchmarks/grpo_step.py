"""One GRPO step: `i2b_lpo.training.train_step` against TRL's `GRPOTrainer`, in turn in one process.

Both take the same questions, samples per question, length limit, learning rate and reward function,
draw at temperature 1 from the whole vocabulary, average the loss over tokens, have no KL term, and
make one optimizer step per batch, in float32, without gradient checkpointing. A step is everything
from the prompts' text to the changed weights: sampling, verifying, advantages, forward, backward,
clipping, AdamW. Both start each step from the same weights; restoring them isn't timed.

Two modes:

* natural: rows end at the end token, rewards are the verdicts. Groups of equal reward have no
  gradient; ours gives them no forward and backward pass, TRL does.
* equal work: no end token, and after verifying, rewards alternate 1, 0, so that every group counts.
  Both draw and train on exactly the same number of tokens.

    pip install 'trl==1.16.*'
    python benchmarks/grpo_step.py
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import transformers
from _paired import Stopwatch, Times, machine, report
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import i2b_lpo.training.step
from i2b_lpo.config import RunConfig, preset
from i2b_lpo.model import Policy, load_policy
from i2b_lpo.tasks import Task, load_task
from i2b_lpo.trace import Trace
from i2b_lpo.training import Learner, build_learner, train_step
from i2b_lpo.verify import verify_batch

RATIO = "seconds of ours / seconds of TRL's step, medians, natural mode"
EQUAL_WORK_TOKENS = 96


def alternating(count: int) -> list[float]:
    """Rewards 1, 0, 1, 0, …: every group of two or more has both."""
    return [float(i % 2 == 0) for i in range(count)]


def alternating_table(traces: Sequence[Trace], **_: Any) -> Tensor:
    """In place of `reward_table`; the verdicts have been made by then."""
    return torch.tensor([alternating(len(trace.rollouts)) for trace in traces])


@contextmanager
def constant_rewards(switch: bool) -> Iterator[None]:
    """Inside, `train_step` takes `alternating_table` for rewards if `switch` is on."""
    if switch:
        with mock.patch.object(i2b_lpo.training.step, "reward_table", alternating_table):
            yield
    else:
        yield


class Weights:
    """The start weights of a model, to be put back before each step."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def put_back(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.start[name])

    def moved(self) -> bool:
        """Whether any weight differs from the start."""
        return any(not torch.equal(p, self.start[n]) for n, p in self.model.named_parameters())


class Pairing(TrainerCallback):
    """Runs our step before or after each of TRL's steps (in turn) and times both.

    Trainer calls `on_step_begin` before `training_step`, which samples, scores and trains, and
    `on_step_end` after optimizer step and clearing of gradients.
    """

    def __init__(
        self, learner: Learner, task: Task, trl_model: Any, mixed: bool, warmup: int
    ) -> None:
        self.learner, self.task, self.mixed, self.warmup = learner, task, mixed, warmup
        self.ours, self.trl = Stopwatch(), Stopwatch()
        self.our_weights, self.trl_weights = Weights(learner.policy.model), Weights(trl_model)
        self.our_tokens: list[int] = []
        self.stages: list[dict[str, float]] = []

    def _our_step(self, step: int) -> None:
        self.our_weights.put_back()
        # Accelerators of one process share this, and TRL's gradient accumulation has set it.
        shared = self.learner.accelerator.gradient_state._shared_state
        with (
            constant_rewards(self.mixed),
            mock.patch.dict(shared, sync_gradients=True, plugin_kwargs={}),
        ):
            self.ours.start()
            record = train_step(self.learner, self.task, step)
            self.ours.stop()
        assert self.our_weights.moved(), "our step changed no weight"
        self.our_tokens.append(sum(len(r) for t in record.traces for r in t.rollouts))
        kept = ("rollout_seconds", "update_seconds", "trained_tokens")
        self.stages.append({name: record.metrics[name] for name in kept})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 2 == 0:
            self._our_step(state.global_step)
        self.trl_weights.put_back()
        self.trl.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trl.stop()
        assert self.trl_weights.moved(), "TRL's step changed no weight"
        if state.global_step % 2 == 0:  # the counter has moved on by one: this step was odd
            self._our_step(state.global_step - 1)

    def measured(self) -> tuple[Times, Times]:
        """Ours and TRL's timings without the warm-up."""
        return tuple(  # type: ignore[return-value]
            Times(t.wall[self.warmup :], t.cpu[self.warmup :])
            for t in (self.ours.times, self.trl.times)
        )


def measure(args: argparse.Namespace, mixed: bool) -> dict[str, Any]:
    """Time both on one mode; models and trainer are built anew and their building isn't timed."""
    torch.manual_seed(0)
    config = replace(preset("tiny"), questions=args.questions)
    longest = EQUAL_WORK_TOKENS if mixed else config.rollout.max_new_tokens
    config = replace(
        config,
        rollout=replace(config.rollout, rollouts=args.samples, max_new_tokens=longest),
        optimizer=replace(config.optimizer, warmup_steps=0),
    )
    task = load_task("shop")
    steps = args.warmup + args.repeats
    policy, peer = (load_policy(args.policy, instruction="") for _ in range(2))
    if mixed:
        policy = replace(policy, eos_ids=(-1,))
        peer.model.generation_config.eos_token_id = None
    trainer, sampled = build_trl(args, peer, task, config, steps, mixed)
    learner = build_learner(policy, config)
    callback = Pairing(learner, task, peer.model, mixed, args.warmup)
    trainer.add_callback(callback)
    trainer.train()

    mine, theirs = callback.measured()
    our_tokens, trl_tokens = (tokens[args.warmup :] for tokens in (callback.our_tokens, sampled))
    rows = args.questions * args.samples
    if mixed:
        assert set(our_tokens) == set(trl_tokens) == {rows * longest}, "a row has ended early"
    per_token = [
        median(s / n for s, n in zip(times.wall, tokens, strict=True))
        for times, tokens in ((mine, our_tokens), (theirs, trl_tokens))
    ]
    return {
        "ratio": round(median(mine.wall) / median(theirs.wall), 3),
        "cpu_ratio": round(median(mine.cpu) / median(theirs.cpu), 3),
        "ratio_per_token": round(per_token[0] / per_token[1], 3),
        "max_new_tokens": longest,
        "ours": mine.to_json() | {"tokens": our_tokens, "stages": callback.stages[args.warmup :]},
        "trl": theirs.to_json() | {"tokens": trl_tokens},
    }


def build_trl(
    args: argparse.Namespace, peer: Policy, task: Task, config: RunConfig, steps: int, mixed: bool
) -> tuple[GRPOTrainer, list[int]]:
    """TRL's trainer on the questions of our steps, and the list its token counts go to."""
    rows = config.questions * config.rollout.rollouts
    questions = [
        question
        for step in range(steps)
        for question in task.batch(step, config.questions, seed=config.seed)
    ]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": q.text}], "gold": q.answer} for q in questions]
    )
    sampled: list[int] = []

    def reward(
        completions: Sequence[Any], completion_ids: Sequence[Any], gold: Sequence[str], **_: Any
    ) -> list[float | None]:
        sampled.append(sum(map(len, completion_ids)))
        verdicts = verify_batch(list(gold), [c[0]["content"] for c in completions])
        right = [float(verdict.correct) for verdict in verdicts]
        return [*(alternating(len(right)) if mixed else right)]

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=args.trl_rows,
            gradient_accumulation_steps=rows // args.trl_rows,
            num_generations=config.rollout.rollouts,
            max_completion_length=config.rollout.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            generation_kwargs={"eos_token_id": None} if mixed else None,
            chat_template_kwargs={"enable_thinking": False},
            beta=0.0,
            num_iterations=1,
            loss_type="dapo",
            epsilon=0.2,
            learning_rate=config.optimizer.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=config.optimizer.max_grad_norm,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=peer.model,
            reward_funcs=reward,
            args=settings,
            train_dataset=data,
            processing_class=peer.tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    if mixed:
        trainer.eos_token_ids = [-1]  # else it would cut completions at the tokenizer's end token
    return trainer, sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny-base", help="bundled name or folder")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--trl-rows", type=int, default=16, help="rows in one of TRL's forward and backward passes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    if args.questions * args.samples % args.trl_rows:
        parser.error("--trl-rows must divide questions × samples")
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    there = machine("trl", "accelerate")

    modes = {}
    print(f"{'':14}{'ours s':>9}{'TRL s':>9}{'ratio':>7}{'per token':>11}{'cpu ratio':>11}")
    for name, mixed in (("natural", False), ("equal work", True)):
        modes[name] = found = measure(args, mixed)
        print(
            f"{name:14}{found['ours']['median_seconds']:9.3f}{found['trl']['median_seconds']:9.3f}"
            f"{found['ratio']:7.2f}{found['ratio_per_token']:11.2f}{found['cpu_ratio']:11.2f}"
        )
    result = {
        "benchmark": "grpo_step",
        "ratio": modes["natural"]["ratio"],
        "ratio_per_token": modes["natural"]["ratio_per_token"],
        "ratio_equal_work": modes["equal work"]["ratio"],
        "ratio_is": RATIO,
        "policy": Path(args.policy).name,
        "questions": args.questions,
        "samples": args.samples,
        "trl_rows": args.trl_rows,
        "repeats": args.repeats,
        **there,
        "modes": modes,
    }
    report(result, args.json)


if __name__ == "__main__":
    main()
