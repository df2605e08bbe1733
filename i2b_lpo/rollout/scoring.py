r"""Traces → scored traces → filtered traces: the model passes behind S_IB (METHOD §5).

The verified answer is scored where the trajectory itself gave its answer::

    prompt ‖ the trajectory's own tokens, its box cut off ‖ \boxed{ 5 4 4 }
                                                                    ─────── log π(a|q,o)

Only the answer's own tokens and the brace that ends it count: knowing that a box comes now tells
nothing about a, and straight after the prompt, for log π(a|q), no policy would begin with one. The
box is that of mathematics; another domain has its own frame (`Domain.frame`). Everything else (T,
log π(o_t), H_t) was measured in decoding and is in the records; on a branch's own tokens with its
z [D].

Passes are made without z, at temperature 1. The formulas are in ib.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, islice

import torch

from i2b_lpo.config import IBConfig
from i2b_lpo.infra.memory import halving, one_pass
from i2b_lpo.method.checks import check
from i2b_lpo.method.filters import FILTERS
from i2b_lpo.method.grpo import advantages
from i2b_lpo.method.ib import ESTIMATORS, Evidence, reference_length
from i2b_lpo.model.logprobs import row_logprobs
from i2b_lpo.model.padding import micro_batches
from i2b_lpo.model.policy import Policy
from i2b_lpo.tasks.domains import domain_named
from i2b_lpo.trace import Question, Rollout, Trace

__all__ = [
    "answer_logprobs",
    "conditioned_entropies",
    "filter_traces",
    "gather_evidence",
    "reasoning_ids",
    "score_traces",
]


def reasoning_ids(policy: Policy, rollout: Rollout, domain: str = "maths") -> tuple[int, ...]:
    r"""The tokens of a trajectory up to its box: what it says before it gives its answer.

    Cut where the answer to be verified begins: in mathematics at the last balanced ``\boxed{…}``,
    or else at a box that never closes. A trajectory without one keeps all its tokens but the end
    token, and gets a final newline. The cut is found among the tokens as they were drawn; only
    characters that share a token with the box's first are encoded again.

    Args:
        policy: whose tokens they are.
        rollout: the trajectory.
        domain: of its question.
    """
    ids, pieces = rollout.ids, rollout.pieces
    at = domain_named(domain).begins("".join(pieces))
    if at is None:
        end = len(ids)
        while end and ids[end - 1] in policy.eos_ids:
            end -= 1
        break_line = "" if not end or pieces[end - 1].endswith("\n") else "\n"
        return ids[:end] + _encode(policy, break_line)
    ends = list(accumulate(map(len, pieces)))
    first = next(i for i, stop in enumerate(ends) if stop > at)  # the token the box begins in
    lead = pieces[first][: at - (ends[first] - len(pieces[first]))]
    return ids[:first] + _encode(policy, lead)


def _encode(policy: Policy, text: str) -> tuple[int, ...]:
    return tuple(policy.tokenizer.encode(text, add_special_tokens=False)) if text else ()


def answer_logprobs(
    policy: Policy,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[str],
    *,
    domains: Sequence[str] = (),
    micro_tokens: int = 4096,
) -> list[float]:
    r"""Mean log-prob of each answer's tokens after its context: ``log π(a|context)/|a|``.

    The policy reads ``context ‖ \boxed{a}``, tokenised as it would write it; the mean is over the
    tokens that hold a character of ``a}``. Equal rows are computed once.

    Args:
        policy: whose log-probs, at temperature 1.
        contexts: B rows of token ids: a prompt, or a prompt and `reasoning_ids`.
        answers: B answers, bare or boxed.
        domains: the domain of each, whose frame takes the place of the box; () is maths for all.
        micro_tokens: padded tokens in one pass; it bounds the memory and never changes a result
            beyond rounding.

    Returns:
        B numbers in nats per token, at most 0.

    Raises:
        ValueError: the lengths differ, an answer or context is empty, or a row exceeds the policy's
            positions.
    """
    asked = list(zip(answers, domains or ["maths"] * len(answers), strict=True))
    if len(contexts) != len(answers):
        raise ValueError(f"{len(contexts)} contexts need as many answers, got {len(answers)}.")
    forms = {pair: _answer_form(policy, *pair) for pair in dict.fromkeys(asked)}
    rows = [(tuple(c), forms[pair][0]) for c, pair in zip(contexts, asked, strict=True)]
    found = _measured(policy, rows, micro_tokens)
    means = []
    for (logp, _), pair in zip(found, asked, strict=True):
        own = logp[forms[pair][1] :]
        means.append(math.fsum(own) / len(own))
    return means


def _answer_form(policy: Policy, answer: str, domain: str) -> tuple[tuple[int, ...], int]:
    r"""The tokens of ``\boxed{a}``, and how many of them come before the answer."""
    own = domain_named(domain)
    bare = (own.extract(answer) or answer).strip()
    if not bare:
        raise ValueError("There is an empty answer; drop its question.")
    frame, end = own.frame
    coded = policy.tokenizer(
        f"{frame}{bare}{end}",
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    before = sum(end <= len(frame) for _, end in coded["offset_mapping"])
    return tuple(coded["input_ids"]), before


def conditioned_entropies(
    policy: Policy, traces: Sequence[Trace], *, micro_tokens: int = 4096
) -> list[list[tuple[float, ...]]]:
    """H(o_t|q,a) of every token of every trajectory, read again with the answer in the prompt.

    The question then reads ``…`` / ``The answer is a.`` [D]. One more pass over all trajectories.

    Returns:
        For each trace, for each of its rollouts, T entropies in nats, at temperature 1.

    Raises:
        ValueError: a row exceeds the policy's positions.
    """
    rows = [
        (prompt, rollout.ids)
        for trace in traces
        for prompt in [tuple(policy.prompt_ids(_told(trace.question)))]
        for rollout in trace.rollouts
    ]
    measured = iter(_measured(policy, rows, micro_tokens))
    return [[next(measured)[1] for _ in trace.rollouts] for trace in traces]


def _told(question: Question) -> Question:
    return replace(question, text=f"{question.text}\nThe answer is {question.answer}.")


Row = tuple[tuple[int, ...], tuple[int, ...]]  # what is read, and what is measured after it


@torch.no_grad()
def _measured(
    policy: Policy, rows: Sequence[Row], micro_tokens: int
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Log-prob and entropy of each row's second part, at temperature 1."""
    room = policy.model.config.max_position_embeddings
    if any(not context for context, _ in rows):
        raise ValueError("A context holds no token; give the prompt at least.")
    if (longest := max((len(a) + len(b) for a, b in rows), default=0)) > room:
        raise ValueError(
            f"A scored row takes {longest} tokens and {policy.name} has {room} positions; lower "
            "the length limit of the rollouts."
        )
    different = dict.fromkeys(rows)  # equal ones are computed once
    found = halving(lambda tokens: _passes(policy, different, tokens), micro_tokens)
    return [found[row] for row in rows]


def _passes(
    policy: Policy, rows: Iterable[Row], tokens: int
) -> dict[Row, tuple[tuple[float, ...], tuple[float, ...]]]:
    found = {}
    for batch in micro_batches(rows, tokens, lambda r: len(r[0]) + len(r[1])):
        with one_pass(len(batch), len(batch) * max(len(a) + len(b) for a, b in batch)):
            logp, entropy = row_logprobs(policy, batch)
        if not all(row.isfinite().all() for row in (*logp, *entropy)):
            raise FloatingPointError(
                f"Scoring: the log-probs of {policy.name} are not finite; its weights are damaged "
                "or its training has diverged, load an earlier one."
            )
        for row, own_logp, own_entropy in zip(batch, logp, entropy, strict=True):
            found[row] = tuple(own_logp.tolist()), tuple(own_entropy.tolist())
    return found


def gather_evidence(
    policy: Policy, traces: Sequence[Trace], estimator: str, *, micro_tokens: int = 4096
) -> list[list[Evidence]]:
    """What `estimator` reads of every trajectory, with only the passes it needs.

    Advantages and T_ref are those of all G trajectories of a question. `answer_information` takes
    one pass over all trajectories of all questions together. With the evidence in hand, a score
    with other weights needs no further pass.

    Args:
        policy: the policy that sampled the traces.
        traces: verified traces.
        estimator: an entry of `i2b_lpo.method.ESTIMATORS`.
        micro_tokens: see `answer_logprobs`.

    Returns:
        For each trace, for each of its rollouts, the evidence.

    Raises:
        ValueError: an unknown estimator, a rollout without a reward, or a row that exceeds the
            policy's positions.
    """
    check(IBConfig(estimator=estimator))
    needs = ESTIMATORS[estimator]
    rewards = [torch.tensor(_rewards(trace)) for trace in traces]
    pairs = [(trace, rollout) for trace in traces for rollout in trace.rollouts]
    answers: list[float | None] = [None] * len(pairs)
    priors: list[float | None] = [None] * len(traces)
    if needs.answer:
        asked = [t.question for t, _ in pairs] + [t.question for t in traces]
        measured = answer_logprobs(
            policy,
            [t.prompt_ids + reasoning_ids(policy, r, t.question.domain) for t, r in pairs]
            + [t.prompt_ids for t in traces],
            [question.answer for question in asked],
            domains=[question.domain for question in asked],
            micro_tokens=micro_tokens,
        )
        answers, priors = [*measured[: len(pairs)]], [*measured[len(pairs) :]]
    conditioned: list[tuple[float, ...] | None] = [None] * len(pairs)
    if needs.conditioned:
        told = conditioned_entropies(policy, traces, micro_tokens=micro_tokens)
        conditioned = [row for rows in told for row in rows]
    own = iter(zip(answers, conditioned, strict=True))
    gathered = []
    for trace, group, prior in zip(traces, rewards, priors, strict=True):
        lengths = [len(rollout) for rollout in trace.rollouts]
        reference = reference_length(lengths, [rollout.correct for rollout in trace.rollouts])
        gains = advantages(group).tolist() if needs.advantage else [0.0] * len(group)
        gathered.append(
            [
                Evidence(
                    ids=rollout.ids,
                    logprobs=rollout.logprobs_t1,
                    entropies=rollout.entropies,
                    advantage=advantage,
                    reference=reference,
                    answer=answer,
                    prior=prior,
                    conditioned=entropies,
                )
                for rollout, advantage, (answer, entropies) in zip(
                    trace.rollouts, gains, islice(own, len(gains)), strict=True
                )
            ]
        )
    return gathered


def score_traces(
    policy: Policy, traces: Sequence[Trace], settings: IBConfig, *, micro_tokens: int = 4096
) -> list[Trace]:
    """Give every trajectory, roots too, its S_IB with its two parts.

    Scores rest on the whole group, so score before filtering (METHOD §5). Arguments and errors
    as in `gather_evidence`; `settings` names the estimator and holds its weights.

    Returns:
        The traces with `score` in every rollout.
    """
    gathered = gather_evidence(policy, traces, settings.estimator, micro_tokens=micro_tokens)
    score = ESTIMATORS[settings.estimator].score
    return [
        replace(
            trace,
            rollouts=tuple(
                replace(rollout, score=score(evidence, settings))
                for rollout, evidence in zip(trace.rollouts, row, strict=True)
            ),
        )
        for trace, row in zip(traces, gathered, strict=True)
    ]


def filter_traces(traces: Sequence[Trace], settings: IBConfig) -> list[Trace]:
    """Set `kept` of every rollout: the filter over each branch set; the roots stay (METHOD §5).

    Advantages are not touched: they are the whole group's, unless `ib.renormalise` is set.

    Raises:
        ValueError: an unknown filter, a rollout without a reward, or a branch without a score.
    """
    check(settings)
    filtered = []
    for trace in traces:
        for i in (i for members in trace.branch_sets() for i in members):
            if trace.rollouts[i].score is None:
                raise ValueError(f"Branch {i} has no score; call score_traces first.")
        scores = [0.0 if r.score is None else r.score.value for r in trace.rollouts]
        kept = FILTERS[settings.filter](scores, _rewards(trace), trace.branch_sets(), settings.keep)
        rollouts = (replace(r, kept=flag) for r, flag in zip(trace.rollouts, kept, strict=True))
        filtered.append(replace(trace, rollouts=tuple(rollouts)))
    return filtered


def _rewards(trace: Trace) -> list[float]:
    if not trace.rollouts or any(r.reward is None for r in trace.rollouts):
        raise ValueError(
            f"Question {trace.question.id!r} has trajectories without a reward, or none at all; "
            "verify them first (roll_out does)."
        )
    return [float(r.reward) for r in trace.rollouts if r.reward is not None]
