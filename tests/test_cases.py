"""Small inputs of tests/cases that were once read wrongly, without a word, and what is right."""

import logging
import pathlib
import runpy

import numpy as np
import pytest

from pinsage_jax.catalog.additions import read_item_rows
from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.tables import open_table
from pinsage_jax.retrieval.neighbors import query_ids

CASES = pathlib.Path(__file__).parent / "cases"


@pytest.fixture
def case(request, tmp_path, monkeypatch):
    """Runs the script that the test is named after, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(CASES / f"{request.node.originalname.removeprefix('test_')}.py"))


def prepared(**data):
    return prepare(Config("prepare", "w", 0, 1, data=DataConfig(text_dim=16, **data)))


def test_every_case_has_a_test():
    assert {path.stem for path in CASES.glob("*.py")} == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_")
    } - {"every_case_has_a_test"}


def test_commas_in_ids(case):
    ids = prepared(edges="e.csv").item_ids
    assert query_ids("Film 3, The", ids) == ["Film 3, The"]
    assert query_ids('"Film 3, The", "Film 4, The"', ids) == ["Film 3, The", "Film 4, The"]


def test_hidden_folders(case, caplog):
    assert prepared(edges="f").item_ids.ids.to_pylist() == ["x", "y", "z"]
    assert "2 hidden files" in caplog.text


def test_ids_never_meet(case):
    with pytest.raises(UserError, match="60 of them differ in spelling only: '00000' is '0'"):
        prepared(edges="e.csv", items="i.parquet")


@pytest.mark.parametrize("price", ["minus", "ms", "huge"])
def test_number_off_scale(case, price, caplog):
    features = prepared(edges="e.parquet", items="i.parquet").features
    transform = FeatureTransform.load("w/prepared/features")
    for kind in ("changed", "new"):
        table = open_table(f"{kind}_{price}.parquet", f"{kind}_items")
        caplog.clear()
        rows = read_item_rows(table, DataConfig(), transform)
        assert f"row 1 of {kind}_{price}.parquet" in caplog.text and "clipped" in caplog.text
        assert (rows.features >= np.min(features, axis=0) - 1e-6).all()
        assert (rows.features <= np.max(features, axis=0) + 1e-6).all()


def test_open_quote(case):
    for name, row in (("e.csv", 6), ("two_marks.csv", 6), ("first_column.csv", 6)):
        with pytest.raises(UserError, match=f"has a quotation mark in row {row} that"):
            prepared(edges=name)
    with pytest.raises(UserError, match=r"titles\.csv has a quotation mark in row 1 that"):
        prepared(edges="good.csv", items="titles.csv")


def test_other_formats(case):
    same = ["e.tsv", "semicolons.csv", "bars.csv", "e.csv.bz2", "e.csv.zip", "e.feather", "folder"]
    read = [prepared(edges=name) for name in same]
    columns = {"collection_column": "f0", "item_column": "f1"}
    read.append(prepared(edges="no_header.csv", csv_header="off", **columns))
    for found in read:
        assert found.item_ids.ids.to_pylist() == [f"é{i}" for i in range(9)]
        assert found.graph.num_edges == 30
    for name, sentence in (
        ("no_header.csv", "no header but the first row, --csv_header=off"),
        ("latin1.csv", "is not UTF-8 text; save it as UTF-8"),
        ("ragged.csv", "every row needs as many cells as the header"),
        ("s3://bucket/e.csv", "is a remote address"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepared(edges=name)


def test_row_numbers(case, caplog):
    with caplog.at_level(logging.INFO, "absl"):
        assert prepared(edges="e.parquet", items="i.parquet").features.shape[1] == 0
        found = prepared(edges="e.parquet", items="i.csv")
    assert "__index_level_0__ (row numbers" in caplog.text
    assert [block["kind"] for block in found.manifest["features"]["blocks"]] == ["text"]
    assert "text: title; ignored: isbn (numbers that are names" in caplog.text


def test_tags(case):
    found = prepared(edges="e.parquet", items="i.parquet", categorical_columns="tags,genres")
    tags, genres = found.features[:, :3], found.features[:, 3:]
    assert tags.tolist() == [[1, i % 2, 0] for i in range(40)]
    assert genres.tolist() == [[1, 1, 0]] * 40
    whole = prepared(
        edges="e.parquet", items="i.parquet", categorical_columns="genres", category_separator=""
    )
    assert whole.features.tolist()[:2] == [[0, 1, 0], [1, 0, 0]]


def test_text_without_spaces(case):
    found = prepared(edges="e.parquet", items="i.parquet")
    assert found.manifest["features"]["items_all_zero"] == 0
    features, topic = np.asarray(found.features), np.arange(400) % 5
    scores = features[300:] @ features.T
    scores[np.arange(100), np.arange(300, 400)] = -np.inf
    near = np.argsort(-scores, axis=1)[:, :10]
    assert np.mean(topic[near] == topic[300:, None]) > 0.4


def test_two_clocks(case):
    with pytest.raises(UserError, match=r"'at' holds a number in row 1 of .*1\.parquet but a time"):
        prepared(edges="t", time_column="at")
