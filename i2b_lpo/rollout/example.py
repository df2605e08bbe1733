r"""The running example of the notebooks: one question, one fork, four hand-made rollouts.

The four share a prefix, which solves the first product, and part at its end: one rollout and the
K = 3 branches of its only fork, a group of G = M(1+K) = 4 with M = 1. Two reach the answer, by
different strategies; one slips in a sum and carries it forward; one guesses wrong. Their rewards
are [1, 0, 0, 1], so their advantages are ±0.8659 (METHOD §6). Written by hand [D].

>>> from i2b_lpo.model.policy import load_policy
>>> trace = teacher_force(load_policy("tiny-base"), QUESTION, FOUR)
>>> [rollout.reward for rollout in trace.rollouts]
[1.0, 0.0, 0.0, 1.0]
>>> [rollout.pieces[34] for rollout in trace.rollouts]  # the fork
['Round', 'Split', 'Guess', 'Factor']
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from i2b_lpo.model.logprobs import row_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.tasks.domains import judge
from i2b_lpo.trace import Question, Rollout, Trace

__all__ = ["FOUR", "PREFIX", "QUESTION", "teacher_force"]

QUESTION = Question(
    id="example",
    text="Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?",
    answer="544",
    task="shop",
    level=1,
)
"""The question of the running example."""

PREFIX = "Split 14\n23*10=230\n23*4=92\n230+92=322\n"
"""What the four have in common: 23*14 = 322. The fork comes next: how to solve 37*6?"""

FOUR: tuple[str, ...] = (
    PREFIX + "Round 37\n40*6=240\n3*6=18\n240-18=222\n322+222=544\n\\boxed{544}",
    PREFIX + "Split 37\n6*30=180\n6*7=42\n180+42=212\n322+212=534\n\\boxed{534}",
    PREFIX + "Guess 242\n322+242=564\n\\boxed{564}",
    PREFIX + "Factor 6\n37*2=74\n74*3=222\n322+222=544\n\\boxed{544}",
)
"""Its four written solutions, two of them right."""


@torch.no_grad()
def teacher_force(policy: Policy, question: Question, texts: Sequence[str]) -> Trace:
    """The trace that `policy` would have left if it had drawn these texts itself.

    One forward pass gives H_t and log π(o_t|q, o_<t) of every token, the end token included, at
    temperature 1 (METHOD §1, §6).

    Args:
        policy: whose entropies and log-probs.
        question: its text is the prompt; its answer is what the texts are verified against.
        texts: written solutions, without end token.

    Raises:
        ValueError: there is no text, or prompt and text exceed the policy's positions.
    """
    if not texts:
        raise ValueError("There is nothing to read; give at least one text.")
    prompt = policy.prompt_ids(question)
    end = policy.tokenizer.eos_token_id
    rows = [[*policy.tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
    width = len(prompt) + max(map(len, rows))
    room = policy.model.config.max_position_embeddings
    if width > room:
        raise ValueError(
            f"Prompt and text take {width} tokens and {policy.name} has {room} positions; "
            "shorten the text."
        )
    measured = row_logprobs(policy, [(prompt, row) for row in rows])
    logp, entropy = ([tuple(row.tolist()) for row in values] for values in measured)
    verdicts = judge([question] * len(texts), texts)
    rollouts = [
        Rollout(
            ids=tuple(row),
            pieces=policy.pieces(row),
            entropies=entropy[at],
            logprobs=logp[at],
            logprobs_t1=logp[at],
            text=text,
            finished=True,
            reward=float(verdict.reward),
            reason=verdict.reason,
        )
        for at, (row, text, verdict) in enumerate(zip(rows, texts, verdicts, strict=True))
    ]
    return Trace(question, tuple(prompt), tuple(rollouts), policy=policy.name)
