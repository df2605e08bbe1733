"""Figures of forks, latents, heads, γ and S_IB: what they show, say and refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_views import NASTY, as_plotly_shows, contrast, strings

from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace
from i2b_lpo.views import (
    STYLES,
    View,
    branch_tree,
    entropy_strip,
    escape,
    gamma_curves,
    head_activation,
    head_detail,
    head_grid,
    ib_ranking,
    ib_scatter,
    kl_bars,
    latent_map,
    training_step,
    visible,
)
from i2b_lpo.views.base import DIVERGING, INK, ink, readable, shade
from i2b_lpo.views.categories import PALETTE, category_styles
from i2b_lpo.views.lanes import forks_of, lanes_of, nesting, order_of

KINDS = ("concise", "drift", "verbose", "loop")
PROMPT = (9, 9)


# --- records ------------------------------------------------------------------------------------


def root(
    pieces: list[str], entropies: list[float] | None = None, reward: float | None = 1.0
) -> Rollout:
    return Rollout(
        ids=tuple(range(len(pieces))),
        pieces=tuple(pieces),
        entropies=tuple(entropies or [0.1 * (t + 1) for t in range(len(pieces))]),
        logprobs=(-0.5,) * len(pieces),
        logprobs_t1=(-0.25,) * len(pieces),
        text="".join(pieces),
        finished=True,
        reward=reward,
    )


def fork_off(
    rollouts: list[Rollout], parent: int, t: int, own: list[str], *, turn: int = 1, **fields: Any
) -> None:
    """Append a branch of `parent` at token t."""
    first = rollouts[parent]
    new = root(own)
    rollouts.append(
        dataclasses.replace(
            new,
            ids=(*first.ids[:t], *(100 * len(rollouts) + i for i in range(len(own)))),
            pieces=first.pieces[:t] + new.pieces,
            entropies=first.entropies[:t] + new.entropies,
            logprobs=first.logprobs[:t] + new.logprobs,
            logprobs_t1=first.logprobs_t1[:t] + new.logprobs_t1,
            text="".join(first.pieces[:t]) + new.text,
            **{
                "branch": Branch(parent, len(PROMPT) + t, "psa", (0.5, -1.0), 1.0, 8.0, turn),
                **fields,
            },
        )
    )


def tree_of(rollouts: list[Rollout], text: str = "What is 2*7?", answer: str = "14") -> Trace:
    return Trace(Question("q", text, answer, "shop"), PROMPT, tuple(rollouts))


def small_tree() -> Trace:
    """One root, two branches at its token 1, and two branches of the first branch."""
    rollouts = [root(["Split", " ", "7", "<|im_end|>"], [1.3, 0.45, 0.2, 0.0])]
    rollouts[0] = dataclasses.replace(rollouts[0], score=Score(0.5, 0.7, 0.2))
    fork_off(rollouts, 0, 1, ["Round", "3"], reward=0.0, kept=False, score=Score(-0.3, 0.1, 0.4))
    fork_off(rollouts, 0, 1, ["Guess", "14", "!"], score=Score(0.2, 0.5, 0.3))
    fork_off(rollouts, 2, 3, ["x"], turn=2, finished=False, reward=None)
    fork_off(rollouts, 2, 3, ["Grid", "y"], turn=2)
    return tree_of(rollouts)


def random_tree(rng: random.Random, *, rounds: int, branches: int = 2, text: str = "") -> Trace:
    """Forks anywhere among a trajectory's own tokens, its first included."""
    words = ["Split", "Guess", " ", "1", "\n", text or "+"]

    def tokens() -> list[str]:
        return [rng.choice(words) for _ in range(rng.randint(1, 12))]

    rollouts = [root(tokens(), reward=float(rng.random() < 0.5)) for _ in range(2)]
    latest = [0, 1]
    for turn in range(1, rounds + 1):
        parents, latest = latest, []
        for parent in parents:
            before = rollouts[parent].branch
            start = 0 if before is None else before.p - len(PROMPT)
            t = rng.randrange(start, len(rollouts[parent]))
            for _ in range(branches):
                latest.append(len(rollouts))
                fork_off(
                    rollouts, parent, t, tokens(), turn=turn, kept=rng.random() < 0.6,
                    score=Score(0.1, 0.3, 0.2),
                )  # fmt: skip
    return tree_of(rollouts, text or "q", text or "a")


def scored_traces(count: int = 5, text: str = "t", kinds: int = 4) -> list[Trace]:
    rng = random.Random(0)
    traces = []
    for _ in range(count):
        rollouts = []
        for kind in range(kinds):
            answer, cost = rng.random(), 0.3 * kind + 0.1 * rng.random()
            rollouts.append(
                dataclasses.replace(
                    root([text]),
                    reward=float(kind != 1),
                    score=Score(answer - cost, answer, cost),
                    kept=kind != 3,
                )
            )
        traces.append(tree_of(rollouts))
    return traces


def every_view(text: str) -> dict[str, View]:
    """Each figure with `text` in every place that takes text."""
    rollouts = [root([text, "\n", text])]
    branch = Branch(0, len(PROMPT) + 1, text, (1.0,) * 6, 0.5, None)
    fork_off(rollouts, 0, 1, [text, text], branch=branch, kept=False, score=Score(1, 2, 1))
    tree = tree_of([dataclasses.replace(r, text=text) for r in rollouts], text, text)
    weights = [0.25, 0.25, 0.5]
    return {
        "tree": branch_tree(tree),
        "map": latent_map([[0, 1], [1, 0], [2, 2]], [text, text, "x"], title=text),
        "grid": head_grid([[0.5]], [[0.25]], quantity=text, title=text),
        "head": head_detail([0.5, 0.125, 0.125, 0.25], weights, [text, "a", text], 0, 0),
        "gamma": gamma_curves({text: [1.0, 0.5, 0.25]}),
        "scatter": ib_scatter(
            scored_traces(3, text, kinds=2), kinds=[[text, "x"]] * 3
        ),
        "ranking": ib_ranking({text: [[1.0, 0.0], [1.0, 2.0]]}, [text, "x"]),
    }  # fmt: skip


# --- the tree -----------------------------------------------------------------------------------


def test_the_tree_in_words() -> None:
    assert branch_tree(small_tree()).describe() == (
        "Branch tree: 1 root, 4 branches in 2 rounds, 12 tokens; 3 of 5 correct; 3 of 4 branches "
        "kept. From the top: 0 ✓ 4 tokens, S_IB +0.50, forks at token 1 (H 0.45 nat) into 1, 2; "
        "1 ✗ 2 tokens from 'Round', S_IB −0.30, pruned; "
        "2 ✓ 3 tokens from 'Guess', S_IB +0.20, forks at token 3 (H 0.30 nat) into 3, 4; "
        "3 ? 1 tokens (cut off) from 'x'; 4 ✓ 2 tokens from 'Grid'."
    )
    table = branch_tree(small_tree()).table
    assert table[0] == (
        "trajectory", "parent", "fork at token", "H there (nat)", "fusion", "own tokens", "reward",
        "S_IB", "answer", "cost", "filter", "z", "text",
    )  # fmt: skip
    assert table[2] == (
        "1", "0", "1", "0.45", "psa", "2", "✗", "−0.30", "+0.10", "+0.40", "pruned", "+0.50, −1.00",
        "SplitRound3",
    )  # fmt: skip
    assert table[4][7:11] == ("–", "–", "–", "kept")


def test_z_stands_at_the_right_as_bars_up_and_down() -> None:
    view = branch_tree(small_tree())
    latents = z_of(view)
    axis = view.figure.layout.yaxis
    lane = {int(name): y for name, y in zip(axis.ticktext, axis.tickvals, strict=True)}
    assert list(latents.base) == [y for i, y in lane.items() if i for _ in range(2)]
    assert list(latents.y) == pytest.approx([-0.2, 0.4] * 4)  # z = (0.5, −1); the axis points down
    assert latents.marker.color[0] == shade(0.75, DIVERGING)
    assert latents.marker.color[1] == shade(0.0, DIVERGING)
    assert latents.hovertext[1] == "trajectory 1, z<sub>2</sub> = −1.00"
    assert "<b>z</b>" in [note.text for note in view.figure.layout.annotations]
    low, high = view.figure.layout.xaxis2.range
    assert all(low < x < high for x in latents.x)
    ends = layers(view)["ends"]
    assert min(latents.x) - min(latents.width) / 2 > max(d.x[0] for d in ends)
    for trace in (tree_of([root(["a"])]), no_latents(small_tree())):
        assert "<b>z</b>" not in [n.text for n in branch_tree(trace).figure.layout.annotations]
    first, second, *_ = small_tree().rollouts
    assert second.branch is not None
    branch = dataclasses.replace(second.branch, z=(1.0,) * 40)
    rows = [first, dataclasses.replace(second, branch=branch)]
    assert len(z_of(branch_tree(tree_of(rows))).x) == 16


def z_of(view: View) -> Any:
    (bars,) = (d for d in view.figure.data if d.type == "bar" and d.xaxis == "x2")
    return bars


def no_latents(trace: Trace) -> Trace:
    rollouts = [
        r
        if r.branch is None
        else dataclasses.replace(r, branch=dataclasses.replace(r.branch, z=()))
        for r in trace.rollouts
    ]
    return dataclasses.replace(trace, rollouts=tuple(rollouts))


def layers(view: View) -> dict[str, Any]:
    """The traces of the tree's figure by what they hold."""
    data = view.figure.data
    bars = next(d for d in data if d.type == "bar")
    texts = [d for d in data if d.type == "scatter" and d.mode == "text"]
    diamonds = next(d for d in data if d.type == "scatter" and d.marker.symbol == "diamond")
    words = [d for d in texts if d.xaxis != "x2"]
    lines = [d for d in data if d.type == "scatter" and d.mode == "lines" and d.x != (None,)]
    ends = [d for d in texts if d.xaxis == "x2"]
    return {"bars": bars, "words": words, "diamonds": diamonds, "ends": ends, "lines": lines}


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_each_token_of_the_tree_is_drawn_once_where_it_was_sampled(rounds: int) -> None:
    trace = random_tree(random.Random(rounds), rounds=rounds)
    view = branch_tree(trace)
    bars = layers(view)["bars"]
    assert len(bars.base) == trace.new_tokens()
    axis = view.figure.layout.yaxis
    lane = {int(name): y for name, y in zip(axis.ticktext, axis.tickvals, strict=True)}
    expected = {
        (t, lane[i]): (shade(r.entropies[t] / 1.5), r.kept)
        for i, r in enumerate(trace.rollouts)
        for t in range(trace.start(i), len(r))
    }
    drawn = {
        (t, y): (colour, opacity == 1)
        for t, y, colour, opacity in zip(
            bars.base, bars.y, bars.marker.color, bars.marker.opacity, strict=True
        )
    }
    assert drawn == expected
    assert all((width > 0.4) == (opacity == 1) for width, opacity in zip(
        bars.width, bars.marker.opacity, strict=True))  # fmt: skip
    low, high = view.figure.layout.xaxis.range
    assert low < 0 and high > max(map(len, trace.rollouts))
    top, bottom = axis.range
    assert top > max(lane.values()) and bottom < 0


def test_the_colours_of_the_tree_are_those_of_the_strip() -> None:
    trace = small_tree()
    strip = entropy_strip(trace).figure.data[0]
    bars = layers(branch_tree(trace))["bars"]
    assert list(bars.marker.color[:4]) == list(strip.marker.color)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_branches_stand_below_their_parent_and_no_lines_cross(seed: int, rounds: int) -> None:
    trace = random_tree(random.Random(seed), rounds=rounds)
    forks = forks_of(trace)
    order = order_of(trace, forks)
    lane = lanes_of(trace, order)
    assert sorted(order) == list(range(len(trace.rollouts)))
    assert [f.members for f in forks] == [tuple(found) for found in trace.branch_sets()]
    assert all(b - a > 0.999 for a, b in pairwise(lane.values()))
    for fork in forks:
        for child in fork.members:
            assert lane[child] > lane[fork.parent]
            # A line from parent to child passes only lanes that begin at the fork or later.
            between = [i for i in order if lane[fork.parent] < lane[i] < lane[child]]
            assert all(trace.start(i) >= fork.t for i in between)
        inner = [f for f in forks if f.parent in fork.members and f.t == fork.t]
        assert all(nesting(forks, fork) > nesting(forks, f) for f in inner)


def test_later_forks_of_a_parent_stand_closer_to_it() -> None:
    rollouts = [root(list("abcd"))]
    fork_off(rollouts, 0, 1, ["x"])
    fork_off(rollouts, 0, 3, ["y"])
    trace = tree_of(rollouts)
    assert order_of(trace, forks_of(trace)) == [0, 2, 1]


def labels_of(view: View) -> dict[int, list[str]]:
    """What stands above each lane."""
    axis = view.figure.layout.yaxis
    (texts,) = layers(view)["words"]
    found: dict[int, list[str]] = {int(name): [] for name in axis.ticktext}
    for y, text in zip(texts.y, texts.text, strict=True):
        near = min(range(len(axis.tickvals)), key=lambda at: abs(axis.tickvals[at] - 0.48 - y))
        found[int(axis.ticktext[near])].append(text)
    return found


def test_a_fork_shows_its_entropy_and_the_word_it_had() -> None:
    view = branch_tree(small_tree())
    assert labels_of(view) == {
        0: ["<b>0.45</b>", "Split"],
        1: ["Round"],
        2: ["<b>0.30</b>", "Guess"],
        3: [],
        4: ["Grid"],
    }
    diamonds = layers(view)["diamonds"]
    assert list(diamonds.x) == [1, 3]
    assert "it drew ' ' [0]<br>'Round' [1]<br>'Guess' [2]" in diamonds.hovertext[0]
    wide = [root(["Split", *["1"] * 60, "Guess", "Round", *["2"] * 60])]
    fork_off(wide, 0, 61, ["Factor", "3"])
    assert labels_of(branch_tree(tree_of(wide))) == {0: ["<b>6.20</b> Guess", "Split"],
                                                     1: ["Factor"]}  # fmt: skip


def test_a_fork_within_a_fork_at_one_token_has_a_line_of_its_own() -> None:
    rollouts = [root(list("abcd"))]
    fork_off(rollouts, 0, 2, ["x", "y"])
    fork_off(rollouts, 1, 2, ["z"], turn=2)
    outer, inner = layers(branch_tree(tree_of(rollouts)))["diamonds"].x
    assert outer < inner == 2


def test_reward_score_and_filter_stand_at_the_right_in_words_and_signs() -> None:
    view = branch_tree(small_tree())
    reward, score, fate = layers(view)["ends"]
    assert list(reward.text) == [f"<b>{sign}</b>" for sign in "✓✗✓?✓"]
    assert reward.textfont.color[1] == readable(STYLES["wrong"].colour)
    assert list(score.text) == ["+0.50", "−0.30", "+0.20", "–", "–"]
    assert list(fate.text) == ["root", "pruned", "kept", "kept", "kept"]
    assert "γ<sub>0</sub> = 1, s<sub>0</sub> = 8" in reward.hovertext[1]
    assert "z = (+0.50, −1.00)" in reward.hovertext[1]
    assert "S<sub>IB</sub> −0.30: answer +0.10, cost +0.40" in reward.hovertext[1]
    assert "round 2: branch of 2 from token 3" in reward.hovertext[3]
    kept, pruned, below = layers(view)["lines"]
    assert [line.line.dash for line in (kept, pruned, below)] == ["solid", "dot", "dot"]
    height = dict(zip(view.figure.layout.yaxis.ticktext, reward.y, strict=True))
    assert set(kept.y) - {None} == {height[i] for i in "0234"}
    assert set(pruned.y) - {None} == {height[i] for i in "01"}
    assert list(below.x) == [1, 3, None]
    bare = branch_tree(tree_of([root(["a"])]))
    assert len(layers(bare)["ends"]) == 1  # no score, no filter: no columns
    assert "kept" not in bare.describe() and "S_IB" not in bare.describe()
    assert not any(entry.showlegend for entry in bare.figure.data)


def test_hovering_shows_the_text_around_a_token() -> None:
    hover = layers(branch_tree(small_tree()))["bars"].hovertext
    assert hover[2] == (
        "Split <b>7</b>&lt;|im_end|&gt;<br>trajectory 0, token 2<br>H = 0.200 nat"
        "<br>log π = -0.250 nat"
    )
    assert any("s = 1 since its fork" in text for text in hover)


def test_the_tree_names_only_the_first_of_many_trajectories() -> None:
    trace = random_tree(random.Random(0), rounds=3, branches=2)
    view = branch_tree(trace)
    assert len(trace.rollouts) == 30 and view.describe().endswith("; and 14 more.")
    assert len(view.table) == 31
    assert view.figure.layout.height < 1000


def test_the_tree_lives_with_odd_trajectories() -> None:
    empty = dataclasses.replace(root([]), text="", reward=0.25, finished=False)
    view = branch_tree(tree_of([empty]))
    assert view.describe() == (
        "Branch tree: 1 root, 0 branches, 0 tokens; 0 of 1 correct. From the top: 0 0.25 0 tokens "
        "(cut off)."
    )
    rollouts = [root(["a", "b"])]
    fork_off(rollouts, 0, 2, ["c"])  # after the parent's last token
    fork_off(rollouts, 0, 1, [])
    text = branch_tree(tree_of(rollouts)).describe()
    assert "forks at token 2 (H – nat) into 1" in text and "2 ✓ 0 tokens from nothing" in text
    with pytest.raises(ValueError, match="holds no trajectory"):
        branch_tree(tree_of([]))


# --- latents ------------------------------------------------------------------------------------


def blobs(dimensions: int, count: int = 40) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    labels = [("Split", "Guess", "other")[i % 3] for i in range(count)]
    centres = {name: 3 * rng.normal(size=dimensions) for name in set(labels)}
    return np.array([centres[name] + rng.normal(size=dimensions) for name in labels]), labels


def test_the_map_is_the_plane_of_largest_variance() -> None:
    z, labels = blobs(6)
    view = latent_map(z, labels)
    small = [d for d in view.figure.data if d.showlegend is not False]
    place = np.concatenate([np.c_[d.x, d.y] for d in small])
    variance, axes = np.linalg.eigh(np.cov(z.T))  # another way to the same axes
    top = variance[::-1][:2]
    assert np.allclose(place.var(0, ddof=1), top)
    shares = [f"{100 * value / variance.sum():.0f} %" for value in top]
    assert f"two principal axes ({shares[0]} and {shares[1]} of the variance)" in view.describe()
    assert escape(shares[0]) in view.figure.layout.xaxis.title.text
    order = np.argsort([d.name.split(" ")[0] for d in small], kind="stable")
    assert len(order) == 3
    for column, axis in enumerate(axes[:, ::-1].T[:2]):
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        rows = np.concatenate(
            [[i for i, name in enumerate(labels) if name == d.name.split(" ")[0]] for d in small]
        )
        assert np.allclose(place[:, column], ((z - z.mean(0)) @ axis)[rows])


def test_two_dimensions_are_drawn_as_they_are() -> None:
    z, labels = blobs(2)
    view = latent_map(z.tolist(), labels, title="Mine")
    small = [d for d in view.figure.data if d.showlegend is not False]
    drawn = {point for d in small for point in zip(d.x, d.y, strict=True)}
    assert drawn == {(float(x), float(y)) for x, y in z}
    assert view.figure.layout.xaxis.title.text.startswith("z<sub>1</sub>")
    assert view.describe().startswith("Mine: 40 in 2 dimensions (")


def test_labels_that_differ_in_a_last_nul_are_two() -> None:
    view = latent_map([[0, 1], [1, 0], [2, 2]], ["a", "a\0", "a\0"])
    assert view.table is not None and [row[1] for row in view.table[1:]] == ["1", "2"]


def test_the_map_tells_how_much_the_labels_explain() -> None:
    z, labels = blobs(5, 90)
    mean = z.mean(0)
    total = sum(float(((row - mean) ** 2).sum()) for row in z)
    within = 0.0
    for name in set(labels):
        rows = z[[i for i, found in enumerate(labels) if found == name]]
        within += sum(float(((row - rows.mean(0)) ** 2).sum()) for row in rows)
    expected = f"between the labels {100 * (1 - within / total):.0f} % of all variance"
    assert expected in latent_map(z, labels).describe()
    control = latent_map(z, random.Random(1).sample(labels, len(labels))).describe()
    found = re.search(r"between the labels (\d+) %", control)
    assert found and int(found[1]) <= 5


def test_labels_differ_in_colour_and_marker() -> None:
    z, labels = blobs(3)
    small = [d for d in latent_map(z, labels).figure.data if d.showlegend is not False]
    assert len({d.marker.color for d in small}) == len({d.marker.symbol for d in small}) == 3
    known = category_styles(["Split", "Round", "Grid", "Factor", "Guess"])
    assert category_styles(["Guess", "zzz"])["Guess"] == known["Guess"]
    assert category_styles(["Guess", "zzz"])["zzz"] != known["Guess"]
    for names in (list(known), list(KINDS), ["correct", "wrong"], list("abcdefg")):
        looks = category_styles(names).values()
        assert len({s.colour for s in looks}) == len({s.symbol for s in looks}) == len(names)
    outcomes = {STYLES["correct"].colour, STYLES["wrong"].colour}
    assert not outcomes & {style.colour for style in PALETTE}
    with pytest.raises(ValueError, match="can't be told apart"):
        category_styles("abcdefgh")


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[1.0, 2.0]], ["a"], "shape"),
        ([[1.0], [2.0]], ["a", "b"], "shape"),
        ([1.0, 2.0], ["a", "b"], "shape"),
        ([[1.0, 2.0], [1.0]], ["a", "b"], "rows of equally many"),
        ([[1.0, math.nan], [1.0, 2.0]], ["a", "b"], "finite"),
        ([[1.0, 2.0], [1.0, 2.0]], ["a", "b"], "All latents are equal"),
        ([[1.0, 2.0], [2.0, 2.0]], ["a"], "as many labels"),
    ],
)
def test_the_map_refuses_what_it_cannot_draw(points: Any, labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_map(points, labels)


def test_kl_bars_mark_unused_dimensions_without_colour() -> None:
    view = kl_bars([1.5, 0.01, 0.2], [True, False, True])
    assert view.describe() == (
        "KL(Q‖P) of each dimension of z: 1.71 nat in all; 2 of 3 dimensions active: 1 1.50, "
        "2 0.01, 3 0.20; unused: 2."
    )
    active, unused = view.figure.data
    assert list(active.x) == [0, 2] and list(unused.y) == [0.01]
    assert active.marker.pattern.shape != unused.marker.pattern.shape
    assert kl_bars([1.0], [True]).describe().endswith("1 1.00.")
    for nats, flags in (([], []), ([1.0], []), ([math.nan], [True]), ([-1.0], [True])):
        with pytest.raises(ValueError, match=r"flag for each|finite number"):
            kl_bars(nats, flags)


# --- heads --------------------------------------------------------------------------------------


def heat(view: View) -> list[Any]:
    return [d for d in view.figure.data if d.type == "heatmap"]


def test_the_grid_has_a_panel_with_without_and_for_the_difference() -> None:
    on, off = [[0.5, 0.1], [0.2, 0.0], [0.3, 0.3]], [[0.1, 0.1], [0.1, 0.4], [0.3, 0.0]]
    view = head_grid(on, off, quantity="weight on the newline")
    first, second, third = heat(view)
    assert np.array_equal(first.z, on) and np.array_equal(second.z, off)
    assert np.allclose(third.z, np.array(on) - np.array(off))
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax) == (0.0, 0.5)
    assert third.zmin == -third.zmax
    assert shade(0.5, [list(stop) for stop in third.colorscale]) == "rgb(255, 255, 255)"
    assert shade(0.0, [list(stop) for stop in first.colorscale]) == "rgb(255, 255, 255)"
    assert view.describe() == (
        "What z does to each head: weight on the newline, 3 layers × 2 heads. With z from 0.00 to "
        "0.50; without z from 0.00 to 0.40; changed most: +0.40 at layer 0, head 0."
    )
    (box,) = view.figure.layout.shapes
    assert (box.x0, box.y0) == (-0.5, -0.5)
    texts = [d for d in view.figure.data if d.type == "scatter"]
    assert [d.text[3] for d in texts] == ["0.00", "0.40", "−0.40"]
    assert len(view.table) == 1 + 6


def test_the_numbers_of_a_grid_are_readable_on_their_cells() -> None:
    rng = np.random.default_rng(0)
    view = head_grid(rng.random((4, 4)), rng.random((4, 4)))
    texts = [d for d in view.figure.data if d.type == "scatter"]
    for panel, text in zip(heat(view), texts, strict=True):
        scale = [list(stop) for stop in panel.colorscale]
        for value, colour in zip(np.ravel(panel.z), text.textfont.color, strict=True):
            cell = shade((value - panel.zmin) / (panel.zmax - panel.zmin), scale)
            assert colour == ink(cell) and contrast(cell, colour) >= 4.5


def test_the_grid_is_white_at_zero_for_numbers_of_both_signs_too() -> None:
    first, second, _ = heat(head_grid([[-2.0, 0.0]], [[1.0, 0.5]], quantity="change"))
    assert first.zmin == second.zmin == -2.0 and first.zmax == second.zmax == 2.0
    assert [tuple(stop) for stop in first.colorscale] == [tuple(stop) for stop in DIVERGING]


def test_large_grids_leave_their_numbers_out_and_equal_ones_say_so() -> None:
    zeros = np.zeros((28, 16))
    view = head_grid(zeros, zeros)
    assert all(d.type == "heatmap" for d in view.figure.data)
    assert view.describe().endswith("no head changed.") and not view.figure.layout.shapes
    on: Any
    off: Any
    for on, off, message in (
        ([[1.0]], [[1.0, 2.0]], "equal ones"),
        ([1.0], [1.0], "shape"),
        ([], [], "shape"),
        ([[1.0], [1.0, 2.0]], [[1.0]], "a row for each layer"),
        ([[math.inf]], [[1.0]], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            head_grid(on, off)


def test_head_activation_measures_each_head_by_itself() -> None:
    rng = np.random.default_rng(0)
    off, on = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 5))
    on[1, 1] = -off[1, 1]  # as active as before, and turned round
    on[2, 0] = off[2, 0]
    on[0] = off[0] * [[1.5], [0.5]]
    slot = rng.random((3, 2))
    view = head_activation(on, off, slot=slot, title="One row")
    before, after, moved, weight = heat(view)
    for layer in range(3):
        for head in range(2):
            o, with_z = off[layer, head], on[layer, head]
            length = math.sqrt(sum(x * x for x in o))
            assert before.z[layer][head] == pytest.approx(length)
            assert after.z[layer][head] == pytest.approx(math.sqrt(sum(x * x for x in with_z)))
            far = math.sqrt(sum((a - b) ** 2 for a, b in zip(o, with_z, strict=True)))
            assert moved.z[layer][head] == pytest.approx(far / length, abs=1e-12)
    assert moved.z[1][1] == pytest.approx(2) and moved.z[2][0] == 0
    assert moved.z[0] == pytest.approx([0.5, 0.5])
    assert np.array_equal(weight.z, slot) and (weight.zmin, weight.zmax) == (0.0, 1.0)
    assert (before.zmin, before.zmax) == (after.zmin, after.zmax)
    most = np.unravel_index(np.argmax(moved.z), (3, 2))
    (box,) = view.figure.layout.shapes
    assert (box.y0, box.x0) == (most[0] - 0.5, most[1] - 0.5) and box.xref == "x3"
    assert box.line.color not in (INK, "#1A1A1A")  # the cell it outlines is the darkest
    assert view.describe().startswith("One row: 3 layers × 2 heads. Activation without z from ")
    assert "in layer 0, " in view.describe() and "moved by 50 % of its act" in view.describe()
    assert f"at layer {most[0]}, head {most[1]}." in view.describe()
    assert view.table[0] == ("layer", "head", "without z", "with z", "moved by", "slot's weight")
    assert len(view.table) == 1 + 6 and len(heat(head_activation(on, off))) == 3
    still = head_activation(off, off)
    assert still.describe().endswith("no head moved.") and not still.figure.layout.shapes


@pytest.mark.parametrize(
    ("on", "off", "slot", "message"),
    [
        ([[1.0]], [[1.0]], None, r"shape \(layers, heads, d_head\)"),
        ([[[1.0]]], [[[1.0, 2.0]]], None, "give equal ones"),
        ([[[1.0], [1.0, 2.0]]], [[[1.0]]], None, "equally many numbers"),
        ([[[math.nan]]], [[[1.0]]], None, "must be finite"),
        ([[[1.0]]], [[[1.0]]], [[0.5, 0.5]], "one for each layer and head"),
        ([], [], None, "shape"),
    ],
)
def test_head_activation_refuses_what_it_cannot_draw(
    on: Any, off: Any, slot: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        head_activation(on, off, slot=slot)


def test_a_head_has_the_slot_as_a_column_of_its_own() -> None:
    off = [0.5, 0.3, 0.2]
    on = [0.4, *(0.6 * w for w in off)]
    view = head_detail(on, off, ["Split", "\n", "7"], 2, 1)
    bars, ticks, change = view.figure.data
    assert list(bars.y) == pytest.approx(on) and list(ticks.y) == off
    assert list(change.y) == pytest.approx([0.4, -0.2, -0.12, -0.08])
    assert sum(change.y) == pytest.approx(0)
    assert bars.x[0] < 0 < bars.x[1] and list(ticks.x) == list(bars.x[1:])
    assert bars.marker.color[0] not in bars.marker.color[1:]
    assert view.figure.layout.xaxis2.ticktext == ("<b>z</b>", "Split", "↵", "7")
    assert view.describe() == (
        "Attention of layer 2, head 1, over 3 tokens: the slot of z takes 0.40; the tokens that "
        "had most: 'Split' (token 0) 0.50 → 0.30, '↵' (token 1) 0.30 → 0.18, '7' (token 2) "
        "0.20 → 0.12."
    )
    assert view.table[1] == ("z", "–", "0.400", "–", "+0.400")


def test_a_head_writes_out_the_tokens_that_matter_when_there_are_many() -> None:
    off = np.full(200, 0.5 / 199)
    off[150] = 0.5
    view = head_detail(np.r_[0.5, 0.5 * off], off, ["a"] * 150 + ["X"] + ["a"] * 49, 0, 0)
    ticks = view.figure.layout.xaxis2
    low, high = ticks.range
    assert "X" in ticks.ticktext and len(ticks.ticktext) > 30
    pixels = [560 * (b - a) / (high - low) for a, b in pairwise(ticks.tickvals)]
    assert min(pixels[1:]) >= 13  # the names don't touch
    assert len(view.table) == 202


@pytest.mark.parametrize(
    ("on", "off", "tokens"),
    [
        ([1.0], [], []),
        ([0.5, 0.5], [0.5, 0.5], ["a"]),
        ([0.5, 0.5, 0.0], [1.0], ["a"]),
        ([0.5, 0.4], [1.0], ["a"]),
        ([1.5, -0.5], [1.0], ["a"]),
        ([math.nan, 0.5], [1.0], ["a"]),
    ],
)
def test_a_head_refuses_weights_that_are_no_softmax_over_its_tokens(
    on: list[float], off: list[float], tokens: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"is needed: one for each token|give a softmax"):
        head_detail(on, off, tokens, 0, 0)


# --- γ(s) ---------------------------------------------------------------------------------------


@given(st.floats(0.1, 1.0), st.floats(1.0, 20.0))
def test_half_of_an_exponential_is_left_after_its_half_life(start: float, decay: float) -> None:
    values = [start * math.exp(-s / decay) for s in range(60)]
    view = gamma_curves({"a": values})
    line, mark = view.figure.data
    assert list(line.y) == values
    assert mark.x[1] == pytest.approx(decay * math.log(2))
    assert mark.y[1] == pytest.approx(start / 2)
    assert f"half left at s = {mark.x[1]:.1f}" in view.describe()


def test_gamma_curves_in_words_and_dashes() -> None:
    view = gamma_curves({"decay": [1.0, 0.6, 0.3], "constant": [0.8] * 5, "off": [0.0, 0.0],
                         "step": [1.0, 0.0]})  # fmt: skip
    assert view.describe() == (
        "Strength γ(s) of z, s tokens after the fork: decay from 1.00, half left at s = 1.3, 0.30 "
        "at s = 2; constant from 0.80, never halved, 0.80 at s = 4; off from 0.00, never halved, "
        "0.00 at s = 1; step from 1.00, half left at s = 1.0, 0.00 at s = 1."
    )
    lines = [d for d in view.figure.data if d.mode == "lines"]
    assert len({d.line.dash for d in lines}) == len({d.line.color for d in lines}) == 4
    assert sum(d.showlegend is True for d in view.figure.data) == 1
    for curves in ({}, {str(i): [1.0, 1.0] for i in range(9)}):
        with pytest.raises(ValueError, match="Give 1 to 7 curves"):
            gamma_curves(curves)
    for values in ([], [1.0], [1.0, 2.0], [1.0, -0.1], [1.0, math.nan]):
        with pytest.raises(ValueError, match="'a' needs at least two numbers"):
            gamma_curves({"a": values})


# --- S_IB ---------------------------------------------------------------------------------------


def scores_of(traces: Sequence[Trace], at: int) -> list[Score]:
    found = [trace.rollouts[at].score for trace in traces]
    assert None not in found
    return [score for score in found if score is not None]


def test_the_scatter_puts_cost_across_and_the_answer_up() -> None:
    traces = scored_traces()
    view = ib_scatter(traces, kinds=[KINDS] * len(traces))
    clouds = {d.name.split(" ")[0]: d for d in view.figure.data if d.name and "(5)" in d.name}
    assert list(clouds) == list(KINDS)
    for at, kind in enumerate(KINDS):
        scores = scores_of(traces, at)
        assert list(clouds[kind].x) == [s.cost for s in scores]
        assert list(clouds[kind].y) == [s.answer for s in scores]
    assert len({d.marker.symbol[0].removesuffix("-open") for d in clouds.values()}) == 4
    assert all(symbol.endswith("-open") for symbol in clouds["loop"].marker.symbol)
    assert not any(symbol.endswith("-open") for symbol in clouds["drift"].marker.symbol)
    mean = sum(score.value for score in scores_of(traces, 0)) / 5
    assert f"concise 5, mean S_IB {mean:+.2f} (answer" in view.describe().replace("−", "-")
    assert view.describe().count("5 kept") == 3 and "0 kept" in view.describe()


def test_on_a_dotted_line_the_score_is_the_same() -> None:
    for spread in (1e-3, 1.0, 300.0):
        traces = [
            tree_of([dataclasses.replace(root(["a"]), score=Score(a - c, a, c))])
            for a, c in ((0.0, 0.0), (spread, 0.1 * spread), (0.3 * spread, spread))
        ]
        view = ib_scatter(traces)
        lines, numbers = view.figure.data[:2]
        ends = list(zip(lines.x, lines.y, strict=True))
        assert ends[2::3] == [(None, None)] * (len(ends) // 3)
        values = [y - x for x, y in ends[::3]]
        assert 3 <= len(values) <= 12
        assert [y - x for x, y in ends[1::3]] == pytest.approx(values, abs=1e-9 * spread)
        shown = [float(text.replace("−", "-")) for text in numbers.text]
        assert shown == pytest.approx(values, abs=1e-9 * spread)
        x, y = view.figure.layout.xaxis.range, view.figure.layout.yaxis.range
        room = 1e-9 * spread
        for cost, answer in (*ends[::3], *ends[1::3]):
            assert x[0] - room <= cost <= x[1] + room and y[0] - room <= answer <= y[1] + room


def test_names_of_means_that_lie_together_keep_clear_of_each_other() -> None:
    at = [(0.5, 0.5), (0.52, 0.52), (0.5, 0.53), (3.0, 3.0)]
    rollouts = [
        dataclasses.replace(root(["a"]), score=Score(a - c, a, c)) for a, c in at for _ in range(3)
    ]
    view = ib_scatter([tree_of(rollouts)], kinds=[[k for k in KINDS for _ in range(3)]])
    notes = [note for note in view.figure.layout.annotations if note.text.startswith("<b>")]
    places = [
        (500 * (n.x - 0.5) / 2.5 + n.xshift, 330 * (n.y - 0.5) / 2.5 + n.yshift, 4 * len(n.text))
        for n in notes
    ]
    assert [n.text for n in notes] == [f"<b>{kind}</b>" for kind in KINDS]
    for i, (x, y, _) in enumerate(places):
        for x2, y2, _ in places[:i]:
            assert abs(y - y2) >= 16 or abs(x - x2) >= 40
    assert (notes[-1].xshift, notes[-1].yshift) == (0, 17)  # alone: above its mark


def test_without_kinds_the_scatter_shows_the_reward() -> None:
    view = ib_scatter([small_tree()])
    assert view.describe() == (
        "S_IB of 3 trajectories by its parts, answer − cost: correct 2, mean S_IB +0.35 (answer "
        "+0.60, cost +0.25), 2 kept; wrong 1, mean S_IB −0.30 (answer +0.10, cost +0.40), 0 kept; "
        "2 not scored."
    )
    unverified = dataclasses.replace(root(["a"], reward=None), score=Score(1, 2, 1))
    assert "not verified 1" in ib_scatter([tree_of([unverified])]).describe()
    with pytest.raises(ValueError, match="No trajectory is scored"):
        ib_scatter([tree_of([root(["a"])])])
    with pytest.raises(ValueError, match="No trajectory is scored"):
        ib_scatter([])
    with pytest.raises(ValueError, match="a kind for each"):
        ib_scatter([small_tree()], kinds=[["a"]])
    broken = dataclasses.replace(root(["a"]), score=Score(math.nan, 0.0, 0.0))
    with pytest.raises(ValueError, match="finite"):
        ib_scatter([tree_of([broken])])


def test_the_ranking_counts_what_each_kind_beats() -> None:
    rows = [[4.0, 3.0, 2.0, 1.0]] * 6 + [[3.0, 3.0, 1.0, 1.0]] * 2
    view = ib_ranking({"mine": rows}, KINDS)
    assert view.describe().startswith(
        "Order of 4 kinds of trace of 8 problems, by the share of the other kinds that each beats: "
        "mine: concise 0.96 > drift 0.71 > verbose 0.29 > loop 0.04, concise first 75 %, loop last "
        "75 %; shuffled: "
    )
    bars = [d for d in view.figure.data if d.type == "bar"]
    assert [d.name for d in bars] == ["mine", "mine", "shuffled", "shuffled"]
    assert list(bars[0].y) == pytest.approx([23 / 24, 17 / 24, 7 / 24, 1 / 24])
    assert list(bars[1].y) == [0.75, 0.75]  # a tie is neither first nor last
    assert bars[0].marker.pattern.shape != bars[2].marker.pattern.shape
    assert all(up >= 0 for d in bars for up in (*d.error_y.array, *d.error_y.arrayminus))
    assert len(view.table) == 1 + 2 * 6


def test_shuffled_scores_leave_no_order_and_the_same_seed_the_same() -> None:
    rng = random.Random(1)
    rows = [sorted((rng.random() for _ in KINDS), reverse=True) for _ in range(600)]
    view = ib_ranking({"mine": rows, "same": rows}, KINDS)
    shuffled = [d for d in view.figure.data if d.type == "bar" and d.name == "shuffled"]
    assert all(abs(y - 0.5) < 0.06 for y in shuffled[0].y)
    assert all(abs(y - 0.25) < 0.06 for y in shuffled[1].y)
    assert view.describe() == ib_ranking({"mine": rows, "same": rows}, KINDS).describe()
    assert view.describe() != ib_ranking({"mine": rows, "same": rows}, KINDS, seed=1).describe()


def test_the_control_of_the_ranking_is_twenty_shuffles_with_their_spread() -> None:
    rows = [[4.0, 3.0, 2.0, 1.0]] * 12
    view = ib_ranking({"mine": rows}, KINDS)
    rng = random.Random(0)
    singles = []  # of each shuffle: share of the others that the first kind beats, over problems
    for _ in range(20):
        shuffled = [rng.sample(row, 4) for row in rows]
        singles.append(sum(sum(r[0] > x for x in r[1:]) / 3 for r in shuffled) / 12)
    bar = next(d for d in view.figure.data if d.type == "bar" and d.name == "shuffled")
    assert bar.y[0] == pytest.approx(sum(singles) / 20)
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(max(singles))
    assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(min(singles))
    assert f"shuffles: concise {min(singles):.2f} to {max(singles):.2f}" in view.describe()
    assert max(singles) - min(singles) > 0.2  # one shuffle of twelve problems says little


@pytest.mark.parametrize(
    ("scores", "kinds", "message"),
    [
        ({}, KINDS, "no scores"),
        ({"a": []}, KINDS, "no scores"),
        ({"a": [[1.0]]}, ["one"], "at least two kinds"),
        ({"a": [[1.0, 2.0]]}, KINDS, "one finite score a kind"),
        ({"a": [[1.0, math.nan]]}, ["x", "y"], "one finite score a kind"),
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0]] * 2}, ["x", "y"], "the same problems"),
        ({"shuffled": [[1.0, 2.0]]}, ["x", "y"], "shuffled is made here"),
        ({str(i): [[1.0, 2.0]] for i in range(8)}, ["x", "y"], "fewer than"),
    ],
)
def test_the_ranking_refuses_what_it_cannot_rank(
    scores: dict[str, list[list[float]]], kinds: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ib_ranking(scores, kinds)


# --- all of them --------------------------------------------------------------------------------

OURS = re.compile(
    r'</?b>|<br>|</?sub>|<span style="[^"<>]*">|</span>|<extra></extra>|%{x}|%{y:\.3f}'
)


@pytest.mark.parametrize("text", NASTY)
def test_no_figure_holds_text_that_plotly_would_obey(text: str) -> None:
    for name, view in every_view(text).items():
        data = json.loads(view.figure.to_json())
        shown = [as_plotly_shows(OURS.sub(" ", string)) for string in strings(data)]
        start = visible(text)[:8]
        assert any(start in string for string in shown), f"{name} doesn't show {text!r}"
        words = view.describe() + "".join(cell for row in view.table for cell in row)
        assert words == visible(words)


@pytest.mark.parametrize("text", ["<b>Bold</b>", "Split<i>", "Guess$x$", "Łódź", "Ab" * 50_000])
def test_labels_above_the_lanes_are_text_too(text: str) -> None:
    view = branch_tree(tree_of([root([text, "1"])]))
    labels = [label for found in labels_of(view).values() for label in found]
    assert all(as_plotly_shows(label) == visible(label) and len(label) <= 14 for label in labels)
    assert len(view.describe()) < 300
    assert max(map(len, strings(json.loads(view.figure.to_json())))) < 2000


def test_the_same_records_give_the_same_bytes_without_nan() -> None:
    again = every_view("x")
    for name, view in every_view("x").items():
        assert view.to_html(include_js=False) == again[name].to_html(include_js=False)
        json.dumps(view._repr_mimebundle_(), allow_nan=False)
        assert view._repr_mimebundle_()["text/plain"] == view.describe()


def test_these_views_need_no_torch() -> None:
    code = (
        "import sys, i2b_lpo.views as v;"
        "v.latent_map([[0, 1], [1, 0]], 'ab'); v.head_grid([[1]], [[0]]);"
        "v.gamma_curves({'a': [1, 0.5]}); v.ib_ranking({'a': [[1, 0]]}, 'xy');"
        "sys.exit(str({'torch', 'transformers', 'kaleido'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_the_master_diagram_has_every_stage_of_issue_b() -> None:
    view = training_step(here=[3, 9])
    added = [row[1] for row in view.table[1:] if row[3] == "I²B-LPO"]
    assert added == ["one fork each", "K latents", "K branches", "IB score", "keep Top-N"]
