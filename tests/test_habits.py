"""What contributors rely on, kept equal to what it repeats: changelog, hooks, workflow, forms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version
from test_packaging import PROJECT, PYPROJECT, ROOT, pins

import i2b_lpo

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.stem != "config")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


# --- the changelog -------------------------------------------------------------------------------


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    parts = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (Unreleased|\d{4}-\d\d-\d\d)", h) for h in headings
    ]
    found = [part.groups() for part in parts if part]
    assert len(found) == len(headings) >= 2, headings
    versions = [Version(version) for version, _ in found]
    assert versions[0] == Version(i2b_lpo.__version__)
    assert versions == sorted(set(versions), reverse=True)
    assert "Unreleased" not in [when for _, when in found[1:]]
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# --- hooks and workflow --------------------------------------------------------------------------


def test_hooks_are_the_ruff_of_make_test() -> None:
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["rev"] == f"v{pins()['ruff']}"
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_workflow_runs_every_python_that_is_promised() -> None:
    matrix = load(GITHUB / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = "Programming Language :: Python :: 3."
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(named)]
    assert matrix["python"] == promised
    assert f">={promised[0]}" == PROJECT["requires-python"]


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load(GITHUB / "workflows" / "test.yml")["jobs"]["test"]["steps"]
    return found


def test_the_workflow_pins_its_actions() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []


def modules(text: str) -> set[str]:
    """Each line's module with its arguments: what follows a Python of any name."""
    return set(re.findall(r"python (-m .+)$", text, re.M))


def test_the_workflow_runs_what_make_test_runs() -> None:
    linux, install, tests = [step["run"] for step in steps() if "run" in step]
    assert shlex.split(linux)[0] == "make" and shlex.split(linux)[-1] == "test"
    (index,) = re.findall(r"TORCH_INDEX=(\S+)", linux)
    assert f"TORCH_INDEX={index}\n" in (ROOT / "README.md").read_text("utf-8")
    # Elsewhere: as README tells Windows, and then the first of Makefile's two calls of pytest.
    assert modules(install) <= modules((ROOT / "README.md").read_text("utf-8"))
    assert modules(tests) < modules((ROOT / "Makefile").read_text("utf-8"))


def test_types_and_tests_find_the_same_modules() -> None:
    tools = PYPROJECT["tool"]
    assert set(tools["pytest"]["ini_options"]["pythonpath"]) <= set(tools["mypy"]["mypy_path"])


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_shows(path: Path) -> None:
    form = load(path)
    assert (
        {"name", "description", "body"} <= form.keys() <= {"name", "description", "labels", "body"}
    )
    keys = {"input": set(), "textarea": {"render"}, "dropdown": {"options"}}
    names = [part["id"] for part in form["body"]]
    assert len(set(names)) == len(names)
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        allowed = {"label", "description", "placeholder"} | keys[part["type"]]
        assert {"label"} <= part["attributes"].keys() <= allowed, part["id"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])
