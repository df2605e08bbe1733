"""What a user installs: the wheel's content, the declared versions, a clean tree."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "i2b_lpo"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
TEST = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
MB = 1_000_000


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def repository_files() -> list[Path]:
    """Tracked files, and new ones that git doesn't ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def run_python(
    code: str, *arguments: str, path: Path, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run code with `path` before everything else that can be imported."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as a wheel installs it: without the checkout beside it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_wheel_holds_the_whole_package_and_the_course_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        re.sub("^(notebooks|tutorials)/", r"i2b_lpo/_\1/", path.relative_to(ROOT).as_posix())
        for path in repository_files()
        if any(path.is_relative_to(ROOT / f) for f in ("i2b_lpo", "notebooks", "tutorials"))
    }
    info = f"i2b_lpo-{wheel.name.split('-')[1]}.dist-info"
    expected |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == expected | {f"{info}/licenses/LICENSE"}
    assert "i2b_lpo/py.typed" in names
    for kind in ("i2b_lpo/assets/", "i2b_lpo/_notebooks/", "i2b_lpo/_tutorials/"):
        assert any(name.startswith(kind) for name in names), f"the wheel holds nothing under {kind}"


def test_wheel_metadata(wheel: Path, installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text("utf-8"))
    assert metadata["Name"] == "i2b-lpo"
    assert metadata["Version"] == wheel.name.split("-")[1]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "i2b-lpo = i2b_lpo.cli:main" in (info / "entry_points.txt").read_text("utf-8")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text("utf-8")


def test_importing_the_installed_package_is_light(installed: Path, tmp_path: Path) -> None:
    code = """
import sys, i2b_lpo
assert "trace" in dir(i2b_lpo) and i2b_lpo.trace.__name__ == "i2b_lpo.trace"
assert not {"torch", "transformers", "plotly", "numpy"} & set(sys.modules), "not a light import"
try:
    i2b_lpo.no_such_module
except AttributeError as error:
    assert "no_such_module" in str(error)
else:
    raise AssertionError("an unknown name must raise")
print(i2b_lpo.__version__, i2b_lpo.__file__)
"""
    done = run_python(code, path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split(maxsplit=1)
    assert version == next(installed.glob("*.dist-info")).name.split("-")[1].removesuffix(".dist")
    assert Path(file.strip()).is_relative_to(installed)


@pytest.mark.parametrize("name", ["notebooks", "tutorials"])
def test_installed_package_hands_out_its_course(name: str, installed: Path, tmp_path: Path) -> None:
    code = "import sys; from i2b_lpo.cli import main; sys.exit(main(sys.argv[1:]))"
    course = tmp_path / "course"
    done = run_python(code, name, str(course), path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    def pages(folder: Path) -> dict[str, bytes]:
        found = [*folder.rglob("*.ipynb"), *folder.glob("checks/*.py")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    assert pages(ROOT / name)
    assert pages(course) == pages(ROOT / name)


def test_assets_stay_small_enough_to_ship() -> None:
    files = [path for path in (PACKAGE / "assets").rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    assert sizes
    assert sum(sizes.values()) <= 6 * MB
    weights = {path: size for path, size in sizes.items() if path.suffix == ".safetensors"}
    latents = [size for path, size in weights.items() if path.parent.name.endswith("-latents")]
    assert 0 < sum(latents) <= 2 * MB
    assert sum(weights.values()) - sum(latents) <= 4 * MB


# --- the declared versions -----------------------------------------------------------------------


@pytest.mark.parametrize("requirement", [*RUNTIME, *TEST], ids=str)
def test_ci_installs_a_version_inside_the_range(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)
    lower = [spec.version for spec in requirement.specifier if spec.operator == ">="]
    assert len(lower) == 1, "a range says where it starts"


def test_build_backend_is_the_tested_one() -> None:
    assert set(map(Requirement, PYPROJECT["build-system"]["requires"])) <= set(TEST)


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    # No paths, no editable installs, no local builds such as 2.13.0+cpu (one platform only).
    odd = [line for line in body if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert odd == []
    assert body == sorted(body, key=str.lower)
    assert len(pins()) == len(body)


@pytest.mark.skipif(sys.platform != "linux", reason="constraints.txt lists what Linux needs")
def test_constraints_cover_everything_that_gets_installed() -> None:
    pinned, missing, seen = pins(), set(), set()
    todo = [*RUNTIME, *TEST]
    for wanted in todo:
        found = Version(importlib.metadata.version(wanted.name)).base_version
        if found != pinned[canonicalize_name(wanted.name)].base_version:
            pytest.skip(f"has {wanted.name} {found}: not an environment made by `make env`")
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), *sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        if key[0] not in pinned:
            missing.add(key[0])
            continue
        for line in importlib.metadata.requires(wanted.name) or []:
            child = Requirement(line)
            # A CUDA build of torch brings its own set of packages, which fits that build only.
            cuda = key[0] == "torch" and re.match(r"nvidia|cuda|triton", child.name)
            here = child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            )
            if here and not cuda:
                todo.append(child)
    assert missing == set()


def test_constraints_fit_the_oldest_python_there_is_a_promise_for() -> None:
    # Debian 12 has 3.11.2: a pin that wants 3.11.5 leaves its users with a resolver's riddle.
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    wants = {
        found.name: found.metadata["Requires-Python"] or ""
        for found in importlib.metadata.distributions()
        if canonicalize_name(found.name) in pins()
    }
    assert len(wants) > 100
    assert [n for n, versions in wants.items() if oldest not in SpecifierSet(versions)] == []


def test_make_installs_the_pinned_torch_and_asks_for_the_same_python() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.findall(r"^TORCH := torch==(\S+)$", makefile, re.M) == [str(pins()["torch"])]
    floor = PROJECT["requires-python"].removeprefix(">=")
    assert f"sys.version_info < ({floor.replace('.', ', ')})" in makefile
    assert f"needs Python {floor} or newer" in makefile


def test_conda_environment_equals_pyproject() -> None:
    lines = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    (from_pip,) = [line["pip"] for line in lines if isinstance(line, dict)]
    assert from_pip.pop() == "-e ."
    names = {"pytorch": "torch", "python-kaleido": "kaleido"}
    conda = {}
    for line in [*from_pip, *(line for line in lines if isinstance(line, str) and line != "pip")]:
        requirement = Requirement(line)
        conda[names.get(requirement.name, requirement.name)] = requirement.specifier
    assert str(conda.pop("python")) == PROJECT["requires-python"]
    assert conda == {wanted.name: wanted.specifier for wanted in (*RUNTIME, *TEST)}


def imported_modules(tree: ast.Module) -> set[str]:
    """Top-level names of absolute imports, without those that answer for a missing package."""
    optional = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.Try)
        and any("ImportError" in ast.dump(handler) for handler in block.handlers)
        for statement in block.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in optional:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node not in optional:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - {"i2b_lpo"} - sys.stdlib_module_names


def test_every_import_is_a_declared_dependency() -> None:
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    undeclared = set()
    for file in PACKAGE.rglob("*.py"):
        for module in imported_modules(ast.parse(file.read_text("utf-8"))):
            if not declared & {canonicalize_name(name) for name in providers.get(module, [])}:
                undeclared.add(f"{file.relative_to(ROOT)}: {module}")
    assert undeclared == set()


# --- the tree ------------------------------------------------------------------------------------


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    folders = "|".join(("home", "root", "tmp", "work", "Users"))
    # "/" inside a word or an address (https://host/home/…) is no such path.
    pattern = re.compile(rf"(?<![\w.:/-])(?:[A-Z]:)?[/\\]{{1,2}}(?:{folders})[/\\]{{1,2}}\w+")
    for slash in ("/", "\\", "\\\\"):
        assert pattern.search(f"saved in C:{slash}Users{slash}ada")
    hits = []
    for path in repository_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in pattern.finditer(text)]
    assert hits == []


# --- the house -----------------------------------------------------------------------------------

LONGEST = 350  # lines of a module; a table may be longer, and none is
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi"))


def test_the_listing_explains_itself() -> None:
    assert len([*PACKAGE.glob("*.py")]) <= 10
    modules = [path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts]
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in modules}
    assert len(lines) > 100
    assert {str(path): n for path, n in lines.items() if n > LONGEST} == {}


@pytest.mark.slow
def test_every_face_names_what_its_modules_hold(tmp_path: Path) -> None:
    """A stub is read by type checkers alone: nothing else would notice a name that is gone."""
    assert len(ROOMS) >= 10
    code = f"""
import importlib, sys
for room in {ROOMS}:
    face = importlib.import_module(f"i2b_lpo.{{room}}")
    assert not {{"torch", "transformers"}} & set(sys.modules), f"{{room}} isn't lazy"
for room in {ROOMS}:
    face = importlib.import_module(f"i2b_lpo.{{room}}")
    assert face.__all__ and len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        found = getattr(face, name)
        assert type(found).__name__ != "module", f"{{room}}.{{name}} is a module"
"""
    done = run_python(code, path=ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_readme_lists_every_room() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    house = readme[readme.index("## The house") :]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    tops = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    told = set(re.findall(r"^ {6}([a-z]+)/ ", house, re.M)) - {"assets"}
    assert told == rooms
    assert all(f"{name}" in house for name in tops)
