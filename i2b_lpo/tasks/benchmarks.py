"""Lists of questions: the public benchmarks, from the Hugging Face hub or a local copy, and files.

All are mathematics, judged by what `i2b_lpo.verify` makes of a box.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2b_lpo.tasks.rows import (
    LeftOut,
    Source,
    answer_in,
    listing,
    questions_of,
    read_rows,
    text_in,
)
from i2b_lpo.tasks.task import ListTask
from i2b_lpo.trace import Question
from i2b_lpo.verify.references import extract_boxed, gold_answer, gsm8k_gold

__all__ = ["BENCHMARKS", "load_benchmark", "load_file"]


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
"""The benchmarks by name, each split of ours with its source."""
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
            stacklevel=4,
        )
    return ListTask(name, splits, tuple(left_out))


def _hold_out(rows: Mapping[int, Question]) -> dict[str, list[Question]]:
    # By the row's own number, so that correcting one row moves no other between the splits.
    return {
        "train": [question for at, question in rows.items() if at % VALIDATION_SHARE],
        "validation": [question for at, question in rows.items() if not at % VALIDATION_SHARE],
    }


def load_benchmark(name: str, path: Path | None = None) -> ListTask:
    """A benchmark by its name, from the hub or from a folder with `train` / `test` files.

    Raises:
        ValueError: it can't be read, or no row has text and answer.
    """
    return _listed(
        name,
        {
            split: (_hub_rows(s) if path is None else _local_rows(path, split), s)
            for split, s in BENCHMARKS[name].items()
        },
    )


def load_file(file: Path) -> ListTask:
    """The questions of a .json or .jsonl file.

    Raises:
        ValueError: it can't be read, or no row has text and answer.
    """
    return _listed(file.stem, {"train": (read_rows(file), _OWN)})


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
