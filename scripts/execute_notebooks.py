"""Execute notebooks and write the outputs that are committed: pictures and text, no live forms.

    python scripts/execute_notebooks.py [NOTEBOOK…]

Each notebook (by default all of notebooks/) runs in a fresh kernel of this Python, in its own
folder, offline, with one thread. Nothing is written unless all pass. Needs Chrome for the pictures.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import kaleido
import nbformat
from choreographer.errors import ChromeNotFoundError
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
PLOTLY = "application/vnd.plotly.v1+json"
WIDTH, SCALE, TIMEOUT = 960, 1.2, 900  # CSS pixels, picture pixels for each; seconds a cell
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this Python, not one of the user's own
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},  # the same for every version of Python
}


class Failure(Exception):
    """What is wrong, in one line that names the notebook and the cell."""


def execute(path: Path) -> Any:
    """The notebook with the outputs of a run from top to bottom in a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    code = [(at, cell) for at, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with client.setup_kernel():
        for number, (at, cell) in enumerate(code, 1):
            where = f"{path.name}, code cell {number}"
            try:
                client.execute_cell(cell, at)
            except CellExecutionError as error:
                raise Failure(f"{where}: {error.ename}: {error.evalue}") from error
            except (CellTimeoutError, DeadKernelError) as error:
                raise Failure(f"{where}: {type(error).__name__} ({TIMEOUT} s a cell)") from error
            cell.outputs = [kept for output in cell.outputs for kept in committed(output, where)]
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
    notebook.metadata = METADATA
    return notebook


def committed(output: Any, where: str) -> list[Any]:
    """What is committed of one output: text as it is, a figure as a picture with its words."""
    if output.output_type == "stream":
        if output.name == "stdout":
            return [output]
        print(f"{where}, not kept: {output.text.rstrip()}", file=sys.stderr)
        return []
    text, figure = output.data.get("text/plain", ""), output.data.get(PLOTLY)
    output.data, output.metadata = {"text/plain": text}, {}
    if figure is not None:
        if not text or text.startswith("Figure("):
            raise Failure(f"{where}: a figure without words; end the cell in a View.")
        height = int(figure["layout"].get("height", 450))
        output.data["image/png"] = base64.b64encode(png(figure, height)).decode()
        # Where nbconvert's classic template looks for the alternative text.
        output.metadata = {"image/png": {"alt": text, "height": height, "width": WIDTH}}
    return [output]


def png(figure: dict[str, Any], height: int) -> bytes:
    """A picture of plotly's JSON."""
    options = {"format": "png", "width": WIDTH, "height": height, "scale": SCALE}
    drawn = {part: figure[part] for part in ("data", "layout")}
    # Without this setting kaleido fetches MathJax from a CDN.
    return bytes(kaleido.calc_fig_sync(drawn, opts=options, kopts={"mathjax": False}))


def checked(notebook: Any, path: Path) -> str:
    """The file's text; no path of this machine may be in it."""
    text: str = nbformat.writes(notebook) + "\n"
    for place in (ROOT, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())):
        if json.dumps(str(place) + os.sep)[1:-1] in text:
            raise Failure(f"{path.name} names {place}; print a path that holds on any machine.")
    return text


def write(paths: Iterable[Path], make: Callable[[Path], dict[Path, Any]]) -> None:
    """Write the notebooks that `make` makes of each path, once all are made."""
    os.environ.update(ENVIRONMENT)
    written: dict[Path, str] = {}
    try:
        png({"data": [], "layout": {}}, 100)  # a missing Chrome fails now, not after minutes
        for path in paths:
            made = make(path)
            written |= {place: checked(notebook, place) for place, notebook in made.items()}
            print(f"{path.name}: passed", flush=True)
    except ChromeNotFoundError:
        sys.exit("No Chrome was found to draw the pictures; on Debian: apt install chromium.")
    except (Failure, OSError, ValueError) as error:
        sys.exit(f"{error}\nNothing was written.")
    for place, text in written.items():
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    paths = parser.parse_args().notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    write(paths, lambda path: {path: execute(path)})


if __name__ == "__main__":
    main()
