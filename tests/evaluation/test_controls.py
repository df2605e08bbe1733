"""A control must be fair: as loud as z, as deep as the forks, and as dear. What is committed is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/source/*.py")])
SCRIPTS = sorted(ROOT.glob("benchmarks/*.py"))
POLICIES = ("tiny-base", "tiny-grpo")


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


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_loud_control_is_as_long_as_z_and_the_quiet_one_is_not(policy: str) -> None:
    length = result(f"steering_{policy}")["length of z"]
    assert length["matched"] == pytest.approx(length["prior"], rel=0.05)
    assert length["standard_normal"] < 0.5 * length["prior"]


@pytest.mark.parametrize("policy", POLICIES)
def test_forks_at_equal_depth_are_as_deep_and_as_dear_as_entropy_forks(policy: str) -> None:
    whole = result(f"forks_{policy}")["whole"]
    entropy, dealt = whole["entropy forks"], whole["equal depth"]
    assert dealt["depth"] == pytest.approx(entropy["depth"], abs=0.02)
    assert dealt["tokens"] == pytest.approx(entropy["tokens"], rel=0.02)
