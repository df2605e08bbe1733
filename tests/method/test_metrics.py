"""metrics.py against brute force, loops written from the definitions, and properties."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, asdict
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from i2b_lpo.method.metrics import (
    Interval,
    avg_at_k,
    bootstrap_interval,
    distinct_n,
    maj_at_k,
    pass_at_k,
    rep_n,
    self_bleu,
    self_rouge_l,
)

Metric = Callable[[Any], float]

token = st.integers(0, 4)
sequence = st.lists(token, max_size=12)
group = st.lists(sequence, min_size=2, max_size=5)
counts = st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
)
question_values = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=12)


def same_number(reference: str, answer: str) -> bool:
    return Fraction(reference) == Fraction(answer)


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"), [(8, 3, 4, 0.9285714286), (256, 3, 64, 0.5797823066)]
)
def test_pass_at_k_golden(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=5e-11)


def test_pass_at_k_counts_every_draw() -> None:
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            draws = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == sum(map(any, draws)) / len(draws)


@given(counts)
def test_pass_at_k_is_a_chance_and_grows_with_c_and_k(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    assert value == 0 if c == 0 else value > 0
    assert value == 1 if n - c < k else value < 1
    assert c == n or pass_at_k(n, c + 1, k) >= value
    assert k == n or pass_at_k(n, c, k + 1) >= value


@pytest.mark.parametrize(("n", "c", "k"), [(10_000, 1, 1), (10_000, 1, 9_999), (4096, 1, 2048)])
def test_pass_at_k_keeps_full_precision(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == k / n  # one correct sample is drawn with chance k/n


@pytest.mark.parametrize(("n", "c", "k"), [(8, 3, 9), (8, 3, 0), (8, 9, 4), (8, -1, 4), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="got"):
        pass_at_k(n, c, k)


# avg@k


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_avg_at_k_is_pass_at_1(correct: list[bool]) -> None:
    assert avg_at_k(correct) == pytest.approx(pass_at_k(len(correct), sum(correct), 1))
    assert avg_at_k(np.array(correct, dtype=np.float32)) == avg_at_k(correct)


@pytest.mark.parametrize("correct", [[], [[True, False]], [1.0, -1.0], [0.5], [float("nan")]])
def test_avg_at_k_refuses_what_is_no_verdict(correct: list[float]) -> None:
    with pytest.raises(ValueError, match="verdict"):
        avg_at_k(correct)


# maj@k


def slow_maj(answers: list[str | None], gold: str) -> Fraction:
    """Share of correct winners when each of the top values may be drawn."""
    tally = Counter(Fraction(a) for a in answers if a is not None)
    top = [value for value, count in tally.items() if count == max(tally.values())]
    return Fraction(sum(value == Fraction(gold) for value in top), max(1, len(top)))


answer_lists = st.lists(
    st.sampled_from(["1/2", "0.5", ".5", "2", "2.0", "3", "6/2", None]), min_size=1, max_size=8
)


@given(answer_lists, st.sampled_from(["0.50", "2", "3.0", "7"]), st.data())
def test_maj_at_k_counts_values_and_shares_ties(
    answers: list[str | None], gold: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    expected = float(slow_maj(answers[:k], gold))
    assert maj_at_k(answers, gold, k, same_number) == pytest.approx(expected)
    shuffled = data.draw(st.permutations(answers[:k]))
    assert maj_at_k(shuffled, gold, k, same_number) == pytest.approx(expected)


def test_maj_at_k_joins_spellings_that_raw_strings_split() -> None:
    answers = ["0.5", "1/2", "3", "3"]
    assert maj_at_k(answers, "0.5", 4, same_number) == 0.5
    assert maj_at_k([*answers, ".5"], "0.5", 5, same_number) == 1.0
    assert maj_at_k([*answers, ".5"], "0.5", 5, str.__eq__) == 0.0


def test_maj_at_k_votes_without_looking_at_gold() -> None:
    """Gold is only compared with winners, as reference; equal strings share a class unasked."""
    asked: list[tuple[str, str]] = []

    def equivalent(reference: str, answer: str) -> bool:
        asked.append((reference, answer))
        return reference == answer

    assert maj_at_k(["2", "2", "3", "2"], "3", 4, equivalent) == 0.0
    assert asked == [("2", "3"), ("3", "2")]


def test_maj_at_k_without_votes_is_wrong() -> None:
    assert maj_at_k([None, None], "1", 2, same_number) == 0.0


@pytest.mark.parametrize("k", [0, 3])
def test_maj_at_k_refuses_k(k: int) -> None:
    with pytest.raises(ValueError, match="k must lie between 1 and n=2"):
        maj_at_k(["1", "2"], "1", k, same_number)


# distinct-n and rep-n


def slow_grams(tokens: list[int], n: int) -> list[str]:
    return ["-".join(str(t) for t in tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


@given(st.lists(sequence, min_size=1, max_size=5), st.integers(1, 5), st.randoms())
def test_distinct_n_pools_the_group(pool: list[list[int]], n: int, rng: random.Random) -> None:
    grams = [gram for tokens in pool for gram in slow_grams(tokens, n)]
    expected = len(set(grams)) / len(grams) if grams else 0.0
    assert distinct_n(pool, n) == expected
    assert distinct_n(rng.sample(pool, len(pool)), n) == expected
    assert distinct_n([[f"w{t}" for t in tokens] for tokens in pool], n) == expected


@given(sequence, st.integers(1, 5))
def test_rep_n_is_one_minus_unique_over_total(tokens: list[int], n: int) -> None:
    grams = slow_grams(tokens, n)
    expected = 1 - len(set(grams)) / len(grams) if grams else 0.0
    assert rep_n(tokens, n) == expected
    assert 0 <= expected < 1


def test_rep_n_tells_a_loop_from_prose() -> None:
    assert rep_n(list(range(100))) == 0.0
    assert rep_n([1, 2] * 50) == pytest.approx(1 - 2 / 97)
    assert rep_n([7, 7, 7]) == 0.0  # shorter than one 4-gram


# self-BLEU and self-ROUGE-L


def slow_bleu(hypothesis: list[int], references: list[list[int]]) -> float:
    """Sentence BLEU-4 from the definition: clipping, closest length, 2^-i smoothing."""
    if not hypothesis:
        return float([] in references)
    logs, misses, any_match = [], 0, False
    for n in range(1, min(4, len(hypothesis)) + 1):
        grams = slow_grams(hypothesis, n)
        matches = 0.0
        for gram in set(grams):
            best = max(slow_grams(reference, n).count(gram) for reference in references)
            matches += min(grams.count(gram), best)
        any_match = any_match or matches > 0
        if matches == 0:
            misses += 1
            matches = 0.5**misses
        logs.append(math.log(matches / len(grams)))
    if not any_match:
        return 0.0
    length = len(hypothesis)
    closest = min((len(r) for r in references), key=lambda r: (abs(r - length), r))
    penalty = 1.0 if length >= closest else math.exp(1 - closest / length)
    return penalty * math.exp(sum(logs) / len(logs))


def slow_lcs(x: list[int], y: list[int]) -> int:
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            skip = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else skip
    return table[-1][-1]


@given(group)
def test_self_bleu_agrees_with_the_definition(sequences: list[list[int]]) -> None:
    scores = [slow_bleu(s, sequences[:i] + sequences[i + 1 :]) for i, s in enumerate(sequences)]
    assert self_bleu(sequences) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


@given(group)
def test_self_rouge_l_agrees_with_the_definition(sequences: list[list[int]]) -> None:
    total, pairs = 0.0, 0
    for i, x in enumerate(sequences):
        for j, y in enumerate(sequences):
            if i != j:
                total += 2 * slow_lcs(x, y) / (len(x) + len(y)) if x or y else 1.0
                pairs += 1
    assert self_rouge_l(sequences) == pytest.approx(total / pairs, abs=1e-12)


@pytest.mark.parametrize("metric", [self_bleu, self_rouge_l])
class TestSelfSimilarity:
    @given(sequences=group, rng=st.randoms())
    def test_is_bounded_and_blind_to_order_and_token_names(
        self, metric: Metric, sequences: list[list[int]], rng: random.Random
    ) -> None:
        value = metric(sequences)
        assert 0 <= value <= 1
        assert metric(rng.sample(sequences, len(sequences))) == pytest.approx(value, abs=1e-12)
        # "a" hashes like 97 in rapidfuzz, −1 like −2 in Python; a blank would split in sacrebleu.
        names = {0: "a", 1: 97, 2: -1, 3: -2, 4: "b c"}
        renamed = [[names[t] for t in tokens] for tokens in sequences]
        assert metric(renamed) == pytest.approx(value, abs=1e-12)

    @given(tokens=sequence, copies=st.integers(2, 4))
    def test_copies_score_exactly_one(self, metric: Metric, tokens: list[int], copies: int) -> None:
        assert metric([tokens] * copies) == 1.0

    def test_nothing_in_common_scores_zero(self, metric: Metric) -> None:
        assert metric([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [], [11]]) == 0.0

    def test_one_different_answer_lowers_the_score(self, metric: Metric) -> None:
        same = [1, 2, 3, 4, 5, 6]
        assert metric([same, same, [1, 2, 9, 4, 8, 6]]) < metric([same, same, same])

    @pytest.mark.parametrize("sequences", [[], [[1, 2, 3]]])
    def test_needs_two_sequences(self, metric: Metric, sequences: list[list[int]]) -> None:
        with pytest.raises(ValueError, match="at least 2"):
            metric(sequences)


# shared input rules of the token metrics


def rep_of_first(sequences: Any) -> float:
    return rep_n(sequences[0], 1)


@pytest.mark.parametrize(
    "metric", [self_bleu, self_rouge_l, rep_of_first, lambda group: distinct_n(group, 1)]
)
def test_arrays_and_tensors_equal_lists_and_text_is_refused(metric: Metric) -> None:
    torch = pytest.importorskip("torch")
    sequences = [[1, 2, 2, 3], [1, 2, 3, 3]]
    value = metric(sequences)
    assert 0 < value < 1
    assert metric(np.array(sequences)) == value
    assert metric([torch.tensor(tokens) for tokens in sequences]) == value
    assert metric([tuple(tokens) for tokens in sequences]) == value
    with pytest.raises(ValueError, match="not text"):
        metric(["one two three", "one two four"])


def test_ngram_metrics_refuse_empty_pools_and_lengths() -> None:
    with pytest.raises(ValueError, match="at least 1 sequence"):
        distinct_n([], 1)
    with pytest.raises(ValueError, match="n-gram length"):
        distinct_n([[1, 2]], 0)
    with pytest.raises(ValueError, match="n-gram length"):
        rep_n([1, 2], 0)


# bootstrap


def slow_bootstrap_ends(values: list[float], level: float) -> tuple[float, float]:
    """Quantiles of the exact bootstrap distribution: the means of all Q^Q resamples."""
    means = sorted(sum(draw) / len(draw) for draw in product(values, repeat=len(values)))
    tail = math.floor((1 - level) / 2 * (len(means) - 1))
    return means[tail], means[-1 - tail]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_bootstrap_approaches_the_exact_bootstrap(level: float) -> None:
    values = [0.03, 0.11, 0.42, 0.57, 0.98]
    interval = bootstrap_interval(values, level=level, resamples=40_000, seed=3)
    low, high = slow_bootstrap_ends(values, level)
    assert interval.mean == pytest.approx(sum(values) / 5)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.02)
    assert interval.n == 5


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap_interval(rng.binomial(8, 0.3, size=60) / 8, level=0.9, resamples=400, seed=i)
        for i in range(300)
    ]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in intervals])
    assert 0.84 < covered < 0.95  # 0.9 with four standard errors below, three above


def test_bootstrap_of_differences_sees_what_separate_intervals_cannot() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.random(100)
    gain = difficulty + 0.02 + 0.01 * rng.standard_normal(100)
    assert bootstrap_interval(gain).low < bootstrap_interval(difficulty).high
    assert bootstrap_interval(gain - difficulty).low > 0


@given(question_values, st.randoms())
def test_bootstrap_stays_within_the_values_and_ignores_their_order(
    values: list[float], rng: random.Random
) -> None:
    interval = bootstrap_interval(values, resamples=100, seed=5)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12
    assert bootstrap_interval(rng.sample(values, len(values)), resamples=100, seed=5) == interval
    narrow = bootstrap_interval(values, resamples=100, seed=5, level=0.5)
    assert interval.low <= narrow.low <= narrow.high <= interval.high


def test_bootstrap_is_decided_by_its_seed() -> None:
    values = np.random.default_rng(2).random(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_bootstrap_of_one_question_is_a_point() -> None:
    assert bootstrap_interval([0.1]) == Interval(0.1, 0.1, 0.1, 1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "one finite value for each question"),
        ([[0.1, 0.2]], {}, "one finite value for each question"),
        ([0.1, float("nan")], {}, "one finite value for each question"),
        ([0.1], {"level": 1.0}, "level"),
        ([0.1], {"level": 95}, "level"),
        ([0.1], {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_refuses_bad_input(
    values: Sequence[float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_interval_is_frozen_plain_and_readable() -> None:
    interval = bootstrap_interval(np.array([0, 1, 1, 1], dtype=np.float32))
    assert [type(x) for x in asdict(interval).values()] == [float, float, float, int]
    assert Interval(**json.loads(json.dumps(asdict(interval)))) == interval
    assert str(Interval(0.3121, 0.271, 0.352, 9)) == "0.312 [0.271, 0.352]"
    assert str(Interval(-0.0001, -0.25, 0.25, 9)) == "0.000 [-0.250, 0.250]"
    with pytest.raises(FrozenInstanceError):
        interval.mean = 1.0  # type: ignore[misc]


def test_metrics_needs_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, i2b_lpo.method.metrics; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
