"""The object of Python: its examples, its inputs, its errors, and what it leaves behind."""

import contextlib
import doctest
import gc
import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy import sparse

import pinsage_jax
from pinsage_jax.core.errors import UserError
from pinsage_jax.estimator import base, frames, wording
from pinsage_jax.estimator import model as module

SMALL = {
    "epochs": 1, "hidden_dim": 8, "layer_dim": 8, "output_dim": 8, "spectral_dim": 4,
    "batch_size": 16, "random_negatives": 16, "pairs_per_epoch": 64, "num_walks": 20,
    "popularity_weight": 0.5, "hard_walks": 20, "num_neighbors": 5, "bootstrap": 20,
    "threads": 1, "devices": 1,
}  # fmt: skip
ITEMS = 40


def shop():
    """Edges and items of a small shop, as pandas tables."""
    rng = np.random.default_rng(0)
    edges = pd.DataFrame(
        [(f"basket-{b}", f"item-{i}") for b in range(30) for i in rng.choice(ITEMS, 6, False)],
        columns=["collection_id", "item_id"],
    )
    items = pd.DataFrame(
        {
            "item_id": [f"item-{i}" for i in range(ITEMS)],
            "title": [f"thing number {i} of kind {i % 4}" for i in range(ITEMS)],
            "price": [float(i % 9) for i in range(ITEMS)],
            "kind": ["abcd"[i % 4] for i in range(ITEMS)],
        }
    )
    return edges, items


@pytest.fixture(scope="module")
def model():
    edges, items = shop()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        fitted = pinsage_jax.PinSage(**SMALL).fit(edges, items, categorical=["kind"])
    assert out.getvalue() == err.getvalue() == ""
    return fitted


def test_the_examples_of_the_docstrings(model):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names = {"model": model, "pinsage_jax": pinsage_jax}
    found = [doctest.testmod(m, extraglobs=names, optionflags=flags) for m in (module, base)]
    assert [one.failed for one in found] == [0, 0] and found[0].attempted > 12


def test_lists_are_those_of_the_vectors(model):
    vectors, ids = model.embeddings_.copy(), model.item_ids_
    assert vectors.dtype == np.float32 and len(ids) == ITEMS
    vectors[:, -1] *= np.sqrt(0.5)
    found = model.similar_items("item-3", n=5).to_pydict()
    row = ids.index("item-3")
    scores = vectors @ vectors[row]
    scores[row] = -np.inf
    assert found["item"] == [ids[i] for i in np.argsort(-scores, kind="stable")[:5]]
    assert found["title"][0] == f"thing number {found['item'][0][5:]} of kind " + str(
        int(found["item"][0][5:]) % 4
    )
    several = model.similar_items(np.array(["item-3", "item-4"]), n=5)
    assert several["item"].to_pylist()[:5] == found["item"]
    assert several["query"].to_pylist() == ["item-3"] * 5 + ["item-4"] * 5


def test_rules(model):
    asked = model.similar_items(
        "item-3", n=40, where="kind == query.kind and price < 5", block=["item-7"],
        columns=["kind", "price"],
    )  # fmt: skip
    assert set(asked["kind"].to_pylist()) == {"d"} and max(asked["price"].to_pylist()) < 5
    assert "item-7" not in asked["item"].to_pylist()
    each = model.similar_items("item-3", n=40, one_per="kind", allow=pa.array(model.item_ids_))
    assert each.num_rows == 4
    liked = model.recommend(["item-1", "item-2"], n=40, where="price > 3", columns="price")
    assert min(liked["price"].to_pylist()) > 3
    assert not {"item-1", "item-2"} & set(liked["item"].to_pylist())


def test_new_items(model):
    new = pd.DataFrame(
        {"item_id": ["fresh", "other"], "title": ["thing of kind 1", "thing of kind 2"],
         "price": [1.0, 2.0], "kind": ["b", "c"]}
    )  # fmt: skip
    vectors = model.embed(new, {"collection_id": ["basket-1"], "item_id": ["fresh"]})
    assert vectors.shape == (2, 8) and np.isfinite(vectors).all()
    listed = model.similar_items(new, n=41, columns=["price"])
    assert listed["query"].to_pylist()[0] == "fresh"
    assert "other" in listed["item"].to_pylist()[:41]
    with pytest.raises(UserError, match="Item 'item-3' in row 1 of items is in the catalog"):
        model.embed(shop()[1].iloc[3:4])


def test_evaluation_of_pairs_writes_nothing(model):
    pairs = pd.DataFrame({"query_id": ["item-1", "item-4"], "target_id": ["item-2", "item-9"]})
    before = sorted(path.name for path in model.workdir_.rglob("*"))
    found = model.evaluate(pairs)
    assert found["pairs"] == 2 and "pinsage" in found["methods"]
    assert sorted(path.name for path in model.workdir_.rglob("*")) == before


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "kept")
    again = pinsage_jax.PinSage.load(tmp_path / "kept")
    assert again.item_ids_ == model.item_ids_ and again.get_params()["epochs"] == 1
    assert (again.embeddings_ == model.embeddings_).all()
    wanted = model.similar_items("item-3", where="price < 5")
    assert again.similar_items("item-3", where="price < 5").equals(wanted)
    assert str(model.workdir_) not in (tmp_path / "kept" / "run.flags").read_text()
    # The command line reads the same folder.
    config = pinsage_jax.settings(tmp_path / "kept")
    listed = pinsage_jax.neighbors(config, ["item-3"])["item-3"]
    assert [one.item_id for one in listed] == model.similar_items("item-3")["item"].to_pylist()
    with pytest.raises(UserError, match="exists already"):
        model.save(tmp_path / "kept")
    with pytest.raises(UserError, match=r"holds no prepared data; call fit\(\) first"):
        pinsage_jax.PinSage.load(tmp_path)


def test_a_temporary_folder_goes_with_the_object():
    fitted = pinsage_jax.PinSage(**SMALL).fit([["a", "b", "c"], ["b", "c", "d"], ["a", "d"]] * 4)
    folder = fitted.workdir_
    assert folder.exists()
    del fitted
    gc.collect()
    assert not folder.exists()


def tables():
    """The same edges in every form that is taken."""
    yield "lists", [["0", "1"], ["1", "2"]]
    yield "dictionary of lists", {"0": ["0", "1"], "1": ["1", "2"]}
    columns = {"collection_id": [0, 0, 1, 1], "item_id": [0, 1, 1, 2]}
    yield "columns", columns
    yield "pandas", pd.DataFrame(columns)
    yield "arrow", pa.table(columns)
    yield "csr", sparse.csr_matrix(np.array([[1, 1, 0], [0, 1, 1]]))
    yield "arrays", [np.array([0, 1]), np.array([1, 2])]
    yield "capsule", Capsule(pa.table(columns))


class Capsule:
    """A table of an unknown library that speaks the Arrow PyCapsule interface."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("name, edges", list(tables()))
def test_every_form_of_edges(name, edges):
    table = frames.edges_table(edges, "item_id", "collection_id")
    pairs = [
        (str(c), str(i))
        for c, i in zip(table["collection_id"].to_pylist(), table["item_id"].to_pylist())
    ]
    assert pairs == [("0", "0"), ("0", "1"), ("1", "1"), ("1", "2")]


def test_a_matrix_with_features_and_weights(tmp_path):
    rng = np.random.default_rng(1)
    matrix = sparse.random(12, 9, 0.4, random_state=3, format="csr")
    matrix.data += 1
    fitted = pinsage_jax.PinSage(workdir=tmp_path / "run", **SMALL)
    fitted.fit(matrix, {"look": rng.normal(size=(9, 3)).astype(np.float32)})
    assert fitted.item_ids_ == [str(i) for i in range(9)]
    assert pq.read_table(tmp_path / "run" / "inputs" / "edges.parquet")["weight"]
    assert fitted.config_.data.weight_column == "weight"
    assert fitted.similar_items(3, n=2).num_rows == 2


def test_settings_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.base")
    first = pinsage_jax.PinSage(epochs=2, seed=3)
    other = sklearn.clone(first)
    assert other is not first and other.get_params() == first.get_params()
    assert repr(other) == "PinSage(epochs=2, seed=3)"
    assert not other.__sklearn_is_fitted__()
    assert other.set_params(epochs=4).get_params()["epochs"] == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pinsage_jax.PinSage(output_dims=3), "no setting output_dims; did you mean"),
        (lambda m: pinsage_jax.PinSage(epochs="two"), "^epochs='two' must be of type float"),
        (lambda m: pinsage_jax.PinSage(epochs=-1), "^epochs=-1"),
        (lambda m: pinsage_jax.PinSage().embeddings_, r"not fitted yet; call fit\(\)"),
        (lambda m: pinsage_jax.PinSage().fit(3), "edges are of type int; give a table"),
        (lambda m: pinsage_jax.PinSage().fit({"a": [1], "b": [2, 3]}, 5), "items is of type int"),
        (lambda m: pinsage_jax.PinSage().fit(shop()[0], item="sku"),
         "^The table `edges` has no column 'sku' .named by item.; its columns are: collection_id"),
        (lambda m: pinsage_jax.PinSage().fit(*shop(), categorical=["brand"]), "'brand'"),
        (lambda m: m.similar_items("item-03"), "^There is no item item-03. Did you mean item-"),
        (lambda m: m.similar_items([1.5]), "items: 1.5 is no id"),
        (lambda m: m.similar_items("item-3", where="prize < 3"), "^where: 'prize' .*'price'"),
        (lambda m: m.similar_items("item-3", boost="price - 3"), "^boost is -3"),
        (lambda m: m.similar_items("item-3", columns=["prize"]), "no column prize; did you mean"),
        (lambda m: m.recommend([]), "history holds no item"),
        (lambda m: m.recommend(["item-1"], where="price < query.price"), "a history is not one"),
        (lambda m: m.evaluate({"query": ["a"]}), "pairs has no column 'query_id'"),
        (lambda m: m.embed({"item_id": ["x"]}), "items has no column"),
    ],
)  # fmt: skip
def test_errors_are_in_the_words_of_the_call(model, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(model)
    assert "--" not in str(error.value) and "inputs/" not in str(error.value)


def test_every_word_of_the_command_line_is_translated(tmp_path):
    path = tmp_path / "inputs" / "edges.parquet"
    found = wording.as_library_message(
        f"--edges={path}: row 3 of {path} has no id; set --item_column, or run --mode=train with "
        "--epochs=2."
    )
    assert found == (
        "The table `edges`: row 3 of the table `edges` has no id; set item, or call fit() with "
        "epochs=2."
    )


def test_the_report_is_written_and_nothing_is_printed(model, capsys):
    pytest.importorskip("matplotlib")
    path = model.report()
    assert path.name == "report.html" and path.parent == model.workdir_
    assert capsys.readouterr().out == ""


def test_pairs_are_read_from_memory_and_from_any_file(model, tmp_path, caplog):
    pairs = {
        "query_id": ["item-1", "item-2", "nobody"],
        "target_id": ["item-2", "item-5", "item-1"],
    }
    path = tmp_path / "pairs.csv"
    pa.csv.write_csv(pa.table(pairs), path)
    found = [model.evaluate(given)["methods"] for given in (pairs, path, str(path))]
    assert found[0] == found[1] == found[2]
    lines = [record.getMessage() for record in caplog.records if "dropped" in record.msg]
    reason = "1 of 3 pairs dropped because an id is in neither --edges nor --items."
    assert lines == [f"pairs: {reason}"] + 2 * [f"--pairs: {reason}"]
    with pytest.raises(UserError, match=r"^pairs: none of its 1 pairs names two known items"):
        model.evaluate({"query_id": ["x"], "target_id": ["y"]})
