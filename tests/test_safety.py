"""What a file from elsewhere cannot do, and what this project asks of its dependencies.

Titles that try to break out of a page are in test_report.py, test_explorer.py and, in a
browser, tests/explorer; two runs on one workdir in test_cli.py; ids that look
like paths in test_fuzzing.py.
"""

import ast
import io
import os
import pathlib
import re
import tomllib
import zipfile

import numpy as np
import pytest
from fuzz_tables import HOSTILE
from source_rules import pickle_complaints

from pinsage_jax import main
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("way", ["array", "archive", "bare"])
def test_a_pickle_is_refused_and_never_run(way, tmp_path):
    proof, path = tmp_path / "unpickled", tmp_path / "indices.npy"
    array = np.array([Payload(proof)], dtype=object)
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    if way == "array":
        path.write_bytes(content.getvalue())
    elif way == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("indices.npy", content.getvalue())
    else:
        # What follows the header is the pickle itself.
        path.write_bytes(content.getvalue()[content.getvalue().index(b"\n") + 1 :])
    for mapped in (True, False):
        with pytest.raises(UserError, match=r"indices\.npy is damaged"):
            files.read_array(path, mmap=mapped)
    assert not proof.exists()
    # The file is a loaded gun: with pickles allowed it goes off.
    if way == "array":
        np.load(path, allow_pickle=True)
        assert proof.exists()


@pytest.mark.parametrize("folder", ["benchmarks", "experiments", "docs"])
def test_no_pickle_outside_the_package_either(folder):
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert pickle_complaints(str(path), tree) == []


def requirements():
    """(where, requirement) for everything that pyproject.toml asks for."""
    project = PROJECT["project"]
    yield from (("build", text) for text in PROJECT["build-system"]["requires"])
    yield from (("dependencies", text) for text in project["dependencies"])
    for extra, texts in project["optional-dependencies"].items():
        yield from ((extra, text) for text in texts)


@pytest.mark.parametrize("where,text", list(requirements()))
def test_every_dependency_has_a_lower_and_an_upper_bound(where, text):
    if text.startswith("pinsage-jax["):
        return
    requirement = text.partition(";")[0]
    match = re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z0-9,-]+\])?>=([0-9.]+),<([0-9.]+)", requirement)
    assert match, f"{text} of {where} is not NAME>=LOW,<HIGH"
    low, high = (tuple(map(int, part.split("."))) for part in match.groups()[1:])
    assert low < high


@pytest.mark.long
def test_no_id_or_title_decides_where_anything_is_written(tmp_path):
    """A whole run on hostile names leaves its files in the workdir alone."""
    names = [*HOSTILE, *(f"../../{number}/.." for number in range(40))]
    rng = np.random.default_rng(0)
    lines = ["collection_id,item_id"]
    for _ in range(600):
        pair = (names[rng.integers(len(names))].replace('"', '""') for _ in range(2))
        lines.append(",".join(f'"{name}"' for name in pair))
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "edges.csv").write_text("\n".join(lines), encoding="utf-8", newline="")
    work = tmp_path / "a" / "b" / "c" / "work"
    small = ["--batch_size=64", "--random_negatives=16", "--max_steps=3", "--hidden_dim=16"]
    small += ["--layer_dim=16", "--output_dim=16", "--spectral_dim=8", "--embed_walks=auto"]
    small += ["--num_walks=20", "--hard_walks=20", "--bootstrap=0"]
    common = ["program", f"--edges={inputs / 'edges.csv'}", f"--workdir={work}", *small]
    for mode in ("pipeline", "neighbors", "recommend", "split"):
        assert main.main([*common, f"--mode={mode}"]) == 0
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and work not in path.parents}
    assert outside == {inputs / "edges.csv"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "inputs"]
