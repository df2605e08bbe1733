"""The site builds without a warning, and no page of it loads anything from elsewhere."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

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


def test_every_page_is_there(site: Path) -> None:
    sources = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/*/*.ipynb")]
    sources += ROOT.glob("tutorials/*.md")
    missing = [
        s for s in sources if not (site / s.relative_to(ROOT)).with_suffix(".html").is_file()
    ]
    assert sources and missing == []
    assert (site / "index.html").is_file()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+"
    )
    found = {m[0] for page in site.rglob("*.html") for m in loads.finditer(page.read_text("utf-8"))}
    assert found == set()
    assert (site / "_static" / "MathJax.js").is_file()


def test_every_picture_of_a_notebook_has_its_words(site: Path) -> None:
    for source in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/solutions/*.ipynb")]:
        page = (site / source.relative_to(ROOT)).with_suffix(".html").read_text("utf-8")
        shown = re.findall(r'<img [^>]*?alt="([^"]*)"[^>]*src="[^"]*_images/', page)
        cells = json.loads(source.read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        drawn = [o["metadata"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        words = Counter(picture["alt"] for picture in drawn)
        assert words - Counter(map(html.unescape, shown)) == Counter(), source
