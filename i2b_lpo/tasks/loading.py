"""Tasks by name: those of every domain, the public benchmarks, and your own files.

>>> load_task("shop").questions("validation", 1, seed=0)[0].task
'shop'
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from i2b_lpo.infra.secrets import redact
from i2b_lpo.tasks.benchmarks import BENCHMARKS, load_benchmark, load_file
from i2b_lpo.tasks.domains import DOMAINS
from i2b_lpo.tasks.shop import parse_problem
from i2b_lpo.tasks.task import Example, Task
from i2b_lpo.trace import Question

__all__ = ["load_examples", "load_task", "own_question"]


def own_question(text: str) -> Question:
    """A question of the bundled task typed by hand; ValueError shows the form it needs."""
    problem = parse_problem(text)
    return Question("own", text.strip(), str(problem.answer), "shop", problem.level)


def load_task(name: str, *, path: str | Path | None = None) -> Task:
    """A task by name.

    Args:
        name: `shop` or `product` (bundled), a task of another domain, a name of `BENCHMARKS` (from
            the Hugging Face hub), or a .json / .jsonl file with `question` or `problem`, and
            `answer`: the answer alone, or a solution that ends in it, in a box or after ``####``.
        path: a local copy of a benchmark's data: a folder with `train` / `test` files.

    Raises:
        ValueError: unknown name, unreadable file, or no row with text and answer. Single rows that
            lack them are skipped with a warning, and listed in `ListTask.left_out`.
    """
    shown = redact(name)
    if path is not None and name not in BENCHMARKS:
        raise ValueError(
            f"--data (path= in Python) is a copy of a benchmark's data; {shown} is none, leave it "
            "out."
        )
    for domain in DOMAINS.values():
        if (task := domain.load(name)) is not None:
            return task
    if name in BENCHMARKS:
        return load_benchmark(name, None if path is None else Path(path))
    file = Path(name).expanduser()
    if file.suffix.lower() in (".json", ".jsonl"):
        return load_file(file)
    known = ", ".join([*(task for d in DOMAINS.values() for task in d.tasks), *BENCHMARKS])
    raise ValueError(f"Unknown task {shown!r}; choose one of {known}, or give a .jsonl file.")


def load_examples(name: str) -> Callable[[random.Random], Iterator[Example]]:
    """What draws the solved train questions of a task, for pretraining.

    Raises:
        ValueError: the task has none; lists those that have.
    """
    known = {task: draw for d in DOMAINS.values() for task, draw in d.examples.items()}
    if name not in known:
        raise ValueError(
            f"{redact(name)} has no solved examples to learn from; choose one of "
            f"{', '.join(known)}."
        )
    return known[name]
