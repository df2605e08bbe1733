"""Write the exercise and solution notebooks of tutorials/ from the sources of their sets.

    python scripts/make_tutorials.py [SOURCE…]

A source (by default all of tutorials/source/) is a Python file of cells in jupytext's percent
format. Its solution notebook runs offline with one thread; the exercise notebook has blanks instead
of solutions, and pictures of what the solution showed. Nothing is written unless all pass. Needs
Chrome for the pictures.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from execute_notebooks import METADATA, Failure, execute, write
from nbformat.v4 import new_markdown_cell, new_notebook

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
BLANK = re.compile(
    r"^(?P<indent> *)# --8<-- solution: (?P<missing>.+)\n(?P<code>(?:.*\n)*?) *# --8<-- end$", re.M
)
MARKER = "--8<--"
# In the tags of a cell. `exercise`: one function with a blank. `expected`: its outputs are shown to
# the learner beforehand, in a cell of their own with the tag `expected-output`.
EXERCISE, EXPECTED, SHOWN = "exercise", "expected", "expected-output"


def cells(source: Path, *, solved: bool) -> list[Any]:
    """The source's cells, with its solutions or with blanks; not executed."""
    found: list[Any] = jupytext.read(source, fmt="py:percent").cells
    for number, cell in enumerate(found):
        cell.id = f"{source.stem}-{number:02}"  # the same at every run
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        cell.source = BLANK.sub(_solution if solved else _blank, cell.source)
        if MARKER in cell.source:
            raise Failure(f"{source.name}, cell {number}: a marker without its other half.")
    return found


def _solution(match: re.Match[str]) -> str:
    return match["code"].rstrip("\n")


def _blank(match: re.Match[str]) -> str:
    missing = json.dumps(match["missing"], ensure_ascii=False)  # whatever quotes it holds
    return f"{match['indent']}raise NotImplementedError({missing})"


def notebook(found: list[Any]) -> Any:
    return new_notebook(cells=found, metadata=METADATA)


def exercises(source: Path, solution: Any) -> Any:
    """The learner's notebook: blanks, no outputs, and what to expect where it is to be shown."""
    made = []
    for cell, done in zip(cells(source, solved=False), solution.cells, strict=True):
        if EXPECTED in cell.metadata.get("tags", []):
            made.append(_shown(done))
        made.append(cell)
    return notebook(made)


def _shown(done: Any) -> Any:
    """A text cell with the outputs of an executed one; a picture's words are its alternative."""
    parts = ["**What you should see:**"]
    pictures: dict[str, dict[str, str]] = {}
    for output in done.outputs:
        if output.output_type == "stream":
            parts.append(f"```text\n{output.text.rstrip()}\n```")
            continue
        words = output.data["text/plain"]
        if "image/png" in output.data:
            name = f"expected-{len(pictures) + 1}.png"
            pictures[name] = {"image/png": output.data["image/png"]}
            parts.append(f"![{escaped(words)}](attachment:{name})")
        else:
            parts.append(f"```text\n{words.rstrip()}\n```")
    cell = new_markdown_cell("\n\n".join(parts), id=f"{done.id}-expected")
    cell.metadata = {"tags": [SHOWN]}
    if pictures:
        cell.attachments = pictures
    return cell


def escaped(words: str) -> str:
    """Words as they are, in a line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>$])", r"\\\1", " ".join(words.split()))


def made(source: Path) -> dict[Path, Any]:
    """The exercise and the executed solution notebook, by where they belong.

    The solution runs in a copy of the folders that learners get, outside the repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            TUTORIALS / "checks",
            Path(folder, "checks"),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        path = Path(folder, "solutions", f"{source.stem}.ipynb")
        path.parent.mkdir()
        nbformat.write(notebook(cells(source, solved=True)), path)
        solution = execute(path)
    found = {"exercises": exercises(source, solution), "solutions": solution}
    for each in found.values():
        nbformat.validate(each)
    return {TUTORIALS / kind / path.name: each for kind, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE")
    paths = parser.parse_args().sources or sorted((TUTORIALS / "source").glob("*.py"))
    write(paths, made)


if __name__ == "__main__":
    main()
