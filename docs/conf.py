"""The site: the same notebooks and guides as in the repository, as pages. `make docs` builds it.

The source folder is the repository itself, so no page exists twice. Nothing is loaded from
elsewhere: MathJax comes from the package jupyter-server-mathjax.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jupyter_server_mathjax

import i2b_lpo

project = "i2b_lpo"
release = i2b_lpo.__version__
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "tutorials/**/*.ipynb", "tutorials/*.md"]
exclude_patterns = ["**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # pages show what is committed and what CI compares
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_render_markdown_format = "myst"

html_theme = "furo"
html_title = "i2b_lpo"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["root"]  # index.html of the site
html_static_path = [str(Path(jupyter_server_mathjax.__file__).parent / "static")]
mathjax_path = "MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
myst_update_mathjax = False
mathjax2_config = {
    "tex2jax": {
        "inlineMath": [["\\(", "\\)"]],
        "displayMath": [["\\[", "\\]"]],
        "processClass": "tex2jax_process|mathjax_process|math",
    },
    "HTML-CSS": {
        "availableFonts": [],
        "imageFont": None,
        "webFont": "STIX-Web",
        "linebreaks": {"automatic": True},
    },
}


def _pictures(app: Any, name: str, source: list[str]) -> None:
    """What myst-nb leaves out: pictures attached to a cell, and the words of those it put out."""
    if not source[0].startswith("{"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for file, kinds in cell.pop("attachments", {}).items():
            (kind, data), *_ = kinds.items()
            picture = f"data:{kind};base64,{''.join(data)}"
            text = "".join(cell["source"])
            cell["source"] = text.replace(f"attachment:{file}", picture)
        for output in cell.get("outputs", []):
            if words := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": words}}
    source[0] = json.dumps(notebook)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _pictures)
