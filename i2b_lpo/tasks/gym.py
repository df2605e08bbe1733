"""The domain of reasoning-gym: its generators as tasks by name, such as ``gym:chain_sum``.

The library (an optional extra, ``pip install 'i2b-lpo[gym]'``) draws the questions and scores the
answers; a score between 0 and 1 is that part of the reward. It is imported only where such a task
is asked for, in child processes. An answer stands between ``<answer>`` and ``</answer>``, as in the
library's own prompts.

Some of its scorers evaluate the answer as an expression (``countdown``, ``puzzle24``). So answers
are scored in confined processes, as those of `functions` are, and with the same reserve: it isn't
a sandbox, and an expression that finds its way out could give itself its score.

Splits have disjoint seeds: one question is one seed, and its remainder by three says the split. A
generator with few questions may still ask the same one under two seeds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from typing import Any

from i2b_lpo.tasks.splits import SPLITS, check_split
from i2b_lpo.tasks.task import Domain, GeneratedTask, Task
from i2b_lpo.trace import Question, is_correct
from i2b_lpo.verify.confined import confined_verdicts
from i2b_lpo.verify.judges import GRADING
from i2b_lpo.verify.pool import shared_pool
from i2b_lpo.verify.verdict import Verdict

__all__ = ["GYM"]

PREFIX = "gym:"
OPEN, CLOSE = "<answer>", "</answer>"
TIMEOUT = 5.0  # seconds for one score
START = 30.0  # seconds for one question; some read a file of data first
MAX_CHARACTERS = 10_000  # of an answer; some are grids
SEEDS = 2**30  # of a split; the library takes up to 2**32

# --- questions ----------------------------------------------------------------------------------


def _drawn(asked: dict[str, Any]) -> Any:
    """What the library's process draws; ValueError if it can't."""
    outcome = shared_pool(GRADING).compare(json.dumps(asked), "", START)
    if outcome in ("timeout", "unparsable"):
        which = asked.get("generator", "any generator")
        raise ValueError(
            f"reasoning-gym draws no question from {which} by its name alone ({outcome}); choose "
            "another generator."
        )
    return json.loads(outcome)


def _question(generator: str, seed: int) -> Question:
    asked = {"generator": generator, "seed": seed}
    entry = _drawn(asked)
    return Question(
        id=f"{PREFIX}{generator}-{seed}",
        text=entry["question"],
        answer=entry["answer"] or "",  # some questions have many, and the library names none
        task=f"{PREFIX}{generator}",
        domain="gym",
        checks=json.dumps(asked),
    )


def _questions(generator: str, split: str, rng: random.Random) -> Iterator[Question]:
    check_split(split)
    while True:
        yield _question(generator, 3 * rng.randrange(SEEDS) + SPLITS.index(split))


def _load(name: str) -> Task | None:
    if not name.startswith(PREFIX):
        return None
    if find_spec("reasoning_gym") is None:
        raise ValueError(
            f"{name} needs reasoning-gym; install it by pip install 'i2b-lpo[gym]', or by pip "
            "install reasoning-gym."
        )
    generator, known = name.removeprefix(PREFIX), _drawn({})
    if generator not in known:
        near = get_close_matches(generator, known, n=5, cutoff=0.5) or known
        raise ValueError(
            f"reasoning-gym has no generator {generator!r}; choose one such as {', '.join(near)}."
        )
    _question(generator, 0)  # refuses one that needs settings
    return GeneratedTask(name, partial(_questions, generator))


# --- answers and verdicts -----------------------------------------------------------------------


def _closed(text: str) -> int | None:
    end = text.rfind(CLOSE)
    at = text.rfind(OPEN, 0, end) if end >= 0 else -1
    return None if at < 0 else at


def _begins(text: str) -> int | None:
    at = _closed(text)
    opened = text.rfind(OPEN)
    return at if at is not None else None if opened < 0 else opened


def _extract(text: str) -> str | None:
    at = _closed(text)
    return None if at is None else text[at + len(OPEN) : text.index(CLOSE, at)].strip()


def _equivalent(one: str, other: str) -> bool:
    return one.strip() == other.strip()


def _verdict(answer: str, outcome: str) -> Verdict:
    if outcome == "timeout":
        return Verdict(0.0, "timeout", answer)
    try:
        reward = min(1.0, max(0.0, float(outcome)))
    except ValueError:  # it could not be scored
        return Verdict(0.0, "unparsable", answer)
    right = is_correct(reward)
    return Verdict(reward, "correct" if right else "partly" if reward else "wrong", answer)


def _judge(questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
    return confined_verdicts(
        GRADING,
        [question.checks for question in questions],
        [_extract(text) for text in texts],
        lambda _, answer, outcome: _verdict(answer, outcome),
        timeout=TIMEOUT,
        max_characters=MAX_CHARACTERS,
    )


GYM = Domain(
    instruction=f"Please reason step by step, and put your answer between {OPEN} and {CLOSE}.",
    frame=(OPEN, CLOSE),
    extract=_extract,
    begins=_begins,
    equivalent=_equivalent,
    judge=_judge,
    told={
        "no_answer": f"ended without {OPEN}…{CLOSE} (the prompt must ask for it)",
        "wrong": "gave an answer that reasoning-gym scores 0",
        "unparsable": "gave an answer that reasoning-gym couldn't read",
    },
    load=_load,
    tasks=(f"{PREFIX}NAME",),
)
"""reasoning-gym: an answer between tags, scored by the library."""
