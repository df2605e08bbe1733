"""What a task is: where questions come from; and what a domain is: how their answers are judged.

    task    → questions, each with its verified answer and the name of its domain
    domain  → what is asked for in the prompt, where a text gives its answer, what that is worth

Tasks of one domain share all of the second line. The domains stand in one table,
`i2b_lpo.tasks.domains`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from i2b_lpo.tasks.labels import Labels
from i2b_lpo.tasks.rows import LeftOut, listing
from i2b_lpo.trace import Question
from i2b_lpo.verify.verdict import Verdict

__all__ = ["Domain", "Example", "GeneratedTask", "ListTask", "Task", "without_long_prompts"]

Example = tuple[str, str, str]
"""A question, a solution for practice and one by habit: one text where a task knows one way."""


@dataclass(frozen=True)
class Domain:
    r"""How the answers of a kind of question are asked for, found, compared and judged.

    Attributes:
        instruction: appended to a question for a policy that takes instructions.
        frame: what comes before and after an answer where a policy gives it, such as
            ``\boxed{`` and ``}``.
        extract: the answer in a model's text, as written; None if it gives none.
        begins: where that answer's frame begins, in characters; None if there is none. A frame that
            was opened and never closed counts if there is no other.
        equivalent: whether two answers are the same one: a vote of majority@k. It judges nothing.
        judge: the verdicts on B texts, each an answer to its question; a reward is from 0 to 1.
            Model text never raises.
        told: reason of a verdict → what a run says of the texts that got it, if it earns nothing.
        load: the task of a name; None for a name that isn't this domain's.
        tasks: the names that `load` knows, as a message shows them.
        examples: by a task's name, what draws its solved train questions; pretraining learns them.
    """

    instruction: str
    frame: tuple[str, str]
    extract: Callable[[str], str | None]
    begins: Callable[[str], int | None]
    equivalent: Callable[[str, str], bool]
    judge: Callable[[Sequence[Question], Sequence[str]], list[Verdict]]
    told: Mapping[str, str]
    load: Callable[[str], Task | None]
    tasks: tuple[str, ...] = ()
    examples: Mapping[str, Callable[[random.Random], Iterator[Example]]] = field(
        default_factory=dict
    )


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
    """Endless questions drawn from a seed.

    Attributes:
        stream: the questions of a split, drawn with a generator.
        labeller: tells the ways that a text took; None if nothing does.
    """

    name: str
    stream: Callable[[str, random.Random], Iterator[Question]]
    labeller: Callable[[Question, str], Labels] | None = None

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
        return None if self.labeller is None else self.labeller(question, text)


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
