"""The site: the same notebooks and guides as in the repository, as pages. `make docs` builds it.

The source folder is the repository itself, so no page exists twice. Nothing is loaded from
elsewhere: MathJax comes from the package jupyter-server-mathjax.
"""

from __future__ import annotations

import ast
import importlib
import json
from importlib.util import resolve_name
from inspect import isclass, isroutine
from pathlib import Path
from typing import Any

import jupyter_server_mathjax
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import i2b_lpo

project = "i2b_lpo"
release = i2b_lpo.__version__
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/api/*.rst"]
include_patterns += ["notebooks/*.ipynb", "tutorials/**/*.ipynb", "tutorials/*.md"]
exclude_patterns = ["**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # pages show what is committed and what CI compares
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_render_markdown_format = "myst"

default_role = "py:obj"  # `advantages` in a docstring is a link where it names something
add_module_names = False
autodoc_default_options = {"member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

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


class Face(SphinxDirective):
    """The public names of a room, each under its module: `.. face:: i2b_lpo.method`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """All of them, as autodoc writes them."""
        (name,) = self.arguments
        face = importlib.import_module(name)
        if not hasattr(face, "__path__"):
            return self.parse_text_to_nodes(f".. automodule:: {name}\n   :members:\n")
        text = f".. automodule:: {name}\n"
        for home, members in _homes(face).items():
            title = home.rpartition(".")[2]
            text += f"\n{title}\n{'-' * len(title)}\n\n"
            tables = [member for member in members if _is_table(getattr(face, member))]
            shown = ", ".join(member for member in members if member not in tables)
            text += f".. automodule:: {home}\n"
            text += f"   :members: {shown}\n\n" if shown else "\n"  # no names would be all names
            text += "".join(f".. autodata:: {home}.{table}\n   :no-value:\n\n" for table in tables)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _is_table(value: Any) -> bool:
    """Whether it is a value, and too long to be shown."""
    return not isroutine(value) and not isclass(value) and len(repr(value)) > 80


def _homes(face: Any) -> dict[str, list[str]]:
    """The modules of a room, each with the names that its face, or the face's stub, takes of it."""
    file = Path(face.__file__)
    stub = file.with_suffix(".pyi")
    homes: dict[str, list[str]] = {}
    for node in ast.parse((stub if stub.exists() else file).read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            home = resolve_name("." * node.level + (node.module or ""), face.__name__)
            homes.setdefault(home, []).extend(alias.name for alias in node.names)
    return homes


def _values(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Before a value's docstring, an empty comment: napoleon takes words before a colon as type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


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
    app.add_directive("face", Face)
    app.connect("autodoc-process-docstring", _values, priority=400)  # napoleon's is 500
    app.connect("source-read", _pictures)
