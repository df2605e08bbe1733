"""reasoning-gym's generators as tasks: by a stand-in for the library, and by the library itself."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from verifying import POSIX

from i2b_lpo.tasks.domains import judge
from i2b_lpo.tasks.gym import GYM
from i2b_lpo.tasks.loading import load_examples, load_task
from i2b_lpo.trace import Question
from i2b_lpo.verify import pool as pools
from i2b_lpo.verify.judges import GRADING

pytestmark = POSIX
INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
REAL = pytest.mark.skipif(not INSTALLED, reason="needs reasoning-gym")

# What the library offers of itself, as far as it is used; its scores are made to be told apart.
STAND_IN = '''
class Count:
    """Counts to its seed; the score is the share of it that an answer reaches, and more."""

    def __init__(self, seed):
        self.seed = seed

    def __getitem__(self, at):
        return {"question": f"Count to {self.seed}.", "answer": str(self.seed)}

    def score_answer(self, answer, entry):
        import colorsys  # a scorer loads what it needs late

        if answer == "raise":
            raise KeyError(answer)
        return eval(answer) / int(entry["answer"])


class Open(Count):
    def __getitem__(self, at):
        return {"question": f"A number below {self.seed}?", "answer": None}

    def score_answer(self, answer, entry):
        return float(int(answer) < self.seed)  # not of None


def create_dataset(name, *, seed, size):
    if name == "composite":
        raise ValueError("it needs more than a name")
    return {"count": Count, "open": Open}[name](seed + 1)
'''


@pytest.fixture
def gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in in the library's place, here and in child processes."""
    package = tmp_path / "site" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "factory.py").write_text("DATASETS = {'count': 1, 'open': 1, 'composite': 1}")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(pools, "_shared", {})
    yield
    pools.shared_pool(GRADING).close()


def scored(question: Question, answer: str) -> tuple[float, str]:
    (found,) = judge([question], [f"<think>hm</think> <answer> {answer}\n</answer>"])
    assert found.answer == answer
    return found.reward, found.reason


# --- questions ------------------------------------------------------------------------------------


def test_splits_have_disjoint_seeds_and_are_reproducible(gym: None) -> None:
    task = load_task("gym:count")
    drawn = {split: task.questions(split, 40, seed=1) for split in ("train", "validation", "test")}
    seeds = {split: {int(q.answer) - 1 for q in found} for split, found in drawn.items()}
    assert {name: {s % 3 for s in found} for name, found in seeds.items()} == {
        "train": {0}, "validation": {1}, "test": {2},
    }  # fmt: skip
    assert drawn["train"] == load_task("gym:count").questions("train", 40, seed=1)
    assert drawn["train"] != task.questions("train", 40, seed=2)
    assert task.batch(3, 5, seed=0) == task.batch(3, 5, seed=0) != task.batch(4, 5, seed=0)
    question = drawn["train"][0]
    assert (question.task, question.domain, task.name) == ("gym:count", "gym", "gym:count")
    assert len({q.id for found in drawn.values() for q in found}) == 120
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        task.questions("dev", 1, seed=0)


def test_a_question_with_many_answers_has_no_gold_one(gym: None) -> None:
    question = load_task("gym:open").questions("train", 1, seed=0)[0]
    assert question.answer == ""
    assert scored(question, "0") == (1.0, "correct")
    assert scored(question, str(2**40)) == (0.0, "wrong")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:cont", "no generator 'cont'; choose one such as count"),
        ("gym:", "no generator ''; choose one such as composite, count, open"),
        (
            "gym:composite",
            "draws no question from composite by its name alone",
        ),
        ("gym", "Unknown task 'gym'; choose one of shop, product, functions, gym:NAME, gsm8k"),
    ],
)
def test_a_name_that_is_no_generator_is_refused(name: str, said: str, gym: None) -> None:
    with pytest.raises(ValueError, match=said):
        load_task(name)


def test_the_library_is_imported_in_its_process_alone(gym: None) -> None:
    question = load_task("gym:count").questions("train", 1, seed=0)[0]
    assert scored(question, question.answer)[0] == 1.0
    assert "reasoning_gym" not in sys.modules


def test_without_the_library_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("i2b_lpo.tasks.gym.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install it by pip install 'i2b-lpo\[gym\]'"):
        load_task("gym:chain_sum")
    assert load_task("shop").name == "shop", "it is imported only where it is asked for"
    with pytest.raises(ValueError, match=r"no solved examples.* choose one of shop, product"):
        load_examples("gym:chain_sum")


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "before"),
    [
        ("so <answer>3</answer>", "3", "so "),
        ("<answer>3</answer> no <answer>\n4 5\n</answer>.", "4 5", "<answer>3</answer> no "),
        ("<answer>3</answer> or </answer>", "3", ""),
        ("<answer><answer>3</answer>", "3", "<answer>"),
        ("<answer>3</answer> <answer>4", "3", ""),  # what is judged is the closed one
        ("so <answer>3", None, "so "),
        ("so 3</answer>", None, None),
        ("3", None, None),
    ],
)
def test_the_last_closed_tags_hold_the_answer(
    text: str, answer: str | None, before: str | None
) -> None:
    assert GYM.extract(text) == answer
    at = GYM.begins(text)
    assert (None if at is None else text[:at]) == before


def test_scores_are_rewards(gym: None) -> None:
    question = load_task("gym:count").questions("train", 1, seed=0)[0]
    gold = int(question.answer)
    assert scored(question, str(gold)) == (1.0, "correct")
    assert scored(question, f"{gold}*0.5") == (0.5, "partly")
    assert scored(question, "0") == (0.0, "wrong")
    assert scored(question, f"2*{gold}") == (1.0, "correct"), "at most 1"
    assert scored(question, "-1") == (0.0, "wrong"), "at least 0"
    assert scored(question, "float('nan')") == (0.0, "wrong")
    assert scored(question, "raise") == (0.0, "unparsable")
    assert scored(question, "'a'") == (0.0, "unparsable")
    assert scored(question, "#" * 10_001) == (0.0, "too_long")
    texts = ["<answer></answer>", "<answer> </answer>", "3", f"<answer>{gold}</answer>"]
    found = judge([question] * 4, texts)
    assert [(v.reward, v.reason) for v in found] == [(0.0, "no_answer")] * 3 + [(1.0, "correct")]


def test_an_answer_that_is_evaluated_does_no_harm(
    gym: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2b_lpo.tasks.gym.TIMEOUT", 1.0)
    question = load_task("gym:count").questions("train", 1, seed=0)[0]
    made = tmp_path / "made"
    for answer in (
        f"open({str(made)!r}, 'w').write('x')",
        f"__import__('os').mkdir({str(made)!r})",
        f"__import__('os').system('touch {made}')",
        "__import__('subprocess').run(['true']).returncode or 10**20",
        "exit()",
    ):
        assert scored(question, answer) == (0.0, "unparsable"), answer
    assert not made.exists()
    assert scored(question, "9**9**9") == (0.0, "timeout")
    assert scored(question, question.answer) == (1.0, "correct")


# --- the library itself ---------------------------------------------------------------------------


@REAL
@pytest.mark.parametrize(
    "generator", ["chain_sum", "spell_backward", "mini_sudoku", "polynomial_multiplication"]
)
def test_the_librarys_own_answers_score_1(generator: str) -> None:
    task = load_task(f"gym:{generator}")
    questions = task.questions("validation", 3, seed=0)
    assert questions == load_task(f"gym:{generator}").questions("validation", 3, seed=0)
    assert {scored(q, q.answer) for q in questions} == {(1.0, "correct")}
    assert {scored(q, "no idea")[0] < 1 for q in questions} == {True}


@REAL
def test_the_librarys_fractions_arrive() -> None:
    question = load_task("gym:chain_sum").questions("train", 1, seed=0)[0]
    reward, reason = scored(question, f"{question.answer} apples")
    assert reason == "partly"
    assert reward == pytest.approx(len(question.answer) / len(f"{question.answer} apples"))
    other = replace(question, checks=question.checks.replace("chain_sum", "spell_backward"))
    assert scored(other, question.answer)[0] < 1, "the generator is the question's own"


@REAL
def test_the_librarys_scorers_that_evaluate_are_confined(tmp_path: Path) -> None:
    question = load_task("gym:countdown").questions("train", 1, seed=0)[0]
    made = tmp_path / "made"
    assert scored(question, f"open({str(made)!r}, 'w').write('x')")[0] < 1
    assert not made.exists()
    assert scored(question, question.answer) == (1.0, "correct")
