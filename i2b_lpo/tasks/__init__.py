"""Questions with verified answers: the bundled task and the public benchmarks, behind one name.

>>> load_task("shop").questions("validation", 1, seed=0)[0].task
'shop'
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from i2b_lpo.tasks.shop import Labels, label, parse_problem, product_questions, shop_questions
from i2b_lpo.trace import Question
from i2b_lpo.verify import extract_boxed, gsm8k_gold

__all__ = ["BENCHMARKS", "GeneratedTask", "ListTask", "Task", "load_task", "own_question"]


class Task(Protocol):
    """Where questions come from. Nothing here is stateful: a batch is a function of its step."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    def questions(self, split: str, count: int, *, seed: int) -> list[Question]:
        """`count` different questions of a split, the same ones for the same seed."""

    def batch(self, step: int, size: int, *, seed: int) -> list[Question]:
        """The train questions of one step. Stateless, so a resumed run draws the same ones."""

    def label(self, question: Question, text: str) -> Labels | None:
        """What the labeller tells of a trace; None for a task without one."""


@dataclass(frozen=True)
class GeneratedTask:
    """The bundled task: endless questions drawn from a seed."""

    name: str
    stream: Callable[[str, random.Random], Iterator[Question]]

    def questions(self, split: str, count: int, *, seed: int) -> list[Question]:
        """See `Task.questions`."""
        found: dict[str, Question] = {}
        stream = self.stream(split, random.Random(f"{self.name}/{split}/{seed}"))
        repeated = 0
        while len(found) < count:
            question = next(stream)
            repeated = repeated + 1 if question.text in found else 0
            if repeated > 10_000:
                raise ValueError(
                    f"{self.name}/{split} seems to hold {len(found)} questions, {count} were "
                    "asked for; ask for fewer."
                )
            found[question.text] = question
        return list(found.values())

    def batch(self, step: int, size: int, *, seed: int) -> list[Question]:
        """See `Task.batch`."""
        stream = self.stream("train", random.Random(f"{self.name}/train/{seed}/{step}"))
        return [next(stream) for _ in range(size)]

    def label(self, question: Question, text: str) -> Labels | None:
        """See `Task.label`."""
        return label(parse_problem(question.text), text)


@dataclass(frozen=True)
class ListTask:
    """Questions from a file or a Hugging Face dataset, in splits."""

    name: str
    splits: Mapping[str, list[Question]]

    def _split(self, split: str) -> list[Question]:
        if not self.splits.get(split):
            there = ", ".join(name for name, rows in self.splits.items() if rows) or "none"
            raise ValueError(f"{self.name} has no questions in split {split!r}; it has {there}.")
        return self.splits[split]

    def questions(self, split: str, count: int, *, seed: int) -> list[Question]:
        """See `Task.questions`; ValueError if the split holds fewer."""
        rows = self._split(split)
        if count > len(rows):
            raise ValueError(
                f"{self.name}/{split} holds {len(rows)} questions, {count} were asked for; "
                "ask for fewer."
            )
        return random.Random(f"{self.name}/{split}/{seed}").sample(rows, count)

    def batch(self, step: int, size: int, *, seed: int) -> list[Question]:
        """See `Task.batch`: each epoch in its own order."""
        rows = self._split("train")
        first, last = step * size, (step + 1) * size - 1
        epochs = range(first // len(rows), last // len(rows) + 1)
        ordered = [q for epoch in epochs for q in self._epoch(rows, seed, epoch)]
        start = first - epochs[0] * len(rows)
        return ordered[start : start + size]

    def _epoch(self, rows: list[Question], seed: int, epoch: int) -> list[Question]:
        return random.Random(f"{self.name}/{seed}/{epoch}").sample(rows, len(rows))

    def label(self, question: Question, text: str) -> Labels | None:
        """See `Task.label`."""
        return None


def _field(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds something; 0 is something."""
    for name in names:
        value = row.get(name)
        if value is not None and str(value).strip():
            return str(value)
    raise ValueError(f"{' or '.join(names)} is missing")


def _boxed_answer(row: Mapping[str, Any]) -> str:
    boxed = extract_boxed(str(row.get("solution", "")))
    return _field({**row, "boxed answer": boxed}, "answer", "boxed answer")


@dataclass(frozen=True)
class Benchmark:
    """A public data set: its hub name and split, and how a row becomes a question."""

    hub: str
    split: str
    text: Callable[[Mapping[str, Any]], str]
    answer: Callable[[Mapping[str, Any]], str]
    config: str | None = None


def _asked(row: Mapping[str, Any]) -> str:
    return _field(row, "question")


def _gsm8k_answer(row: Mapping[str, Any]) -> str:
    return gsm8k_gold(_field(row, "answer"))


def _problem(row: Mapping[str, Any]) -> str:
    return _field(row, "problem")


BENCHMARKS: dict[str, dict[str, Benchmark]] = {
    # split by our name → where it is on the Hugging Face hub
    "gsm8k": {
        split: Benchmark("openai/gsm8k", split, _asked, _gsm8k_answer, "main")
        for split in ("train", "test")
    },
    "math": {
        "train": Benchmark("DigitalLearningGmbH/MATH-lighteval", "train", _problem, _boxed_answer)
    },
    "math500": {"test": Benchmark("HuggingFaceH4/MATH-500", "test", _problem, _boxed_answer)},
    "aime24": {"test": Benchmark("HuggingFaceH4/aime_2024", "train", _problem, _boxed_answer)},
}
VALIDATION_SHARE = 10  # one in ten train questions is held out as validation


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"Can't read {path} ({error}); give a .json or .jsonl file.") from error
    # Not splitlines: it also splits at U+2028 and other characters that JSON strings may hold.
    documents = [text] if path.suffix == ".json" else text.split("\n")
    rows: Any = []
    for number, document in enumerate(documents):
        try:
            if document.strip():
                rows.append(json.loads(document))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Can't read {path} as JSON: line {number + error.lineno}: {error.msg}; give a "
                ".json or .jsonl file."
            ) from error
    if path.suffix == ".json" and rows:
        rows = rows[0]
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of questions; give one JSON object a question.")
    return rows


def _questions(name: str, split: str, rows: list[Any], benchmark: Benchmark) -> list[Question]:
    found = []
    for at, row in enumerate(rows):
        try:
            if not isinstance(row, Mapping):
                raise ValueError("it is no JSON object")
            text, answer = benchmark.text(row), benchmark.answer(row)
        except ValueError as error:
            raise ValueError(f"{name}/{split}, row {at + 1}: {error}.") from error
        level = re.search("[0-9]+", str(row.get("level")))  # 5, or MATH's "Level 5"
        found.append(
            Question(f"{name}-{split}-{at}", text, answer, name, int(level[0]) if level else 0)
        )
    return found


def _hold_out(rows: list[Question]) -> dict[str, list[Question]]:
    return {
        "train": [q for i, q in enumerate(rows) if i % VALIDATION_SHARE],
        "validation": rows[::VALIDATION_SHARE],
    }


def own_question(text: str) -> Question:
    """A question of the bundled task typed by hand; ValueError shows the form it needs."""
    problem = parse_problem(text)
    return Question("own", text.strip(), str(problem.answer), "shop", problem.level)


def load_task(name: str, *, path: str | Path | None = None) -> Task:
    """A task by name.

    Args:
        name: `shop` or `product` (bundled), a name of `BENCHMARKS` (from the Hugging Face hub),
            or a .json / .jsonl file with `question` or `problem`, and `answer`.
        path: a local copy of a benchmark's data: a folder with `train` / `test` files.

    Raises:
        ValueError: unknown name, unreadable file, or a row without text or answer.
    """
    if path is not None and name not in BENCHMARKS:
        raise ValueError(f"path= is a copy of a benchmark's data; {name} is none, leave it out.")
    if name in _GENERATED:
        return _GENERATED[name]
    if name in BENCHMARKS:
        splits: dict[str, list[Question]] = {}
        for split, benchmark in BENCHMARKS[name].items():
            rows = _local_rows(Path(path), split) if path is not None else _hub_rows(benchmark)
            listed = _questions(name, split, rows, benchmark)
            splits |= _hold_out(listed) if split == "train" else {split: listed}
        return ListTask(name, splits)
    file = Path(name).expanduser()
    if file.suffix in (".json", ".jsonl"):
        own = Benchmark(
            "",
            "train",
            lambda r: _field(r, "question", "problem"),
            lambda r: _field(r, "answer"),
        )
        listed = _questions(file.stem, "train", _read_rows(file), own)
        return ListTask(file.stem, _hold_out(listed))
    known = ", ".join([*_GENERATED, *BENCHMARKS])
    raise ValueError(f"Unknown task {name!r}; choose one of {known}, or give a .jsonl file.")


def _local_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    for suffix in (".jsonl", ".json"):
        if (file := folder / f"{split}{suffix}").is_file():
            return _read_rows(file)
    raise ValueError(f"No {split}.jsonl or {split}.json in {folder}; put the data there.")


def _hub_rows(benchmark: Benchmark) -> list[dict[str, Any]]:
    import datasets  # slow to import, and needed for the hub alone

    try:
        return list(datasets.load_dataset(benchmark.hub, benchmark.config, split=benchmark.split))
    except (OSError, ValueError) as error:  # offline, renamed or gated: all end here
        raise ValueError(
            f"Can't load {benchmark.hub} from the Hugging Face hub; check the connection, or give "
            "a local copy with path=."
        ) from error


_GENERATED: dict[str, Task] = {
    "shop": GeneratedTask("shop", shop_questions),
    "product": GeneratedTask("product", product_questions),
}
