"""The site builds without a warning and loads nothing from elsewhere; what is cited exists."""

from __future__ import annotations

import ast
import html
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

import i2b_lpo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    cache = tmp_path_factory.mktemp("doctrees")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-c", str(ROOT / "docs"), "-d", str(cache), str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    sources = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/*/*.ipynb")]
    sources += [*ROOT.glob("tutorials/*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/*.rst")]
    missing = [
        s for s in sources if not (site / s.relative_to(ROOT)).with_suffix(".html").is_file()
    ]
    assert sources and missing == []
    assert (site / "index.html").is_file()


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+"
    )
    found = {m[0] for page in site.rglob("*.html") for m in loads.finditer(page.read_text("utf-8"))}
    assert found == set()
    assert (site / "_static" / "MathJax.js").is_file()


@pytest.mark.slow
def test_every_public_name_is_on_the_page_of_its_room(site: Path) -> None:
    rooms = set(i2b_lpo.__all__) - {"about", "cli", "commands"}
    assert rooms == {page.stem for page in ROOT.glob("docs/api/*.rst")}
    for room in rooms:
        page = (site / "docs" / "api" / f"{room}.html").read_text("utf-8")
        shown = re.findall(rf'<dt [^>]*id="i2b_lpo\.{room}\.(?:[a-z_]+\.)?(\w+)">', page)
        assert sorted(shown) == sorted(getattr(i2b_lpo, room).__all__), room


@pytest.mark.slow
def test_every_picture_of_a_notebook_has_its_words(site: Path) -> None:
    for source in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/solutions/*.ipynb")]:
        page = (site / source.relative_to(ROOT)).with_suffix(".html").read_text("utf-8")
        shown = re.findall(r'<img [^>]*?alt="([^"]*)"[^>]*src="[^"]*_images/', page)
        cells = json.loads(source.read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        drawn = [o["metadata"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        words = Counter(picture["alt"] for picture in drawn)
        assert words - Counter(map(html.unescape, shown)) == Counter(), source


# --- what is cited ------------------------------------------------------------------------------

METHOD = ROOT / "docs" / "method.md"
ROOMS = ("i2b_lpo", "tests", "benchmarks", "scripts", "tutorials", "notebooks", "docs")
CITED = re.compile(r"METHOD (§\d+(?:(?:–|, | and )§\d+)*)(?!\d)")


@lru_cache
def pages() -> dict[Path, str]:
    """All files that people read, each as one line; of notebooks, cells and the text they print."""
    found = {}
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*")]
    for file in [*ROOT.glob("*.md"), *files]:
        if file.suffix == ".ipynb" and ".ipynb_checkpoints" not in file.parts:
            cells = json.loads(file.read_text("utf-8"))["cells"]
            outputs = [output for cell in cells for output in cell.get("outputs", [])]
            texts = ["".join(cell["source"]) for cell in cells]
            texts += ["".join(output.get("text", "")) for output in outputs]
        elif file.suffix in (".py", ".md"):
            texts = [file.read_text("utf-8")]
        else:
            continue
        # A citation may be broken over two lines, in a comment or a string of two parts too.
        lines = "\n".join(texts).splitlines()
        found[file] = " ".join(re.sub(r"^#:? |\"$|^f?\"", "", line.strip()) for line in lines)
    return found


def sections() -> set[str]:
    return set(re.findall(r"^## (§\d+) ", METHOD.read_text("utf-8"), re.M))


def strange(text: str, known: set[str]) -> list[str]:
    """Citations that name no section, or that aren't written `METHOD §4`."""
    named = [part for match in CITED.finditer(text) for part in re.findall(r"§\d+", match[1])]
    rest = CITED.sub("", text)
    bare = [rest[max(0, m.start() - 30) : m.end() + 10] for m in re.finditer(r"§|METHOD\.md", rest)]
    return [part for part in named if part not in known] + bare


def test_every_cited_section_of_the_method_exists() -> None:
    known = sections()
    assert known == {f"§{n}" for n in range(10)}
    cited = [match for text in pages().values() for match in CITED.finditer(text)]
    assert len(cited) > 80
    own = (METHOD, Path(__file__))
    found = {str(file): strange(text, known) for file, text in pages().items() if file not in own}
    assert {file: what for file, what in found.items() if what} == {}


def test_the_issue_form_on_the_method_offers_its_sections() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/deviation.yml").read_text("utf-8"))
    menus = [part for part in form["body"] if part["type"] == "dropdown"]
    assert [part["attributes"]["options"] for part in menus] == [sorted(sections())]


@pytest.mark.parametrize(
    "text", ["METHOD §10", "see METHOD.md §4", "§4 of the method", "METHOD §1, §12", "(§6)"]
)
def test_a_strange_citation_is_seen(text: str) -> None:
    assert strange("METHOD §2–§4 and METHOD §1, §6", sections()) == []
    assert strange(text, sections()) != []


def test_the_method_page_says_where_its_sections_come_from() -> None:
    text = METHOD.read_text("utf-8")
    parts = dict(zip(*[iter(re.split(r"^## (§\d+) .*$", text, flags=re.M)[1:])] * 2, strict=True))
    untagged = [name for name, part in parts.items() if not re.search(r"\[[PSCID][],]", part)]
    assert untagged == ["§7", "§9"]  # faults of [C] by their title; further reading
    assert {int(n) for part in parts.values() for n in re.findall(r"§(\d+)", part)} <= set(
        range(10)
    )


def prose(file: Path) -> Iterator[str]:
    """Docstrings and comments of a module, or a whole page of Markdown."""
    source = file.read_text("utf-8")
    if file.suffix == ".md":
        yield source
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@lru_cache
def modules() -> list[str]:
    return [f"/{file.relative_to(ROOT).as_posix()}" for file in pages() if file.suffix == ".py"]


def missing_files(text: str) -> list[str]:
    """Names like psa.py or tests/method/test_psa.py that no file of the repository has."""
    names = re.findall(r"(?<![\w./*])[a-z0-9_/]+\.py\b", text)
    return [name for name in names if not any(m.endswith(f"/{name}") for m in modules())]


READ = [file for file in pages() if file.suffix in (".py", ".md") and "tests" not in file.parts]


@pytest.mark.parametrize("file", READ, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_docstrings_comments_and_guides_point_to_exists(file: Path) -> None:
    for text in prose(file):
        assert missing_files(text) == []


def test_a_pointer_to_nothing_is_seen() -> None:
    assert missing_files("Not here: other methods (baselines.py), see psa.py.") == ["baselines.py"]
    assert missing_files("benchmarks/forks.py and i2b_lpo/forks.py") == ["i2b_lpo/forks.py"]


def test_no_page_promises_a_notebook_that_is_not_there() -> None:
    there = {file.name[:2] for file in ROOT.glob("notebooks/*.ipynb")}
    told = re.compile(r"[Nn]otebooks? ((?:\d\d(?:, | and | to )?)+)")
    for file, text in pages().items():
        if file != Path(__file__):
            named = {n for match in told.finditer(text) for n in re.findall(r"\d\d", match[1])}
            assert named <= there, file
