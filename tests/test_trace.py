"""Records and their JSON form: exact, readable without torch, and clear about what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2b_lpo.trace import Question, Rollout, Trace, read_traces, write_traces

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


@pytest.mark.parametrize("field", ["ids", "pieces", "entropies", "logprobs", "logprobs_t1"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_fields_of_different_length_are_refused(field: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"one entry per token.*'{field}': {count}"):
        rollout(**{field: (0,) * count})


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


def test_records_cant_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        rollout().text = "other"  # type: ignore[misc]
    assert len(rollout()) == 3
