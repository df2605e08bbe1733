"""Question → traces: sample a policy, verify the answers, keep every number as a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from i2b_lpo.cache import KeyValues
from i2b_lpo.decode import Decoded, Sampling, decode
from i2b_lpo.policy import Policy
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.verify import verify_batch

__all__ = ["records", "roll_out", "sample", "verified"]


def roll_out(
    policy: Policy,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> list[Trace]:
    """Sample `samples` verified rollouts for each question.

    Args:
        policy: the policy to sample from.
        questions: what to ask; their answers are what the rollouts are verified against.
        sampling: length limit, temperature and top-p.
        samples: rollouts a question.
        generator: source of randomness; needed unless decoding is greedy.
        batch: rows decoded at a time (at least one question's samples); it bounds the memory.
        on_batch: called after each batch with the number of questions it finished.

    Returns:
        One trace a question; every rollout has `reward` 1.0 or 0.0 and the verdict's `reason`.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; give at least 1.")
    traces: list[Trace] = []
    width = max(1, batch // samples)
    for start in range(0, len(questions), width):
        part = questions[start : start + width]
        found, _ = sample(policy, part, sampling, samples=samples, generator=generator)
        traces += verified(found)
        if on_batch is not None:
            on_batch(len(part))
    return traces


def sample(
    policy: Policy,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    samples: int,
    generator: torch.Generator | None,
    keep_read: bool = False,
) -> tuple[list[Trace], list[KeyValues]]:
    """Rollouts of all questions in one batch, not yet verified.

    Returns:
        One trace a question, and with `keep_read` the keys and values of each rollout, in order.
    """
    prompts = policy.prompts(questions)
    decoded = decode(
        policy, prompts, sampling, samples=samples, generator=generator, keep_read=keep_read
    )
    rollouts = records(policy, decoded)
    traces = [
        Trace(
            question=question,
            prompt_ids=tuple(prompt),
            rollouts=tuple(rollouts[at * samples : (at + 1) * samples]),
            policy=policy.name,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        for at, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
    ]
    return traces, decoded.read


def records(policy: Policy, decoded: Decoded) -> list[Rollout]:
    """The rows of `decoded` as records."""
    lengths = decoded.lengths.tolist()
    rows = [row[:n] for row, n in zip(decoded.ids.tolist(), lengths, strict=True)]
    used = sorted({i for row in rows for i in row})
    piece = dict(zip(used, policy.pieces(used), strict=True))  # each token's text is made once
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
    fields = [t.tolist() for t in (decoded.entropy, decoded.logprob, decoded.logprob_t1)]
    finished = decoded.finished.tolist()
    return [
        Rollout(
            ids=tuple(row),
            pieces=tuple(piece[i] for i in row),
            entropies=tuple(fields[0][at][: len(row)]),
            logprobs=tuple(fields[1][at][: len(row)]),
            logprobs_t1=tuple(fields[2][at][: len(row)]),
            text=texts[at],
            finished=finished[at],
        )
        for at, row in enumerate(rows)
    ]


def verified(traces: Sequence[Trace]) -> list[Trace]:
    """The traces with reward and reason of every trajectory, all verified in one batch."""
    verdicts = iter(
        verify_batch(
            [t.question.answer for t in traces for _ in t.rollouts],
            [r.text for t in traces for r in t.rollouts],
        )
    )
    judged = []
    for trace in traces:
        rollouts = []
        for rollout in trace.rollouts:
            verdict = next(verdicts)
            rollouts.append(replace(rollout, reward=float(verdict.correct), reason=verdict.reason))
        judged.append(replace(trace, rollouts=tuple(rollouts)))
    return judged
