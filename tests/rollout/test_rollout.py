"""Rollouts as records: order, texts, verdicts, and how questions are cut into batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_policy

import i2b_lpo.rollout.rollouts
from i2b_lpo.model.decoding import Decoded, decode
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Question, Trace

PRODUCTS = load_task("product").questions("train", 5, seed=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hand_made(policy: Policy, texts: Sequence[str]) -> Decoded:
    """What `decode` would return, had the policy written `texts`."""
    rows = [policy.tokenizer.encode(text) for text in texts]
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, policy.pad_id)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    inside = torch.arange(shape[1]) < lengths[:, None]
    steps = torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape)
    return Decoded(
        ids=ids,
        lengths=lengths,
        entropy=torch.where(inside, steps, 0.0),
        logprob=torch.where(inside, -steps, 0.0),
        logprob_t1=torch.where(inside, -2 * steps, 0.0),
        finished=torch.tensor([row[-1] in policy.eos_ids for row in rows]),
    )


def test_texts_pieces_numbers_and_verdicts_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "Guess 322\n\\boxed{322}<|im_end|>",
        "Split 14\n23*10=230\n23*4=92\n230+92=322\n\\boxed{321}<|im_end|>",
        "Guess 2024\n\\boxed{2024}<|im_end|>",
        "Guess 2024<|im_end|>",
        "What is <|im_end|>",
        "Round 88\n90*23=2070\n2*23=4",
    ]
    questions = [
        Question("a", "What is 23*14?", "322"),
        Question("b", "What is 23*88?", "2024"),
        Question("c", "What is 11*9?", "99"),
    ]
    policy = tiny_policy()
    decoded = hand_made(policy, texts)
    calls: list[Any] = []

    def write(*arguments: Any, **settings: Any) -> Decoded:
        calls.append((arguments, settings))
        return decoded

    monkeypatch.setattr(i2b_lpo.rollout.rollouts, "decode", write)
    sampling, generator = Sampling(30, 0.8, 0.9), seeded()
    traces = roll_out(policy, questions, sampling, rollouts=2, generator=generator)
    (((_, prompts, used), settings),) = calls
    expected = {"rollouts": 2, "generator": generator, "keep_kv": False}
    assert (used, settings) == (sampling, expected)
    assert [t.question for t in traces] == questions
    assert [list(t.prompt_ids) for t in traces] == prompts
    assert prompts == [policy.prompt_ids(q.text) for q in questions]
    for trace in traces:
        assert (trace.policy, trace.temperature, trace.top_p) == ("tiny qwen3", 0.8, 0.9)
    rollouts = [r for t in traces for r in t.rollouts]
    assert [r.reward for r in rollouts] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert [r.reason for r in rollouts] == ["correct", "wrong", "correct"] + ["no_answer"] * 3
    assert [r.finished for r in rollouts] == [True] * 5 + [False]
    for at, (rollout, text) in enumerate(zip(rollouts, texts, strict=True)):
        assert "".join(rollout.pieces) == text
        assert rollout.text == text.removesuffix("<|im_end|>")
        assert list(rollout.ids) == policy.tokenizer.encode(text)
        n = len(rollout)
        assert list(rollout.entropies) == decoded.entropy[at, :n].tolist()
        assert list(rollout.logprobs) == decoded.logprob[at, :n].tolist()
        assert list(rollout.logprobs_t1) == decoded.logprob_t1[at, :n].tolist()


def test_real_rollouts_hold_what_was_decoded() -> None:
    policy = tiny_policy()
    policy = replace(policy, eos_ids=tuple(range(2, 30)))
    sampling = Sampling(12, 0.7, 0.9)
    traces = roll_out(policy, PRODUCTS, sampling, rollouts=3, generator=seeded())
    decoded = decode(policy, policy.prompts(PRODUCTS), sampling, rollouts=3, generator=seeded())
    rollouts = [r for t in traces for r in t.rollouts]
    assert {r.finished for r in rollouts} == {True, False}
    for at, rollout in enumerate(rollouts):
        n = int(decoded.lengths[at])
        assert list(rollout.ids) == decoded.ids[at, :n].tolist()
        assert list(rollout.entropies) == decoded.entropy[at, :n].tolist()
        assert list(rollout.logprobs) == decoded.logprob[at, :n].tolist()
        assert rollout.finished == (rollout.ids[-1] in policy.eos_ids)
        assert rollout.pieces == policy.pieces(rollout.ids)
        assert rollout.text == policy.text(rollout.ids)
        assert rollout.reward == 0.0
        assert rollout.reason == "no_answer"
    for trace in traces:
        assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.parametrize(
    ("batch", "parts"),
    [(100, [5]), (15, [5]), (14, [4, 1]), (6, [2, 2, 1]), (3, [1] * 5), (2, [1] * 5), (1, [1] * 5)],
)
def test_batches_hold_whole_groups(
    batch: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def watched(policy: Policy, prompts: Sequence[Any], *arguments: Any, **settings: Any) -> Any:
        calls.append(len(prompts))
        return decode(policy, prompts, *arguments, **settings)

    monkeypatch.setattr(i2b_lpo.rollout.rollouts, "decode", watched)
    finished: list[int] = []
    traces = roll_out(
        tiny_policy(),
        PRODUCTS,
        Sampling(3),
        rollouts=3,
        generator=seeded(),
        batch=batch,
        on_batch=finished.append,
    )
    assert calls == finished == parts
    assert [t.question for t in traces] == PRODUCTS
    assert [len(t.rollouts) for t in traces] == [3] * 5


def test_the_generator_alone_decides() -> None:
    policy = tiny_policy()
    same = [PRODUCTS[0]] * 2
    state = torch.get_rng_state()
    first, second = (
        roll_out(policy, same, Sampling(8), rollouts=2, generator=seeded(), batch=2)
        for _ in range(2)
    )
    assert first == second
    assert first[0].rollouts != first[1].rollouts, "batches must not repeat random numbers"
    assert first != roll_out(policy, same, Sampling(8), rollouts=2, generator=seeded(1), batch=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_decoding_needs_no_generator_and_no_batch_size_matters() -> None:
    policy = tiny_policy(dtype=torch.float64)
    whole = roll_out(policy, PRODUCTS, Sampling(8, temperature=0))
    single = roll_out(policy, PRODUCTS, Sampling(8, temperature=0), batch=1)
    assert [t.rollouts[0].ids for t in whole] == [t.rollouts[0].ids for t in single]
    assert [len(t.rollouts) for t in whole] == [1] * 5


def test_no_questions_give_no_traces() -> None:
    assert roll_out(tiny_policy(), [], Sampling(8), generator=seeded()) == []


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a torch\.Generator"):
        roll_out(tiny_policy(), PRODUCTS, Sampling(8))
    with pytest.raises(ValueError, match="rollouts is 0; give at least 1"):
        roll_out(tiny_policy(), PRODUCTS, Sampling(8), rollouts=0, generator=seeded())
