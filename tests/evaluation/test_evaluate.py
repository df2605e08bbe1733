"""Evaluation of hand-made traces against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_policy

from i2b_lpo.evaluation.measuring import Evaluation, StrategyUse, entropy_profile, evaluate, measure
from i2b_lpo.method.metrics import bootstrap_interval, paired_differences
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.domains import DOMAINS
from i2b_lpo.tasks.labels import Labels, Use
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.tasks.maths import MATHS
from i2b_lpo.tasks.task import ListTask
from i2b_lpo.trace import Question, Rollout, Trace

END = 2


def rollout(
    text: str,
    reward: float,
    ids: Sequence[int] = (5, 6, END),
    entropies: Sequence[float] | None = None,
) -> Rollout:
    zeros = (0.0,) * len(ids)
    return Rollout(
        ids=tuple(ids),
        pieces=("x",) * len(ids),
        entropies=zeros if entropies is None else tuple(entropies),
        logprobs=zeros,
        logprobs_t1=zeros,
        text=text,
        finished=ids[-1] == END,
        reward=reward,
        reason="correct" if reward else "wrong",
    )


ONE = Question("one", "?", "322", level=1)
TWO = Question("two", "?", "10", level=3)
TRACES = [
    Trace(
        ONE,
        (1,),
        (
            rollout("Split, Split \\boxed{322}", 1.0, [5, 6, 5, 6, 5, 6, 5, END], [0.5] * 8),
            rollout("Split, Round \\boxed{322.0}", 1.0, [5, 6, 5, 6, 5, 6, 5, END], [1.5] * 8),
            rollout("Split, Split \\boxed{5}", 0.0, [5, 6, 5, 6, 5, 6, 5], [0.0] * 7),
            rollout("no box", 0.0, [7], [2.0]),
        ),
        policy="mine",
    ),
    Trace(
        TWO,
        (1,),
        (
            rollout("Round \\boxed{7}", 0.0, [8, END], [3.0, 0.0]),
            rollout("Round \\boxed{7}", 0.0, [8, END], [1.0, 0.0]),
            rollout("bad Split \\boxed{3}", 0.0, [9, END], [0.0, 0.0]),
            rollout("Grid \\boxed{10}", 1.0, [9, END], [0.0, 0.0]),
        ),
        policy="mine",
    ),
]
GREEDY = [
    Trace(ONE, (1,), (rollout("\\boxed{322}", 1.0),), temperature=0.0),
    Trace(TWO, (1,), (rollout("\\boxed{3}", 0.0),), temperature=0.0),
]


@dataclass(frozen=True)
class WordTask:
    """Labels by words: every strategy named is used, and is right unless "bad" stands there."""

    name: str = "words"

    def questions(self, split: str, count: int, *, seed: int) -> list[Question]:
        raise NotImplementedError

    def batch(self, step: int, size: int, *, seed: int) -> list[Question]:
        raise NotImplementedError

    def label(self, question: Question, text: str) -> Labels | None:
        words = text.replace(",", "").split()
        uses = [Use(w, "bad" not in words) for w in words if w in ("Split", "Round", "Grid")]
        return Labels(tuple(uses), (), well_formed="box" not in words and "bad" not in words)


PLAIN = ListTask("plain", {})


def measured(traces: Sequence[Trace] = TRACES) -> Evaluation:
    return measure(traces, WordTask(), greedy=GREEDY)


# --- metrics by hand ------------------------------------------------------------------------------

BY_HAND = {
    # 2 of 4 and 1 of 4 right: pass@2 = 1 − C(2,2)/C(4,2) and 1 − C(3,2)/C(4,2)
    "greedy": [1, 0],
    "pass@1": [1 / 2, 1 / 4],
    "pass@2": [5 / 6, 1 / 2],
    "pass@4": [1, 1],
    # 322 and 322.0 are one answer with two votes against one; 7 has two against one and one
    "maj@4": [1, 0],
    # without the end token: three times 5656565 and one 7; two times 8, two times 9
    "distinct-1": [3 / 22, 2 / 4],
    # 4-grams of 5656565: 5656 6565 5656 6565; one token has none
    "distinct-4": [2 / 12, 0],
    # LCS F1: the three pairs of 5656565 are alike (1), the three with 7 share nothing (0)
    "1-self-ROUGE-L": [1 / 2, 1 - 2 / 6],
    # Split>Split, Split>Round, Split>Split and none; Round, Round, Split, Grid
    "distinct strategies": [3, 3],
    "well-formed": [3 / 4, 3 / 4],
    # with the end token, 56565652 has 5656 6565 5656 6565 5652; 5656565 has half of its 4-grams
    "rep-4": [(2 / 5 + 2 / 5 + 1 / 2 + 0) / 4, 0],
    "length": [24 / 4, 2],
    "finished": [2 / 4, 1],
    # each trace counts as much as the next, whatever its length
    "entropy": [(0.5 + 1.5 + 0 + 2) / 4, (1.5 + 0.5) / 4],
}


def test_metrics_equal_those_worked_out_by_hand() -> None:
    result = measured()
    assert result.values.keys() - {"1-self-BLEU"} == BY_HAND.keys()
    for name, expected in BY_HAND.items():
        assert result.values[name] == pytest.approx(expected, abs=1e-12), name
    # BLEU of 7 against three 5656565 is 0, that of each 5656565 against its copies is 1.
    assert result.values["1-self-BLEU"] == pytest.approx([1 / 4, 0], abs=1e-9)
    assert result.metrics.keys() == result.values.keys()
    for name, values in result.values.items():
        assert result.metrics[name] == bootstrap_interval(values)
    assert (result.policy, result.task) == ("mine", "words")
    assert (result.questions, result.samples) == (2, 4)


@pytest.mark.parametrize("partial", [0.3, 0.5, 0.7, 0.99])
def test_part_of_a_reward_is_no_right_answer(partial: float) -> None:
    """A reward of one's own: every 0 becomes a part, every 1 more than the whole."""

    def changed(trace: Trace) -> Trace:
        rewards = {0.0: partial, 1.0: 1.5}
        rollouts = (replace(r, reward=rewards[r.reward or 0.0]) for r in trace.rollouts)
        return replace(trace, rollouts=tuple(rollouts))

    result = measure(list(map(changed, TRACES)), WordTask(), greedy=list(map(changed, GREEDY)))
    for name in ("greedy", "pass@1", "pass@2", "pass@4"):
        assert result.values[name] == pytest.approx(BY_HAND[name]), name
    assert result.strategies == measured().strategies


def test_accuracy_is_given_for_each_level() -> None:
    third = replace(TRACES[1], question=replace(TWO, id="three", level=1))
    greedy = [*GREEDY, replace(GREEDY[1], question=third.question)]
    levels = measure([*TRACES, third], WordTask(), greedy=greedy).levels
    assert list(levels) == [1, 3]
    accuracy = ["greedy", "pass@1", "pass@2", "pass@4", "maj@4"]
    assert list(levels[1]) == list(levels[3]) == accuracy
    assert levels[1]["pass@1"] == bootstrap_interval([0.5, 0.25])
    assert levels[1]["greedy"].mean == 0.5
    assert levels[3]["pass@1"] == bootstrap_interval([0.25])


def test_strategies_are_counted_by_use() -> None:
    # Split: two in the first trace (right answer), one in the second (right), two in the third
    # (wrong), one bad; Round: one (right answer) and two (wrong); Grid: one (right answer).
    assert measured().strategies == {
        "Split": StrategyUse(share=6 / 10, product_right=5 / 6, trace_right=3 / 6, count=6),
        "Round": StrategyUse(share=3 / 10, product_right=1, trace_right=1 / 3, count=3),
        "Grid": StrategyUse(share=1 / 10, product_right=1, trace_right=1, count=1),
    }
    assert list(measured().strategies) == ["Split", "Round", "Grid"], "the most used first"


def test_a_task_without_labeller_and_without_greedy_has_fewer_metrics() -> None:
    result = measure(TRACES, PLAIN)
    missing = {"greedy", "distinct strategies", "well-formed"}
    assert measured().metrics.keys() - result.metrics.keys() == missing
    assert result.strategies == {}


def test_one_sample_has_no_diversity() -> None:
    traces = [replace(t, rollouts=t.rollouts[:1]) for t in TRACES]
    result = measure(traces, PLAIN)
    assert set(result.metrics) == {"pass@1", "maj@1", "rep-4", "length", "finished", "entropy"}
    assert result.values["pass@1"] == [1, 0]


def test_the_bundled_labeller_is_used() -> None:
    question = Question("q", "What is 23*14?", "322", "product", 1)
    texts = ("Split 14\n23*10=230\n23*4=92\n230+92=322\n\\boxed{322}", "Guess 320\n\\boxed{320}")
    found = [rollout(text, float("322" in text)) for text in texts]
    result = measure([Trace(question, (1,), tuple(found))], load_task("product"))
    assert result.strategies == {
        "Split": StrategyUse(share=0.5, product_right=1, trace_right=1, count=1),
        "Guess": StrategyUse(share=0.5, product_right=0, trace_right=0, count=1),
    }
    assert result.values["distinct strategies"] == [2]
    assert result.values["well-formed"] == [1]


def test_an_evaluation_shows_itself_and_is_plain_json() -> None:
    result = measured()
    data = json.loads(json.dumps(result.to_json()))
    assert data["metrics"]["pass@1"]["mean"] == 0.375
    assert data["values"] == result.values
    assert data["levels"]["3"]["pass@1"]["mean"] == 0.25
    assert data["strategies"]["Split"]["count"] == 6
    lines = str(result).splitlines()
    assert lines[0] == "mine on words: 2 questions × 4 samples"
    assert len(lines) == 1 + len(result.metrics)
    assert any(line.split()[:2] == ["pass@1", "0.375"] for line in lines)


def test_no_traces_are_refused() -> None:
    with pytest.raises(ValueError, match="no traces to measure"):
        measure([], PLAIN)


@pytest.mark.parametrize("greedy", [GREEDY[:1], GREEDY[::-1]], ids=["fewer", "another order"])
def test_greedy_traces_of_other_questions_are_refused(greedy: list[Trace]) -> None:
    with pytest.raises(ValueError, match="greedy"):
        measure(TRACES, PLAIN, greedy=greedy)


def test_groups_of_different_size_are_refused() -> None:
    uneven = replace(TRACES[1], rollouts=TRACES[1].rollouts[:2])
    with pytest.raises(ValueError, match="same number of"):
        measure([TRACES[0], uneven], PLAIN)


def test_rollouts_without_verdict_are_refused() -> None:
    unjudged = replace(TRACES[0].rollouts[0], reward=None)
    with pytest.raises(ValueError, match="verif"):
        measure([replace(TRACES[0], rollouts=(unjudged,))], PLAIN)


# --- paired differences ---------------------------------------------------------------------------


def test_a_difference_pairs_the_values_of_each_question() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    before = replace(measured(), questions=60, values={"pass@1": hard.tolist(), "old": [0.0] * 60})
    after = replace(before, values={"pass@1": (hard + 0.01).tolist(), "new": [0.0] * 60})
    change = paired_differences(before.values, after.values)
    assert list(change) == ["pass@1"], "only what both have"
    interval = change["pass@1"]
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.01, 0.01, 0.01))
    unpaired = replace(after, values={"pass@1": (hard[::-1] + 0.01).tolist()})
    wide = paired_differences(before.values, unpaired.values)["pass@1"]
    assert wide.mean == pytest.approx(0.01)
    assert wide.high - wide.low > 0.1
    assert paired_differences(before.values, before.values)["old"].mean == 0


def test_a_difference_needs_the_same_questions() -> None:
    result = measured()
    with pytest.raises(ValueError, match="same questions"):
        paired_differences(result.values, measure(TRACES[:1], PLAIN).values)


# --- the entropy profile --------------------------------------------------------------------------


def test_the_entropy_profile_equals_shares_counted_by_hand() -> None:
    words = [i / 10 for i in range(11)]  # 10th percentile 0.1, median 0.5, 90th 0.9
    others = [0.0, 0.01, 0.04, 0.05, 0.7, 0.71, 2.0, 0.3, 0.3]
    pieces = ("Split", "Round")
    rollouts = (
        replace(rollout("", 1.0, [3] * 11, words), pieces=tuple(pieces[i % 2] for i in range(11))),
        replace(rollout("", 1.0, [3] * 9, others), pieces=(" Split", *["x"] * 8)),
    )
    traces = [Trace(ONE, (1,), (each,)) for each in rollouts]
    profile = entropy_profile(traces, pieces)
    assert profile.tokens == 20
    assert profile.mean == pytest.approx((5.5 + sum(others)) / 20)
    # At most 0.05: 0.0 at a word, and 0.0, 0.01, 0.04, 0.05.
    # Above 0.7: 0.8, 0.9, 1.0 at words, and 0.71, 2.0.
    assert profile.sure == 5 / 20
    assert profile.fork == 5 / 20
    assert profile.fork_words == 3 / 5
    assert profile.words == pytest.approx((0.1, 0.5, 0.9))
    assert profile.describe() == (
        "Of 20 tokens (mean 0.481 nat) 25.0% have at most 0.05 nat and 25.0% above 0.7. "
        "At strategy words the median is 0.50 nat (10th to 90th percentile 0.10 to 0.90); "
        "they are 60% of the tokens above 0.7."
    )


def test_a_profile_without_forks_or_without_words() -> None:
    calm = Trace(ONE, (1,), (rollout("", 1.0, [3] * 3, [0.0, 0.1, 0.2]),))
    assert entropy_profile([calm], ["x"]).fork_words == 0
    with pytest.raises(ValueError, match="No strategy word is in these traces"):
        entropy_profile([calm], ["Split"])
    with pytest.raises(ValueError, match="No strategy word is in these traces"):
        entropy_profile([], ["Split"])


# --- evaluating a policy --------------------------------------------------------------------------

TASK = load_task("product")
QUESTIONS = TASK.questions("validation", 3, seed=0)


def test_an_evaluation_is_reproducible_and_leaves_global_randomness_alone() -> None:
    policy = tiny_policy()
    settings: dict[str, Any] = {"sampling": Sampling(6, 0.9, 0.95), "samples": 2}
    state = torch.get_rng_state()
    result, traces = evaluate(policy, TASK, QUESTIONS, **settings)
    torch.rand(3)
    again, traces_again = evaluate(policy, TASK, QUESTIONS, **settings)
    assert (result, traces) == (again, traces_again)
    torch.set_rng_state(state)
    assert evaluate(policy, TASK, QUESTIONS, seed=1, **settings)[1] != traces
    assert torch.equal(torch.get_rng_state(), state)


def test_an_evaluation_measures_greedy_and_sampled_rollouts() -> None:
    policy = tiny_policy()
    sampling = Sampling(6, 0.9, 0.95)
    result, traces = evaluate(policy, TASK, QUESTIONS, sampling=sampling, samples=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    assert traces == roll_out(policy, QUESTIONS, sampling, rollouts=2, generator=generator)
    cold = roll_out(policy, QUESTIONS, Sampling(6, temperature=0))
    assert result == measure(traces, TASK, greedy=cold)
    assert [t.question for t in traces] == QUESTIONS
    assert {t.temperature for t in traces} == {0.9}
    assert result.values["greedy"] == [0, 0, 0]
    assert (result.questions, result.samples) == (3, 2)


def test_the_size_of_a_batch_bounds_the_rows_only() -> None:
    # It decides which random numbers a row gets, so sampled traces differ; the rest doesn't.
    policy = tiny_policy()
    sampling = Sampling(6)
    whole, _ = evaluate(policy, TASK, QUESTIONS, sampling=sampling, samples=2)
    small, traces = evaluate(policy, TASK, QUESTIONS, sampling=sampling, samples=2, batch=2)
    assert small.values["greedy"] == whole.values["greedy"]
    assert [len(t.rollouts) for t in traces] == [2, 2, 2]
    again, _ = evaluate(policy, TASK, QUESTIONS, sampling=sampling, samples=2, batch=2)
    assert again == small


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        evaluate(tiny_policy(), TASK, [], sampling=Sampling(6))


def test_an_answer_that_was_not_decided_in_time_is_compared_with_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    def compared(a: str, b: str) -> bool:
        asked.append((a, b))
        return a == b

    monkeypatch.setitem(DOMAINS, "maths", replace(MATHS, equivalent=compared))
    texts = [("7", "correct"), ("9^{9^9}", "timeout"), ("1^{9^9}", "timeout"), ("8", "wrong")]
    rollouts = tuple(
        replace(TRACES[0].rollouts[0], text=rf"\boxed{{{t}}}", reason=why, reward=float(t == "7"))
        for t, why in texts
    )
    found = measure([replace(TRACES[0], rollouts=rollouts)], WordTask())
    assert all("9^9" not in a + b for a, b in asked)
    assert asked == [("7", "8")]
    assert found.metrics["maj@4"].mean == 0.25, "four answers tie, and one is right"
