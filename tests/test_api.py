"""The package from Python: quick to import, the program's own functions, the example."""

import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

import pinsage_jax
from pinsage_jax import api, cli
from pinsage_jax.config import settings
from pinsage_jax.core import errors
from pinsage_jax.core.errors import UserError
from pinsage_jax.retrieval.neighbors import Related
from pinsage_jax.stages import modes, prepare, runs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_public_names_are_what_the_program_runs():
    assert pinsage_jax.settings is api.settings and pinsage_jax.Config is settings.Config
    assert pinsage_jax.UserError is errors.UserError
    of_the_stages = set(pinsage_jax.__all__) - {"Config", "PinSage", "settings", "UserError"}
    for name in of_the_stages:
        of_the_program = vars(prepare) | vars(runs)
        stage = modes.stage(name) if name in cli.MODES else of_the_program[name]
        assert getattr(pinsage_jax, name) is stage and callable(stage)
        assert stage.__doc__
    # What main finds by the name of the mode, and what its stages call.
    assert of_the_stages - set(cli.MODES) == {"load_graph", "embeddings"}
    assert set(pinsage_jax.__all__) <= set(dir(pinsage_jax))


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = pinsage_jax.trian


def test_the_import_brings_in_nothing_heavy():
    program = (
        "import sys, pinsage_jax; pinsage_jax.settings('w', epochs=2);"
        "print(sorted({'jax', 'numba', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_a_module_that_was_imported_does_not_hide_a_public_name():
    program = (
        "import importlib, pinsage_jax; from pinsage_jax.stages import modes;"
        "[importlib.import_module(f'pinsage_jax.stages.{m}') for m in modes.MODULES.values()];"
        "print([n for n in pinsage_jax.__all__ if not callable(getattr(pinsage_jax, n))])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_listing_neighbors_brings_in_no_training_code():
    program = (
        "import sys; from pinsage_jax.stages import modes; modes.stage('neighbors');"
        "heavy = ('pinsage_jax.training', 'optax', 'orbax', 'pinsage_jax.spark', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


# Libraries that take long to load.
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "numba", "llvmlite", "sklearn", "scipy"}
HEAVY |= {"matplotlib", "pyspark", "faiss", "starlette", "uvicorn"}


def run_and_list_modules(*arguments):
    """Runs the program in a process of its own: what it printed, the heavy modules loaded."""
    program = (
        "import sys; from pinsage_jax import main;"
        "code = main.main(['pinsage_jax', *sys.argv[1:]]);"
        f"print(code, sorted({HEAVY} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout, ran.stderr
    *printed, modules = ran.stdout.splitlines()
    return printed, modules


def test_a_query_for_neighbors_loads_nothing_that_it_does_not_use(trained):
    ids, _ = pinsage_jax.embeddings(trained)
    printed, modules = run_and_list_modules(
        f"--workdir={trained.workdir}", "--mode=neighbors", f"--query={ids[0]},{ids[1]}"
    )
    assert modules == "0 []"
    assert sum(line.startswith("query") for line in printed) == 2


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "--version"])
def test_answers_load_nothing_heavy(flag):
    assert run_and_list_modules(flag)[1] == "0 []"


def test_settings_are_those_of_the_flags(tmp_path):
    made = pinsage_jax.settings(
        tmp_path,
        edges=tmp_path / "e.csv",
        epochs=2,
        num_layers=2,
        synthetic=False,
        seed=7,
        threads=3,
    )
    assert (made.workdir, made.seed, made.threads) == (str(tmp_path), 7, 3)
    assert made.data.edges == str(tmp_path / "e.csv")
    assert type(made.train.epochs) is float and made.model.num_layers == 2
    assert made.train == settings.TrainConfig(epochs=2.0)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"epoch": 2}, "There is no setting --epoch;"),
        ({"epochs": "2"}, "--epochs='2' must be of type float or 'auto'."),
        ({"synthetic": 1}, "--synthetic=1 must be of type bool"),
        ({"k": True}, "--k=True must be of type int"),
        ({"k": 0}, "--k=0 must be at least 1."),
        ({"hard_low": 9, "hard_high": 3}, "hard_low=9 must be below hard_high=3."),
        ({"mode": "explain", "query": "a"}, "--target is required with --mode=explain."),
        ({"mode": "compare"}, "--compare_with is required with --mode=compare."),
        ({"mode": "doctor"}, "--edges is required"),
        ({"seed": "x"}, "--seed='x' must be of type int"),
    ],
)
def test_settings_that_cannot_work(values, sentence):
    with pytest.raises(UserError) as caught:
        pinsage_jax.settings("w", **values)
    assert str(caught.value).startswith(sentence)


def test_graph_embeddings_and_neighbors_as_values(trained, capsys):
    data = pinsage_jax.load_graph(trained)
    ids, vectors = pinsage_jax.embeddings(trained)
    assert ids == data.item_ids.ids.to_pylist() and vectors.shape == (300, 16)
    capsys.readouterr()
    found = pinsage_jax.neighbors(trained, [ids[3], ids[0]])
    assert capsys.readouterr().out == ""
    assert list(found) == [ids[3], ids[0]]
    scores = vectors @ vectors[0]
    scores[0] = -np.inf
    best = np.argsort(-scores, kind="stable")[:10]
    assert [other.item_id for other in found[ids[0]]] == [ids[row] for row in best]
    assert [other.score for other in found[ids[0]]] == pytest.approx(scores[best], abs=1e-5)
    assert all(isinstance(other, Related) for other in found[ids[0]])
    directions = vectors[:, :-1] / np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    cosines = directions[best] @ directions[0]
    assert [other.cosine for other in found[ids[0]]] == pytest.approx(cosines, abs=1e-5)
    with pytest.raises(UserError, match="there is no item nothing"):
        pinsage_jax.neighbors(trained, ["nothing"])


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example.py", str(tmp_path / "run")])
    left = runpy.run_path(str(ROOT / "experiments" / "example.py"))
    assert left["outcome"].step == 30
    assert left["vectors"].shape == (400, 32)
    assert [other.item_id for other in left["near"]] != [] and len(left["near"]) == 5
    assert left["why"]["embedding"]["rank_of_target"] == 1
    assert "hit@10:" in capsys.readouterr().out
