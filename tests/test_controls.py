"""A control must be fair: beside z ~ N(0, I), which is quiet, stands one that is as loud as z."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/source/*.py")])
SCRIPTS = sorted(ROOT.glob("benchmarks/*.py"))


def code(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text("utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def quiet_alone(text: str) -> bool:
    """Whether z ~ N(0, I) is a control here without one that is as loud as z."""
    return ("standard_normal" in text or "N(0, I)" in text) and "matched" not in text


@pytest.mark.parametrize(
    "path", [*PAGES, *SCRIPTS], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_control_as_loud_as_z_stands_beside_every_quiet_one(path: Path) -> None:
    assert not quiet_alone(code(path))
