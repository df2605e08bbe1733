"""Tasks: reproducible questions, stateless batches, splits, and rows of every kind of file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2b_lpo.tasks.benchmarks import BENCHMARKS
from i2b_lpo.tasks.loading import load_task, own_question
from i2b_lpo.tasks.rows import LeftOut
from i2b_lpo.tasks.shop import parse_problem
from i2b_lpo.tasks.task import GeneratedTask, ListTask, without_long_prompts
from i2b_lpo.trace import Question
from i2b_lpo.verify.verdict import verify

BUNDLED = ("shop", "product")
SPLITS = ("train", "validation", "test")


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"question": f"q{i}", "answer": str(i)} for i in range(count)]


# --- the bundled tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("split", SPLITS)
def test_generated_questions_are_different_and_the_same_for_one_seed(name: str, split: str) -> None:
    task = load_task(name)
    assert task.name == name
    questions = task.questions(split, 200, seed=3)
    assert len({q.text for q in questions}) == len(questions) == 200
    assert {parse_problem(q.text).split for q in questions} == {split}
    assert questions == load_task(name).questions(split, 200, seed=3)
    assert questions[:50] == task.questions(split, 50, seed=3)
    assert questions != task.questions(split, 200, seed=4)
    assert task.questions(split, 0, seed=3) == []


@pytest.mark.parametrize("name", BUNDLED)
def test_a_generated_batch_depends_on_seed_and_step_alone(name: str) -> None:
    task = load_task(name)
    in_order = [task.batch(step, 8, seed=1) for step in range(4)]
    assert load_task(name).batch(3, 8, seed=1) == in_order[3]
    assert task.batch(0, 8, seed=1) == in_order[0]
    assert len({tuple(q.text for q in batch) for batch in in_order}) == 4
    assert task.batch(0, 8, seed=2) != in_order[0]
    assert all(len(batch) == 8 for batch in in_order)
    assert {parse_problem(q.text).split for batch in in_order for q in batch} == {"train"}


def test_more_questions_than_there_are_is_an_error() -> None:
    def three(_split: str, rng: random.Random) -> Iterator[Question]:
        for _ in range(300_000):
            text = rng.choice("abc")
            yield Question(text, text, "1")
        raise AssertionError("still drawing after 300 000 questions, of which 3 differ")

    task = GeneratedTask("three", three)
    assert {q.text for q in task.questions("train", 3, seed=0)} == set("abc")
    with pytest.raises(ValueError, match="ask for fewer"):
        task.questions("train", 4, seed=0)


def test_bundled_tasks_label_traces_and_others_dont() -> None:
    task = load_task("product")
    question = Question("1", "What is 23*14?", "322")
    labels = task.label(question, "Guess 322\n\\boxed{322}")
    assert labels is not None
    assert labels.signature == "Guess"
    assert labels.well_formed
    assert ListTask("mine", {}).label(question, "Guess 322") is None


def test_an_unknown_split_of_a_bundled_task_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        load_task("shop").questions("dev", 1, seed=0)


def test_a_question_typed_by_hand() -> None:
    question = own_question(" Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?\n")
    assert question.text == "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?"
    assert (question.answer, question.task) == ("544", "shop")
    assert own_question("What is 12*34?").answer == "408"
    with pytest.raises(ValueError, match="write it like"):
        own_question("How many pens?")


# --- lists of questions ---------------------------------------------------------------------------


def listed(count: int) -> ListTask:
    rows = [Question(str(i), f"q{i}", str(i)) for i in range(count)]
    return ListTask("mine", {"train": rows, "test": rows[:2], "validation": []})


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_an_epoch_has_every_row_once_and_the_next_another_order(size: int) -> None:
    task = listed(7)
    drawn = [q.text for step in range(21) for q in task.batch(step, size, seed=5)][:21]
    epochs = [drawn[i : i + 7] for i in range(0, len(drawn), 7)]
    assert all(sorted(epoch) == [f"q{i}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert task.batch(2, size, seed=5) == listed(7).batch(2, size, seed=5), "a resumed run differs"
    if size > 1:
        assert task.batch(0, size, seed=5) != task.batch(0, size, seed=6)


def test_questions_of_a_list_are_a_sample_without_repetition() -> None:
    task = listed(20)
    questions = task.questions("train", 15, seed=0)
    assert len({q.id for q in questions}) == 15
    assert questions == listed(20).questions("train", 15, seed=0)
    assert questions != task.questions("train", 15, seed=1)
    assert sorted(q.id for q in task.questions("test", 2, seed=0)) == ["0", "1"]


def test_a_list_says_what_it_has() -> None:
    task = listed(4)
    with pytest.raises(ValueError, match="no questions in split 'dev'; it has train, test"):
        task.questions("dev", 1, seed=0)
    with pytest.raises(ValueError, match="no questions in split 'validation'"):
        task.questions("validation", 1, seed=0)
    with pytest.raises(ValueError, match="holds 4 questions, 5 were asked for; ask for fewer"):
        task.questions("train", 5, seed=0)
    with pytest.raises(ValueError, match="no questions in split 'train'; it has test"):
        ListTask("mine", {"test": task.splits["test"]}).batch(0, 1, seed=0)


# --- files of one's own ---------------------------------------------------------------------------


def all_of(task: Any) -> list[Question]:
    assert isinstance(task, ListTask)
    return [q for rows in task.splits.values() for q in rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_becomes_train_and_held_out_questions(suffix: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = pairs(25)
    rows[3] = {"problem": "p3", "answer": 3, "level": "Level 4"}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        write(path, *rows)
    task = load_task(str(path))
    assert isinstance(task, ListTask)
    assert task.name == "mine"
    train, held_out = (task.splits[name] for name in ("train", "validation"))
    assert (len(train), len(held_out)) == (22, 3)
    assert not {q.text for q in train} & {q.text for q in held_out}
    everything = sorted(all_of(task), key=lambda q: int(q.text[1:]))
    assert [(q.text, q.answer, q.level) for q in everything] == [
        ("p3" if i == 3 else f"q{i}", str(i), 4 if i == 3 else 0) for i in range(25)
    ]
    assert len({q.id for q in everything}) == 25
    assert {q.task for q in everything} == {"mine"}


def test_a_file_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine.jsonl", *pairs(3))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(all_of(load_task("~/mine.jsonl"))) == 3


def test_json_strings_may_hold_line_separators(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\u001cf"
    path = write(tmp_path / "odd.jsonl", *({"question": f"{odd}{i}", "answer": "é"} for i in "12"))
    assert sorted(q.text for q in all_of(load_task(str(path)))) == [f"{odd}1", f"{odd}2"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert sorted(q.text for q in all_of(load_task(str(path)))) == [f"{odd}1", f"{odd}2"]


# --- rows that give no question -------------------------------------------------------------------

GOLD = "7" * 2001  # one character more than an answer may have
MALFORMED: list[tuple[Any, str]] = [
    (5, "it is no JSON object"),
    (None, "it is no JSON object"),
    ("question answer", "it is no JSON object"),
    (["question", "answer"], "it is no JSON object"),
    ({}, "question or problem is missing"),
    ({"question": "q"}, "answer is missing"),
    ({"answer": "1"}, "question or problem is missing"),
    ({"problem": "q"}, "answer is missing"),
    ({"question": "q", "answer": None}, "answer is missing"),
    ({"question": None, "answer": "1"}, "question or problem is missing"),
    ({"question": "q", "answer": ""}, "answer is missing"),
    ({"question": " ", "answer": "1"}, "question or problem is missing"),
    ({"question": 5, "answer": "1"}, "question is of type int"),
    ({"question": ["q"], "answer": "1"}, "question is of type list"),
    ({"question": "q", "answer": {"value": 1}}, "answer is of type dict"),
    ({"question": "q", "answer": [1]}, "answer is of type list"),
    ({"question": "q", "answer": True}, "answer is of type bool"),
    ({"question": "q", "answer": float("nan")}, "answer is nan"),
    ({"question": "q", "answer": r"\boxed{}"}, r"the gold answer '' is empty"),
    ({"question": "q", "answer": GOLD}, "has 2001 characters"),
    ({"question": "\ud83d", "answer": "1"}, "half of a surrogate pair"),
    ({"question": "q", "answer": "\udc00"}, "half of a surrogate pair"),
    ({"question": "q", "answer": "18 dollars and 50 cents"}, "'18 dollars and 50 cents' is prose"),
    ({"question": "q", "answer": "He has 5 apples left"}, "the gold answer 'He has 5 apples left'"),
    ({"question": "q", "answer": "5 apples; 3 pears"}, "'5 apples; 3 pears' is prose"),
    ({"question": "q", "answer": "5 apples\n####"}, "the gold answer '' is empty"),
    ({"question": "q", "answer": "It is odd, as every square of an odd number is."}, "is prose"),
    ({"question": "q1", "answer": "2"}, "it asks the same as row 2"),
    (b'{"question": "q", "answer": "1"', "it is no JSON (column 32: "),
    (b"{'question': 'q', 'answer': 1}", "it is no JSON (column 2: "),
    (b'{"question": "\xff", "answer": "1"}', "byte 15 is no UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"question": "q", "answer": ' + b"7" * 5000 + b"}", "too long a number"),
]


def write_among_good_ones(path: Path, *rows: Any) -> Path:
    """`rows`, one JSON value or line of bytes each, after two good rows and before a third."""
    good = pairs(3)
    lines = [
        row if isinstance(row, bytes) else json.dumps(row).encode()
        for row in (*good[:2], *rows, good[2])
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(("row", "reason"), MALFORMED, ids=lambda value: str(value)[:40])
def test_a_row_that_gives_no_question_is_left_out_and_said(
    row: Any, reason: str, tmp_path: Path
) -> None:
    path = write_among_good_ones(tmp_path / "mine.jsonl", row)
    with pytest.warns(UserWarning) as caught:
        task = load_task(str(path))
    assert isinstance(task, ListTask)
    assert {q.id: q.text for q in all_of(task)} == {
        "mine-train-0": "q0",
        "mine-train-1": "q1",
        "mine-train-3": "q2",  # the number of its own row, whatever was left out before it
    }
    assert [left.what for left in task.left_out] == ["row 3"]
    assert reason in task.left_out[0].reason
    (warning,) = caught
    assert str(warning.message) == f"mine: 1 of 4 rows were left out ({task.left_out[0]})."
    assert warning.filename == __file__, "the warning must point at the caller"
    assert "\n" not in str(warning.message)


@pytest.mark.parametrize(
    ("written", "answer", "right"),
    [
        ("18 dollars", "18 dollars", "18.00"),
        ("1,234 people", "1,234 people", "1234"),
        ("Answer: 5", "Answer: 5", "5"),
        ("about 2/3 cup", "about 2/3 cup", r"\frac23"),
        ("She sold 48/2 = <<48/2=24>>24, so 544 in all.\n#### 544", "544", "544.0"),
        ("#### 1,072", "1,072", "1072"),
        (r"It is $x+1$, so \boxed{5} first, then \boxed{7}.", "7", "7"),
        ("x" * 3000 + " #### -3", "-3", "-3"),
    ],
    ids=lambda text: text[:20],
)
def test_an_answer_in_its_own_words_is_read(
    written: str, answer: str, right: str, tmp_path: Path
) -> None:
    row = {"question": "q", "answer": written}
    (question,) = all_of(load_task(str(write(tmp_path / "mine.jsonl", row))))
    assert question.answer == answer
    assert verify(question.answer, rf"so \boxed{{{right}}}").correct
    assert not verify(question.answer, r"so \boxed{4}").correct


def test_all_rows_that_give_no_question_are_listed_and_the_first_are_said(tmp_path: Path) -> None:
    path = write_among_good_ones(tmp_path / "mine.jsonl", *[row for row, _ in MALFORMED])
    with pytest.warns(UserWarning) as caught:
        task = load_task(str(path))
    assert isinstance(task, ListTask)
    count = len(MALFORMED)
    assert [str(left).partition(":")[0] for left in task.left_out] == [
        f"row {number}" for number in range(3, 3 + count)
    ]
    said = "; ".join(map(str, task.left_out[:5]))
    assert [str(w.message) for w in caught] == [
        f"mine: {count} of {count + 3} rows were left out ({said}; and {count - 5} more)."
    ]
    assert {q.id for q in all_of(task)} == {
        "mine-train-0",
        "mine-train-1",
        f"mine-train-{count + 2}",
    }


def test_mending_a_row_moves_no_other_between_train_and_validation(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    splits = []
    for answer in ("4", None):
        rows: list[dict[str, Any]] = pairs(40)
        rows[4]["answer"] = answer
        write(path, *rows)
        if answer is None:
            with pytest.warns(
                UserWarning, match=r"1 of 40 rows were left out \(row 5: answer is m"
            ):
                task = load_task(str(path))
        else:
            task = load_task(str(path))
        assert isinstance(task, ListTask)
        splits.append({q.id: split for split, rows in task.splits.items() for q in rows})
    whole, less = splits
    assert set(whole) - set(less) == {"mine-train-4"}
    assert all(whole[id] == split for id, split in less.items())


def test_a_file_without_a_good_row_is_an_error_with_the_same_list(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *({"question": f"q{i}", "answer": None} for i in "123"))
    with pytest.raises(ValueError, match="none of 3 rows gives a question") as caught:
        load_task(str(path))
    listed = "row 1: answer is missing; row 2: answer is missing; row 3: answer is missing"
    assert f"({listed}); give each a text and an answer." in str(caught.value)


def test_blank_lines_count_so_that_a_row_is_found_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('\n\n{"question": "q", "answer": "1"}\n \n{"question": "r"}\n\n')
    with pytest.warns(UserWarning, match=r"1 of 2 rows were left out \(row 5: answer is missing\)"):
        task = load_task(str(path))
    assert [q.id for q in all_of(task)] == ["mine-train-2"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_byte_order_mark_and_windows_line_ends_are_fine(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    rows = [{"question": f"é\u2028{i}", "answer": i} for i in range(3)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    if suffix == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    task = load_task(str(path))
    assert sorted(q.text for q in all_of(task)) == [f"é\u2028{i}" for i in range(3)]
    assert isinstance(task, ListTask) and task.left_out == ()


def test_a_level_of_any_length_is_read(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "1", "level": "9" * 6000}
    (question,) = all_of(load_task(str(write(tmp_path / "mine.jsonl", row))))
    assert question.level == 999_999_999


# --- prompts that are too long --------------------------------------------------------------------


def test_questions_with_too_long_prompts_are_left_out_and_said() -> None:
    task = listed(30)
    lengths = {q.text: 1000 + int(q.id) for q in task.splits["train"]}
    with pytest.warns(UserWarning) as caught:
        kept = without_long_prompts(task, lambda q: lengths[q.text], max_prompt_tokens=1023)
    assert isinstance(kept, ListTask)
    assert [q.id for q in kept.splits["train"]] == [str(i) for i in range(24)]
    assert kept.splits["test"] == task.splits["test"]
    assert kept.left_out == tuple(LeftOut(str(i), f"{1000 + i} tokens") for i in range(24, 30))
    (warning,) = caught
    assert str(warning.message) == (
        "mine: 6 of 32 questions were left out, as their prompts exceed 1023 tokens (24: 1024 "
        "tokens; 25: 1025 tokens; 26: 1026 tokens; 27: 1027 tokens; 28: 1028 tokens; and 1 more)."
    )
    assert warning.filename == __file__
    drawn = {q.id for step in range(12) for q in kept.batch(step, 4, seed=0)}
    assert drawn == {str(i) for i in range(24)}
    assert len(task.splits["train"]) == 30, "the task itself was changed"


def test_prompts_within_the_limit_change_nothing_and_say_nothing() -> None:
    earlier = ListTask("mine", listed(5).splits, (LeftOut("row 9", "answer is missing"),))
    assert without_long_prompts(earlier, lambda _: 7, max_prompt_tokens=7) == earlier
    shop = load_task("shop")
    assert without_long_prompts(shop, lambda _: 10**6, max_prompt_tokens=7) is shop


def test_a_limit_below_every_prompt_of_a_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="mine/train: the shortest prompt has 8 tokens; allow"):
        without_long_prompts(listed(5), lambda q: 8 + int(q.id), max_prompt_tokens=7)


def test_what_was_left_out_before_stays_listed(tmp_path: Path) -> None:
    path = write_among_good_ones(tmp_path / "mine.jsonl", {"question": "x", "answer": None})
    with pytest.warns(UserWarning, match="answer is missing"):
        task = load_task(str(path))
    with pytest.warns(UserWarning, match="1 of 3 questions were left out"):
        kept = without_long_prompts(task, lambda q: int(q.answer), max_prompt_tokens=1)
    assert isinstance(kept, ListTask)
    assert list(map(str, kept.left_out)) == ["row 3: answer is missing", "mine-train-3: 2 tokens"]


# --- files that can't be read ---------------------------------------------------------------------


def test_an_answer_of_zero_is_an_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"question": "q", "answer": 0})
    assert [q.answer for q in all_of(load_task(str(path)))] == ["0"]
    write(tmp_path / "test.jsonl", {"problem": "q", "answer": 0, "solution": r"\boxed{7}"})
    assert [q.answer for q in all_of(load_task("aime24", path=tmp_path))] == ["0"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.jsonl", "", "holds no list of questions"),
        ("mine.json", "[]", "holds no list of questions"),
        ("mine.json", '{"question": "q", "answer": "1"}', "holds no list of questions"),
        ("mine.json", "[{]", "Can't read"),
        ("mine.json", "\ufeff[]", "holds no list of questions"),
        ("mine.json", "[1,\n2,]", r"Can't read .* it is no JSON \(line 2, column 3: "),
        ("mine.json", "[" * 100_000, "Can't read .* nested too deeply"),
        ("mine.jsonl", "\n \r\n", "holds no list of questions"),
    ],
)
def test_a_file_that_cant_be_read_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_task(str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(b'[{"question": "\xff"}]')
    for name, reason in (("mine.json", "byte 16 is no UTF-8"), ("missing.jsonl", "No such file")):
        with pytest.raises(ValueError, match=f"Can't read .*{name}.*{reason}"):
            load_task(str(tmp_path / name))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown task 'gsm'") as caught:
        load_task("gsm")
    assert all(name in str(caught.value) for name in (*BUNDLED, *BENCHMARKS, ".jsonl"))


def test_a_path_without_use_is_refused(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", *pairs(2))
    for name in ("shop", str(mine)):
        with pytest.raises(ValueError, match="path"):
            load_task(name, path=tmp_path)


# --- benchmarks -----------------------------------------------------------------------------------


def test_gsm8k_rows(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "She had 2*600=<<2*600=1200>>1200.\n#### 1,200"}
    other = {"question": "And now?", "answer": "None.\n#### -3"}
    more = [{**(row, other)[i % 2], "question": f"And {i}?"} for i in range(10)]
    write(tmp_path / "train.jsonl", row, other, *more)
    write(tmp_path / "test.jsonl", row)
    task = load_task("gsm8k", path=tmp_path)
    assert isinstance(task, ListTask)
    assert {name: len(rows) for name, rows in task.splits.items()} == {
        "train": 10,
        "validation": 2,
        "test": 1,
    }
    found = task.splits["test"][0]
    assert (found.text, found.answer, found.task, found.level) == ("How many?", "1200", "gsm8k", 0)
    assert {q.answer for q in all_of(task)} == {"1200", "-3"}
    assert len({q.id for q in all_of(task)}) == 13


def test_math_rows(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl",
        {
            "problem": "p",
            "solution": r"First \boxed{1}, so \boxed{\frac{1}{2}}.",
            "level": "Level 5",
        },
        {"problem": "r", "solution": r"\boxed{3}", "level": "Level ?"},
    )
    task = load_task("math", path=tmp_path)
    found = sorted((q.text, q.answer, q.level) for q in all_of(task))
    assert found == [("p", r"\frac{1}{2}", 5), ("r", "3", 0)]


def test_math500_rows(tmp_path: Path) -> None:
    row = {"problem": "p", "solution": r"\boxed{07}", "answer": "7", "subject": "x", "level": 2}
    (tmp_path / "test.json").write_text(json.dumps([row]), encoding="utf-8")
    task = load_task("math500", path=tmp_path)
    assert [(q.text, q.answer, q.level) for q in all_of(task)] == [("p", "7", 2)]
    assert task.questions("test", 1, seed=0)[0].task == "math500"
    with pytest.raises(ValueError, match="no questions in split 'train'; it has test"):
        task.batch(0, 1, seed=0)


def test_aime_rows(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", {"problem": "p", "answer": "033", "year": 2024})
    assert [q.answer for q in all_of(load_task("aime24", path=tmp_path))] == ["033"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "q", "answer": "no marker"}),
        ("gsm8k", {"question": "q", "answer": "#### "}),
        ("gsm8k", {"question": "q"}),
        ("math", {"problem": "p", "solution": "no box"}),
        ("math", {"problem": "p", "solution": r"\boxed{}"}),
        ("math", {"problem": "p"}),
        ("math", {"solution": r"\boxed{1}"}),
    ],
)
def test_a_benchmark_row_without_answer_is_left_out_and_said(
    name: str, row: dict[str, str], tmp_path: Path
) -> None:
    good = {
        "question": "q0",
        "problem": "p0",
        "answer": "#### 1",
        "solution": r"\boxed{1}",
    }
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", good, row)
    with pytest.warns(UserWarning) as caught:
        task = load_task(name, path=tmp_path)
    assert isinstance(task, ListTask)
    assert [left.what for left in task.left_out] == [f"{split} row 2" for split in BENCHMARKS[name]]
    assert [str(warning.message) for warning in caught] == [
        f"{name}: {len(task.left_out)} of {2 * len(task.left_out)} rows were left out "
        f"({'; '.join(map(str, task.left_out))})."
    ]


def test_a_benchmark_without_a_good_row_names_the_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"question": "q", "answer": "#### 1"})
    write(tmp_path / "test.jsonl", {"question": "q", "answer": None})
    message = r"gsm8k/test: none of 1 rows gives a question \(test row 1: answer is missing\)"
    with pytest.raises(ValueError, match=message):
        load_task("gsm8k", path=tmp_path)


def test_rows_from_the_hub_are_looked_at_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": f"p{i}", "answer": None if i == 2 else str(i)} for i in range(4)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_a, **_k: rows)
    with pytest.warns(UserWarning, match=r"aime24: 1 of 4 rows were left out \(test row 3: answer"):
        task = load_task("aime24")
    assert [q.id for q in all_of(task)] == ["aime24-test-0", "aime24-test-1", "aime24-test-3"]


def test_a_folder_without_the_split_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *pairs(2))
    with pytest.raises(ValueError, match=r"No test\.jsonl or test\.json in"):
        load_task("aime24", path=tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_unreachable_hub_gives_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"Can't load .* from the Hugging Face hub") as caught:
        load_task(name)
    message = str(caught.value)
    assert "--data DIR (path= in Python)" in message
    assert "\n" not in message
    assert next(iter(BENCHMARKS[name].values())).hub in message


def test_an_extension_in_capitals_is_read(tmp_path: Path) -> None:
    write(tmp_path / "Q.JSONL", *pairs(12))
    expected = load_task(str(tmp_path / "Q.JSONL"))
    assert len(all_of(expected)) == 12
    (tmp_path / "Q.JSON").write_text(json.dumps(pairs(12)), encoding="utf-8")
    assert all_of(load_task(str(tmp_path / "Q.JSON"))) == all_of(expected)
    local = [{"problem": f"p{i}", "answer": str(i)} for i in range(3)]
    write(tmp_path / "TEST.JSONL", *local)
    assert len(all_of(load_task("aime24", path=tmp_path))) == 3
