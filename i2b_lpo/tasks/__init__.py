"""Questions with verified answers: the bundled task and the public benchmarks, behind one name.

>>> load_task("shop").questions("validation", 1, seed=0)[0].task
'shop'
"""

from __future__ import annotations

import json
import random
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
        for question in self.stream(split, random.Random(f"{self.name}/{split}/{seed}")):
            if len(found) == count:
                break
            found.setdefault(question.text, question)
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
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, at = divmod(position, len(rows))
            order = list(range(len(rows)))
            random.Random(f"{self.name}/{seed}/{epoch}").shuffle(order)
            chosen.append(rows[order[at]])
        return chosen

    def label(self, question: Question, text: str) -> Labels | None:
        """See `Task.label`."""
        return None


def _boxed_answer(row: Mapping[str, Any]) -> str:
    answer = row.get("answer") or extract_boxed(str(row["solution"]))
    if answer is None:
        raise KeyError("a boxed answer")
    return str(answer)


@dataclass(frozen=True)
class Benchmark:
    """A public data set: its hub name and split, and how a row becomes a question."""

    hub: str
    split: str
    text: Callable[[Mapping[str, Any]], str]
    answer: Callable[[Mapping[str, Any]], str]
    config: str | None = None


def _asked(row: Mapping[str, Any]) -> str:
    return str(row["question"])


def _gsm8k_answer(row: Mapping[str, Any]) -> str:
    return gsm8k_gold(str(row["answer"]))


def _problem(row: Mapping[str, Any]) -> str:
    return str(row["problem"])


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
        # Not splitlines: it also splits at U+2028 and other characters that JSON strings may hold.
        rows = (
            json.loads(text)
            if path.suffix == ".json"
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Can't read {path} as JSON ({error}); give a .json or .jsonl file."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of questions; give one JSON object a question.")
    return rows


def _question(name: str, at: int, row: Mapping[str, Any], benchmark: Benchmark) -> Question:
    try:
        text, answer = benchmark.text(row), benchmark.answer(row)
    except KeyError as error:
        raise ValueError(f"{name}, row {at + 1}: {error} is missing.") from error
    level = row.get("level")
    digits = "".join(filter(str.isdigit, str(level))) if level is not None else ""
    return Question(f"{name}-{at}", text, answer, name, int(digits) if digits else 0)


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
    if name in _GENERATED:
        return _GENERATED[name]
    if name in BENCHMARKS:
        splits: dict[str, list[Question]] = {}
        for split, benchmark in BENCHMARKS[name].items():
            rows = _local_rows(Path(path), split) if path is not None else _hub_rows(benchmark)
            listed = [_question(name, i, row, benchmark) for i, row in enumerate(rows)]
            splits |= _hold_out(listed) if split == "train" else {split: listed}
        return ListTask(name, splits)
    file = Path(name).expanduser()
    if file.suffix in (".json", ".jsonl"):
        own = Benchmark(
            "",
            "train",
            lambda r: str(r["question"] if "question" in r else r["problem"]),
            lambda r: str(r["answer"]),
        )
        listed = [_question(file.stem, i, row, own) for i, row in enumerate(_read_rows(file))]
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
