"""Verdicts by a judge in child processes: what maths decides in stages, programs decide at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from i2b_lpo.verify.judges import Judge
from i2b_lpo.verify.pool import shared_pool
from i2b_lpo.verify.verdict import Verdict, early_reason

__all__ = ["confined_verdicts"]


def confined_verdicts(
    judge: Judge,
    golds: Sequence[str],
    answers: Sequence[str | None],
    verdict: Callable[[int, str, str], Verdict],
    *,
    timeout: float,
    max_characters: int,
) -> list[Verdict]:
    """The verdicts on B answers; equal ones to one gold text are judged once.

    Args:
        judge: what the child processes compare by.
        golds: what each is compared with, as the judge takes it.
        answers: None where a text gives none.
        verdict: index, answer and the judge's outcome → the verdict.
        timeout: wall-clock seconds for one answer.
        max_characters: of the longest answer that is judged.
    """
    early = [early_reason(answer, max_characters) for answer in answers]
    asked = [
        (gold, answer or "")
        for gold, answer, reason in zip(golds, answers, early, strict=True)
        if reason is None
    ]
    pairs = list(dict.fromkeys(asked))
    found = dict(zip(pairs, shared_pool(judge).compare_many(pairs, timeout), strict=True))
    outcomes = iter([found[pair] for pair in asked])
    return [
        verdict(at, answer or "", next(outcomes))
        if reason is None
        else Verdict(0.0, reason, answer)
        for at, (answer, reason) in enumerate(zip(answers, early, strict=True))
    ]
