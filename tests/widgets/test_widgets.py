"""Widgets: every control changes what it should, model text stays text, a stop loses nothing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import comm
import ipywidgets
import plotly.graph_objects as go
import pytest
import torch
from comm.base_comm import BaseComm
from tiny import tiny_policy

from i2b_lpo.config import BranchConfig, CheckpointConfig, RolloutConfig, RunConfig
from i2b_lpo.method.psa import Strength
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.steering import Steering, new_steering
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace, write_traces
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord
from i2b_lpo.views.lanes import forks_of, lanes_of, order_of
from i2b_lpo.views.strip import token_text
from i2b_lpo.widgets import (
    BranchExplorer,
    EntropyReader,
    GammaDesigner,
    HeadExplorer,
    TrainingDashboard,
    Widget,
    explore,
)
from i2b_lpo.widgets.base import Clickable

pytestmark = pytest.mark.slow

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "javascript:alert(3) %{x} $\\href{javascript:alert(4)}{x}$\u202e\0",
)


def trajectory(pieces: tuple[str, ...], first: int, **more: Any) -> Rollout:
    count = len(pieces)
    return Rollout(
        ids=tuple(range(first, first + count)),
        pieces=pieces,
        entropies=tuple(0.2 + 0.1 * t for t in range(count)),
        logprobs=(-0.5,) * count,
        logprobs_t1=(-0.5,) * count,
        text="".join(pieces),
        finished=True,
        reward=1.0,
        reason="correct",
        **more,
    )


def saved_trace(words: tuple[str, ...] = ("Split", "Round", "Guess")) -> Trace:
    """A root and two branches from its token 1, which share token 0 with it."""
    root = trajectory(("Go ", words[0], " end"), 10, score=Score(0.5, 0.7, 0.2))
    branches = [
        replace(
            trajectory(("Go ", word, " end"), 10, score=Score(0.1, 0.4, 0.3)),
            ids=(10, 20 + at, 12),
            branch=Branch(0, p=5, fusion="psa", z=(0.5, -1.0), gamma=1.0, decay=2.0),
            kept=at == 0,
        )
        for at, word in enumerate(words[1:])
    ]
    question = Question("q", words[0] + " What is it?", words[1], "shop")
    return Trace(question, (1, 2, 3, 4), (root, *branches), policy=words[2])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(seed=1)


@pytest.fixture(scope="module")
def steering(policy: Policy) -> Steering:
    torch.manual_seed(0)
    made = new_steering(policy, d_z=4, strength=Strength(1.0, 2.0))
    with torch.no_grad():
        for parameter in made.fusion.parameters():
            parameter.mul_(20)
    return made


@pytest.fixture(scope="module")
def explorer(policy: Policy, steering: Steering) -> BranchExplorer:
    return BranchExplorer(policy, steering, max_new_tokens=24)


@pytest.fixture(scope="module")
def heads(policy: Policy, steering: Steering) -> HeadExplorer:
    return HeadExplorer(policy, steering)


def data(widget: Widget) -> str:
    assert widget.view is not None
    return str(json.loads(widget.view.figure.to_json())["data"])


def everything(part: Any) -> list[Any]:
    return [
        part,
        *(inner for child in getattr(part, "children", ()) for inner in everything(child)),
    ]


def click(figure: go.FigureWidget, trace: int, point: int, *, shift: bool = False) -> None:
    """What the browser sends when a point is clicked."""
    drawn = figure.data[trace]
    figure._js2py_pointsCallback = {
        "event_type": "plotly_click",
        "points": {
            "trace_indexes": [trace],
            "point_indexes": [point],
            "xs": [drawn.x[point]],
            "ys": [drawn.y[point]],
        },
        "device_state": {
            "alt": False, "ctrl": False, "meta": False, "shift": shift, "button": 0, "buttons": 1
        },
        "selector": None,
    }  # fmt: skip


# --- branch explorer ----------------------------------------------------------------------------


def test_the_explorer_grows_the_tree_that_grow_trees_grows(
    policy: Policy, steering: Steering, explorer: BranchExplorer
) -> None:
    from i2b_lpo.model.sampling import Sampling
    from i2b_lpo.rollout.branching import grow_trees
    from i2b_lpo.rollout.example import QUESTION

    (tree,) = grow_trees(
        policy, [QUESTION], Sampling(24), BranchConfig(branches=3, fusion="psa"), rollouts=2,
        steering=steering, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert explorer.trace is not None
    assert [r.ids for r in explorer.trace.rollouts] == [r.ids for r in tree.rollouts]
    assert all(rollout.score is not None for rollout in explorer.trace.rollouts)
    kept = [rollout.kept for rollout in explorer.trace.rollouts]
    assert kept[:2] == [True, True] and sum(kept[2:]) == 4  # N = 2 of K = 3
    settings = "fork rule top_fraction, M = 2, K = 3, fusion psa, seed 0."
    assert explorer.describe().startswith(f"Branch explorer: {settings}")
    assert (
        explorer.tree.figure._config.items()
        >= {"displayModeBar": False, "responsive": True}.items()
    )


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("question", "What is 23*14?"),
        ("rule", "uniform"),
        ("rollouts", 1),
        ("branches", 2),
        ("fusion", "none"),
        ("gamma", 0.0),
        ("decay", 0.25),
        ("seed", 5),
    ],
)
def test_each_control_of_a_tree_changes_it(
    policy: Policy, steering: Steering, explorer: BranchExplorer, part: str, value: Any
) -> None:
    before, shown, tree = data(explorer), explorer.tree.figure, explorer.trace
    control = getattr(explorer, part)
    first = control.value
    control.value = value
    try:
        explorer.grow.click()
        assert explorer.note.text == "" and not explorer.grow.disabled
        assert data(explorer) != before and explorer.tree.figure is not shown
        assert explorer.trace is not tree
        assert shown.comm is None  # the kernel doesn't keep it
        off = explorer.fusion.value == "none"
        assert explorer.gamma.disabled == explorer.decay.disabled == off
    finally:
        control.value = first
        explorer.grow.click()
    assert data(explorer) == before


def test_an_example_becomes_the_question(explorer: BranchExplorer) -> None:
    first = explorer.example.value
    explorer.example.value = explorer.example.options[2][1]
    assert explorer.question.value == explorer.example.options[2][1] != first
    explorer.example.value = first


def test_a_question_of_another_form_keeps_the_tree(explorer: BranchExplorer) -> None:
    before, first = explorer.trace, explorer.question.value
    explorer.question.value = HOSTILE[0]
    explorer.grow.click()
    assert "write it like 'Mia buys" in explorer.note.text
    assert "<img" not in explorer.note.value
    assert explorer.trace is before and not explorer.grow.disabled
    explorer.question.value = first
    explorer.grow.click()
    assert explorer.note.text == ""


def test_a_click_on_any_mark_is_the_selector() -> None:
    trace = saved_trace()
    widget = explore(trace)
    lanes = lanes_of(trace, order_of(trace, forks_of(trace)))
    clicked = 0
    for at, drawn in enumerate(widget.tree.figure.data):
        if drawn.hoverinfo == "skip" or drawn.y is None or drawn.hovertext is None:
            continue
        for point, y in enumerate(drawn.y):
            lane = min(lanes, key=lambda i: abs(lanes[i] - y))
            other = (lane + 1) % 3
            widget.first.value = other
            click(widget.tree.figure, at, point)
            by_click = (widget.describe(), widget.details[0].value, widget.strips.outputs)
            widget.first.value = other
            widget.first.value = lane
            assert (widget.describe(), widget.details[0].value, widget.strips.outputs) == by_click
            assert widget.first.value == lane
            clicked += 1
    assert clicked >= len(trace.rollouts) * 2


def test_a_click_with_shift_chooses_the_other_one() -> None:
    widget = explore(saved_trace())
    tokens = next(
        at for at, drawn in enumerate(widget.tree.figure.data) if drawn.orientation == "h"
    )
    assert widget.trace is not None
    lanes = lanes_of(widget.trace, [0, 1, 2])
    heights = list(widget.tree.figure.data[tokens].y)
    widget.first.value, widget.second.value = 0, 1
    click(widget.tree.figure, tokens, heights.index(lanes[2]), shift=True)
    assert (widget.first.value, widget.second.value) == (0, 2)
    click(widget.tree.figure, tokens, heights.index(lanes[1]))
    assert (widget.first.value, widget.second.value) == (1, 2)


def test_the_selectors_list_the_lanes_and_begin_with_a_right_branch() -> None:
    trace = saved_trace()
    root, wrong, right = trace.rollouts
    assert wrong.branch is not None
    wrong = replace(wrong, branch=replace(wrong.branch, parent=0), reward=0.0)
    widget = explore(replace(trace, rollouts=(root, root, wrong, right)))
    assert [i for _, i in widget.first.options] == [0, 2, 3, 1]
    assert [i for _, i in widget.second.options] == [-1, 0, 2, 3, 1]
    assert [name.split(" · ")[0] for name, _ in widget.first.options] == ["0", "2", "3", "1"]
    assert (widget.first.value, widget.second.value) == (0, 3)


def test_the_facts_of_a_branch_are_its_own() -> None:
    trace = saved_trace()
    root, kept, pruned = trace.rollouts
    widget = explore(replace(trace, rollouts=(root, kept, replace(pruned, finished=False))))
    widget.first.value, widget.second.value = 1, -1
    assert "Trajectory 1: 3 tokens; reward 1 (correct);" in widget.describe()
    assert "fusion psa; kept by the filter; γ_0 = 1, s_0 = 2." in widget.describe()
    widget.first.value = 2
    assert "Trajectory 2: 3 tokens, cut off;" in widget.describe()
    assert "branch of 0 from token 1; fusion psa; pruned by the filter" in widget.describe()


def test_two_trajectories_are_compared_where_they_part() -> None:
    widget = explore(saved_trace())
    widget.first.value, widget.second.value = 0, 1
    told = "0 and 1 share 1 tokens (left of │) and part at token 1, H = 0.30 nat there: 0 says "
    assert told + "'Split', 1 says 'Round'." in widget.describe()
    assert "S_IB +0.50 = answer +0.70 − cost +0.20" in widget.describe()
    assert len(widget.strips.outputs) == 2
    assert re.search("Go</span><b>│</b>Split end|Go </span><b>│</b>Split", widget.details[0].value)
    widget.second.value = -1
    assert len(widget.strips.outputs) == 1 and widget.parting.value == ""
    assert [detail.layout.display for detail in widget.details] == [None, "none"]
    widget.second.value = 0
    assert len(widget.strips.outputs) == 1  # not compared with itself


def test_a_longer_copy_and_an_equal_one_are_told() -> None:
    trace = saved_trace()
    root = trace.rollouts[0]
    longer = trajectory(("Go ", "Split", " end", "!"), 10)
    widget = explore(replace(trace, rollouts=(root, root, longer)))
    widget.first.value, widget.second.value = 0, 1
    assert "0 and 1 are the same, token by token." in widget.describe()
    widget.second.value = 2
    assert "0 says 'nothing more', 2 says" not in widget.describe()
    assert "0 says nothing more, 2 says '!'." in widget.describe()


def test_an_explorer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Give the explorer a policy"):
        BranchExplorer()


def test_a_saved_trace_is_explored_without_torch(tmp_path: Path) -> None:
    write_traces(tmp_path / "tree.jsonl", [saved_trace()])
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from i2b_lpo.trace import read_traces
from i2b_lpo.widgets import explore
(trace,) = read_traces(sys.argv[1])
widget = explore(trace)
widget.first.value = 2
assert "application/vnd.plotly.v1+json" in widget._repr_mimebundle_()
assert "torch" not in sys.modules
print(widget)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "tree.jsonl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Branch explorer of a saved trace. Branch tree: 1 root, 2")
    assert "Trajectory 2" in done.stdout


# --- model text ---------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


ALLOWED = {
    "b": (), "ul": (), "li": (), "p": (), "pre": ("style",), "span": ("style",), "br": (),
}  # fmt: skip


def test_hostile_text_is_shown_and_never_acts() -> None:
    trace = saved_trace(HOSTILE)
    rollouts = tuple(
        replace(rollout, reason=HOSTILE[0], pieces=(HOSTILE[0], *rollout.pieces[1:]))
        for rollout in trace.rollouts
    )
    widget = explore(replace(trace, rollouts=rollouts))
    for first in range(3):
        widget.first.value, widget.second.value = first, (first + 1) % 3
        for part in everything(widget.panel):
            if isinstance(part, ipywidgets.HTML):
                parser = Tags()
                parser.feed(part.value)
                for tag, attributes in parser.found:
                    assert attributes in ((), ALLOWED.get(tag)), part.value
        shown = widget.details[0].value + widget.details[1].value + widget.parting.value
        assert "&lt;img" in shown or "&lt;/script&gt;" in shown or "javascript" in shown
        assert "\u202e" not in shown and "\0" not in shown and "\0" not in widget.describe()
    drawn = json.dumps(json.loads(widget.tree.figure.to_json()))
    assert "<img" not in drawn and "<script" not in drawn
    assert not any(w.description_allow_html for w in (widget.first, widget.second))


# --- entropy reader -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(policy: Policy) -> EntropyReader:
    return EntropyReader(policy, max_new_tokens=12)


@pytest.mark.parametrize(
    ("part", "value"),
    [("question", "What is 23*14?"), ("seed", 4), ("temperature", 2.0), ("way", "greedy")],
)
def test_each_control_of_an_answer_changes_it(reader: EntropyReader, part: str, value: Any) -> None:
    reader.way.value = "sample"
    reader.read.click()
    assert not reader.temperature.disabled and not reader.seed.disabled
    before, control, strip = data(reader), getattr(reader, part), reader.strip.outputs
    assert "(sample at temperature 1, seed 0)" in reader.describe()
    first = control.value
    control.value = value
    reader.read.click()
    assert data(reader) != before and reader.strip.outputs != strip
    control.value = first
    reader.way.value = "sample"
    reader.read.click()
    assert data(reader) == before


def test_the_rivals_are_the_policys_own_distribution(policy: Policy, reader: EntropyReader) -> None:
    reader.read.click()
    assert reader.trace is not None
    rollout = reader.trace.rollouts[0]
    assert len(rollout) <= 12 and rollout.entropies[reader.token.value] == max(rollout.entropies)
    for t in (0, 3, len(rollout) - 1):
        reader.token.value = t
        ids = torch.tensor([[*reader.trace.prompt_ids, *rollout.ids[:t]]])
        with torch.no_grad():
            shares = policy.model(ids).logits[0, -1, : policy.vocab_size].double().softmax(-1)
        assert [p for _, p in reader.rivals] == pytest.approx(shares.topk(8).values.tolist())
        assert reader.entropy == pytest.approx(rollout.entropies[t], abs=1e-4)
        assert f"Token {t} is" in reader.describe() and f"Token {t} is" in reader.top.value


def test_a_problem_of_another_form_gets_the_parsers_hint(reader: EntropyReader) -> None:
    before, first = reader.trace, reader.question.value
    reader.question.value = HOSTILE[1]
    reader.read.click()
    assert reader.note.text.startswith("Not a question of the bundled task")
    assert reader.note.value.startswith('<span role="status">⚠ Not')
    assert "<script" not in reader.note.value and reader.trace is before
    assert not reader.read.disabled
    reader.question.value = first


def test_a_button_rests_while_its_work_is_done(reader: EntropyReader) -> None:
    reader.read.click()
    seen: list[tuple[str, bool]] = []
    reader.note.observe(lambda _: seen.append((reader.note.text, reader.read.disabled)), "value")
    reader.read.click()
    assert seen == [("The policy answers …", True), ("", True)] and not reader.read.disabled
    with pytest.raises(RuntimeError, match="a bug"), reader.working(reader.read, ""):
        raise RuntimeError("a bug")
    assert not reader.read.disabled


def test_an_answer_of_one_hostile_token_is_shown(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "pieces", lambda _, ids: (HOSTILE[0],) * len(ids))
    widget = EntropyReader(policy, max_new_tokens=1)
    assert "Token 0 is" in widget.top.value and "&lt;img" in widget.top.value
    assert "<img" not in widget.top.value


# --- heads and gamma ----------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "value"), [("latent", 1), ("gamma", 0.5), ("since", 2)])
def test_each_control_of_the_heads_changes_the_grid(
    heads: HeadExplorer, part: str, value: Any
) -> None:
    before, control = data(heads), getattr(heads, part)
    first = control.value
    control.value = control.options[value][1] if part == "latent" else value
    assert data(heads) != before
    control.value = first
    assert data(heads) == before


def test_the_row_is_the_chosen_one_and_the_strength_the_latents_own(
    policy: Policy, steering: Steering, heads: HeadExplorer
) -> None:
    constant = HeadExplorer(policy, replace(steering, strength=Strength(1.0, None)))
    for s, same in ((0, True), (1, False), (heads.since.max, False)):
        constant.since.value = heads.since.value = s
        assert (data(constant) == data(heads)) == same
        (piece,) = policy.pieces(heads._ids[heads._p + s - 1 : heads._p + s])
        assert f"the row of token '{token_text(piece)}'" in heads.describe()
    heads.since.value = 0
    assert "without z from 0.00 to 0.00" in heads.describe()


def test_the_head_below_is_the_one_of_the_grid(heads: HeadExplorer) -> None:
    slots = heads._with[:, :, heads.since.value, 0]
    first = heads.layer.value, heads.head.value
    for layer, head in ((0, 1), (1, 0), (1, 3)):
        heads.layer.value, heads.head.value = layer, head
        assert f"Attention of layer {layer}, head {head}," in heads.describe()
        shown = heads._detail.figure.data[0].y[0]
        assert shown == pytest.approx(float(slots[layer, head]))
    heads.layer.value, heads.head.value = first


def test_without_strength_the_slot_is_empty(heads: HeadExplorer) -> None:
    heads.gamma.value = 0
    assert "no head changed" in heads.describe()
    heads.gamma.value = 1
    assert "changed most" in heads.describe()


def test_the_slot_of_a_row_is_what_the_merge_form_says(policy: Policy, heads: HeadExplorer) -> None:
    on, off = heads._with, heads._without
    assert torch.allclose(on.sum(-1), torch.ones(()).double(), atol=1e-5)
    assert bool((off[..., 0] == 0).all())
    # In the first layer and at γ → 0 the tokens keep their proportions; z acts from s = 0 on.
    assert on.shape == off.shape and bool((on[..., 0] > 0).all())
    assert policy.model.config._attn_implementation == "sdpa"


def test_a_click_on_the_grid_is_the_selectors(heads: HeadExplorer) -> None:
    figure = heads.grid.figure
    at = next(i for i, drawn in enumerate(figure.data) if drawn.type == "heatmap")
    figure._js2py_pointsCallback = {
        "event_type": "plotly_click",
        "points": {
            "trace_indexes": [at], "point_indexes": [[1, 2]], "xs": [2], "ys": [1], "z": [0.1],
        },
        "device_state": None,
        "selector": None,
    }  # fmt: skip
    assert (heads.layer.value, heads.head.value) == (1, 2)
    by_click = heads.detail.outputs
    heads.head.value = 0
    assert heads.detail.outputs != by_click
    heads.layer.value, heads.head.value = 1, 2
    assert heads.detail.outputs == by_click


def test_a_fusion_without_slot_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="no slot in the attention"):
        HeadExplorer(policy, new_steering(policy, d_z=2, fusion="input"))


@pytest.mark.parametrize(
    ("part", "value"),
    [("gamma", 0.5), ("decay", 2.0), ("constant", True), ("lead", 1.0), ("tokens", 10)],
)
def test_each_control_of_gamma_changes_the_curves(part: str, value: Any) -> None:
    widget = GammaDesigner()
    before, said, shown = data(widget), widget.describe(), widget.curves.outputs
    getattr(widget, part).value = value
    assert data(widget) != before and widget.describe() != said
    assert widget.curves.outputs != shown and widget.decay.disabled == widget.constant.value


def test_the_share_is_the_sigmoid_of_lead_and_log_gamma() -> None:
    widget = GammaDesigner(tokens=8)
    widget.lead.value = 2.0
    gates = [1 / (1 + 2.718281828459045 ** -(2 - s / 8)) for s in range(9)]
    assert widget._share == pytest.approx(gates)
    ends = f"{gates[0]:.2f} of the head at the fork, {gates[-1]:.2f} after 8 tokens."
    assert ends in widget.describe()
    assert widget.view is not None
    assert list(widget.view.figure.data[0].y)[:2] == pytest.approx([1.0, 2.718281828459045**-0.125])


# --- training -----------------------------------------------------------------------------------


def run_config(steps: int = 4) -> RunConfig:
    return RunConfig(
        steps=steps,
        questions=2,
        rollout=RolloutConfig(rollouts=2, max_new_tokens=12),
        checkpoint=CheckpointConfig(every=1),
    )


def reward(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in history]


def dashboard(folder: Path, **changes: Any) -> TrainingDashboard:
    return TrainingDashboard(
        replace(run_config(), **changes), tiny_policy(seed=3), load_task("shop"), output=folder
    )


def training_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("training")]


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(
        run_config(), tiny_policy(seed=3), load_task("shop"), output=tmp_path / "whole",
        progress=False,
    )  # fmt: skip
    widget = dashboard(tmp_path / "parts")
    assert "Not started." in widget.describe() and widget.view is None
    widget.steps.value = 2
    widget.start.click()
    assert widget.start.disabled and not widget.stop.disabled
    assert widget.wait(120)
    assert len(widget.history) == 2 and "Stopped after 2 of 4 steps" in widget.note.text
    assert not widget.start.disabled and widget.stop.disabled
    first = data(widget)
    widget.steps.value = 4
    widget.start.click()
    assert widget.wait(120)
    assert "Finished: 4 of 4 steps." in widget.note.text and data(widget) != first
    assert reward(widget.history) == reward(whole)
    assert widget.bar.value == 4 and len(widget.curves.outputs) == len(widget.rollout.outputs) == 1
    assert training_threads() == []
    widget.close()


def test_stop_ends_after_the_step_and_a_new_dashboard_goes_on(tmp_path: Path) -> None:
    widget = dashboard(tmp_path, steps=200)
    seen = threading.Event()
    widget.bar.observe(lambda change: seen.set() if change.new > 1 else None, "value")
    widget.start.click()
    widget.start.click()  # does nothing while it runs
    assert seen.wait(120) and widget.running and widget.note.text == "Running."
    assert widget._thread is not None and widget._thread.daemon
    other = dashboard(tmp_path, steps=200)
    other.start.click()
    assert "still runs" in other.note.text and not other.running
    widget.stop.click()
    assert widget.wait(120)
    done = len(widget.history)
    assert 2 <= done < 200 and f"Stopped after {done} of 200 steps, saved" in widget.note.text
    bars: list[int] = []
    other.bar.observe(lambda change: bars.append(change.new), "value")
    other.steps.value = 1
    other.start.click()
    assert other.wait(120) and len(other.history) == done + 1
    assert bars == [done, done + 1]  # what was done before is shown at once
    assert reward(other.history)[:done] == reward(widget.history)
    widget.steps.value = 2
    widget.start.click()  # the stop is over
    assert widget.wait(120) and len(widget.history) == done + 3


def test_closing_stops_the_run_and_leaves_no_thread(tmp_path: Path) -> None:
    widget = dashboard(tmp_path, steps=200)
    widget.start.click()
    parts = everything(widget.panel)
    widget.close()
    assert training_threads() == [] and not widget.running
    assert 1 <= len(widget.history) < 200
    assert all(part.comm is None for part in parts)


def test_an_error_of_the_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    (tmp_path / "run.toml").mkdir()  # where the settings are to be written
    widget = dashboard(tmp_path)
    widget.start.click()
    assert widget.wait(60)
    assert widget.note.text.startswith("The training ended: ") and "\n" not in widget.note.text
    assert not widget.start.disabled and raised == []


def test_of_an_error_of_many_lines_the_first_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("No room is left.\nTrace 1\nTrace 2")

    monkeypatch.setattr("i2b_lpo.training.loop.train", fails)
    widget = dashboard(tmp_path)
    widget.start.click()
    assert widget.wait(60) and widget.note.text == "The training ended: No room is left."


def test_the_last_step_is_told_and_a_right_rollout_of_it_is_shown(tmp_path: Path) -> None:
    trace = saved_trace()
    rewarded = zip(trace.rollouts, (0.0, 1.0, 0.0), strict=True)
    trace = replace(trace, rollouts=tuple(replace(r, reward=value) for r, value in rewarded))
    widget = TrainingDashboard(
        run_config(), tiny_policy(), load_task("shop"), output=tmp_path, keys=("entropy",)
    )
    metrics = {"step": 0.0, "reward": 0.25, "entropy": 1.5}
    widget._seen(None, StepRecord([trace], torch.zeros(1, 3), torch.zeros(1, 3), metrics))  # type: ignore[arg-type]
    assert "<b>step 0</b>: reward 0.250, entropy 1.50 nat" in widget.now.value
    shown: Any
    (shown,) = widget.rollout.outputs
    assert "Entropy of rollout 1 (✓ correct)" in shown["data"]["text/plain"]
    assert widget.view is not None and "1 of 4 steps done." in widget.describe()
    assert "entropy" in widget.view.describe() and "reward" not in widget.view.describe()


def test_the_branches_of_a_run_take_the_latents_they_are_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = tiny_policy(seed=3)
    config = replace(run_config(steps=1), branch=BranchConfig(branches=1, fusion="psa"))
    widget = TrainingDashboard(
        config, trained, load_task("shop"), output=tmp_path, steering=new_steering(trained, d_z=2)
    )
    widget.start.click()
    assert widget.wait(120) and widget.note.text == "Finished: 1 of 1 steps."
    assert widget.record is not None
    assert all(len(r.branch.z) == 2 for t in widget.record.traces for r in t.rollouts if r.branch)


def test_a_run_that_a_stop_would_lose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.every is 0"):
        dashboard(tmp_path, checkpoint=CheckpointConfig(every=0))


# --- all of them --------------------------------------------------------------------------------


@pytest.fixture
def widgets(
    explorer: BranchExplorer, heads: HeadExplorer, reader: EntropyReader, tmp_path: Path
) -> list[Widget]:
    return [explorer, heads, reader, GammaDesigner(), dashboard(tmp_path)]


def test_each_control_has_a_label_and_a_help_text(widgets: list[Widget]) -> None:
    for widget in widgets:
        controls = [
            part for part in everything(widget.panel)
            if isinstance(part, (ipywidgets.Button, ipywidgets.ValueWidget))
            and not isinstance(part, ipywidgets.HTML)
        ]  # fmt: skip
        assert len(controls) >= 4
        assert all(part.description and part.tooltip for part in controls)


def test_each_label_names_what_its_control_sets(widgets: list[Widget]) -> None:
    labels = {
        "gamma": "γ_0", "decay": "s_0 (tokens)", "rollouts": "M, roots", "branches": "K, branches",
        "rule": "Fork rule", "fusion": "Fusion", "seed": "Seed", "temperature": "Temperature",
        "way": "Decoding", "token": "t, token", "latent": "z", "since": "s, tokens since",
        "layer": "Layer", "head": "Head", "lead": "δ, slot's lead", "tokens": "tokens",
        "constant": "constant γ", "start": "Start", "stop": "Stop", "steps": "Steps a press",
        "first": "Trajectory", "second": "compare with",
    }  # fmt: skip
    found = {
        name: {w.__dict__[name].description for w in widgets if name in w.__dict__}
        for name in labels
    }
    assert found == {name: {label} for name, label in labels.items()}


def test_each_has_its_words_and_its_figure_beside_the_live_panel(widgets: list[Widget]) -> None:
    live, plotly = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
    for widget in widgets:
        bundle = widget._repr_mimebundle_()
        assert bundle["text/plain"] == widget.describe() == repr(widget) == widget.describe()
        assert len(widget.describe()) > 60 and "\n" not in widget.describe()
        assert bundle[live]["model_id"] == widget.panel.model_id
        assert (plotly in bundle) == (widget.view is not None)


def test_a_figure_opens_with_its_data_and_needs_no_later_message(
    widgets: list[Widget], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str, Any]] = []

    class Wire(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, *_: Any, **__: Any) -> None:
            sent.append((msg_type, self.comm_id, data))

    monkeypatch.setattr(comm, "create_comm", lambda **given: Wire(**given))
    places = [
        (part, w.view) for w in widgets for part in everything(w.panel)
        if isinstance(part, Clickable)
    ]  # fmt: skip
    assert len(places) == 2
    for place, view in places:
        assert view is not None
        sent.clear()
        place.show(view)
        states = {at: data["state"] for kind, at, data in sent if kind == "comm_open"}
        ((at, state),) = [(at, s) for at, s in states.items() if "_widget_data" in s]
        drawn = json.loads(view.figure.to_json())
        assert [d["type"] for d in state["_widget_data"]] == [d["type"] for d in drawn["data"]]
        assert state["_widget_layout"]["height"] == drawn["layout"]["height"]
        assert [kind for kind, to, _ in sent if to == at] == ["comm_open"]
        # Plotly's JavaScript, 5 MB, isn't sent with each of them.
        assert len(json.dumps(state)) < 10_000 + 2 * len(view.figure.to_json())
        # The picture that stands for it until it is drawn is made of the same figure.
        still, figure = place.children
        assert state["_still"] == f"IPY_MODEL_{still.model_id}" and figure.model_id == at
        assert [o["data"] for o in still.outputs] == [view._repr_mimebundle_()]


def test_no_module_of_the_widgets_imports_torch_on_top() -> None:
    folder = Path(__file__).parents[2] / "i2b_lpo" / "widgets"
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), path.name
