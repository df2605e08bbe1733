"""The judge of reasoning-gym: draws its questions, and scores answers as the library does.

Both happen only in a confined child process (`i2b_lpo.verify.worker`). Some scorers evaluate the
answer as an expression; and some generators draw by the order of sets, so that only a process with
a fixed hash seed gives the same question again. All that a score loads is loaded before the process
is confined, by the library's own answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module

__all__ = ["against", "prepare"]


def prepare() -> None:
    """Import the library."""
    import_module("reasoning_gym")


def against(gold: str) -> Callable[[str], str]:
    """What draws a question, or scores an answer to it.

    Args:
        gold: the generator and the seed of a question, as JSON; without them the names of all
            generators are asked for.

    Returns:
        A function of the answer. Its outcome is the score as text; for the answer "" the question
        and the library's answer, as JSON.
    """
    asked = json.loads(gold)
    if not asked:
        names = sorted(import_module("reasoning_gym.factory").DATASETS)
        return lambda answer: json.dumps(names)
    create = import_module("reasoning_gym").create_dataset
    dataset = create(asked["generator"], seed=asked["seed"], size=1)
    entry = dataset[0]
    if entry["answer"] is not None:
        dataset.score_answer(entry["answer"], entry)

    def score(answer: str) -> str:
        if not answer:
            return json.dumps({name: entry[name] for name in ("question", "answer")})
        return repr(float(dataset.score_answer(answer, entry)))

    return score
