"""The notebooks of docs/tutorials run, and hold what they show."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("docs_tutorials", ROOT / "docs" / "tutorials.py")
tutorials = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tutorials)
# Reads package lists from a Debian mirror.
FROM_A_MIRROR = "debian_packages.ipynb"
NOTEBOOKS = [
    pytest.param(path.name, marks=pytest.mark.network if path.name == FROM_A_MIRROR else ())
    for path in sorted(tutorials.FOLDER.glob("*.ipynb"))
]


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name):
    saved = json.loads((tutorials.FOLDER / name).read_text(encoding="utf-8"))
    found = tutorials.executed(json.loads(json.dumps(saved)))
    # Numbers may differ between machines; which cells show something does not.
    shows = [[bool(cell["outputs"]) for cell in code_cells(one)] for one in (saved, found)]
    assert shows[0] == shows[1] and sum(shows[0]) >= 8
    counts = [cell["execution_count"] for cell in code_cells(saved)]
    assert counts == list(range(1, len(counts) + 1))
    assert code_cells(found)[-1]["outputs"][0]["text"] == ["True\n"]


def test_an_error_in_a_cell_is_one_of_the_test():
    cell = {"cell_type": "code", "source": ["1 / 0"]}
    with pytest.raises(ZeroDivisionError):
        tutorials.executed({"cells": [cell]})
    cell = {"cell_type": "code", "source": ["x = 2\n", "print(x)\n", "x + 1"]}
    assert tutorials.executed({"cells": [cell]})["cells"][0]["outputs"][0]["text"] == ["2\n", "3\n"]
