"""S_IB against float64 loops, the filters against brute force, advantages after the filter."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from i2b_lpo.method.ib import (
    ESTIMATORS,
    MAX_EXCESS,
    MAX_GAIN,
    Evidence,
    answer_information,
    description_excess,
    reference_length,
)


def weights(beta_ib: float = 1.0, cost_weight: float = 1.0, clip_nats: float = 2.0) -> Any:
    return SimpleNamespace(beta_ib=beta_ib, cost_weight=cost_weight, clip_nats=clip_nats)


def excess_by_hand(
    logprobs: list[float], ids: list[int], reference: float, clip: float
) -> tuple[float, float, float]:
    """The three parts, in loops."""
    nats = 0.0
    for value in logprobs:
        nats += clip if -value > clip else -value
    seen, total, repeated = set(), 0, 0
    for t in range(len(ids) - 3):
        gram = (ids[t], ids[t + 1], ids[t + 2], ids[t + 3])
        total += 1
        if gram in seen:
            repeated += 1
        seen.add(gram)
    rep4 = repeated / total if total else 0.0
    longer = (len(ids) - reference) / reference if len(ids) > reference else 0.0
    return nats / reference, rep4, longer


trajectories = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-12.0, 0.0), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)
positive = st.floats(0.1, 40.0)


# --- parts --------------------------------------------------------------------------------------


@given(trajectories, positive, positive)
def test_excess_is_the_sum_of_its_three_parts(
    trajectory: tuple[list[float], list[int]], reference: float, clip: float
) -> None:
    logprobs, ids = trajectory
    expected = sum(excess_by_hand(logprobs, ids, reference, clip))
    found = description_excess(logprobs, ids, reference, clip_nats=clip)
    assert found == pytest.approx(expected, rel=1e-12)


def test_each_part_of_the_excess_counts_by_itself() -> None:
    sure, different = [0.0] * 8, [0, 1, 2, 3, 4, 5, 6, 7]
    assert description_excess(sure, different, 8.0, clip_nats=2.0) == 0.0
    # surprise: one token of 9 nats counts κ = 2, over T_ref = 8
    assert description_excess([-9.0, *sure[1:]], different, 8.0, clip_nats=2.0) == 0.25
    # length: twice T_ref
    assert description_excess(sure, different, 4.0, clip_nats=2.0) == 1.0
    # a loop is free in nats, yet 4 of its 5 four-grams repeat
    assert description_excess(sure, [1] * 8, 8.0, clip_nats=2.0) == 0.8


def test_a_shorter_trajectory_earns_nothing_for_its_length() -> None:
    assert description_excess([0.0] * 3, [1, 2, 3], 30.0, clip_nats=1.0) == 0.0


@pytest.mark.parametrize(
    ("logprobs", "ids", "reference", "clip", "message"),
    [
        ([0.0], [1, 2], 1.0, 1.0, "as many log-probs"),
        ([0.0], [1], 0.0, 1.0, "above 0"),
        ([0.0], [1], 1.0, 0.0, "above 0"),
        ([0.0], [1], 1.0, math.nan, "above 0"),
        ([-math.inf], [1], 1.0, 1.0, "finite"),
        ([math.nan], [1], 1.0, 1.0, "finite"),
    ],
)
def test_excess_refuses_what_it_cant_measure(
    logprobs: list[float], ids: list[int], reference: float, clip: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        description_excess(logprobs, ids, reference, clip_nats=clip)


def test_reference_is_the_median_of_the_correct_or_of_all() -> None:
    assert reference_length([10, 20, 90, 5], [True, True, False, True]) == 10
    assert reference_length([10, 20, 90, 5], [False, False, True, False]) == 90
    assert reference_length([10, 20, 90, 5], [False] * 4) == 15
    for lengths, correct in (([], []), ([1, 2], [True]), ([0, 0], [True, True])):
        with pytest.raises(ValueError, match="T_ref"):
            reference_length(lengths, correct)


# --- estimators ---------------------------------------------------------------------------------


def evidence(**changes: Any) -> Evidence:
    base = Evidence(
        ids=[5, 6, 7, 8, 9, 5],
        logprobs=[-0.5, 0.0, -7.0, -0.25, 0.0, -1.0],
        entropies=[0.4, 0.0, 1.6, 0.2, 0.0, 0.2],
        advantage=-0.5,
        reference=4.0,
        answer=-0.1,
        prior=-2.5,
        conditioned=[0.1, 0.0, 0.5, 0.2, 0.0, 0.4],
    )
    return replace(base, **changes)


def test_every_estimator_against_numbers_worked_out_by_hand() -> None:
    found = {
        name: estimator.score(evidence(), weights(beta_ib=3.0, cost_weight=0.5))
        for name, estimator in ESTIMATORS.items()
    }
    cost = 0.5 * ((0.5 + 2.0 + 0.25 + 1.0) / 4 + 0.0 + 0.5)  # T = 6, T_ref = 4, no 4-gram twice
    gain = 3.0 * (math.exp(-0.1) - math.exp(-2.5))
    expected = {
        "answer_information": (gain, cost),
        "answer_log_ratio": (3.0 * 2.4, cost),
        "advantage_entropy": (-0.5 * 2.4 / 6, 0.0),
        "answer_conditioned": (3.0 * (0.4 - 0.2), 2.0 * 0.4),
    }
    assert found.keys() == expected.keys()
    for name, (answer, price) in expected.items():
        assert found[name].answer == pytest.approx(answer, rel=1e-12), name
        assert found[name].cost == pytest.approx(price, rel=1e-12), name
        assert found[name].value == found[name].answer - found[name].cost, name
    # IBRO's own form of the last one: mean of H(o_t|q) − β H(o_t|q,a)
    pairs = zip(evidence().entropies, evidence().conditioned or [], strict=True)
    ibro = [free - 3.0 * told for free, told in pairs]
    assert found["answer_conditioned"].value == pytest.approx(sum(ibro) / 6, rel=1e-12)


@given(
    trajectories,
    st.floats(-60.0, 0.0),
    st.floats(-60.0, 0.0),
    st.floats(0.0, 4.0),
    st.floats(0.0, 4.0),
    positive,
)
def test_scores_stay_within_their_bounds(
    trajectory: tuple[list[float], list[int]],
    answer: float,
    prior: float,
    beta: float,
    cost: float,
    reference: float,
) -> None:
    logprobs, ids = trajectory
    given_ = evidence(
        ids=ids,
        logprobs=logprobs,
        answer=answer,
        prior=prior,
        reference=reference,
        entropies=[0.0] * len(ids),
    )
    for name, bound in (("answer_information", 1.0), ("answer_log_ratio", MAX_GAIN)):
        score = ESTIMATORS[name].score(given_, weights(beta, cost))
        assert -beta * bound <= score.answer <= beta * bound
        assert 0.0 <= score.cost <= cost * MAX_EXCESS
        assert score.value == score.answer - score.cost


def test_doubling_a_trajectory_does_not_change_token_means() -> None:
    once = evidence()
    twice = replace(
        once,
        ids=[*once.ids] * 2,
        logprobs=[*once.logprobs] * 2,
        entropies=[*once.entropies] * 2,
        conditioned=[*(once.conditioned or [])] * 2,
    )
    for name in ("advantage_entropy", "answer_conditioned"):
        score = ESTIMATORS[name].score
        assert score(twice, weights(2.0)).value == pytest.approx(score(once, weights(2.0)).value)
    costly = answer_information(twice, weights()), answer_information(once, weights())
    assert costly[0].cost > costly[1].cost + 1  # said twice, it is longer and repeats
    assert costly[0].answer == costly[1].answer


def test_parts_have_the_right_sign() -> None:
    helped = answer_information(evidence(answer=-0.01, prior=-3.0), weights())
    misled = answer_information(evidence(answer=-3.0, prior=-0.01), weights())
    nothing = answer_information(evidence(answer=-2.0, prior=-2.0), weights())
    assert helped.answer > 0 > misled.answer
    assert nothing.answer == 0.0
    assert nothing.value == -nothing.cost < 0


def test_an_estimator_names_what_it_misses() -> None:
    for name, estimator in ESTIMATORS.items():
        bare = evidence(answer=None, prior=None, conditioned=None)
        if estimator.answer or estimator.conditioned:
            with pytest.raises(ValueError, match=r"measure (them|it)"):
                estimator.score(bare, weights())
        else:
            assert name == "advantage_entropy"
            estimator.score(bare, weights())
    with pytest.raises(ValueError, match="finite"):
        answer_information(evidence(answer=math.nan), weights())
    with pytest.raises(ValueError, match="of each token"):
        ESTIMATORS["answer_conditioned"].score(evidence(conditioned=[0.1]), weights())


def test_only_the_estimator_that_reads_the_advantage_says_so() -> None:
    for name, estimator in ESTIMATORS.items():
        up, down = (estimator.score(evidence(advantage=a), weights()) for a in (1.0, -1.0))
        assert (up != down) == estimator.advantage, name
        moved = estimator.score(evidence(answer=-0.7, prior=-0.9), weights())
        assert (moved != estimator.score(evidence(), weights())) == estimator.answer, name
        told = estimator.score(evidence(conditioned=[0.0] * 6), weights())
        assert (told != estimator.score(evidence(), weights())) == estimator.conditioned, name
