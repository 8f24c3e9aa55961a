"""Runs the notebooks of docs/tutorials and writes what their cells show into them.

  python docs/tutorials.py

Without Jupyter: the cells are plain Python, and what a cell shows is its printed text and its
last expression as text.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).parent / "tutorials"


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with new outputs; an error of a cell is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        shown = _shown("".join(cell["source"]), names)
        cell["execution_count"] = number
        text = shown.splitlines(keepends=True)
        cell["outputs"] = (
            [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
        )
    return notebook


def _shown(source: str, names: dict[str, Any]) -> str:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            if value is not None:
                print(value if isinstance(value, str) else repr(value))
    return out.getvalue()


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        found = executed(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
