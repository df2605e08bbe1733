"""Questions with verified answers: the bundled task and the public benchmarks, behind one name.

>>> load_task("shop").questions("validation", 1, seed=0)[0].task
'shop'
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from i2b_lpo.infra.secrets import redact
from i2b_lpo.tasks.rows import (
    LeftOut,
    Source,
    answer_in,
    listing,
    questions_of,
    read_rows,
    text_in,
)
from i2b_lpo.tasks.shop import Labels, label, parse_problem, product_questions, shop_questions
from i2b_lpo.trace import Question
from i2b_lpo.verify.references import extract_boxed, gold_answer, gsm8k_gold

__all__ = [
    "BENCHMARKS",
    "GeneratedTask",
    "LeftOut",
    "ListTask",
    "Task",
    "load_task",
    "own_question",
    "without_long_prompts",
]


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
    """Questions from a file or a Hugging Face dataset, in splits.

    Attributes:
        left_out: rows and questions that are not used, each with the reason.
    """

    name: str
    splits: Mapping[str, list[Question]]
    left_out: tuple[LeftOut, ...] = ()

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


def without_long_prompts(
    task: Task, length: Callable[[Question], int], *, max_prompt_tokens: int
) -> Task:
    """The task without questions of longer prompts; warns of how many, and which come first.

    A generated task is returned as it is: all its questions are alike.

    Args:
        task: where the questions come from.
        length: tokens of a question's prompt.
        max_prompt_tokens: the longest prompt that is kept: 1024 in METHOD §8 [D], 2048 in METHOD §6
            [C].

    Raises:
        ValueError: all questions of a split are longer.
    """
    if not isinstance(task, ListTask):
        return task
    splits: dict[str, list[Question]] = {}
    left_out = []
    for split, questions in task.splits.items():
        lengths = [length(question) for question in questions]
        asked = list(zip(questions, lengths, strict=True))
        splits[split] = [q for q, n in asked if n <= max_prompt_tokens]
        left_out += [LeftOut(q.id, f"{n} tokens") for q, n in asked if n > max_prompt_tokens]
        if questions and not splits[split]:
            raise ValueError(
                f"{task.name}/{split}: the shortest prompt has {min(lengths)} tokens; allow "
                f"more than {max_prompt_tokens}: --set rollout.max_prompt_tokens={min(lengths)} "
                "(max_prompt_tokens in Python)."
            )
    if left_out:
        warnings.warn(
            f"{task.name}: {len(left_out)} of {sum(map(len, task.splits.values()))} questions "
            f"were left out, as their prompts exceed {max_prompt_tokens} tokens "
            f"({listing(left_out)}).",
            stacklevel=2,
        )
    return replace(task, splits=splits, left_out=(*task.left_out, *left_out))


def _boxed_answer(row: Mapping[str, Any]) -> str:
    boxed = extract_boxed(str(row.get("solution", "")))
    return answer_in({**row, "boxed answer": boxed}, "answer", "boxed answer")


def _asked(row: Mapping[str, Any]) -> str:
    return text_in(row, "question")


def _gsm8k_answer(row: Mapping[str, Any]) -> str:
    return gsm8k_gold(text_in(row, "answer"))


def _problem(row: Mapping[str, Any]) -> str:
    return text_in(row, "problem")


BENCHMARKS: dict[str, dict[str, Source]] = {
    # split by our name → where it is on the Hugging Face hub
    "gsm8k": {
        split: Source(_asked, _gsm8k_answer, "openai/gsm8k", split, "main")
        for split in ("train", "test")
    },
    "math": {
        "train": Source(_problem, _boxed_answer, "DigitalLearningGmbH/MATH-lighteval", "train")
    },
    "math500": {"test": Source(_problem, _boxed_answer, "HuggingFaceH4/MATH-500", "test")},
    "aime24": {"test": Source(_problem, _boxed_answer, "HuggingFaceH4/aime_2024", "train")},
}
"""The benchmarks of the Hugging Face hub by name, each with its splits."""
_OWN = Source(
    lambda r: text_in(r, "question", "problem"), lambda r: gold_answer(answer_in(r, "answer"))
)
VALIDATION_SHARE = 10  # one in ten train questions is held out as validation


def _listed(name: str, read: Mapping[str, tuple[Mapping[int, Any], Source]]) -> ListTask:
    """The rows of each split as a task; warns of rows that gave no question."""
    splits: dict[str, list[Question]] = {}
    left_out: list[LeftOut] = []
    for split, (rows, source) in read.items():
        found, bad = questions_of(name, split, rows, source)
        if not found:
            raise ValueError(
                f"{name}/{split}: none of {len(rows)} rows gives a question ({listing(bad)}); give "
                "each a text and an answer."
            )
        left_out += bad
        splits |= _hold_out(found) if split == "train" else {split: list(found.values())}
    if left_out:
        warnings.warn(
            f"{name}: {len(left_out)} of {sum(len(rows) for rows, _ in read.values())} rows were "
            f"left out ({listing(left_out)}).",
            stacklevel=3,
        )
    return ListTask(name, splits, tuple(left_out))


def _hold_out(rows: Mapping[int, Question]) -> dict[str, list[Question]]:
    # By the row's own number, so that mending one row moves no other between the splits.
    return {
        "train": [question for at, question in rows.items() if at % VALIDATION_SHARE],
        "validation": [question for at, question in rows.items() if not at % VALIDATION_SHARE],
    }


def own_question(text: str) -> Question:
    """A question of the bundled task typed by hand; ValueError shows the form it needs."""
    problem = parse_problem(text)
    return Question("own", text.strip(), str(problem.answer), "shop", problem.level)


def load_task(name: str, *, path: str | Path | None = None) -> Task:
    """A task by name.

    Args:
        name: `shop` or `product` (bundled), a name of `BENCHMARKS` (from the Hugging Face hub),
            or a .json / .jsonl file with `question` or `problem`, and `answer`: the answer alone,
            or a solution that ends in it, in a box or after ``####``.
        path: a local copy of a benchmark's data: a folder with `train` / `test` files.

    Raises:
        ValueError: unknown name, unreadable file, or no row with text and answer. Single rows that
            lack them are left out with a warning, and listed in `ListTask.left_out`.
    """
    shown = redact(name)
    if path is not None and name not in BENCHMARKS:
        raise ValueError(
            f"--data (path= in Python) is a copy of a benchmark's data; {shown} is none, leave it "
            "out."
        )
    if name in _GENERATED:
        return _GENERATED[name]
    if name in BENCHMARKS:
        return _listed(
            name,
            {
                split: (_hub_rows(s) if path is None else _local_rows(Path(path), split), s)
                for split, s in BENCHMARKS[name].items()
            },
        )
    file = Path(name).expanduser()
    if file.suffix.lower() in (".json", ".jsonl"):
        return _listed(file.stem, {"train": (read_rows(file), _OWN)})
    known = ", ".join([*_GENERATED, *BENCHMARKS])
    raise ValueError(f"Unknown task {shown!r}; choose one of {known}, or give a .jsonl file.")


def _local_rows(folder: Path, split: str) -> dict[int, Any]:
    files = {file.name.lower(): file for file in sorted(folder.glob("*")) if file.is_file()}
    for name in (f"{split}.jsonl", f"{split}.json"):
        if name in files:
            return read_rows(files[name])
    raise ValueError(f"No {split}.jsonl or {split}.json in {folder}; put the data there.")


def _hub_rows(source: Source) -> dict[int, Any]:
    import datasets  # slow to import, and needed for the hub alone

    try:
        return dict(enumerate(datasets.load_dataset(source.hub, source.config, split=source.split)))
    except (OSError, ValueError) as error:  # offline, renamed or gated: all end here
        raise ValueError(
            f"Can't load {source.hub} from the Hugging Face hub; check the connection, or give "
            "a local copy: --data DIR (path= in Python)."
        ) from error


_GENERATED: dict[str, Task] = {
    "shop": GeneratedTask("shop", shop_questions),
    "product": GeneratedTask("product", product_questions),
}
