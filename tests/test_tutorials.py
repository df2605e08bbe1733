"""Exercise sets: stub equals solution up to the blanks, and checks name the usual mistakes.

The solution notebooks themselves are run by nbval, like the notebooks of notebooks/.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from torch.distributions import Categorical, Normal, kl_divergence

from i2b_lpo.config import IBConfig
from i2b_lpo.method.entropy import token_entropy, top_fraction
from i2b_lpo.method.ib import ESTIMATORS, Evidence
from i2b_lpo.method.latent import masked_mean

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
sys.path[:0] = [str(TUTORIALS), str(ROOT / "scripts")]

from checks.exercise import Exercise, NotRight, exercise  # noqa: E402
from make_tutorials import BLANK, EXERCISE, EXPECTED, MARKER, SHOWN, cells, exercises  # noqa: E402
from test_notebooks import problems  # noqa: E402

SOURCES = sorted((TUTORIALS / "source").glob("*.py"))
each_set = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
MAX_BYTES, MIN_ALT_TEXT, MIN_ANSWER = 300_000, 20, 12
CARD = re.compile(
    r"^Difficulty (?P<d>[●○]{5}) \((?P<difficulty>[1-5])/5\) · "
    r"importance (?P<i>[●○]{5}) \((?P<importance>[1-5])/5\) · "
    r"(?P<minutes>\d+) minutes · \*\*you learn\*\* \S.+$",
    re.M,
)


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def committed(kind: str, source: Path) -> Any:
    return nbformat.read(TUTORIALS / kind / f"{source.stem}.ipynb", as_version=4)


def checks_of(source: Path) -> dict[str, Exercise]:
    module = importlib.import_module(f"checks.set_{source.stem[:2]}")
    found = [value for value in vars(module).values() if isinstance(value, Exercise)]
    return {check.name: check for check in found}


def functions(notebook: Any) -> dict[str, Callable[..., Any]]:
    """The functions of the exercise cells, with the notebook's imports and nothing else."""
    space: dict[str, Any] = {"__name__": "notebook"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), space)
    before = set(space)
    for cell in code:
        if EXERCISE in tags(cell):
            exec(cell.source, space)
    return {name: space[name] for name in space if name not in before}


# --- one source, two notebooks -------------------------------------------------------------------


@each_set
def test_the_committed_notebooks_are_those_of_the_source(source: Path) -> None:
    for kind, solved in (("exercises", False), ("solutions", True)):
        found = [cell for cell in committed(kind, source).cells if SHOWN not in tags(cell)]
        made = cells(source, solved=solved)
        assert [(c.id, c.cell_type, tags(c)) for c in found] == [
            (c.id, c.cell_type, tags(c)) for c in made
        ], "run scripts/make_tutorials.py"
        for one, other in zip(found, made, strict=True):
            assert one.source == other.source, "run scripts/make_tutorials.py"


def stub_problems(stub: Any, solution: Any) -> list[str]:
    """One sentence for each difference between stub and solution that isn't a blank."""
    found = []
    mine = [cell for cell in stub.cells if SHOWN not in tags(cell)]
    if len(mine) != len(solution.cells):
        return [f"{len(mine)} cells, the solution has {len(solution.cells)}"]
    answers: list[str] = []
    for number, (cell, done) in enumerate(zip(mine, solution.cells, strict=True)):
        if cell.cell_type != done.cell_type or tags(cell) != tags(done):
            found.append(f"cell {number} is of another kind")
        elif cell.cell_type == "code" and (cell.outputs or cell.execution_count):
            found.append(f"cell {number} has outputs")
        elif MARKER in cell.source + done.source:
            found.append(f"cell {number} holds a marker of the source")
        elif EXERCISE in tags(cell):
            found += [f"cell {number} {problem}" for problem in _blank_problems(cell, done)]
            answers += _answer(cell, done)
        elif cell.source != done.source:
            found.append(f"cell {number} differs outside a blank")
    text = "\n".join(cell.source for cell in stub.cells)
    return found + [f"the answer {line!r} is left in" for line in answers if line in text]


def _blank_problems(cell: Any, done: Any) -> list[str]:
    stub, solution = ast.parse(cell.source).body, ast.parse(done.source).body
    if len(stub) != 1 or len(solution) != 1:
        return ["holds more than one function"]
    (blank,), (whole,) = stub, solution
    if not isinstance(blank, ast.FunctionDef) or not isinstance(whole, ast.FunctionDef):
        return ["holds no function"]
    found = []
    if any(
        ast.unparse(one) != ast.unparse(other)
        for one, other in ((blank.args, whole.args), (ast.Name(blank.name), ast.Name(whole.name)))
    ) or ast.dump(blank.returns or ast.Pass()) != ast.dump(whole.returns or ast.Pass()):
        found.append("has another signature")
    arguments = [*blank.args.args, *blank.args.kwonlyargs]
    if blank.returns is None or any(argument.annotation is None for argument in arguments):
        found.append("lacks type hints")
    if not ast.get_docstring(whole) or ast.get_docstring(blank) != ast.get_docstring(whole):
        found.append("has no docstring, or another one")
    *kept, last = blank.body
    if [ast.dump(node) for node in kept] != [ast.dump(node) for node in whole.body[: len(kept)]]:
        found.append("differs before its blank")
    words = re.fullmatch(r"raise NotImplementedError\('(.+)'\)", ast.unparse(last))
    if words is None or len(words[1]) < MIN_ANSWER:
        found.append("has no blank that says what is missing")
    return found


def _answer(cell: Any, done: Any) -> list[str]:
    kept = set(map(str.strip, cell.source.splitlines()))
    code = [line.split("  #")[0].strip() for line in done.source.splitlines()]
    return [line for line in code if len(line) >= MIN_ANSWER and line not in kept]


@each_set
def test_the_stub_is_the_solution_up_to_the_blanks(source: Path) -> None:
    assert stub_problems(committed("exercises", source), committed("solutions", source)) == []


# --- the form of a set ---------------------------------------------------------------------------


def form_problems(stub: Any, name: str) -> list[str]:
    """One sentence for each thing that a set lacks."""
    found = []
    words = [cell.source for cell in stub.cells if cell.cell_type == "markdown"]
    text = "\n\n".join(words)
    if not words[0].startswith(f"# Exercises {name[:2]} · ") or f"`{name}.ipynb`" not in words[0]:
        found.append("the first cell names no set and no notebook")
    head = re.search(r"\|---\|---\|---\|\n\| (\d+) \| [\d.]+ \| [\d.]+ GB \|", words[0])
    cards = list(CARD.finditer(text))
    if head is None or int(head[1]) != sum(int(card["minutes"]) for card in cards):
        found.append("the table of minutes is missing or isn't the sum of its exercises")
    for card in cards:
        for dots, number in ((card["d"], card["difficulty"]), (card["i"], card["importance"])):
            if dots != "●" * int(number) + "○" * (5 - int(number)):
                found.append(f"{dots} isn't {number}")
    titles = re.findall(r"^## (\d+) · \S", text, re.M)
    number = sum(EXERCISE in tags(cell) for cell in stub.cells)
    if not 3 <= number <= 6 or titles != [str(n + 1) for n in range(number)]:
        found.append(f"{number} exercises and the titles {titles}")
    if len(cards) != number:
        found.append(f"{len(cards)} lines with difficulty, importance, minutes and goal")
    for word in ("**Baseline**", "**Negative control**", "## Discuss"):
        if word not in text:
            found.append(f"no {word}")
    parts = re.split(r"^## \d+ · ", text, flags=re.M)[1:]
    for at, part in enumerate(parts, 1):
        if re.findall(r"<summary>(Help \d: what it means|Help \d: how to write it)", part) != [
            "Help 1: what it means",
            "Help 2: how to write it",
        ]:
            found.append(f"exercise {at} has not its two helps in order")
    if text.count("<details>") != text.count("</details>"):
        found.append("a help isn't closed")
    kinds = [
        kind
        for cell in stub.cells
        for kind in (EXERCISE, EXPECTED)
        if cell.cell_type == "code" and kind in tags(cell)
    ]
    if not kinds or kinds[-1] != EXPECTED or (EXERCISE, EXERCISE) in pairwise(kinds):
        found.append("an exercise shows no expected output")
    called = [cell.source for cell in stub.cells if cell.source.startswith("check.")]
    asked = [
        f"check.{ast.parse(cell.source).body[0].name}({ast.parse(cell.source).body[0].name})"
        for cell in stub.cells
        if EXERCISE in tags(cell)
    ]
    if called != asked:
        found.append(f"the checks {called} don't follow the exercises {asked}")
    return found


@each_set
def test_a_set_has_its_form(source: Path) -> None:
    assert form_problems(committed("exercises", source), source.stem) == []
    assert (ROOT / "notebooks" / f"{source.stem}.ipynb").is_file()


def shown_problems(stub: Any, solution: Any) -> list[str]:
    """Whether the learner sees beforehand what the solution really showed."""
    found, pictures = [], 0
    done = {cell.id: cell for cell in solution.cells}
    for cell, after in zip(stub.cells, [*stub.cells[1:], None], strict=True):
        if after is not None and EXPECTED in tags(after) and SHOWN not in tags(cell):
            found.append(f"{after.id} isn't shown beforehand")
        if SHOWN not in tags(cell):
            continue
        outputs = done[cell.id.removesuffix("-expected")].outputs
        pngs = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        attached = [picture["image/png"] for picture in cell.get("attachments", {}).values()]
        if attached != pngs:
            found.append(f"{cell.id} shows another picture than the solution")
        pictures += len(attached)
        alts = re.findall(r"!\[(.*)\]\(attachment:expected-\d\.png\)", cell.source)
        if len(alts) != len(attached) or any(len(alt) < MIN_ALT_TEXT for alt in alts):
            found.append(f"{cell.id} has a picture without words")
        printed = [o.text.rstrip() for o in outputs if o.output_type == "stream"]
        if not outputs or any(text not in cell.source for text in printed):
            found.append(f"{cell.id} doesn't show what the solution printed")
    if pictures < 2:
        found.append(f"{pictures} pictures")
    return found


@each_set
def test_the_expected_output_is_the_solution_s(source: Path) -> None:
    assert shown_problems(committed("exercises", source), committed("solutions", source)) == []


@each_set
def test_the_notebooks_keep_the_rules_of_notebooks(source: Path) -> None:
    assert problems(TUTORIALS / "solutions" / f"{source.stem}.ipynb") == []
    stub = problems(TUTORIALS / "exercises" / f"{source.stem}.ipynb")
    assert [found for found in stub if "execution count None" not in found] == []
    for kind in ("exercises", "solutions"):
        assert (TUTORIALS / kind / f"{source.stem}.ipynb").stat().st_size < MAX_BYTES


# --- the checks ----------------------------------------------------------------------------------


@each_set
def test_each_check_accepts_the_solution_and_refuses_the_stub(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = checks_of(source)
    right = functions(committed("solutions", source))
    blank = functions(committed("exercises", source))
    assert list(right) == list(blank) == list(checks)
    missing = [match["missing"] for match in BLANK.finditer(source.read_text("utf-8"))]
    for check, words in zip(checks.values(), missing, strict=True):
        check(right[check.name])
        assert capsys.readouterr().out.startswith(f"✓ {check.name}: right in ")
        with pytest.raises(NotRight) as caught:
            check(blank[check.name])
        assert str(caught.value) == f"{check.name} isn't written yet: {words}"


@each_set
def test_each_usual_mistake_is_named(source: Path) -> None:
    for check in checks_of(source).values():
        assert len(check.mistakes) >= 3, check.name
        words = [words for _, words in check.mistakes.values()]
        assert len(set(words)) == len(words)
        for name, (wrong, message) in check.mistakes.items():
            with pytest.raises(NotRight) as caught:
                check(wrong)
            assert str(caught.value) == f"{check.name}: {message}", name


def _starts(prompt: int, starts: list[int], lengths: list[int]) -> torch.Tensor:
    """A mask that begins with the trajectory, not with what is new in it."""
    mask = torch.zeros(len(starts), prompt + max(lengths), dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[prompt : prompt + length] = 1
    return mask


def _to_the_end(prompt: int, starts: list[int], lengths: list[int]) -> torch.Tensor:
    mask = torch.zeros(len(starts), prompt + max(lengths), dtype=torch.long)
    for row, start in zip(mask, starts, strict=True):
        row[prompt + start :] = 1
    return mask


# The usual mistakes again, written as a learner might, not as the check knows them.
SLIPS: list[tuple[str, str, Callable[..., Any], str]] = [
    (
        "set_01",
        "token_entropies",
        lambda logits, v: Categorical(logits=logits[:, :v]).entropy() / torch.tensor(2.0).log(),
        "this is in bits",
    ),
    (
        "set_01",
        "token_entropies",
        lambda logits, v: Categorical(logits=logits).entropy(),
        "the padded ids are counted",
    ),
    ("set_01", "solution_rows", lambda logits, n: logits.squeeze(0)[n:], "one row too late"),
    (
        "set_02",
        "prefix_before",
        lambda prompt, ids, t: ((prompt + ids)[: len(prompt) + t + 1], len(prompt) + t + 1),
        "you took the token after the fork",
    ),
    ("set_02", "update_mask", _starts, "the prefix is in the mask"),
    ("set_02", "update_mask", _to_the_end, "padding is in the mask"),
    (
        "set_03",
        "gaussian_kl",
        lambda mu_q, sigma_q, mu_p, sigma_p: kl_divergence(
            Normal(mu_p, sigma_p), Normal(mu_q, sigma_q)
        ),
        "KL is the wrong way round",
    ),
    (
        "set_02",
        "candidates",
        lambda entropies, fraction: [
            t
            for t, h in enumerate(entropies)
            if h >= sorted(entropies)[-max(1, math.ceil(fraction * len(entropies)))]
        ],
        "this is a threshold",
    ),
    ("set_03", "mean_embedding", lambda states, mask: states.mean(-2), "padding counts"),
    (
        "set_06",
        "group_advantages",
        lambda rewards, e: (
            (rewards - rewards.mean(-1, keepdim=True))
            / (rewards.var(-1, unbiased=False, keepdim=True).sqrt() + e)
        ),
        "the standard deviation is divided by G (ddof 0)",
    ),
]


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: f"{slip[1]}: {slip[3]}")
def test_a_slip_in_a_learner_s_own_words_is_named(
    slip: tuple[str, str, Callable[..., Any], str],
) -> None:
    module, name, answer, words = slip
    with pytest.raises(NotRight, match=f"^{name}: {re.escape(words)}"):
        getattr(importlib.import_module(f"checks.{module}"), name)(answer)


def _spoilt(value: Any) -> Any:
    """Nearly the same: a hundredth too large, or without its end."""
    if isinstance(value, torch.Tensor):
        return value * 1.01 + 0.01 if value.is_floating_point() else value + 1
    if isinstance(value, tuple):
        return tuple(map(_spoilt, value))
    if isinstance(value, dict):
        return {key: _spoilt(part) for key, part in value.items()}
    return value[:-1] if isinstance(value, list | str) else value * 1.01 + 0.01


@each_set
def test_no_check_accepts_a_wrong_answer_without_a_name(source: Path) -> None:
    for check in checks_of(source).values():
        right = check.right
        for wrong in (
            lambda *arguments: None,
            lambda *arguments: 0,
            lambda *arguments, right=right: _spoilt(right(*arguments)),
            lambda *arguments: [][0],
        ):
            with pytest.raises(NotRight, match=f"^{check.name}: "):
                check(wrong)


LIBRARY: dict[tuple[str, str], Callable[..., Any]] = {
    ("set_01", "token_entropies"): token_entropy,
    ("set_02", "candidates"): top_fraction,
    ("set_03", "mean_embedding"): masked_mean,
}


@pytest.mark.parametrize("key", LIBRARY, ids=".".join)
def test_the_library_passes_the_checks(key: tuple[str, str]) -> None:
    check: Exercise = getattr(importlib.import_module(f"checks.{key[0]}"), key[1])
    check(LIBRARY[key])


@each_set
def test_checks_need_no_library(source: Path) -> None:
    text = (TUTORIALS / "checks" / f"set_{source.stem[:2]}.py").read_text("utf-8")
    assert "import i2b_lpo" not in text and "from i2b_lpo" not in text


# --- what a check is -----------------------------------------------------------------------------


@exercise(lambda: [([3.0, 1.0],), ([2.0, 5.0, 4.0],)])
def ordered(values: list[float]) -> list[float]:
    return sorted(values)


@ordered.mistake("it runs downwards.")
def downwards(values: list[float]) -> list[float]:
    return sorted(values, reverse=True)


def sorted_in_place(values: list[float]) -> list[float]:
    values.sort()
    return values


def too_short(values: list[float]) -> list[float]:
    return sorted(values)[:2]


def downwards_and_short(values: list[float]) -> list[float]:
    return sorted(values, reverse=True)[:2]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (downwards, "ordered: it runs downwards."),
        (sorted_in_place, "ordered: the values are right, but an argument was changed in place; "),
        (downwards_and_short, "ordered: it runs downwards. (And something else isn't right yet.)"),
        (too_short, "ordered: for ([2.0, 5.0, 4.0]) expected [2.0, 4.0, 5.0], got [2.0, 4.0]"),
        (lambda values: None, "ordered: returned None; end the function in a return."),
        (lambda values: values[9], "ordered: ended in IndexError: list index out of range"),
        (lambda: None, "ordered: ended in TypeError: "),
    ],
)
def test_what_a_learner_is_told(answer: Callable[..., Any], words: str) -> None:
    with pytest.raises(NotRight) as caught:
        ordered(answer)
    assert str(caught.value).startswith(words)
    (shown,) = caught.value._render_traceback_()  # what Jupyter shows
    assert shown.startswith(f"✗ {words}")


def test_a_shape_is_told() -> None:
    @exercise(lambda: [(torch.ones(2, 3),)])
    def total(values: torch.Tensor) -> torch.Tensor:
        return values.sum(-1)

    with pytest.raises(NotRight, match=r"total: returned the shape \(3,\), expected \(2,\)\."):
        total(lambda values: values.sum(0))
    with pytest.raises(NotRight, match="total: returned list, where a tensor is expected"):
        total(lambda values: [3.0, 3.0])


def test_a_tensor_for_a_list_is_told() -> None:
    check = exercise(lambda: [()])(lambda: [1, 3])
    for given in ([1, 3], [1, 2]):
        with pytest.raises(NotRight, match="returned a tensor, where list is expected"):
            check(lambda given=given: torch.tensor(given))


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ([1, 3], ["1", 3], "got ['1', 3]"),
        (3, "3", "expected int, got str: 3"),
        ("3", 3, "expected str, got int: 3"),
        (3, np.int64(3), "expected int, got int64: 3"),
        ({"a": [0.5, 2.00001]}, {"a": [0.5, 2.00003]}, "at ['a'][1] expected 2.00001, got 2.00003"),
        ([(1.0, 0.123456)], [(1.0, 0.123458)], "at [0][1] expected 0.123456, got 0.123458"),
        (torch.tensor([1.0, 0.5]), torch.tensor([1.00003, 0.5]), "at [0] expected 1.0, got 1.0000"),
        ("a" * 150 + "b", "a" * 150 + "c", 'expected …"b\'", got …"c\'"'),
        (["a" * 150, 1], ["a" * 150, 2], "at [1] expected 1, got 2"),
    ],
)
def test_what_prints_alike_is_told_apart(right: Any, wrong: Any, words: str) -> None:
    check = exercise(lambda: [()])(lambda: right)
    with pytest.raises(NotRight) as caught:
        check(lambda: wrong)
    assert words in str(caught.value)
    halves = re.fullmatch(".*expected (.*), got (.*)", str(caught.value))
    assert halves and halves[1] != halves[2]


# --- the guards themselves: each defect is found, and a sound set has none -----------------------

SOLUTION = '''def half(x: float) -> float:
    """Half of x."""
    y = x + 0
    return y / 2 + 0 * y'''
STUB = SOLUTION.replace("return y / 2 + 0 * y", 'raise NotImplementedError("half of the number")')
CARD_LINE = "Difficulty ●○○○○ (1/5) · importance ●●○○○ (2/5) · 2 minutes · **you learn** to divide."
HELPS = "".join(
    f"<details><summary>Help {n}: {words}</summary>\n\nSo.\n\n</details>\n"
    for n, words in ((1, "what it means"), (2, "how to write it"))
)
HEAD = "# Exercises 01 · T\n\n`01_t.ipynb`\n\n| a | b | c |\n|---|---|---|\n| 6 | 0.1 | 0.5 GB |"
PNG = base64.b64encode(b"a picture").decode()
WORDS = "A picture in enough words."


def sound_set() -> tuple[Any, Any]:
    end = "**Baseline** **Negative control**\n\n## Discuss"
    source = [new_markdown_cell(HEAD)]
    for n in (1, 2, 3):
        picture = new_output("display_data", data={"image/png": PNG, "text/plain": WORDS})
        expected = new_code_cell("half(3)", metadata={"tags": [EXPECTED]}, outputs=[picture])
        source += [
            new_markdown_cell(f"## {n} · Halves\n\n{CARD_LINE}"),
            new_code_cell(SOLUTION, metadata={"tags": [EXERCISE]}),
            new_markdown_cell(HELPS),
            new_code_cell("check.half(half)"),
            expected,
        ]
    solution = new_notebook(cells=[*source, new_markdown_cell(end)])
    stub = deepcopy(solution)
    for cell in reversed(stub.cells):
        if EXERCISE in tags(cell):
            cell.source = STUB
        if EXPECTED in tags(cell):
            cell.outputs = []
            shown = new_markdown_cell(f"![{WORDS}](attachment:expected-1.png)")
            shown.id, shown.metadata = f"{cell.id}-expected", {"tags": [SHOWN]}
            shown.attachments = {"expected-1.png": {"image/png": PNG}}
            stub.cells.insert(stub.cells.index(cell), shown)
    return stub, solution


def set_problems(stub: Any, solution: Any) -> list[str]:
    return [
        *stub_problems(stub, solution),
        *form_problems(stub, "01_t"),
        *shown_problems(stub, solution),
    ]


def _replace(at: int, old: str, new: str) -> Callable[[Any, Any], None]:
    def defect(stub: Any, solution: Any) -> None:
        assert old in stub.cells[at].source
        stub.cells[at].source = stub.cells[at].source.replace(old, new)

    return defect


def _in_both(at: int, old: str, new: str) -> Callable[[Any, Any], None]:
    def defect(stub: Any, solution: Any) -> None:
        for notebook in (stub, solution):
            _replace(at, old, new)(notebook, None)

    return defect


def _outputs_left(stub: Any, solution: Any) -> None:
    stub.cells[6].outputs = solution.cells[5].outputs


def _old_picture(stub: Any, solution: Any) -> None:
    stub.cells[5].attachments["expected-1.png"]["image/png"] = "b2xk"


def _not_shown(stub: Any, solution: Any) -> None:
    del stub.cells[5]


def _cell_lost(stub: Any, solution: Any) -> None:
    del stub.cells[3]


DEFECTS: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "the answer": (_replace(2, STUB, SOLUTION), "cell 2 has no blank that says what is missing"),
    "the answer in a comment": (
        _replace(2, "    raise", "    # return y / 2 + 0 * y\n    raise"),
        "the answer 'return y / 2 + 0 * y' is left in",
    ),
    "the answer in a help": (
        _in_both(3, "So.", "`return y / 2 + 0 * y`"),
        "the answer 'return y / 2 + 0 * y' is left in",
    ),
    "signature": (_replace(2, "x: float", "x: int"), "cell 2 has another signature"),
    "docstring": (_replace(2, "Half of", "Twice"), "cell 2 has no docstring, or another one"),
    "before the blank": (_replace(2, "x + 0", "x + 1"), "cell 2 differs before its blank"),
    "silent blank": (_replace(2, '"half of the number"', ""), "cell 2 has no blank that says"),
    "other words": (_replace(1, "Halves", "Thirds"), "cell 1 differs outside a blank"),
    "outputs": (_outputs_left, "cell 5 has outputs"),
    "a cell lost": (_cell_lost, "16 cells, the solution has 17"),
    "marker": (_in_both(0, "# Ex", f"# {MARKER} Ex"), "cell 0 holds a marker of the source"),
    "minutes": (_in_both(0, "| 6 |", "| 7 |"), "the table of minutes is missing or isn't"),
    "dots": (_in_both(1, "●●○○○", "●○○○○"), "●○○○○ isn't 2"),
    "goal": (_in_both(1, "**you learn** to divide.", ""), "2 lines with difficulty"),
    "help": (_in_both(3, "Help 2", "Help"), "exercise 1 has not its two helps in order"),
    "help open": (_in_both(3, "</details>\n<", "<"), "a help isn't closed"),
    "control": (_in_both(-1, "**Negative control**", ""), "no **Negative control**"),
    "baseline": (_in_both(-1, "**Baseline**", ""), "no **Baseline**"),
    "discussion": (_in_both(-1, "## Discuss", ""), "no ## Discuss"),
    "check": (_in_both(4, "check.half(half)", "half(half)"), "the checks ["),
    "old picture": (_old_picture, "-expected shows another picture than the solution"),
    "not shown": (_not_shown, " isn't shown beforehand"),
    "no words": (_replace(5, WORDS, ""), "-expected has a picture without words"),
}


def test_a_sound_set_passes() -> None:
    assert set_problems(*sound_set()) == []


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_of_a_set_is_found(name: str) -> None:
    defect, words = DEFECTS[name]
    stub, solution = sound_set()
    defect(stub, solution)
    found = set_problems(stub, solution)
    assert any(words in problem for problem in found), found


def test_the_learner_s_notebook_is_made_of_the_solution(tmp_path: Path) -> None:
    text = (
        "# %% [markdown]\n# # Title\n\n"
        '# %% tags=["exercise"]\ndef one() -> int:\n    """One."""\n'
        "    # --8<-- solution: the number one\n    return 2 - 1\n    # --8<-- end\n\n\n"
        '# %% tags=["expected"]\none()\n'
    )
    source = tmp_path / "09_one.py"
    source.write_text(text, "utf-8")
    done = new_notebook(cells=cells(source, solved=True))
    words = "A ] picture * of one <b>"
    done.cells[2].outputs = [
        new_output("display_data", data={"image/png": PNG, "text/plain": words})
    ]
    assert done.cells[1].source == 'def one() -> int:\n    """One."""\n    return 2 - 1'
    stub = exercises(source, done)
    assert stub.cells[1].source.endswith('    raise NotImplementedError("the number one")')
    assert tags(stub.cells[2]) == [SHOWN]
    assert stub.cells[2].source.endswith(
        r"![A \] picture \* of one \<b\>](attachment:expected-1.png)"
    )
    ends = ("00", "01", "02-expected", "02")
    assert [cell.id for cell in stub.cells] == [f"09_one-{end}" for end in ends]
    source.write_text(text.replace("    # --8<-- end\n", ""), "utf-8")
    with pytest.raises(Exception, match=r"09_one.py, cell 1: a marker without its other half\."):
        cells(source, solved=True)


# --- index and glossary --------------------------------------------------------------------------


def test_the_index_lists_every_set() -> None:
    text = (TUTORIALS / "README.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == len(SOURCES)
    for row, source in zip(rows, SOURCES, strict=True):
        words = "\n".join(
            cell.source for cell in cells(source, solved=False) if cell.cell_type == "markdown"
        )
        titles = "; ".join(re.findall(r"^## \d+ · (.+)$", words, re.M))
        minutes = sum(int(card["minutes"]) for card in CARD.finditer(words))
        (title,) = re.findall(r"^# Exercises \d\d · (.+)$", words, re.M)
        links = "[{}](exercises/{}.ipynb) ([solution](solutions/{}.ipynb))".format(
            title, *(source.stem,) * 2
        )
        assert row == f"| {links} | {source.stem[:2]} | {minutes} | {titles} |"


def glossary() -> list[list[str]]:
    text = (TUTORIALS / "glossary.md").read_text("utf-8")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() != "symbol"]


def named_in_the_code(path: str) -> bool:
    """Whether a dotted name, with the parameter of a function in brackets, exists."""
    path, _, parameter = path.rstrip(")").partition("(")
    package, module, *names = path.split(".")
    found: Any = importlib.import_module(f"{package}.{module}")
    for name in names:
        if hasattr(found, name):
            found = getattr(found, name)
        elif name in getattr(found, "__annotations__", {}):
            return True
        else:
            return f"self.{name} = " in inspect.getsource(found)
    return not parameter or parameter in inspect.signature(found).parameters


def test_each_symbol_of_the_glossary_has_its_variable() -> None:
    rows = glossary()
    assert len(rows) > 40
    for symbol, _, code, _, page in rows:
        names = re.findall(r"`([^`]+)`", code)
        assert names and all(map(named_in_the_code, names)), f"{symbol}: {names}"
        assert list((ROOT / "notebooks").glob(f"{page}_*.ipynb")), f"{symbol}: page {page}"
    symbols = [row[0] for row in rows]
    assert len(set(symbols)) == len(symbols)


def test_the_glossary_gives_the_score_the_unit_that_its_estimators_have() -> None:
    """Twice the nats make twice the answer's part, or it isn't measured in nats."""
    units = {symbol: unit for symbol, _, _, unit, _ in glossary()}
    ours, _, others = units["$S_{IB}$"].partition(";")
    assert "default" in ours and "no unit" in ours and "nats" in others
    once, twice = (
        Evidence(
            ids=(1, 2),
            logprobs=(-0.5 * k, -0.1 * k),
            entropies=(0.4 * k, 0.2 * k),
            advantage=1.0,
            reference=2.0,
            answer=-0.5 * k,
            prior=-1.5 * k,
            conditioned=(0.3 * k, 0.1 * k),
        )
        for k in (1, 2)
    )
    for name, estimator in ESTIMATORS.items():
        parts = [estimator.score(evidence, IBConfig()).answer for evidence in (once, twice)]
        in_nats = parts[1] == pytest.approx(2 * parts[0])
        assert in_nats == (name != IBConfig().estimator), name


@pytest.mark.parametrize(
    "name",
    [
        "i2b_lpo.trace.Rollout.entropy",
        "i2b_lpo.method.psa.PSA.U_q",
        "i2b_lpo.method.grpo.policy_loss(masks)",
        "i2b_lpo.trace.Branches.p",
    ],
)
def test_a_name_that_is_not_in_the_code_is_found(name: str) -> None:
    with pytest.raises((AssertionError, TypeError, AttributeError)):
        assert named_in_the_code(name)
