r"""The running example of the notebooks: one question, one fork, four hand-made rollouts.

The four share a prefix, which solves the first product, and part at its end: one rollout and the
K = 3 branches of its only fork, a group of G = M(1+K) = 4 with M = 1. Two reach the answer, by
different strategies; one slips in a sum and carries the slip on; one guesses wrong. Their rewards
are [1, 0, 0, 1], so their advantages are ±0.8659 (METHOD §6). Written by hand [D].

>>> from i2b_lpo.verify import verify
>>> [verify(QUESTION.answer, text).correct for text in FOUR]
[True, False, False, True]
"""

from __future__ import annotations

from i2b_lpo.trace import Question

__all__ = ["FOUR", "PREFIX", "QUESTION"]

QUESTION = Question(
    id="example",
    text="Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?",
    answer="544",
    task="shop",
    level=1,
)

PREFIX = "Split 14\n23*10=230\n23*4=92\n230+92=322\n"
"""What the four have in common: 23*14 = 322. The fork comes next: how to solve 37*6?"""

FOUR: tuple[str, ...] = (
    PREFIX + "Round 37\n40*6=240\n3*6=18\n240-18=222\n322+222=544\n\\boxed{544}",
    PREFIX + "Split 37\n6*30=180\n6*7=42\n180+42=212\n322+212=534\n\\boxed{534}",
    PREFIX + "Guess 242\n322+242=564\n\\boxed{564}",
    PREFIX + "Factor 6\n37*2=74\n74*3=222\n322+222=544\n\\boxed{544}",
)
