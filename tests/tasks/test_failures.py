"""The four recipes keep what they promise, and the labeller tells them from each other."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest

from i2b_lpo.model.policy import load_policy
from i2b_lpo.tasks.failures import KINDS, LOOP, build, failure_mode
from i2b_lpo.tasks.labels import label
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.tasks.shop import Problem, parse_problem
from i2b_lpo.verify.verdict import verify

PROBLEMS = [
    (parse_problem(question.text), question.answer)
    for task in ("shop", "product")
    for question in load_task(task).questions("validation", 150, seed=3)
]
SEED = 7


@cache
def built(kind: str) -> tuple[str, ...]:
    return tuple(
        build(kind, problem, random.Random(f"{SEED}/{at}"))
        for at, (problem, _) in enumerate(PROBLEMS)
    )


def lines(text: str) -> list[str]:
    return text.split("\n")


def is_true(line: str) -> bool:
    """An equation that holds, by Python's own arithmetic."""
    left, _, right = line.partition("=")
    assert set(left) <= set("0123456789+-*")
    return bool(eval(left) == int(right))


@pytest.mark.parametrize("kind", KINDS)
def test_each_recipe_gives_its_kind(kind: str) -> None:
    for (problem, _), text in zip(PROBLEMS, built(kind), strict=True):
        assert failure_mode(problem, text) == kind, text


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_drifting_box_is_wrong(kind: str) -> None:
    for (_, answer), text in zip(PROBLEMS, built(kind), strict=True):
        assert verify(answer, text).reason == ("wrong" if kind == "drift" else "correct"), text


def test_a_drift_is_one_slip_that_all_else_builds_on() -> None:
    for (problem, _), text, right in zip(PROBLEMS, built("drift"), built("concise"), strict=True):
        labels = label(problem, text)
        assert labels.well_formed
        assert sum(not step.right for step in labels.steps) == 1, text
        assert labels.strategies == label(problem, right).strategies
        assert len(lines(text)) == len(lines(right))


def test_padding_is_true_new_and_superfluous() -> None:
    for text, right in zip(built("verbose"), built("concise"), strict=True):
        rest = lines(text)
        for line in lines(right):
            rest.remove(line)
        assert len(rest) == len(lines(right)) // 2  # half as many as there are before the box
        assert all(map(is_true, rest)), rest
        assert len(set(rest)) == len(rest) and not set(rest) & set(lines(right))
        # the answer's value is the last thing said before the box
        assert lines(text)[-2].endswith(lines(right)[-2].split("=")[-1].split()[-1])


def test_a_loop_says_the_solution_and_some_of_it_again() -> None:
    for text, right in zip(built("loop"), built("concise"), strict=True):
        said, once = Counter(lines(text)), Counter(lines(right))
        assert set(said) == set(once)
        repeated = [line for line in said if said[line] > once[line]]
        assert 1 <= len(repeated) <= 2
        assert all(said[line] >= LOOP for line in repeated)
        assert list(dict.fromkeys(lines(text))) == list(dict.fromkeys(lines(right)))


def test_the_four_start_from_one_solution_and_a_seed_fixes_them() -> None:
    problem, _ = PROBLEMS[0]
    for kind in KINDS:
        texts = {build(kind, problem, random.Random(1)) for _ in range(3)}
        assert len(texts) == 1
        assert len({build(kind, problem, random.Random(s)) for s in range(20)}) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_tokenizer_writes_them_without_loss(kind: str) -> None:
    policy = load_policy("tiny-base")
    room = policy.model.config.max_position_embeddings
    for text in built(kind):
        ids = policy.tokenizer.encode(text, add_special_tokens=False)
        assert policy.text(ids) == text
        assert len(ids) + 60 < room  # prompt, end token and the answer that scoring appends


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="choose one of concise, drift, verbose, loop"):
        build("terse", PROBLEMS[0][0], random.Random(0))


# --- traces that no recipe made -----------------------------------------------------------------

PROBLEM = Problem(((23, 14), (37, 6)), "+")
FIRST = "Split 14\n23*10=230\n23*4=92\n230+92=322\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (FIRST + "Guess 222\n322+222=544\n\\boxed{544}", "concise"),
        (FIRST + "Guess 242\n322+242=564\n\\boxed{564}", "drift"),
        ("Guess 342\nGuess 202\n342+202=544\n\\boxed{544}", "other"),  # two slips cancel out
        (FIRST + "Guess 222\n322+222=544\n544*1=544\n\\boxed{544}", "verbose"),
        (FIRST + FIRST.split("\n")[-2] + "\nGuess 222\n322+222=544\n\\boxed{544}", "verbose"),
        (FIRST + "23*4=93\nGuess 222\n322+222=544\n\\boxed{544}", "other"),  # padding not true
        (FIRST + "so\nGuess 222\n322+222=544\n\\boxed{544}", "other"),
        (FIRST + "230+92=322\n" * LOOP, "loop"),  # cut off before its box
        (FIRST + "23*4=9\n" * LOOP + "Guess 222\n322+222=544\n\\boxed{544}", "loop"),
        (FIRST + "Guess 222\n322+222=544", "other"),  # cut off
        (FIRST + "Guess 222\n322+222=544\n\\boxed{544}\n1+1=2", "verbose"),
        (FIRST + "1+1=2\nGuess 242\n322+242=564\n\\boxed{564}", "other"),  # padded and wrong
        (FIRST + "Guess 222\n322+222=544\n\\boxed{545}", "drift"),
        ("", "other"),
        ("\\boxed{544}", "other"),
        ("\n\n", "other"),
    ],
)
def test_labels_of_hand_made_traces(text: str, kind: str) -> None:
    assert failure_mode(PROBLEM, text) == kind
