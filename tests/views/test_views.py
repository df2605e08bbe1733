"""Figures say what the records say, in words too, and model text never acts in them."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import kaleido
import pytest
from choreographer.errors import ChromeNotFoundError
from hypothesis import example, given, settings, strategies as st
from plotly.offline import get_plotlyjs

from i2b_lpo.tasks.shop import (
    STRATEGIES as SHOP_STRATEGIES,
    parse_problem,
    shop_questions,
    write_solution,
)
from i2b_lpo.trace import Question, Rollout, Score, Trace
from i2b_lpo.views import (
    STYLES,
    View,
    branch_tree,
    comparison,
    entropy_histogram,
    entropy_strip,
    escape,
    group_advantages,
    histogram,
    ib_scatter,
    memory_budget,
    strategy_shares,
    strip,
    styles,
    training_curves,
    visible,
)
from i2b_lpo.views.base import DIVERGING, INK, ink, readable, shade
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.markup import table
from i2b_lpo.views.strip import outcome
from i2b_lpo.views.text import interval, number
from i2b_lpo.widgets import GroupDesigner

NASTY = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "%{x} %{customdata[0]}",
    '<a href="javascript:alert(1)">x</a>',
    "\u202egnihtyna",
    "a\0b\x1b[31m\x7f\x85",
    "lone \ud800 surrogate",
    r"$\href{javascript:alert(1)}{x}$ $$x$$",
    "<|im_end|>&lt;b&gt;&#60;",
    "'\"><svg onload=alert(1)>\u2028\u2029\ufeff",
)
CHROME = shutil.which("chromium") or shutil.which("google-chrome")


# --- records ------------------------------------------------------------------------------------


def make_rollout(text: str, rng: random.Random, reward: float | None) -> Rollout:
    pieces = [*re.findall(r"[A-Za-z\\]+|\d|\n|\s|.", text, re.S), "<|im_end|>"]
    entropies = [
        rng.uniform(0.8, 1.6) if piece in SHOP_STRATEGIES else rng.random() ** 8 for piece in pieces
    ]
    logprobs = [-h for h in entropies]
    return Rollout(
        ids=tuple(range(len(pieces))),
        pieces=tuple(pieces),
        entropies=tuple(entropies),
        logprobs=tuple(logprobs),
        logprobs_t1=tuple(logprobs),
        text=text,
        finished=True,
        reward=reward,
    )


def make_traces(seed: int, *, questions: int = 4, right: float = 0.5) -> list[Trace]:
    """Traces of the same questions for every seed."""
    stream = shop_questions("validation", random.Random(0))
    rng = random.Random(seed)
    traces = []
    for _ in range(questions):
        question = next(stream)
        problem = parse_problem(question.text)
        rewards = [float(rng.random() < right) for _ in range(8)]
        rollouts = [make_rollout(write_solution(problem, rng), rng, r) for r in rewards]
        traces.append(Trace(question, (1, 2), tuple(rollouts), policy="tiny"))
    return traces


@pytest.mark.slow
@pytest.mark.parametrize("partial", [0.3, 0.5, 0.7, 0.99])
def test_every_view_takes_the_same_trajectories_for_right(partial: float) -> None:
    """Rewards of one's own: two of five earn the whole or more, two a part, one nothing."""
    rewards, score = (1.0, partial, 1.5, partial, 0.0), Score(0.5, 1.0, 0.5)
    rng = random.Random(0)
    rollouts = tuple(
        dataclasses.replace(make_rollout("Split 1", rng, r), score=score) for r in rewards
    )
    trace = Trace(Question("q", "What is 2*7?", "14"), (1,), rollouts)
    assert "2 of 5 rollouts correct" in group_advantages(trace, [0.0] * 5).describe()
    assert "2 of 5 correct" in branch_tree(trace).describe()
    signs = [reward_sign(rollout)[0] for rollout in rollouts]
    assert signs == ["✓", number(partial, 2), "✓", number(partial, 2), "✗"]
    told = ["✓ correct", f"reward {partial:.2f}", "✓ correct", f"reward {partial:.2f}", "✗ wrong"]
    assert [outcome(rollout) for rollout in rollouts] == told
    assert all(f"({t})" in entropy_strip(trace, i).describe() for i, t in enumerate(told))
    counts = {row[0]: row[1] for row in ib_scatter([trace]).table[1:]}
    assert counts == {"correct": "2", "reward between": "2", "wrong": "1"}
    assert [box.value for box in GroupDesigner(trace).rewards] == [True, False, True, False, False]


def nasty_trace(text: str) -> Trace:
    rng = random.Random(0)
    rollouts = [make_rollout(f"{text}\n{text}", rng, reward) for reward in (1.0, 0.0)]
    rollouts = [
        dataclasses.replace(
            r,
            ids=(1, 2, 3),
            pieces=(text, "\n", text),
            entropies=(0.1, 0.9, 1.0),
            logprobs=(-0.1,) * 3,
            logprobs_t1=(-0.1,) * 3,
        )
        for r in rollouts
    ]
    return Trace(Question(text, text, text), (1,), tuple(rollouts), policy=text)


def make_use(share: float, right: float, count: int) -> dict[str, float]:
    return {"share": share, "product_right": right, "trace_right": right / 2, "count": count}


def make_evaluation(shift: float = 0.0, name: str = "base", extra: str = "") -> dict[str, Any]:
    def cell(mean: float, spread: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - spread, "high": mean + spread, "n": 40}

    metrics = {
        "greedy": cell(0.4 + shift, 0.05),
        "pass@1": cell(0.3 + shift, 0.06),
        "pass@8": cell(0.7, 0.04),
        "maj@8": cell(0.5, 0.03),
        "entropy": cell(0.104 - shift / 10, 0.01),
        "distinct strategies": cell(5.8 - shift, 0.2),
        "length": cell(63.2, 3.0),
        "rep-4": cell(0.037, 0.004),
        "finished": cell(1.0, 0.0),
    }
    strategies = {"Guess": make_use(0.6, 0.2, 252), "Split": make_use(0.4, 0.8, 168)}
    if extra:
        metrics[extra] = cell(1.0, 0.5)
        strategies[extra] = make_use(0.0, 0.5, 2)
    evaluation = {
        "policy": name,
        "task": extra or "shop",
        "questions": 40,
        "samples": 8,
        "metrics": metrics,
        "values": {metric: [found["mean"]] * 40 for metric, found in metrics.items()},
        "levels": {},
        "strategies": strategies,
    }
    found: dict[str, Any] = json.loads(json.dumps(evaluation))
    return found


def make_records(seed: int, steps: int = 40, extra: str = "") -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [
        {
            "step": i,
            "reward": i / 50 + rng.random() / 10,
            "entropy": 0.2 - i / 500,
            "length": 60 + i,
        }
        for i in range(steps)
    ]
    return [{**row, extra: 1.0} for row in rows] if extra else rows


def every_view(text: str) -> dict[str, View]:
    """Each figure with `text` in every place that takes text."""
    trace = nasty_trace(text)
    evaluation = make_evaluation(name=text, extra=text)
    return {
        "strip": entropy_strip(trace),
        "histogram": entropy_histogram({text: [trace]}, words=[text]),
        "curves": training_curves({text: make_records(0, 5, extra=text)}),
        "comparison": comparison({text: evaluation}, metrics=[text, "pass@1"]),
        "strategies": strategy_shares({text: evaluation}),
        "group": group_advantages(trace, [0.7, -0.7]),
        "memory": memory_budget({text: 1.0}),
    }


# --- text ---------------------------------------------------------------------------------------


def as_plotly_shows(text: str) -> str:
    """An independent model of plotly's text: entities become characters, no tag may be left."""
    assert "<" not in text and ">" not in text and "$" not in text and "%" not in text
    named = {"amp": "&", "lt": "<", "gt": ">"}
    return re.sub(
        r"&(?:#(\d+)|(amp|lt|gt));",
        lambda match: chr(int(match[1])) if match[1] else named[match[2]],
        text,
    )


@given(st.text(st.characters(exclude_categories=())) | st.text("&<>$%{};#3469ltgamp"))
@example("&lt;b&gt;&#60;%{x}$x$")
def test_escaped_text_shows_as_its_visible_form(text: str) -> None:
    assert as_plotly_shows(escape(text)) == visible(text)


@given(st.text(st.characters(exclude_categories=())), st.integers(2, 20))
def test_visible_text_hides_nothing(text: str, limit: int) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not re.search(
        r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\u2028\ufeff]", shown
    )
    assert len(visible(text, limit)) <= limit
    assert visible(text, limit) in (shown, shown[: limit - 1] + "…")


def test_visible_names_what_it_replaces() -> None:
    assert visible("a b\n\t\0\x7f\u202e\ud800\xa0\U000e0001é漢🙂") == (
        "a b↵⇥\\x00\\x7f\\u202e\\ud800\\xa0\\U000e0001é漢🙂"
    )


@given(st.floats(-1e6, 1e6), st.none() | st.integers(0, 4))
def test_numbers_are_rounded_and_never_minus_zero(value: float, digits: int | None) -> None:
    shown = number(value, digits)
    assert not re.fullmatch(r"-0\.?0*", shown)
    if digits is not None:
        assert math.isclose(float(shown), value, abs_tol=0.5000001 * 10**-digits)


def test_an_interval_has_as_many_digits_at_both_ends() -> None:
    assert interval({"mean": 0.998, "low": 0.9956, "high": 1.0}) == "0.998 [0.996, 1.000]"
    assert interval({"mean": -0.94, "low": -1.153, "high": 0.0001}) == "-0.94 [-1.15, 0.00]"
    assert interval({"mean": 9.96, "low": 9.0, "high": 10.5}) == "10.0 [9.0, 10.5]"


# --- theme --------------------------------------------------------------------------------------


def test_a_thing_has_one_colour_under_every_name() -> None:
    for names in (["base", "after GRPO"], ["tiny-base", "grpo"], ["before", "GRPO seed 1"]):
        found = styles(names)
        assert [found[name].colour for name in names] == [
            STYLES["base"].colour,
            STYLES["GRPO"].colour,
        ]
    assert styles(["i2b-lpo"])["i2b-lpo"].colour == STYLES["I²B-LPO"].colour
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)


@given(
    st.lists(st.sampled_from([*STYLES, "seed 0", "seed 1", "GRPO 2", "x"]), unique=True, max_size=6)
)
def test_something_besides_colour_tells_any_two_apart(names: list[str]) -> None:
    found = list(styles(names).values())
    for field in ("symbol", "dash", "hatch"):
        assert len({getattr(style, field) for style in found}) == len(found)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        if colour.startswith("#"):
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        else:
            parts = [int(c) / 255 for c in re.findall(r"\d+", colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_on_the_entropy_colours_is_readable() -> None:
    for i in range(101):
        colour = shade(i / 100)
        assert contrast(colour, ink(colour)) >= 4.5  # WCAG AA
    assert shade(-1) == shade(0) and shade(9) == shade(1)


def test_signs_of_right_and_wrong_are_readable_on_white() -> None:
    for reward in (1.0, 0.0, None, 0.25):
        trace = simple_rollout(["a"], [0.1], reward)
        _, colour = reward_sign(trace.rollouts[0])
        assert contrast(colour, "#FFFFFF") >= 4.5  # WCAG AA
    assert contrast(STYLES["correct"].colour, "#FFFFFF") < 4.5  # as a text it wouldn't do
    assert readable("#E69F00") != "#E69F00" and readable(INK) == INK


def simulated(colour: str) -> list[float]:
    """What an eye without green cones sees (Viénot, Brettel and Mollon 1999), linear light."""
    found = re.findall(r"\d+", colour) if colour.startswith("rgb") else None
    parts = found or [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    linear = [(int(part) / 255) ** 2.2 for part in parts]
    matrix = ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0))
    return [max(0.0, sum(w * c for w, c in zip(row, linear, strict=True))) for row in matrix]


def apart(one: str, other: str) -> float:
    return math.dist(*([c ** (1 / 2.2) for c in simulated(x)] for x in (one, other)))


def test_what_stands_side_by_side_differs_without_green_cones() -> None:
    for group in (("base", "GRPO", "I²B-LPO"), ("correct", "wrong")):
        colours = [STYLES[name].colour for name in group]
        assert all(apart(a, b) > 0.12 for i, a in enumerate(colours) for b in colours[:i]), group
    steps = [shade(i / 10) for i in range(11)]
    light = [simulated(colour)[1] for colour in steps]
    assert light == sorted(light)  # entropy grows with lightness
    assert apart(shade(0.0, DIVERGING), shade(1.0, DIVERGING)) > 0.12


def test_the_advantage_colours_are_white_at_zero_and_even_on_both_sides() -> None:
    assert shade(0.5, DIVERGING) == "rgb(255, 255, 255)"
    left, right = (contrast(shade(share, DIVERGING), "#FFFFFF") for share in (0.0, 1.0))
    assert 0.7 < left / right < 1.4


# --- the strip ----------------------------------------------------------------------------------


def simple_rollout(pieces: list[str], entropies: list[float], reward: float | None = None) -> Trace:
    zeros = tuple(0.0 for _ in pieces)
    rollout = Rollout(
        tuple(range(len(pieces))), tuple(pieces), tuple(entropies), zeros, zeros,
        "".join(pieces), True, reward,
    )  # fmt: skip
    return Trace(Question("q", "What is 2*7?", "14"), (1,), (rollout,))


def test_strip_in_words() -> None:
    trace = simple_rollout(
        ["Split", " ", "1", "\n", "9", ""], [1.316, 0.0, 0.7, 0.01, 0.701, 0.0], 1.0
    )
    assert entropy_strip(trace).describe() == (
        "Entropy of rollout 0 (✓ correct): 6 tokens in 2 lines; mean 0.45 nat; 2 tokens above "
        "0.7 nat: 'Split' 1.32 at token 0, '9' 0.70 at token 4."
    )
    assert "; 0 tokens above 2 nat." in entropy_strip(trace, threshold=2).describe()
    many = simple_rollout(["a"] * 20, [1.0] * 20)
    assert "(not verified)" in entropy_strip(many).describe()
    assert entropy_strip(many).describe().endswith("at token 7, and 12 more.")


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.text(max_size=30), st.floats(0, 3)),
        min_size=1,
        max_size=60,
    )
)
def test_strip_shows_every_token_once_in_reading_order(tokens: list[tuple[str, float]]) -> None:
    pieces, entropies = [piece for piece, _ in tokens], [h for _, h in tokens]
    view = entropy_strip(simple_rollout(pieces, entropies))
    cells, forks, _ = view.figure.data
    shown = [visible(piece, 24).replace(" ", "␣") or "∅" for piece in pieces]
    assert [as_plotly_shows(text) for text in cells.text] == shown
    ends = [
        (row, left, left + width)
        for row, left, width in zip(cells.y, cells.base, cells.x, strict=True)
    ]
    for at, ((row, _, right), (next_row, left, _)) in enumerate(pairwise(ends)):
        if "\n" in pieces[at]:
            assert next_row == row + 1 and left == 0
        else:
            assert (next_row == row and left >= right) or (next_row == row + 1 and left == 0)
    for row in {row for row, _, _ in ends}:
        here = [end for end in ends if end[0] == row]
        assert len(here) == 1 or here[-1][2] <= strip.WRAP
    assert len(forks.x) == sum(h > 0.7 for h in entropies)
    assert [width > 0 for width in cells.marker.line.width] == [h > 0.7 for h in entropies]
    assert len(view.table) == 1 + len(pieces)


def test_strip_of_surprisal_says_so_everywhere() -> None:
    trace = simple_rollout(["Split", "\n", "9"], [1.0, 0.0, 0.5], 0.0)
    rollout = dataclasses.replace(trace.rollouts[0], logprobs_t1=(-5.0, 0.0, -4.0))
    trace = dataclasses.replace(trace, rollouts=(rollout,))
    view = entropy_strip(trace, quantity="surprisal")
    assert view.describe() == (
        "Surprisal of rollout 0 (✗ wrong): 3 tokens in 2 lines; mean 3.00 nat; 1 tokens above 4 "
        "nat: 'Split' 5.00 at token 0."
    )
    cells, forks, scale = view.figure.data
    entropy = entropy_strip(trace)
    assert forks.name == "and outline: −log π above 4 nat" and len(forks.x) == 1
    assert scale.marker.colorbar.title.text.startswith("−log π (nat)") and scale.marker.cmax == 8
    assert scale.marker.colorscale != entropy.figure.data[2].marker.colorscale
    assert cells.marker.color[0] != entropy.figure.data[0].marker.color[0]
    assert all(contrast(c, ink(c)) >= 4.5 for c in cells.marker.color)
    assert "surprisal −log π" in view.figure.layout.title.text
    assert view.table == entropy.table and cells.hovertext == entropy.figure.data[0].hovertext
    assert len(entropy_strip(trace, quantity="surprisal", threshold=3.5).figure.data[1].x) == 2
    with pytest.raises(ValueError, match="choose entropy or surprisal"):
        entropy_strip(trace, quantity="reward")


def test_strip_refuses_what_it_cannot_draw() -> None:
    trace = simple_rollout(["a"], [0.1])
    for index in (-1, 1):
        with pytest.raises(ValueError, match="choose 0 to 0"):
            entropy_strip(trace, index)
    with pytest.raises(ValueError, match="no tokens"):
        entropy_strip(simple_rollout([], []))


# --- the histogram ------------------------------------------------------------------------------


def test_histogram_counts_like_a_slow_loop() -> None:
    traces = make_traces(3)
    view = entropy_histogram(traces, words=SHOP_STRATEGIES)
    tokens = [
        (r.pieces[t], r.entropies[t])
        for trace in traces
        for r in trace.rollouts
        for t in range(len(r))
    ]
    edges = histogram.EDGES
    for bars, chosen in zip(
        view.figure.data,
        (tokens, [t for t in tokens if t[0].strip() in SHOP_STRATEGIES]),
        strict=True,
    ):
        for i, y in enumerate(bars.y):
            inside = [h for _, h in chosen if edges[i] < h <= edges[i + 1] or (i == 0 and h == 0.0)]
            assert math.isclose((y or 0) ** 2, len(inside) / len(tokens), abs_tol=1e-12)
    assert math.isclose(sum((y or 0) ** 2 for y in view.figure.data[0].y), 1)
    share = sum(h > 0.7 for _, h in tokens) / len(tokens)
    assert f"{100 * share:.1f} % above 0.7 nat" in view.describe()


def test_histogram_puts_an_edge_into_the_range_it_ends() -> None:
    view = entropy_histogram([simple_rollout(["a"] * 4, [0.0, 0.05, 0.7, 0.71])])
    assert view.describe() == (
        "Distribution of token entropy: all tokens: 4 tokens, mean 0.36 nat, 50.0 % at most "
        "0.05 nat, 25.0 % above 0.7 nat."
    )
    assert [row[1] for row in view.table[1:] if row[1] != "0.00 %"] == ["25.00 %"] * 4


def test_histogram_finds_words_with_blanks_around_them() -> None:
    view = entropy_histogram(
        [simple_rollout([" Split", "Split\n", "x"], [1.0] * 3)], words=["Split"]
    )
    assert view.describe().endswith("; 2 of the hatched words, mean 1.00 nat.")


def test_histogram_overlays_groups_by_name() -> None:
    view = entropy_histogram(
        {"base": make_traces(1), "after GRPO": make_traces(2)}, words=["Split"]
    )
    names = [bars.name for bars in view.figure.data if bars.showlegend is not False]
    assert [name.split(":")[0] for name in names] == ["base", "hatched", "after GRPO"]
    assert view.figure.data[0].marker.color == STYLES["base"].colour
    assert not set(view.figure.data[0].x) & set(view.figure.data[2].x)
    nothing: Any
    for nothing in ([], {}, {"base": []}):
        with pytest.raises(ValueError, match="no tokens"):
            entropy_histogram(nothing)


# --- training -----------------------------------------------------------------------------------


def test_curves_show_values_and_the_mean_of_the_last_steps() -> None:
    records = make_records(0, steps=24)
    view = training_curves(records, keys=["reward"])
    raw, mean = view.figure.data
    values = [row["reward"] for row in records]
    assert list(raw.y) == values
    for at, shown in enumerate(mean.y):  # 24 steps: the mean of the last 3
        assert math.isclose(shown, fmean(values[max(0, at - 2) : at + 1]))
    first, last = fmean(values[:3]), fmean(values[-3:])
    assert view.describe() == (
        "Training curves: 24 steps; means of the first and of the last 3 steps: mean reward "
        f"{first:.3f} → {last:.3f}."
    )


def test_curves_leave_gaps_and_skip_what_is_no_number() -> None:
    records: list[dict[str, Any]] = [
        {"step": 10, "a": 1.0, "note": "x", "flag": True},
        {"step": 11, "a": float("nan")},
        {"step": 12, "a": 3.0, "b": None},
    ]
    view = training_curves(records)
    assert [row[1] for row in view.table[1:]] == ["a"]
    raw, mean = view.figure.data
    assert list(raw.y) == [1.0, None, 3.0] and list(mean.y) == [1.0, None, 3.0]
    assert list(raw.x) == [10, 11, 12]
    assert "never measured" in training_curves(records, keys=["b"]).describe()
    nothing: Any
    for nothing in ([], {}, {"seed 0": []}, [{"step": 0, "note": "x"}]):
        with pytest.raises(ValueError, match=r"no training records|no number"):
            training_curves(nothing)


def test_curves_name_all_that_training_records_with_its_unit() -> None:
    recorded = [
        "reward",
        "solved",
        "uniform_groups",
        "entropy",
        "length",
        "finished",
        "rep4",
        "new_tokens",
        "root_reward",
        "branch_reward",
        "kept",
        "S_IB",
        "distinct_strategies",
        "grad_norm",
        "clip_fraction",
        "mean_ratio",
        "trained_tokens",
        "rollout_seconds",
        "update_seconds",
        "score_seconds",
    ]
    view = training_curves([dict.fromkeys(recorded, 1.0)] * 2)
    headings = [note.text for note in view.figure.layout.annotations]
    assert not any("_" in text.replace("rep-4", "") for text in headings)
    assert len(set(headings)) == len(recorded) and "<b>mean S<sub>IB</sub></b>" in headings
    assert all(len(re.sub("<.*?>", "", text)) <= 22 for text in headings)  # a third of 640 pixels


def test_curves_of_runs_of_different_lengths_share_their_axes() -> None:
    runs = {"GRPO": make_records(0, 40), "I²B-LPO": make_records(1, 7, extra="S_IB")}
    view = training_curves(runs, keys=["reward", "S_IB"])
    assert "2 runs of up to 40 steps" in view.describe()
    assert re.search(r"mean S_IB I²B-LPO 1.000 → 1.000\.$", view.describe())
    long, _, short, _ = [line for line in view.figure.data if line.xaxis == "x"]
    assert list(long.x) == list(range(40)) and list(short.x) == list(range(7))
    drawn = [v for line in (long, short) for v in line.y]
    low, high = view.figure.layout.yaxis.range
    assert low < min(drawn) and high > max(drawn)
    flat = [{"step": i, "ratio": 1.0 + 1e-8 * (i % 2), "zero": 0.0} for i in range(9)]
    layout = training_curves(flat).figure.layout
    assert list(layout.yaxis.range) == pytest.approx([0.9, 1.1])  # rounding makes no curve
    assert list(layout.yaxis2.range) == [-0.1, 0.1]
    odd = training_curves([{"step": "<b>", "a": 1.0}, {"step": 2, "a": 2.0}]).figure.data[0]
    assert list(odd.x) == [None, 2.0]


def test_curves_tell_runs_apart_without_colour() -> None:
    view = training_curves({"seed 0": make_records(0), "seed 1": make_records(1)}, keys=["entropy"])
    bold = [line for line in view.figure.data if line.showlegend]
    assert [line.name for line in bold] == ["seed 0", "seed 1"]
    assert len({line.line.dash for line in bold}) == 2
    assert view.describe().startswith("Training curves: 2 runs of up to 40 steps")


# --- evaluations --------------------------------------------------------------------------------


def test_comparison_draws_means_and_intervals() -> None:
    pair = {"base": make_evaluation(), "after GRPO": make_evaluation(0.2)}
    view = comparison(pair, metrics=["pass@1", "greedy", "entropy"])
    marks = [dots for dots in view.figure.data if dots.mode == "markers"]
    assert [dots.name for dots in marks] == ["base", "after GRPO"] * 2
    assert [dots.showlegend for dots in marks] == [True, True, False, False]
    for dots, name in zip(marks[:2], pair, strict=True):
        for i, metric in enumerate(("pass@1", "greedy")):
            cell = pair[name]["metrics"][metric]
            assert dots.x[i] == cell["mean"]
            assert math.isclose(dots.x[i] + dots.error_x.array[i], cell["high"])
            assert math.isclose(dots.x[i] - dots.error_x.arrayminus[i], cell["low"])
            assert round(dots.y[i]) == i
    assert marks[0].xaxis != marks[2].xaxis
    low, high = view.figure.layout.xaxis.range
    assert low <= 0 and high >= 1
    assert "mean reward" not in view.describe()
    assert "pass@1: base 0.300 [0.240, 0.360], after GRPO 0.500 [0.440, 0.560];" in view.describe()
    assert len(view.table) == 1 + 6


def test_comparison_chooses_metrics_by_itself() -> None:
    view = comparison({"base": make_evaluation()})
    assert [row[0] for row in view.table[1:]] == [
        "greedy", "pass@1", "pass@8", "maj@8", "entropy (nat)", "distinct strategies",
        "length (tokens)", "repetition (rep-4)",
    ]  # fmt: skip
    for metrics in (["pass@1"], ["entropy"], ["entropy", "length"]):
        assert len(comparison({"base": make_evaluation()}, metrics=metrics).table) == 1 + len(
            metrics
        )


def test_comparison_lives_with_a_metric_that_one_policy_lacks() -> None:
    one, two = make_evaluation(), make_evaluation()
    del two["metrics"]["greedy"]
    view = comparison({"base": one, "GRPO": two})
    assert "greedy: base 0.400 [0.350, 0.450];" in view.describe()
    with pytest.raises(ValueError, match="No evaluation has pass@99; choose from greedy"):
        comparison({"base": one}, metrics=["pass@99"])
    broken: dict[str, Any]
    for broken in ({}, {"base": {}}, {"base": {"metrics": {}}}):
        with pytest.raises(ValueError, match=r"no evaluation|no metrics"):
            comparison(broken)
    with pytest.raises(ValueError, match="Name the metrics"):
        comparison({"base": {"metrics": {"own": {"mean": 1, "low": 1, "high": 1, "n": 1}}}})


def test_strategies_in_words_and_bars() -> None:
    before, after = make_evaluation(), make_evaluation()
    after["strategies"] = {"Guess": make_use(1.0, 0.5, 300)}
    view = strategy_shares({"base": before, "after GRPO": after})
    assert view.describe() == (
        "Strategies by share of all uses, and how often they gave the true product: "
        "base: Guess 60.0 % (right: 20.0 % of 252), Split 40.0 % "
        "(right: 80.0 % of 168); after GRPO: Guess 100.0 % (right: 50.0 % of 300), Split 0.0 % "
        "(right: not used)."
    )
    share_before, right_before, share_after, right_after = view.figure.data
    assert list(share_before.x) == [0.6, 0.4] and list(right_before.x) == [0.2, 0.8]
    assert list(share_after.x) == [1.0, 0.0] and right_after.text[1] == "not used"
    with pytest.raises(ValueError, match="no strategies"):
        strategy_shares({"base": {"strategies": {}}})


# --- group and memory ---------------------------------------------------------------------------


def test_group_advantages_in_words_and_bars() -> None:
    trace = make_traces(0, questions=1)[0]
    rewards = (1.0, 0.0, None, 0.25)
    trace = dataclasses.replace(
        trace,
        rollouts=tuple(
            dataclasses.replace(r, reward=reward, finished=i > 0)
            for i, (r, reward) in enumerate(zip(trace.rollouts, rewards, strict=False))
        ),
    )
    view = group_advantages(trace, [1.25, -0.75, -0.0001, 0.0])
    assert view.describe() == (
        "Group advantages: 1 of 4 rollouts correct; reward and advantage of each: 0 ✓ +1.25, "
        "1 ✗ −0.75, 2 ? 0.00, 3 0.25 0.00."
    )
    advantages, lengths = view.figure.data
    assert list(advantages.x) == [1.25, -0.75, -0.0001, 0.0]
    assert advantages.marker.color[3] == "rgb(255, 255, 255)"
    assert advantages.marker.color[0] == shade(1, DIVERGING)
    assert list(lengths.x) == [len(r) for r in trace.rollouts]
    assert [text.endswith("(cut off)") for text in lengths.text] == [True, False, False, False]
    for wrong in ([], [1.0], [1.0, 2.0, 3.0, math.nan]):
        with pytest.raises(ValueError, match="one finite advantage"):
            group_advantages(trace, wrong)


def test_memory_budget_adds_up() -> None:
    view = memory_budget({"weights": 3 * 2**30, "cache": 512 * 2**20, "rest": 100})
    assert view.describe() == (
        "Memory: 3.5 GiB in all: weights 3.0 GiB, cache 512.0 MiB, rest 0.1 KiB."
    )
    assert list(view.figure.data[0].x) == [3.0, 0.5, 100 / 2**30]
    assert memory_budget({"nothing": 0}).describe().startswith("Memory: 0.0 KiB in all")
    for wrong in ({}, {"weights": -1.0}, {"weights": math.inf}):
        with pytest.raises(ValueError, match="at least one part"):
            memory_budget(wrong)


# --- the view -----------------------------------------------------------------------------------


def test_views_need_no_torch() -> None:
    code = (
        "import sys, i2b_lpo.views;"
        "sys.exit(str({'torch', 'transformers', 'kaleido'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_a_view_shows_the_figure_and_compares_words() -> None:
    view = memory_budget({"weights": 2**30})
    bundle = view._repr_mimebundle_()
    assert bundle["text/plain"] == view.describe() == str(view)
    assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"}
    figure = bundle["application/vnd.plotly.v1+json"]
    assert figure["data"][0]["type"] == "bar" and figure["config"]["displayModeBar"] is False
    json.dumps(figure, allow_nan=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.description = "other"  # type: ignore[misc]
    assert View(view.figure, "a\0b", (("c\u202e",),)).table == (("c\\u202e",),)


def test_the_same_records_give_the_same_bytes() -> None:
    again = every_view("x")
    for name, view in every_view("x").items():
        assert view.to_html(include_js=False) == again[name].to_html(include_js=False)


def test_a_whole_page_holds_plotly_once_and_a_part_holds_none() -> None:
    view = memory_budget({"weights": 2**30})
    assert view.to_html().count(get_plotlyjs()) == 1
    part = view.to_html(include_js=False, caption="what <b> this is", name="memory")
    assert part.startswith("<figure>") and len(part) < 20_000
    assert "what &lt;b&gt; this is" in part and 'id="memory"' in part
    with pytest.raises(ValueError, match="can't be the id"):
        view.to_html(include_js=False, name='x"onload=')


def test_a_missing_chrome_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_chrome(*_: Any, **__: Any) -> None:
        raise ChromeNotFoundError("x")

    monkeypatch.setattr(kaleido, "write_fig_sync", no_chrome)
    with pytest.raises(RuntimeError, match="No Chrome was found"):
        memory_budget({"weights": 1}).to_png(tmp_path / "x.png")


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chrome or Chromium")
def test_a_png_has_the_size_asked_for(tmp_path: Path) -> None:
    path = memory_budget({"weights": 2**30}).to_png(tmp_path / "x.png", width=320, height=160)
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (640, 320)


# --- text that must not act ---------------------------------------------------------------------

OURS = re.compile(
    r'</?b>|<br>|<span style="color:#[0-9A-F]{6}">|</span>|<extra></extra>|%{x}|%{y:\.3f}'
)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "template":
                yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("text", NASTY)
def test_no_figure_holds_text_that_plotly_would_obey(text: str) -> None:
    for name, view in every_view(text).items():
        data = json.loads(view.figure.to_json())
        shown = [as_plotly_shows(OURS.sub(" ", string)) for string in strings(data)]
        start = visible(text)[:20]
        assert any(start in string for string in shown), f"{name} doesn't show {text!r}"
        words = view.describe() + "".join(cell for row in view.table for cell in row)
        assert words == visible(words)


def test_a_table_needs_no_rows() -> None:
    assert table([]) == ""
    assert "<td>&lt;b&gt;</td>" in table([("h",), ("<b>",)])
