"""Question → traces: sample a policy, verify the answers, keep every number as a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from i2b_lpo.model.cache import KeyValues
from i2b_lpo.model.decoding import Decoded, decode
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.tasks.domains import judge
from i2b_lpo.trace import Question, Rollout, Trace

__all__ = ["Reward", "records", "roll_out", "sample", "verified"]

Reward = Callable[[Question, str], float]
"""A reward of one's own: the question and the text of a trajectory → a finite number."""


def roll_out(
    policy: Policy,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    rollouts: int = 1,
    generator: torch.Generator | None = None,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
    reward: Reward | None = None,
) -> list[Trace]:
    """Sample `rollouts` verified rollouts for each question.

    Args:
        policy: the policy to sample from.
        questions: what to ask; the rollouts are verified against their answers.
        sampling: length limit, temperature and top-p.
        rollouts: M, for each question.
        generator: source of randomness; needed unless decoding is greedy.
        batch: rows decoded at a time (at least one question's rollouts); it bounds the memory.
        on_batch: called after each batch with the number of questions it finished.
        reward: replaces the verifier.

    Returns:
        One trace per question; every rollout has the verdict's `reward`, 0 to 1, and `reason`.
    """
    if rollouts < 1:
        raise ValueError(f"rollouts is {rollouts}; give at least 1.")
    traces: list[Trace] = []
    width = max(1, batch // rollouts)
    for start in range(0, len(questions), width):
        part = questions[start : start + width]
        found, _ = sample(policy, part, sampling, rollouts=rollouts, generator=generator)
        traces += verified(found, reward)
        if on_batch is not None:
            on_batch(len(part))
    return traces


def sample(
    policy: Policy,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    rollouts: int,
    generator: torch.Generator | None,
    keep_kv: bool = False,
) -> tuple[list[Trace], list[KeyValues]]:
    """Rollouts of all questions in one batch, not yet verified.

    Returns:
        One trace per question, and with `keep_kv` the keys and values of each rollout, in order.
    """
    prompts = policy.prompts(questions, max_new_tokens=sampling.max_new_tokens)
    decoded = decode(
        policy, prompts, sampling, rollouts=rollouts, generator=generator, keep_kv=keep_kv
    )
    found = records(policy, decoded)
    traces = [
        Trace(
            question=question,
            prompt_ids=tuple(prompt),
            rollouts=tuple(found[at * rollouts : (at + 1) * rollouts]),
            policy=policy.name,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        for at, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
    ]
    return traces, decoded.kv


def records(policy: Policy, decoded: Decoded) -> list[Rollout]:
    """The rows of `decoded` as records."""
    lengths = decoded.lengths.tolist()
    rows = [row[:n] for row, n in zip(decoded.ids.tolist(), lengths, strict=True)]
    used = sorted({i for row in rows for i in row})
    piece = dict(zip(used, policy.pieces(used), strict=True))  # decode each token only once
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


def verified(traces: Sequence[Trace], reward: Reward | None = None) -> list[Trace]:
    """The traces with reward and reason of every trajectory, all verified in one batch.

    Raises:
        RuntimeError: `reward` raised, or didn't return a number; names question and trajectory.
    """
    if reward is not None:
        return [_rewarded(trace, reward) for trace in traces]
    verdicts = iter(
        judge(
            [t.question for t in traces for _ in t.rollouts],
            [r.text for t in traces for r in t.rollouts],
        )
    )
    judged = []
    for trace in traces:
        rollouts = []
        for rollout in trace.rollouts:
            verdict = next(verdicts)
            rollouts.append(replace(rollout, reward=float(verdict.reward), reason=verdict.reason))
        judged.append(replace(trace, rollouts=tuple(rollouts)))
    return judged


def _rewarded(trace: Trace, reward: Reward) -> Trace:
    rollouts = []
    for at, rollout in enumerate(trace.rollouts):
        try:
            value = float(reward(trace.question, rollout.text))
        except Exception as error:  # it is the user's code: anything
            raise RuntimeError(
                f"The reward function failed on trajectory {at} of question {trace.question.id} "
                f"({type(error).__name__}: {error}); no parameter was changed. Fix it, and "
                "continue from the newest checkpoint."
            ) from error
        rollouts.append(replace(rollout, reward=value, reason="own reward"))
    return replace(trace, rollouts=tuple(rollouts))
