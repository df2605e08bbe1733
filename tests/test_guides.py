"""The guides for instructors, own tasks and own models: what they say runs, exists and adds up."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import i2b_lpo
from i2b_lpo import cli
from i2b_lpo.config import PRESETS, RunConfig
from i2b_lpo.tasks.domains import DOMAINS

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
OWN_TASK, OWN_MODEL, INSTRUCTOR = (
    TUTORIALS / f"{name}.md" for name in ("own_task", "own_model", "instructor")
)
RUNNABLE = pytest.mark.parametrize("guide", [OWN_TASK, OWN_MODEL], ids=lambda path: path.stem)
PRINTED = {
    OWN_TASK: (
        "{'train': 202, 'validation': 23}",
        "row 226: answer is missing",
        "row 227: the gold answer '18 dollars and 50 cents' is prose",
        r"so \boxed{32.0}  True",
        r"so \boxed{33}    False",
        "so 32            False",
        "gradient norm above 0: True",
        "control, the same reward for all: 0.0 gradient norm",
        "Split",
        "kept share of the branches: 0.67",
        "[('correct', True), ('partly', False), ('no_answer', False)]",
    ),
    OWN_MODEL: (
        "my-qwen2 29984 parameters",
        "kept share of the branches: 0.67",
        "0.5B [7, 7, 5] GiB on 1, 2, 8",
        "7B [113, 113, 71] GiB on 1, 2, 8",
        "No folder no-such-folder/of/mine;",
        "too coarse for small updates",
        "Weights can't be sharded over one process",
        "The latents in my-latents don't fit tiny-base",
    ),
}


def text_of(guide: Path) -> str:
    return guide.read_text("utf-8")


def blocks(guide: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(guide), re.M | re.S)


def commands(text: str) -> list[str]:
    """Indented shell lines that begin the package's own program, without their launcher."""
    found = re.findall(r"^    (i2b-lpo .+|torchrun .+)$", text, re.M)
    return [re.sub(r"^torchrun .*-m i2b_lpo\.cli ", "i2b-lpo ", line) for line in found]


@pytest.fixture
def domains() -> Iterator[None]:
    """The table is afterwards as it was: a guide enters a domain of its own."""
    known = dict(DOMAINS)
    yield
    DOMAINS.clear()
    DOMAINS.update(known)


@pytest.mark.slow
@RUNNABLE
@pytest.mark.usefixtures("domains")
@pytest.mark.filterwarnings("ignore")  # a row is left out on purpose; clusters of a few examples
def test_the_code_runs_and_prints_what_it_says(
    guide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "guide"}
    assert len(blocks(guide)) >= 5
    for number, block in enumerate(blocks(guide)):
        name = f"{guide.stem}, block {number}"
        exec(compile(block, name, "exec", dont_inherit=True), space)
    printed = capsys.readouterr().out
    missing = [line for line in PRINTED[guide] if line not in printed]
    assert missing == [], printed


@RUNNABLE
def test_the_commands_exist(guide: Path) -> None:
    lines = commands(text_of(guide))
    assert len(lines) >= 4
    for line in lines:
        if not line.startswith("torchrun"):  # the guide's own script
            cli._parser().parse_args(shlex.split(line)[1:])


def test_a_wrong_command_would_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = commands("    torchrun --nproc_per_node 2 -m i2b_lpo.cli train --shards --output a")
    with pytest.raises(SystemExit):
        cli._parser().parse_args(shlex.split(line)[1:])
    capsys.readouterr()


SETTING = re.compile(r"`(rollout|branch|grpo|ib|optimizer|checkpoint)\.([a-z_]+)`")


@pytest.mark.parametrize("guide", [OWN_TASK, OWN_MODEL, INSTRUCTOR], ids=lambda path: path.stem)
def test_the_settings_files_and_presets_exist(guide: Path) -> None:
    text = text_of(guide)
    for part, name in SETTING.findall(text):
        assert hasattr(getattr(RunConfig(), part), name), f"{part}.{name}"
    for file in re.findall(r"\]\(([^)#]+)\)", text):
        assert (guide.parent / file).exists(), file
    assert set(re.findall(r"--preset (\S+)", text)) <= set(PRESETS)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make ([a-z]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.M), target


@lru_cache
def sentences() -> str:
    """All string constants of the package, an f-string's parts joined by a space."""
    found = []
    for file in Path(i2b_lpo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value for v in node.values if isinstance(v, ast.Constant)]
                found.append(" … ".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_what_is_refused_is_refused_in_these_words() -> None:
    table = text_of(OWN_MODEL).partition("## 6.")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(quoted) >= 10
    assert [words for words in quoted if words not in sentences()] == []


# --- the instructor's plans add up ---------------------------------------------------------------


def section(title: str) -> str:
    found = re.search(rf"^## {title}.*?(?=^## |\Z)", text_of(INSTRUCTOR), re.M | re.S)
    assert found is not None, title
    return found[0]


@pytest.mark.parametrize(("title", "minutes"), [("90 minutes", 90), ("One day", 480)])
def test_the_minutes_of_a_plan_add_up(title: str, minutes: int) -> None:
    rows = re.findall(r"^\| (\d+) \|", section(title), re.M)
    assert sum(map(int, rows)) == minutes


def sets() -> dict[str, list[int]]:
    """The minutes of each exercise of each set."""
    return {
        file.stem[:2]: [int(n) for n in re.findall(r"· (\d+) minutes ·", file.read_text("utf-8"))]
        for file in sorted((TUTORIALS / "source").glob("*.py"))
    }


def test_the_homework_is_as_long_as_its_sets() -> None:
    rows = re.findall(r"sets? (\d\d)(?: and (\d\d))?: (\d+)", section("Four weeks"))
    named = [name for *names, _ in rows for name in names if name]
    assert named == list(sets())
    for *names, minutes in rows:
        assert sum(sum(sets()[name]) for name in names if name) == int(minutes), names


def test_the_exercises_of_a_plan_exist_and_fit_in() -> None:
    for title in ("90 minutes", "One day"):
        for row in re.findall(r"^\| (\d+) \| (.*?) \|", section(title), re.M):
            minutes, what = int(row[0]), row[1]
            asked = 0
            for name, first, last in re.findall(r"(\d\d)·(\d)(?:–\d\d·(\d))?", what):
                chosen = sets()[name][int(first) - 1 : int(last or first)]
                assert len(chosen) == int(last or first) - int(first) + 1, row
                asked += sum(chosen)
            assert asked <= minutes, row


def test_grading_adds_up_and_names_each_question() -> None:
    weights = re.findall(r"\| (\d+) % \|", section("Grading"))
    assert sum(map(int, weights)) == 100
    letters = re.findall(r"^\*\*([A-Z])\. .+\*\* .*Listen for: ", section("Discussion"), re.M)
    assert letters == list("ABCDEFG")
    plans = section("90 minutes") + section("One day") + section("Four weeks")
    assert set(re.findall(r"\b([A-G])\b", plans)) == set(letters)
    assert set(re.findall(r"^\| (\d\d) \|", section("Common errors"), re.M)) == set(sets())
