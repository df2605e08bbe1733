"""A domain of the tests: words spelt backwards, each letter in its place a part of the reward."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from i2b_lpo.tasks.task import Domain, Example, GeneratedTask
from i2b_lpo.trace import Question, is_correct
from i2b_lpo.verify.verdict import Verdict

SIGN = "=> "


def questions(split: str, rng: random.Random) -> Iterator[Question]:
    while True:
        word = "".join(rng.choice("abc") for _ in range(4))
        yield Question(word, f"Spell {word} backwards.", word[::-1], "spelling", domain="backwards")


def examples(rng: random.Random) -> Iterator[Example]:
    for question in questions("train", rng):
        yield question.text, f"{SIGN}{question.answer}", f"{SIGN}{question.answer}"


def extract(text: str) -> str | None:
    _, sign, answer = text.rpartition(SIGN)
    return answer.split("\n")[0] if sign else None


def begins(text: str) -> int | None:
    return text.rfind(SIGN) if SIGN in text else None


def judge(questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
    verdicts = []
    for question, answer in zip(questions, map(extract, texts), strict=True):
        if answer is None:
            verdicts.append(Verdict(0.0, "no_answer", None))
            continue
        pairs = zip(question.answer, answer, strict=False)
        reward = sum(a == b for a, b in pairs) / max(len(question.answer), len(answer))
        right = is_correct(reward)
        verdicts.append(
            Verdict(reward, "correct" if right else "partly" if reward else "wrong", answer)
        )
    return verdicts


BACKWARDS = Domain(
    instruction=f"End with {SIGN.strip()} and the word.",
    frame=(SIGN, "\n"),
    extract=extract,
    begins=begins,
    equivalent=str.__eq__,
    judge=judge,
    told={"no_answer": "ended without the sign", "wrong": "had no letter in its place"},
    load={"spelling": GeneratedTask("spelling", questions)}.get,
    tasks=("spelling",),
    examples={"spelling": examples},
)
