r"""Answers of every kind against gold answers: one table of pairs, near misses among them.

`answer_pairs.jsonl` holds them by kind: what means the same in two notations, and beside it what
looks alike and differs. A new rule of reading adds both.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from verifying import PATIENT, boxed

from i2b_lpo.verify.verdict import verify_batch

PAIRS: dict[str, list[dict[str, Any]]] = defaultdict(list)
for line in Path(__file__).with_name("answer_pairs.jsonl").read_text(encoding="utf-8").splitlines():
    PAIRS[json.loads(line)["kind"]].append(json.loads(line))


@pytest.mark.parametrize("kind", PAIRS)
def test_answers_of_one_kind(kind: str) -> None:
    pairs = PAIRS[kind]
    golds = [pair["gold"] for pair in pairs]
    verdicts = verify_batch(golds, [boxed(pair["answer"]) for pair in pairs], timeout=PATIENT)
    found = zip(pairs, verdicts, strict=True)
    misread = [(p["gold"], p["answer"], v.reason) for p, v in found if v.correct != p["same"]]
    assert misread == []
    assert {pair["same"] for pair in pairs} == {True, False} or kind == "the question itself"
