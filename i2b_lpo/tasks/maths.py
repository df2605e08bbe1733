"""The domain of mathematics: an answer is in a box, and is compared by value.

Its tasks are the bundled world (`i2b_lpo.tasks.shop`), the benchmarks and your own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from i2b_lpo.tasks.labels import Labels, label
from i2b_lpo.tasks.shop import (
    parse_problem,
    product_questions,
    shop_examples,
    shop_questions,
)
from i2b_lpo.tasks.task import Domain, GeneratedTask
from i2b_lpo.trace import Question
from i2b_lpo.verify.references import box_begins, extract_boxed
from i2b_lpo.verify.verdict import Verdict, equivalent, verify_batch

__all__ = ["BOXED_INSTRUCTION", "MATHS"]

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""What Qwen's own model cards ask for in mathematics; the bundled policies need no instruction."""


def _label(question: Question, text: str) -> Labels:
    return label(parse_problem(question.text), text)


_BUNDLED = {
    "shop": GeneratedTask("shop", shop_questions, _label),
    "product": GeneratedTask("product", product_questions, _label),
}


def _judge(questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
    return verify_batch([question.answer for question in questions], texts)


MATHS = Domain(
    instruction=BOXED_INSTRUCTION,
    frame=(r"\boxed{", "}"),
    extract=extract_boxed,
    begins=box_begins,
    equivalent=equivalent,
    judge=_judge,
    told={
        "no_answer": r"ended without \boxed{…} (the prompt must ask for it)",
        "wrong": "gave another answer than the gold one (look whether the gold answers are bare: "
        "no sentence around them)",
    },
    load=_BUNDLED.get,
    tasks=tuple(_BUNDLED),
    examples={
        "shop": partial(shop_examples, share=1.0),
        "product": partial(shop_examples, share=0.0),
    },
)
"""Mathematics: an answer in a box, compared by value."""
