"""The table of domains. Whatever extracts, compares, judges or prompts goes through its entry here.

A domain is one file and one entry: what stages sample, score and train on is then judged by it, and
its tasks are loaded by name. A question says its own (`Question.domain`).
"""

from __future__ import annotations

from collections.abc import Sequence

from i2b_lpo.tasks.functions import FUNCTIONS
from i2b_lpo.tasks.gym import GYM
from i2b_lpo.tasks.maths import MATHS
from i2b_lpo.tasks.task import Domain
from i2b_lpo.trace import Question
from i2b_lpo.verify.verdict import Verdict

__all__ = ["DOMAINS", "domain_named", "judge"]

DOMAINS: dict[str, Domain] = {"maths": MATHS, "functions": FUNCTIONS, "gym": GYM}
"""Domains by the name that a question gives."""


def domain_named(name: str) -> Domain:
    """The domain of a name; ValueError if there is none."""
    if name not in DOMAINS:
        raise ValueError(f"Unknown domain {name!r}; choose one of {', '.join(DOMAINS)}.")
    return DOMAINS[name]


def judge(questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
    """The verdicts on B texts, each by the domain of its question, one batch per domain.

    Raises:
        ValueError: an unknown domain, or one that finds a question's gold answer unusable.
    """
    found: dict[int, Verdict] = {}
    for name in dict.fromkeys(question.domain for question in questions):
        own = [i for i, question in enumerate(questions) if question.domain == name]
        verdicts = domain_named(name).judge([questions[i] for i in own], [texts[i] for i in own])
        found |= zip(own, verdicts, strict=True)
    return [found[i] for i in range(len(questions))]
