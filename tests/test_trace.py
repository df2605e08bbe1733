"""Records and their JSON form: exact, readable without torch, and clear about what is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from i2b_lpo.trace import (
    Branch,
    Question,
    Rollout,
    Score,
    Trace,
    is_correct,
    read_traces,
    write_traces,
)

ROOT = Path(__file__).parents[1]
# The second has lone surrogates, NUL, right-to-left marks, line separators and markup.
TEXTS = (
    "Split 14",
    "\ud83d \x00 \u202eabc\u202c שלום \u2028\u2029\x85\r\n <b>&\\ \udc00 \U0001f600",
)


def rollout(text: str = "Split 14", **changes: Any) -> Rollout:
    values: dict[str, Any] = {
        "ids": (7, 0, 2),
        "pieces": (text, "", "<|im_end|>"),
        "entropies": (0.1, 1 / 3, 5e-324),
        "logprobs": (-0.1, -1e300, -0.0),
        "logprobs_t1": (-0.30000000000000004, float("-inf"), -2.0),
        "text": text,
        "finished": True,
        "reward": 1.0,
        "reason": "equal",
    }
    return Rollout(**values | changes)


def trace(text: str = "Split 14", **changes: Any) -> Trace:
    values: dict[str, Any] = {
        "question": Question("shop-1", text, "322", "shop", 2),
        "prompt_ids": (1, 5),
        "rollouts": (rollout(text), rollout(text, reward=None, reason="", finished=False)),
        "policy": "tiny-base",
        "temperature": 0.9,
        "top_p": 0.95,
        "meta": {"seed": 3, "note": text, "list": [1, [2.5, None]]},
    }
    return Trace(**values | changes)


# --- there and back -------------------------------------------------------------------------------


def there_and_back(path: Path, *traces: Trace) -> list[Trace]:
    write_traces(path, traces)
    return list(read_traces(path))


@pytest.mark.parametrize("text", TEXTS, ids=["plain", "odd"])
def test_a_trace_survives_the_file_exactly(text: str, tmp_path: Path) -> None:
    traces = [trace(text), replace(trace(), rollouts=(), meta={})]
    read = there_and_back(tmp_path / "t.jsonl", *traces)
    assert read == traces
    # `==` can't tell −0.0 from 0.0, nor a list from nothing: the types and the sign count too.
    assert repr(read) == repr(traces)
    assert type(read[0].rollouts[0].ids) is type(read[0].prompt_ids) is tuple
    assert hash(read[0].rollouts[0]) == hash(traces[0].rollouts[0])


texts = st.text(st.characters(exclude_categories=()), max_size=8).filter(
    # JSON writes a high and a low surrogate in a row like the character they stand for.
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)
floats = st.floats(allow_nan=False)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    count = draw(st.integers(0, 4))

    def row(elements: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(elements, min_size=count, max_size=count)))

    return Rollout(
        ids=row(st.integers(0, 200_000)),
        pieces=row(texts),
        entropies=row(floats),
        logprobs=row(floats),
        logprobs_t1=row(floats),
        text=draw(texts),
        finished=draw(st.booleans()),
        reward=draw(st.none() | floats),
        reason=draw(texts),
    )


questions = st.builds(Question, texts, texts, texts, texts, st.integers(-5, 9))
traces = st.builds(
    Trace,
    questions,
    st.lists(st.integers(0, 200_000), max_size=4).map(tuple),
    st.lists(rollouts(), max_size=3).map(tuple),
    texts,
    floats,
    floats,
    st.dictionaries(texts, texts | floats | st.none() | st.lists(st.integers())),
)


@settings(max_examples=40)
@given(st.lists(traces, max_size=3))
def test_any_trace_survives_the_file_exactly(
    tmp_path_factory: pytest.TempPathFactory, many: list[Trace]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    read = there_and_back(path, *many)
    assert read == many
    assert repr(read) == repr(many)


def test_the_file_is_one_line_of_ascii_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace(text) for text in TEXTS])
    data = path.read_bytes()
    assert data.isascii()
    assert b"\r" not in data
    assert b"\x00" not in data
    lines = data.decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["question"]["text"] for line in lines] == list(TEXTS)


def test_reading_is_lazy_so_that_a_long_file_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace()])
    with path.open("a", encoding="ascii") as file:
        file.write("broken\n")
    assert next(read_traces(path)) == trace()


def test_a_file_may_be_rewritten_from_its_own_traces(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace(), trace("other")])
    write_traces(path, (replace(t, policy="renamed") for t in read_traces(path)))
    assert [t.policy for t in read_traces(path)] == ["renamed", "renamed"]


def test_a_trace_that_cant_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace()])
    with pytest.raises(TypeError):
        write_traces(path, [trace("other"), trace(meta={"x": object()})])
    assert list(read_traces(path)) == [trace()]


def test_a_saved_trace_reads_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace()])
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from i2b_lpo.trace import read_traces\n"
        "print(next(read_traces(sys.argv[1])))\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'numpy', 'plotly', 'datasets', 'tokenizers'}, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(trace())


# --- what is wrong --------------------------------------------------------------------------------


def change(data: dict[str, Any], field: str, value: Any) -> str:
    return json.dumps(data | {field: value})


SAVED = json.loads(json.dumps(trace().to_json()))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "",
        "{",
        "5",
        "null",
        "[]",
        '"text"',
        "{}",
        json.dumps({k: v for k, v in SAVED.items() if k != "question"}),
        change(SAVED, "unknown", 1),
        change(SAVED, "question", "text"),
        change(SAVED, "question", {"id": "1", "text": "t"}),
        change(SAVED, "prompt_ids", None),
        change(SAVED, "rollouts", None),
        change(SAVED, "rollouts", "text"),
        change(SAVED, "rollouts", [1]),
        change(SAVED, "rollouts", [{**SAVED["rollouts"][0], "unknown": 1}]),
        change(SAVED, "rollouts", [{**SAVED["rollouts"][0], "entropies": None}]),
        change(SAVED, "rollouts", [{**SAVED["rollouts"][0], "entropies": [0.5]}]),
        json.dumps(SAVED)[:-20],
        '{"question": "é"}',
    ],
)
def test_a_line_that_is_no_trace_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_traces(path, [trace()])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: "):
        list(read_traces(path))


def test_a_branch_that_was_saved_before_versions_has_none(tmp_path: Path) -> None:
    root = rollout(reward=1.0)
    branch = Branch(0, p=len(trace().prompt_ids), fusion="psa", z=(0.5, -1.0), version=3)
    whole = trace(rollouts=(root, replace(root, branch=branch)))
    write_traces(tmp_path / "new.jsonl", [whole])
    (new,) = read_traces(tmp_path / "new.jsonl")
    assert new == whole
    data = json.loads((tmp_path / "new.jsonl").read_text())
    del data["rollouts"][1]["branch"]["version"]
    (tmp_path / "old.jsonl").write_text(json.dumps(data) + "\n")
    (old,) = read_traces(tmp_path / "old.jsonl")
    assert old.rollouts[1].branch == replace(branch, version=0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        *((reward, False) for reward in (None, -1.0, 0.0, 0.3, 0.5, 0.7, 0.999, False)),
        *((reward, True) for reward in (1.0, 1.5, True)),
    ],
)
def test_right_is_a_reward_of_one_or_more(reward: float | None, expected: bool) -> None:
    assert is_correct(reward) is rollout(reward=reward).correct is expected


@pytest.mark.parametrize("field", ["ids", "pieces", "entropies", "logprobs", "logprobs_t1"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_fields_of_different_length_are_refused(field: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"one entry per token.*'{field}': {count}"):
        values: dict[str, Any] = {field: (0,) * count}
        rollout(**values)


# --- how it shows itself --------------------------------------------------------------------------


def test_a_trace_shows_question_lengths_entropies_and_verdicts() -> None:
    shown = str(trace())
    assert shown.splitlines() == [
        "Split 14  (answer 322)",
        "  [0] 3 tokens, mean H 0.144 nat, equal",
        "  [1] 3 tokens, mean H 0.144 nat, not verified",
    ]
    empty = Rollout((), (), (), (), (), "", finished=False)
    assert "0 tokens, mean H 0.000" in str(trace(rollouts=(empty,)))


def test_html_shows_model_text_as_text() -> None:
    shown = trace("<script>alert('&')</script>")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


# --- trees ----------------------------------------------------------------------------------------


def row(ids: str, branch: Branch | None = None, **changes: Any) -> Rollout:
    """A trajectory whose tokens are letters; each has an entropy of its own."""
    numbers = tuple(float(ord(c) % 7) for c in ids)
    values: dict[str, Any] = {
        "ids": tuple(map(ord, ids)),
        "pieces": tuple(ids),
        "entropies": numbers,
        "logprobs": numbers,
        "logprobs_t1": numbers,
        "text": ids,
        "finished": True,
        "branch": branch,
    }
    return Rollout(**values | changes)


def tree(**changes: Any) -> Trace:
    """Two roots, K = 2 branches each, and two branches of the first branch; the prompt has 2."""
    rollouts = (
        row("abcd"),
        row("xyz"),
        row("abEF", Branch(0, 4, "psa", (0.5, 1 / 3), 0.9, 8.0, 1)),
        row("abG", Branch(0, 4, "psa", (-0.0, 5e-324), 0.9, None, 1)),
        row("HI", Branch(1, 2)),
        row("J", Branch(1, 2)),
        row("abEK", Branch(2, 5, round=2), reward=0.0, reason="different"),
        row("abELM", Branch(2, 5, round=2), score=Score(-0.25, 0.5, 0.75), kept=False),
    )
    return replace(trace(rollouts=rollouts), **changes)


def test_a_trajectory_starts_where_its_prefix_ends() -> None:
    grown = tree()
    assert [grown.start(i) for i in range(8)] == [0, 0, 2, 2, 0, 0, 3, 3]
    own = [r.text[grown.start(i) :] for i, r in enumerate(grown.rollouts)]
    assert own == ["abcd", "xyz", "EF", "G", "HI", "J", "K", "LM"]
    assert grown.new_tokens() == sum(map(len, own)) == 16
    assert replace(grown, rollouts=()).new_tokens() == 0
    assert trace().new_tokens() == 6


def test_branch_sets_are_the_branches_of_one_fork() -> None:
    assert tree().branch_sets() == [[2, 3], [4, 5], [6, 7]]
    assert trace().branch_sets() == []
    # Two forks of one trajectory are two sets.
    two = replace(
        tree(), rollouts=(row("abcd"), row("aX", Branch(0, 3)), row("abcX", Branch(0, 5)))
    )
    assert two.branch_sets() == [[1], [2]]
    # Nor do forks at one depth of two trajectories make one set.
    two = replace(
        tree(),
        rollouts=(row("ab"), row("cd"), row("aX", Branch(0, 3)), row("cX", Branch(1, 3))),
    )
    assert two.branch_sets() == [[2], [3]]


def test_a_tree_survives_the_file_exactly(tmp_path: Path) -> None:
    read = there_and_back(tmp_path / "t.jsonl", tree())
    assert read == [tree()]
    assert repr(read) == repr([tree()])
    (grown,) = read
    assert isinstance(grown.rollouts[2].branch, Branch)
    assert type(grown.rollouts[2].branch.z) is tuple
    assert isinstance(grown.rollouts[7].score, Score)
    assert [r.kept for r in grown.rollouts] == [True] * 7 + [False]
    assert hash(grown.rollouts[7]) == hash(tree().rollouts[7])


@settings(max_examples=40)
@given(
    st.lists(floats, max_size=4).map(tuple),
    st.sampled_from(["none", "psa", "input"]),
    floats,
    st.none() | floats,
    st.none() | st.builds(Score, floats, floats, floats),
    st.booleans(),
)
def test_any_branch_survives_the_file_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    z: tuple[float, ...],
    fusion: str,
    gamma: float,
    decay: float | None,
    score: Score | None,
    kept: bool,
) -> None:
    branch = row("aZ", Branch(0, 3, fusion, z, gamma, decay, 2), score=score, kept=kept)
    one = replace(tree(), rollouts=(row("ab"), branch))
    read = there_and_back(tmp_path_factory.getbasetemp() / "branch.jsonl", one)
    assert repr(read) == repr([one])


def test_a_trace_saved_before_there_were_trees_can_be_read() -> None:
    saved = trace().to_json()
    for rollout_row in saved["rollouts"]:
        for name in ("branch", "score", "kept"):
            del rollout_row[name]
    assert Trace.from_json(saved) == trace()


@pytest.mark.parametrize(
    ("branch", "ids", "message"),
    [
        (Branch(0, 1), "abX", "Trajectory 1 can't be a branch of 0 at p=1; parents come first"),
        (Branch(0, 6), "abX", "p lies between the prompt's end and the trajectory's"),
        (Branch(1, 3), "abX", "can't be a branch of 1"),
        (Branch(2, 3), "abX", "can't be a branch of 2"),
        (Branch(-1, 3), "abX", "can't be a branch of -1"),
        (Branch(0, 4), "aXY", "Trajectory 1 doesn't begin with its parent's tokens"),
        (Branch(0, 7), "abcdeX", "doesn't begin with its parent's tokens"),
    ],
)
def test_what_is_no_tree_is_refused(branch: Branch, ids: str, message: str, tmp_path: Path) -> None:
    parent, child = row("abcd"), row(ids, branch)
    with pytest.raises(ValueError, match=message) as caught:
        replace(trace(), rollouts=(parent, child, row("abcd")))
    assert "\n" not in str(caught.value)
    # ... and in a file by its line
    saved = replace(trace(), rollouts=(parent, replace(child, branch=None))).to_json()
    saved["rollouts"][1]["branch"] = dataclasses.asdict(branch)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(saved) + "\n", encoding="ascii")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 1: Trajectory 1 "):
        list(read_traces(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("branch", {"parent": 0}),
        ("branch", {"parent": 0, "p": 4}),
        ("branch", {"parent": 0, "p": 4, "z": None}),
        ("branch", {"parent": 0, "p": 4, "z": [], "unknown": 1}),
        ("branch", [0, 4]),
        ("score", {"value": 1.0}),
        ("score", {"value": 1.0, "answer": 1.0, "cost": 0.0, "more": 1}),
        ("score", 1.0),
    ],
)
def test_a_branch_or_score_that_is_none_is_refused(field: str, value: Any) -> None:
    saved = json.loads(json.dumps(tree().to_json()))
    saved["rollouts"][2][field] = value
    with pytest.raises(ValueError, match="Not a saved trace"):
        Trace.from_json(saved)


def test_a_tree_shows_each_branch_under_its_parent() -> None:
    assert str(tree()).splitlines() == [
        "Split 14  (answer 322)",
        "  [0] 4 tokens, mean H 2.250 nat, not verified",
        "    [2] from token 2 2 tokens, mean H 3.000 nat, not verified",
        f"      [6] from token 3 1 tokens, mean H {ord('K') % 7:.3f} nat, different",
        f"      [7] from token 3 2 tokens, mean H {(ord('L') % 7 + ord('M') % 7) / 2:.3f} nat, "
        "not verified, S_IB -0.250, pruned",
        f"    [3] from token 2 1 tokens, mean H {ord('G') % 7:.3f} nat, not verified",
        "  [1] 3 tokens, mean H 2.000 nat, not verified",
        f"    [4] from token 0 2 tokens, mean H {(ord('H') % 7 + ord('I') % 7) / 2:.3f} nat, "
        "not verified",
        f"    [5] from token 0 1 tokens, mean H {ord('J') % 7:.3f} nat, not verified",
    ]


def test_records_cant_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        rollout().text = "other"  # type: ignore[misc]
    assert len(rollout()) == 3
