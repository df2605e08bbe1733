"""Committed notebooks: run in order, readable without a kernel, and really compared by nbval.

`make test` runs this file and the notebooks in one session, so that conftest.py's rules for nbval
hold: pytest --nbval tests/test_notebooks.py notebooks/*.ipynb
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = (ROOT / "tests" / "nbval_sanitize.cfg").read_text("utf-8")
MACHINE_PATH = re.compile("|".join(("/home" + "/", "/root" + "/", "/tmp" + "/", r"C:\\+Users")))
MAX_BYTES, MAX_LINES, MAX_COLUMNS, MIN_ALT_TEXT = 1_000_000, 30, 76, 20


def output_problems(output: Any) -> list[str]:
    if output.output_type == "stream":
        return []
    if output.output_type == "error":
        return [f"ended in {output.ename}"]
    found = [f"shows {kind}" for kind in output.data if kind not in ("image/png", "text/plain")]
    alt = output.data.get("text/plain", "")
    if "image/png" in output.data and (len(alt) <= MIN_ALT_TEXT or alt.startswith("<Figure")):
        found.append(f"has a picture with the alt text {alt!r}")
    return found


def problems(path: Path) -> list[str]:
    """One sentence for each rule that a notebook breaks."""
    found = []
    if path.stat().st_size >= MAX_BYTES:
        found.append(f"the file has {path.stat().st_size} bytes")
    if hit := MACHINE_PATH.search(path.read_text("utf-8")):
        found.append(f"the file names a machine's path: {hit.group()}")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if "widgets" in notebook.metadata:
        found.append("metadata.widgets is set")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        if cell.execution_count != number:
            found.append(f"code cell {number} has the execution count {cell.execution_count}")
        lines = cell.source.splitlines()
        if len(lines) > MAX_LINES:
            found.append(f"code cell {number} has {len(lines)} lines")
        if (width := max(map(len, lines), default=0)) > MAX_COLUMNS:
            found.append(f"code cell {number} has a line of {width} columns")
        for output in cell.outputs:
            found += [f"code cell {number} {problem}" for problem in output_problems(output)]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path: Path) -> None:
    assert problems(path) == []


# "notebooks 02 to 04", "Notebook 00, 06", and a table's cell "07, 08".
NAMED = re.compile(r"[Nn]otebooks? ((?:\d\d(?:, | and | to | or )?)+)|\| (0\d(?:, 0\d)*) (?=\|)")


def named_notebooks(text: str) -> set[str]:
    found = " ".join(part for parts in NAMED.findall(text) for part in parts)
    return set(re.findall(r"\d\d", found))


def test_no_page_promises_a_notebook_that_is_not_there() -> None:
    there = {path.stem[:2] for path in NOTEBOOKS}
    folders = ("notebooks", "tutorials", "docs", "i2b_lpo", "benchmarks", "scripts")
    pages = [path for name in folders for path in sorted((ROOT / name).rglob("*.*"))]
    pages += ROOT.glob("*.md")
    missing = {}
    for path in pages:
        if path.suffix not in (".md", ".py", ".ipynb"):
            continue
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            text = "\n".join(cell.source for cell in cells)
        else:
            text = path.read_text("utf-8")
        if promised := named_notebooks(text) - there:
            missing[path.relative_to(ROOT).as_posix()] = sorted(promised)
    assert missing == {}
    assert named_notebooks("notebooks 02 to 04, Notebook 00 | all | 07, 08 | 40 |") == {
        "02", "04", "00", "07", "08",
    }  # fmt: skip


# --- the guards themselves: each defect is found, and a sound notebook has none ------------------


def sound_notebook() -> Any:
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "Token entropy along four rollouts."}
    notebook = new_notebook(cells=[new_markdown_cell("# Title")])
    for count, output in enumerate(
        (new_output("stream", text="4\n"), new_output("display_data", data=picture)), start=1
    ):
        cell = new_code_cell("2 + 2", execution_count=count, outputs=[output])
        notebook.cells.append(cell)
    return notebook


def _unrun(notebook: Any) -> None:
    notebook.cells[2].execution_count = None


def _out_of_order(notebook: Any) -> None:
    notebook.cells[1].execution_count = 7


def _error(notebook: Any) -> None:
    notebook.cells[1].outputs = [new_output("error", ename="ValueError", evalue="", traceback=[])]


def _widget_state(notebook: Any) -> None:
    notebook.metadata["widgets"] = {}


def _path_in_output(notebook: Any) -> None:
    notebook.cells[1].outputs[0].text = "saved to " + "/home" + "/ada/run"


def _windows_path(notebook: Any) -> None:
    notebook.cells[1].source = 'open("C:' + "\\\\" + 'Users")'


def _large(notebook: Any) -> None:
    notebook.cells[0].source = "x" * MAX_BYTES


def _no_alt_text(notebook: Any) -> None:
    del notebook.cells[2].outputs[0].data["text/plain"]


def _empty_alt_text(notebook: Any) -> None:
    notebook.cells[2].outputs[0].data["text/plain"] = "<Figure size 640x480 with 1 Axes>"


def _long_cell(notebook: Any) -> None:
    notebook.cells[1].source = "x = 1\n" * (MAX_LINES + 1)


def _wide_cell(notebook: Any) -> None:
    notebook.cells[1].source = "#" * (MAX_COLUMNS + 1)


def _html(notebook: Any) -> None:
    notebook.cells[2].outputs[0].data["text/html"] = "<b>4</b>"


DEFECTS: dict[Callable[[Any], None], str] = {
    _unrun: "code cell 2 has the execution count None",
    _out_of_order: "code cell 1 has the execution count 7",
    _error: "code cell 1 ended in ValueError",
    _widget_state: "metadata.widgets is set",
    _path_in_output: "the file names a machine's path: /home" + "/",
    _windows_path: "the file names a machine's path: C:",
    _large: "the file has ",
    _no_alt_text: "code cell 2 has a picture with the alt text ''",
    _empty_alt_text: "code cell 2 has a picture with the alt text '<Figure",
    _long_cell: "code cell 1 has 31 lines",
    _wide_cell: "code cell 1 has a line of 77 columns",
    _html: "code cell 2 shows text/html",
}


def test_a_sound_notebook_passes(tmp_path: Path) -> None:
    nbformat.write(sound_notebook(), tmp_path / "sound.ipynb")
    assert problems(tmp_path / "sound.ipynb") == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__.strip("_"))
def test_each_defect_is_found(defect: Callable[[Any], None], tmp_path: Path) -> None:
    notebook = sound_notebook()
    defect(notebook)
    nbformat.write(notebook, tmp_path / "defect.ipynb")
    (found,) = problems(tmp_path / "defect.ipynb")
    assert found.startswith(DEFECTS[defect])


# --- nbval: its rules are read, and a changed output fails ---------------------------------------


def test_nbval_reads_every_sanitize_rule() -> None:
    written = [line for line in SANITIZE.splitlines() if line.strip().lower().startswith("regex")]
    read = get_sanitize_patterns(SANITIZE)
    assert len(read) == len(written) > 0
    assert len(dict(read)) == len(read), "nbval keeps only the last of two equal rules"
    for regex, replacement in read:
        re.sub(regex, replacement, "")


@pytest.mark.parametrize(
    ("text", "sanitized"),
    [
        ("took 1.25 s, 88.1 ms a step", "took TIME, TIME a step"),
        ("peak 213 MB at 1,204 tokens/s", "peak MEMORY at SPEED"),
        ("<object at 0x7f3a00>", "<object at ADDRESS>"),
        # What a notebook teaches is compared to the last digit.
        ("H = 0.693 nats at t = 12, s = 5, 3 steps", "H = 0.693 nats at t = 12, s = 5, 3 steps"),
        ("A = ±0.86587543; 64 tokens", "A = ±0.86587543; 64 tokens"),
    ],
)
def test_sanitize_rules_touch_only_clock_and_memory(text: str, sanitized: str) -> None:
    for regex, replacement in get_sanitize_patterns(SANITIZE):
        text = re.sub(regex, replacement, text)
    assert text == sanitized


LIVE = """
import sys
from IPython.display import display
print("a progress bar", file=sys.stderr)
live = {"text/html": "<b>words</b>", "application/vnd.plotly.v1+json": {}}
display({"text/plain": "words", **live}, raw=True)
"""


@pytest.mark.slow
def test_nbval_compares_text_and_skips_only_live_forms(tmp_path: Path) -> None:
    def cell(source: str, **data: str) -> Any:
        output = new_output("display_data", data={"text/plain": data.pop("plain"), **data})
        return new_code_cell(source, execution_count=1, outputs=[output])

    cells = [
        cell(LIVE, plain="words", **{"image/png": "iVBORw0KGgo="}),
        cell(LIVE, plain="other words"),
        cell("2 + 2", plain="4"),
        cell("2 + 2", plain="5"),
        cell("class Timing:\n    def __repr__(self): return '3.5 s'\n\nTiming()", plain="9.25 s"),
        new_code_cell("print(1)", execution_count=1, outputs=[new_output("stream", text="2\n")]),
        new_code_cell(
            "import socket\nsocket.create_connection(('192.0.2.1', 80))", execution_count=1
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "made.ipynb")
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest"]
    command += [
        "-p",
        "no:cacheprovider",
        "-rA",
        "--color=no",
        "--nbval",
        str(tmp_path / "made.ipynb"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    verdicts = re.findall(r"^(PASSED|FAILED) \S*::Cell (\d+)", done.stdout, re.M)
    assert {int(number): verdict for verdict, number in verdicts} == {
        0: "PASSED",  # stderr, HTML, plotly JSON and PNG differ, the text is equal
        1: "FAILED",
        2: "PASSED",
        3: "FAILED",
        4: "PASSED",  # a sanitized time
        5: "FAILED",
        6: "FAILED",  # the kernel has no network either
    }, done.stdout + done.stderr
    assert "Tests run without a network" in done.stdout
