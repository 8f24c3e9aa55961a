"""The documents as a site, by Sphinx: python -m sphinx -W -c docs/site . build/site

The pages are the Markdown files of the repository, so that their links hold there as well. The
contents are the headings and links of docs/README.md, and notebooks are shown as pages. What is
built loads nothing from elsewhere, and its search runs from files.
"""

from __future__ import annotations

import json
import pathlib
import posixpath
import re
import shutil
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENTS = ROOT / "docs" / "README.md"

project = "pinsage_jax"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/tutorials/*.ipynb"]
# Folders without pages.
exclude_patterns = [
    *("docs/site", "docs/deploy", ".*", "*venv*", "build", "dist", "runs"),
    *("benchmarks", "experiments", "pinsage_jax", "tests"),
]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
# Anchors are those of GitHub.
myst_heading_anchors = 4
nitpicky = True
highlight_language = "none"
# Two hyphens begin a flag, and are no dash.
smartquotes = False

html_theme = "furo"
html_title = project
html_copy_source = html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]


def contents(index: str) -> list[tuple[str, list[str]]]:
    """(heading, names of its pages) of docs/README.md; a name is a path without suffix."""
    groups: list[tuple[str, list[str]]] = []
    for line in index.splitlines():
        if line.startswith("## "):
            groups.append((line[3:], []))
        elif found := re.match(r"\| \[[^]]*\]\(([^)#]+)\)", line):
            path = posixpath.normpath(posixpath.join("docs", found[1]))
            groups[-1][1].append(posixpath.splitext(path)[0])
    return groups


def toctrees(groups: list[tuple[str, list[str]]]) -> str:
    """The contents as directives, which show nothing on the page itself."""
    parts = []
    for caption, names in groups:
        pages = "\n".join(f"/{name}" for name in names)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```")
    return "\n\n".join(parts)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook in Markdown: text, code, and below the code what it printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _read(app: Any, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += "\n" + toctrees(contents(CONTENTS.read_text(encoding="utf-8"))) + "\n"
    elif name == "docs/README":
        # What it lists stands beside every page.
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    elif app.env.doc2path(name).suffix == ".ipynb":
        source[0] = notebook_page(json.loads(source[0]))


def _finish(app: Any, exception: Exception | None) -> None:
    if exception is None:
        # A browser that opens the folder asks for this name.
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("build-finished", _finish)
