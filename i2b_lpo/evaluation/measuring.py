"""Measure a policy on a task: accuracy, diversity, length, entropy, each with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from i2b_lpo.evaluation.partial import open_parts, read_part, write_part
from i2b_lpo.method.metrics import (
    FORK,
    SURE,
    Interval,
    bootstrap_interval,
    distinct_n,
    maj_at_k,
    pass_at_k,
    rep_n,
    self_bleu,
    self_rouge_l,
)
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.rollouts import Reward, roll_out
from i2b_lpo.tasks.domains import domain_named
from i2b_lpo.tasks.task import Task
from i2b_lpo.trace import Question, Rollout, Trace

__all__ = [
    "EntropyProfile",
    "Evaluation",
    "StrategyUse",
    "entropy_profile",
    "evaluate",
    "measure",
]

UNDECIDED = ("timeout", "too_long", "unparsable")


@dataclass(frozen=True)
class StrategyUse:
    """How one strategy was used; a trace of two products has two uses.

    Attributes:
        share: of all uses.
        product_right: share of its uses that gave the product's true value.
        trace_right: share of its uses in traces with the right answer.
        count: number of uses.
    """

    share: float
    product_right: float
    trace_right: float
    count: int


@dataclass(frozen=True)
class EntropyProfile:
    """Where a policy is uncertain (nats): shares of tokens, and H where a strategy is chosen.

    Attributes:
        sure, fork: share of tokens of at most `SURE` and above `FORK`.
        words: 10th percentile, median and 90th percentile of H at strategy words.
        fork_words: share of the tokens above `FORK` that are strategy words.
    """

    tokens: int
    mean: float
    sure: float
    fork: float
    words: tuple[float, float, float]
    fork_words: float

    def describe(self) -> str:
        """The profile in two sentences."""
        low, middle, high = self.words
        return (
            f"Of {self.tokens} tokens (mean {self.mean:.3f} nat) {self.sure:.1%} have at most "
            f"{SURE} nat and {self.fork:.1%} above {FORK}. At strategy words the median is "
            f"{middle:.2f} nat (10th to 90th percentile {low:.2f} to {high:.2f}); they are "
            f"{self.fork_words:.0%} of the tokens above {FORK}."
        )


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one set of questions.

    Attributes:
        metrics: name → mean over questions with its 95 % bootstrap interval.
        values: name → one number per question, in order, as paired comparisons need.
        levels: level → the accuracy metrics on the questions of that level.
        strategies: strategy → how it was used; empty for a task without a labeller.
    """

    policy: str
    task: str
    questions: int
    samples: int
    metrics: dict[str, Interval]
    values: dict[str, list[float]]
    levels: dict[int, dict[str, Interval]]
    strategies: dict[str, StrategyUse]

    def to_json(self) -> dict[str, Any]:
        """All numbers as a plain dict."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """The metrics as aligned text."""
        width = max(map(len, self.metrics))
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.metrics.items())

    def __str__(self) -> str:
        head = f"{self.policy} on {self.task}: {self.questions} questions × {self.samples} samples"
        return f"{head}\n{self.table()}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def entropy_profile(traces: Sequence[Trace], words: Collection[str]) -> EntropyProfile:
    """The entropy profile of sampled traces; `words` are the strategy words, one token each."""
    pairs = [
        (h, piece in words)
        for t in traces
        for r in t.rollouts
        for h, piece in zip(r.entropies, r.pieces, strict=True)
    ]
    entropies = np.array([h for h, _ in pairs])
    at_words = np.array([is_word for _, is_word in pairs])
    if not at_words.any():
        raise ValueError("No strategy word is in these traces; give traces of the bundled task.")
    low, middle, high = np.percentile(entropies[at_words], [10, 50, 90]).tolist()
    forks = entropies > FORK
    return EntropyProfile(
        tokens=len(pairs),
        mean=float(entropies.mean()),
        sure=float((entropies <= SURE).mean()),
        fork=float(forks.mean()),
        words=(low, middle, high),
        fork_words=float(at_words[forks].mean()) if forks.any() else 0.0,
    )


def _accuracy(trace: Trace, greedy: Rollout | None) -> dict[str, float]:
    n = len(trace.rollouts)
    right = sum(r.correct for r in trace.rollouts)
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= n]
    row = {} if greedy is None else {"greedy": float(greedy.correct)}
    row |= {f"pass@{k}": pass_at_k(n, right, k) for k in powers}
    domain, gold = domain_named(trace.question.domain), trace.question.answer
    answers = [domain.extract(r.text) for r in trace.rollouts]
    right_ones = {a for a, r in zip(answers, trace.rollouts, strict=True) if r.correct}
    # An answer that couldn't be decided once would cost its whole time limit with every other one.
    hopeless = {a for a, r in zip(answers, trace.rollouts, strict=True) if r.reason in UNDECIDED}

    def same(a: str, b: str) -> bool:
        if a == gold:  # whether b is right was its verdict: a domain may know more than one answer
            return b in right_ones
        return a == b or (hopeless.isdisjoint((a, b)) and domain.equivalent(a, b))

    row[f"maj@{n}"] = maj_at_k(answers, gold, n, same)
    return row


def _diversity(trace: Trace, task: Task) -> dict[str, float]:
    # Token ids without the end token, which every finished rollout shares.
    ids = [r.ids[:-1] if r.finished else r.ids for r in trace.rollouts]
    row = {}
    if len(ids) > 1:
        row = {
            "distinct-1": distinct_n(ids, 1),
            "distinct-4": distinct_n(ids, 4),
            "1-self-BLEU": 1 - self_bleu(ids),
            "1-self-ROUGE-L": 1 - self_rouge_l(ids),
        }
    labels = [task.label(trace.question, r.text) for r in trace.rollouts]
    known = [found for found in labels if found is not None]
    if known:
        row["distinct strategies"] = float(len({found.signature for found in known}))
        row["well-formed"] = fmean(found.well_formed for found in known)
    return row


def measure(
    traces: Sequence[Trace], task: Task, *, greedy: Sequence[Trace] | None = None
) -> Evaluation:
    """Metrics of existing traces; `greedy` holds one greedy rollout of the same questions."""
    if not traces:
        raise ValueError("There are no traces to measure; ask for at least one question.")
    if len({len(t.rollouts) for t in traces}) > 1:
        raise ValueError("Every question needs the same number of rollouts; sample them together.")
    if greedy is not None and [t.question for t in greedy] != [t.question for t in traces]:
        raise ValueError("The greedy traces must be of the same questions in the same order.")
    for trace in traces:
        for reward in (r.reward for r in trace.rollouts):
            if reward is None:
                raise ValueError("A rollout has no verdict; verify them first, e.g. with roll_out.")
            if not math.isfinite(reward):
                raise ValueError(
                    f"The reward of question {trace.question.id} is {reward}; give finite rewards."
                )
    rows: list[dict[str, float]] = []
    levels: dict[int, list[dict[str, float]]] = defaultdict(list)
    uses: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for at, trace in enumerate(traces):
        accuracy = _accuracy(trace, None if greedy is None else greedy[at].rollouts[0])
        levels[trace.question.level].append(accuracy)
        rows.append(
            accuracy
            | _diversity(trace, task)
            | {
                "rep-4": fmean(rep_n(r.ids, 4) for r in trace.rollouts),
                "length": fmean(len(r) for r in trace.rollouts),
                "finished": fmean(r.finished for r in trace.rollouts),
                "entropy": fmean(fmean(r.entropies) for r in trace.rollouts),
            }
        )
        for rollout in trace.rollouts:
            labels = task.label(trace.question, rollout.text)
            for use in labels.uses if labels else ():
                uses[use.strategy].append((use.right, rollout.correct))
    total = sum(map(len, uses.values()))
    return Evaluation(
        policy=traces[0].policy,
        task=task.name,
        questions=len(traces),
        samples=len(traces[0].rollouts),
        metrics=_intervals(rows),
        values={name: [row[name] for row in rows] for name in rows[0]},
        levels={level: _intervals(levels[level]) for level in sorted(levels)},
        strategies={
            name: StrategyUse(
                share=len(found) / total,
                product_right=fmean(right for right, _ in found),
                trace_right=fmean(right for _, right in found),
                count=len(found),
            )
            for name, found in sorted(uses.items(), key=lambda item: -len(item[1]))
        },
    )


def _intervals(rows: Sequence[dict[str, float]]) -> dict[str, Interval]:
    return {name: bootstrap_interval([row[name] for row in rows]) for name in rows[0]}


def evaluate(
    policy: Policy,
    task: Task,
    questions: Sequence[Question],
    *,
    sampling: Sampling,
    samples: int = 8,
    seed: int = 0,
    batch: int = 128,
    reward: Reward | None = None,
    progress: str = "evaluate",
    parts: Path | None = None,
) -> tuple[Evaluation, list[Trace]]:
    """Greedy decoding, then `samples` rollouts per question, and all metrics.

    A policy is evaluated without z (METHOD §0). Lengths are in tokens, entropy in nats.

    Args:
        policy: the policy to measure.
        task: names the questions' task and labels their traces.
        questions: what to ask.
        sampling: of the sampled rollouts; greedy decoding takes its length limit.
        samples: rollouts per question.
        seed: of the sampling; the same seed and batch give the same rollouts.
        batch: rows decoded at a time.
        reward: replaces the verifier; `is_correct` says which rewards count as right.
        progress: label of the progress bar.
        parts: folder in which each finished batch is kept, so that a stopped evaluation continues
            from there with the same result; remove it when the result is saved.

    Returns:
        The metrics, and the sampled traces they were computed from.

    Raises:
        ValueError: `parts` belongs to another evaluation; says what differs.
    """
    generator = torch.Generator().manual_seed(seed)
    cold = dataclasses.replace(sampling, temperature=0.0, top_p=1.0)
    passes = {"greedy": (cold, 1), "sampled": (sampling, samples)}
    if parts is not None:
        settings = {"samples": samples, "seed": seed, "batch": batch, **asdict(sampling)}
        open_parts(parts, policy, questions, settings)
    done: dict[str, list[Trace]] = {}
    with tqdm(total=2 * len(questions), desc=progress, unit="question") as bar:
        for name, (drawn, count) in passes.items():
            width = max(1, batch // count)
            done[name] = []
            for start in range(0, len(questions), width):
                chosen = questions[start : start + width]
                file = None if parts is None else parts / f"{name}-{start:06}.json"
                found = None if file is None else read_part(file, generator)
                if found is None:
                    found = roll_out(
                        policy, chosen, drawn, rollouts=count, generator=generator, batch=batch,
                        reward=reward,
                    )  # fmt: skip
                    if file is not None:
                        write_part(file, found, generator)
                done[name] += found
                bar.update(len(chosen))
    return measure(done["sampled"], task, greedy=done["greedy"]), done["sampled"]
