"""Item features equal a row-by-row reference; the saved transform; invalid input."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import features, text
from pinsage_jax.data.column_choice import choose_columns, choose_title
from pinsage_jax.data.encoders import projection
from pinsage_jax.data.features import (
    FeatureTransform,
    write_features,
)
from pinsage_jax.data.tables import open_table

WORDS = ["board", "kitchen", "oak", "lamp", "garden", "paint", "fern", "shelf", "tile", "rug"]


def reference_dense(rows):
    """Rows scaled to unit length one by one; missing rows become zeros."""
    width = next(len(row) for row in rows if row)
    out = []
    for row in rows:
        length = math.sqrt(sum(x * x for x in row)) if row else 0.0
        out.append([x / length for x in row] if length else [0.0] * width)
    return np.array(out)


def reference_numeric(values):
    present = [value for value in values if value is not None]
    mean = sum(present) / len(present)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in present) / len(present)) or 1.0
    columns = [[0.0 if value is None else (value - mean) / deviation for value in values]]
    if len(present) < len(values):
        columns.append([float(value is None) for value in values])
    return np.array(columns).T


def reference_categorical(values, limit):
    counts = {}
    for value in values:
        if value:
            counts[value] = counts.get(value, 0) + 1
    frequent = sorted(counts, key=lambda value: (-counts[value], value))[:limit]
    out = np.zeros((len(values), len(frequent) + 1))
    for row, value in enumerate(values):
        if value:
            out[row, frequent.index(value) if value in frequent else len(frequent)] = 1.0
    return out


def reference_tfidf(documents, min_df):
    """Rows of (1 + log count) * idf scaled to unit length, computed with dictionaries."""
    counts = [{w: d.split().count(w) for w in d.split()} for d in documents]
    filled = [c for c in counts if c]
    df = {w: sum(w in c for c in filled) for w in WORDS}
    terms = sorted(w for w in WORDS if df[w] >= min_df)
    idf = {w: math.log((1 + len(filled)) / (1 + df[w])) + 1 for w in terms}
    rows = [[(1 + math.log(c[w])) * idf[w] if w in c else 0.0 for w in terms] for c in counts]
    return reference_dense(rows)


def random_items(rows, seed=0):
    rng = np.random.default_rng(seed)

    def maybe_missing(value, share=0.2):
        return None if rng.random() < share else value

    return {
        "item_id": [f"i{n}" for n in range(rows)],
        "visual": [maybe_missing(rng.normal(size=5).tolist()) for _ in range(rows)],
        "price": [maybe_missing(float(rng.normal(100, 7))) for _ in range(rows)],
        "likes": [int(n) for n in rng.integers(0, 9, rows)],
        "sponsored": [bool(n) for n in rng.integers(0, 2, rows)],
        "color": [maybe_missing(f"c{min(rng.geometric(0.3), 9)}") for _ in range(rows)],
        "title": [" ".join(rng.choice(WORDS, rng.integers(0, 8))) for _ in range(rows)],
        "description": [maybe_missing(" ".join(rng.choice(WORDS, 3))) for _ in range(rows)],
    }


def arrow(items, start=0, stop=None):
    columns = {name: pa.array(values).slice(start, stop) for name, values in items.items()}
    return pa.table(columns)


def run(path, tmp_path, rows, num_items=None, **settings):
    config = dataclasses.replace(DataConfig(), **settings)
    folder = tmp_path / "features"
    folder.mkdir(exist_ok=True)
    report = write_features(open_table(path, "items"), config, rows, num_items or rows, folder)
    return report, np.load(folder / "features.npy"), FeatureTransform.load(folder)


def write(items, path):
    pq.write_table(arrow(items), path)
    return path


def expected(items, limit, min_df):
    joined = [
        " ".join([first or "", second or ""])
        for first, second in zip(items["title"], items["description"])
    ]
    return np.concatenate(
        [
            reference_dense(items["visual"]),
            reference_numeric(items["price"]),
            reference_numeric(items["likes"]),
            reference_numeric([float(value) for value in items["sponsored"]]),
            reference_categorical(items["color"], limit),
            reference_tfidf(joined, min_df),
        ],
        axis=1,
    )


@pytest.mark.parametrize("batch_rows", [3, 8192])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_matrix_matches_reference(dtype, batch_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_BATCH_ROWS", batch_rows)
    items = random_items(120)
    report, matrix, _ = run(
        write(items, tmp_path / "i.parquet"), tmp_path, 120, 125,
        categorical_columns="color", category_limit=4, feature_dtype=dtype,
    )  # fmt: skip
    reference = expected(items, 4, 2)
    assert matrix.dtype == np.dtype(dtype) and matrix.shape == (125, reference.shape[1])
    np.testing.assert_allclose(matrix[:120], reference, atol=2e-3 if dtype == "float16" else 2e-6)
    assert not matrix[120:].any()
    assert (
        report["width"] == reference.shape[1] == sum(block["width"] for block in report["blocks"])
    )
    assert [block["kind"] for block in report["blocks"]] == [
        "dense", "numeric", "numeric", "numeric", "categorical", "text",
    ]  # fmt: skip
    assert report["missing"]["price"] == items["price"].count(None)
    assert report["missing"]["visual"] == items["visual"].count(None)
    assert report["missing"]["color"] == items["color"].count(None)
    assert report["items_without_row"] == 5
    assert report["items_all_zero"] == 5 + int((~reference.any(axis=1)).sum())


def test_saved_transform_equals_stored_rows(tmp_path):
    items = random_items(150, seed=3)
    path = write(items, tmp_path / "i.parquet")
    settings = {"categorical_columns": "color", "text_dim": 6}
    _, matrix, transform = run(path, tmp_path, 150, **settings)
    assert transform.width == matrix.shape[1]
    for start, length in ((0, 150), (17, 1), (40, 33)):
        found = transform.transform(arrow(items, start, length))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, matrix[start : start + length])
    batch = arrow(items).to_batches()[0]
    np.testing.assert_array_equal(transform.transform(batch), matrix)
    new = {
        "item_id": ["new"], "visual": [[0.0] * 5], "price": [None], "likes": [4],
        "sponsored": [True], "color": ["unseen"], "title": ["unheard"], "description": [None],
    }  # fmt: skip
    row = transform.transform(pa.table(new))[0]
    assert not row[:5].any() and row[5:7].tolist() == [0.0, 1.0] and not row[-6:].any()
    with pytest.raises(UserError, match="no column 'likes'"):
        transform.transform(arrow(items).drop_columns(["likes"]))
    new["visual"] = [[1.0, 2.0]]
    with pytest.raises(UserError, match="holds 2 numbers in row 1 but 5 elsewhere"):
        transform.transform(pa.table(new))


def test_nothing_is_pickled(tmp_path):
    run(write(random_items(40), tmp_path / "i.parquet"), tmp_path, 40)
    for path in (tmp_path / "features").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            np.load(path, allow_pickle=False)


def test_csv_and_parquet_give_the_same_matrix(tmp_path):
    items = random_items(60, seed=7)
    _, typed, _ = run(write(items, tmp_path / "i.parquet"), tmp_path, 60)
    items["visual"] = [
        row and str(row) if n % 2 else row and " ".join(map(repr, row))
        for n, row in enumerate(items["visual"])
    ]
    pa_csv.write_csv(arrow(items), tmp_path / "i.csv")
    _, read, _ = run(tmp_path / "i.csv", tmp_path, 60, dense_columns="visual")
    np.testing.assert_allclose(read, typed, atol=1e-6)


def test_svd_separates_two_topics(tmp_path):
    rng = np.random.default_rng(2)
    topics = rng.integers(0, 2, 80)
    documents = [" ".join(rng.choice(WORDS[:5] if t else WORDS[5:], 6)) for t in topics]
    fitted = text.fit_text([*documents, "", "  "], 2, 1000, 1, "text")
    vectors = fitted.transform([*documents, "", "unheard"])
    np.testing.assert_allclose(np.linalg.norm(vectors[:-2], axis=1), 1.0, rtol=1e-5)
    assert not vectors[-2:].any()
    same = (vectors[:-2] @ vectors[:-2].T) > 0.5
    np.testing.assert_array_equal(same, topics[:, None] == topics[None, :])
    again = text.fit_text([*documents, "", "  "], 2, 1000, 1, "text")
    np.testing.assert_array_equal(again.transform(documents), vectors[:-2])


@pytest.mark.parametrize(
    ("documents", "width", "vocabulary", "min_df", "found"),
    [
        (["oak lamp", "oak fern"], 256, 100, 1, 3),
        (["oak lamp fern tile", "oak rug"], 2, 100, 1, 2),
        (["oak lamp fern", "tile rug"], 3, 100, 1, 2),  # two rows give two dimensions
        (["oak lamp", "oak fern"], 256, 1, 1, 1),
        (["oak lamp", "rug fern"], 256, 100, 2, 4),  # no term is in two items
        (["oak"], 256, 100, 9, 1),
        (["", "  "], 256, 100, 2, 0),
        (["a I ?", "x"], 256, 100, 1, 0),
        ([], 256, 100, 2, 0),
    ],
)
def test_a_small_vocabulary_reduces_the_width_and_logs_it(
    documents, width, vocabulary, min_df, found, tmp_path, caplog
):
    with caplog.at_level("WARNING"):
        fitted = text.fit_text(documents, width, vocabulary, min_df, "The text")
    assert fitted.width == found
    assert (found < width) == any("The text" in record.getMessage() for record in caplog.records)
    fitted.save(tmp_path)
    loaded = text.TextTransform.load(tmp_path)
    np.testing.assert_array_equal(loaded.transform(documents), fitted.transform(documents))


def test_no_item_table_gives_no_columns(tmp_path):
    (tmp_path / "features").mkdir()
    report = write_features(None, DataConfig(), 0, 7, tmp_path / "features")
    assert np.load(tmp_path / "features" / "features.npy").shape == (7, 0)
    assert report["width"] == 0 and report["items_without_row"] == 7
    assert FeatureTransform.load(tmp_path / "features").width == 0


def test_choose_columns_by_flag_and_by_type(tmp_path):
    table = pa.table(
        {
            "item_id": [1],
            "name": ["n"],
            "text": ["t"],
            "abstract": [3],
            "v": [[1.0]],
            "x": [1],
            "y": [0.5],
            "z": [True],
            "when": pa.array([0], pa.timestamp("s")),
            "tags": [["a"]],
        }
    )
    pq.write_table(table, tmp_path / "i.parquet")
    items = open_table(tmp_path / "i.parquet", "items")
    chosen = choose_columns(items, DataConfig())
    assert chosen.dense == ("v",) and chosen.text == ("text",)
    assert chosen.numeric == ("abstract", "x", "y", "z") and chosen.categorical == ()
    assert choose_title(items, DataConfig()) == "name"
    assert choose_title(items, DataConfig(title_column="text")) == "text"
    named = choose_columns(
        items,
        DataConfig(categorical_columns="x, z", numeric_columns="", text_columns="name,text"),
    )
    assert (
        named.numeric == () and named.categorical == ("x", "z") and named.text == ("name", "text")
    )
    assert choose_columns(items, DataConfig(categorical_columns="x")).numeric == (
        "abstract",
        "y",
        "z",
    )
    for flag in ("dense_columns", "numeric_columns", "categorical_columns", "text_columns"):
        with pytest.raises(
            UserError, match=rf"no column 'nope' \(named by --{flag}\); its columns"
        ):
            choose_columns(items, dataclasses.replace(DataConfig(), **{flag: "nope"}))
    with pytest.raises(UserError, match=r"no column 'nope' \(named by --title_column\)"):
        choose_title(items, DataConfig(title_column="nope"))


def test_large_constant_and_extreme_numbers(tmp_path):
    items = {"item_id": ["a", "b"], "same": [0.1, 0.1], "v": [[1e300, 1e300], [1e-300, 0.0]]}
    _, matrix, _ = run(write(items, tmp_path / "i.parquet"), tmp_path, 2)
    np.testing.assert_allclose(matrix, [[0.5**0.5, 0.5**0.5, 0.0], [1.0, 0.0, 0.0]], rtol=1e-6)
    items["same"] = [1e308, -1e308]
    with pytest.raises(UserError, match="Column 'same' holds numbers too large to standardize"):
        run(write(items, tmp_path / "i.parquet"), tmp_path, 2)


def test_numeric_moments_do_not_depend_on_batches(tmp_path, monkeypatch):
    items = {"item_id": [str(n) for n in range(50)], "x": [1e9 + n % 7 for n in range(50)]}
    monkeypatch.setattr(features, "_BATCH_ROWS", 7)
    _, matrix, _ = run(write(items, tmp_path / "i.parquet"), tmp_path, 50)
    np.testing.assert_allclose(matrix, reference_numeric(items["x"]), atol=1e-5)


def test_automatic_column_without_values_is_left_out(tmp_path, caplog):
    items = {"item_id": ["a"], "x": pa.array([None], pa.int64()), "y": [2]}
    pq.write_table(pa.table(items), tmp_path / "i.parquet")
    with caplog.at_level("WARNING"):
        report, _, _ = run(tmp_path / "i.parquet", tmp_path, 1)
    assert report["width"] == 1 and "'x' holds no value" in caplog.text


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("column", "settings", "sentence"),
    [
        ([1.0, NAN, 2.0], {}, r"Column 'c' is nan in row 2 of .*\(item 'id1'\); features must be"),
        ([1.0, 3.0, -INF], {}, r"Column 'c' is -inf in row 3 of .*\(item 'id2'\)"),
        (["1", "nan", "2"], {"numeric_columns": "c"}, r"Column 'c' is nan in row 2 .*'id1'"),
        ([[1.0], [NAN], [2.0]], {}, r"Column 'c' holds NaN or infinity in row 2 of .*'id1'"),
        ([[1.0], None, [INF]], {}, r"Column 'c' holds NaN or infinity in row 3 of .*'id2'"),
        ([[1.0], [2.0], [2.0, 3.0]], {}, r"holds 2 numbers in row 3 of .* but 1 in row 1 of"),
        ([[1.0], [None], [2.0]], {}, r"missing number inside the vector of row 2 of .*'id1'"),
        (["1", "2", "many"], {"numeric_columns": "c"}, r"is 'many' in row 3 .*is not a number"),
        (["a", "b", "c"], {"numeric_columns": "c"}, r"is 'a' in row 1 .*is not a number"),
        (["", None, "NA"], {"numeric_columns": "c"}, r"'c' of --items=.* holds no value; leave"),
        ([None, None, ""], {"categorical_columns": "c"}, r"'c' of --items=.* holds no value"),
        (["", None, "[]"], {"dense_columns": "c"}, r"'c' of --items=.* holds no value; leave"),
        ([1, 2, 3], {"dense_columns": "c"}, r"holds int64 values .*, not vectors of numbers"),
        ([[1], [2], [3]], {"text_columns": "c"}, r"holds list.* values .*, not text"),
        ([[1], [2], [3]], {"numeric_columns": "c"}, r"holds list.* values .*, not numbers"),
    ],
)
def test_bad_features(column, settings, sentence, tmp_path):
    table = pa.table({"item_id": ["id0", "id1", "id2"], "c": column})
    pq.write_table(table, tmp_path / "i.parquet")
    with pytest.raises(UserError, match=sentence) as caught:
        run(tmp_path / "i.parquet", tmp_path, 3, **settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_batches_without_any_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_BATCH_ROWS", 1)
    items = {"item_id": ["a", "b", "c"], "c": [None, [3.0, 4.0], None]}
    pq.write_table(pa.table(items), tmp_path / "i.parquet")
    _, matrix, _ = run(tmp_path / "i.parquet", tmp_path, 3)
    np.testing.assert_allclose(matrix, [[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_unequal_lengths_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_BATCH_ROWS", 1)
    pq.write_table(
        pa.table({"item_id": ["a", "b"], "c": [[1.0], [1.0, 2.0]]}), tmp_path / "i.parquet"
    )
    with pytest.raises(UserError, match=r"holds 2 numbers in row 2 of .*'b'.* but 1 elsewhere"):
        run(tmp_path / "i.parquet", tmp_path, 2)


# A projection to fewer columns (encoders/projection.py).


def test_features_are_projected_once_and_new_items_alike(tmp_path):
    items = random_items(300, seed=3)
    path = write(items, tmp_path / "i.parquet")
    settings = {"categorical_columns": "color", "text_dim": 6}
    (tmp_path / "raw").mkdir(), (tmp_path / "narrow").mkdir()
    _, raw, _ = run(path, tmp_path / "raw", 300, 305, **settings)
    report, matrix, transform = run(path, tmp_path / "narrow", 300, 305, input_dim=4, **settings)
    assert matrix.shape == (305, 4) and report["width"] == transform.width == 4
    assert not matrix[300:].any() and report["items_without_row"] == 5
    # The best four columns by NumPy's own decomposition, and as much of the squares.
    _, powers, vectors = np.linalg.svd(raw.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(matrix), np.abs(raw @ vectors[:4].T), atol=1e-4)
    kept = (powers[:4] ** 2).sum() / (powers**2).sum()
    saved = json.loads((tmp_path / "narrow" / "features" / "transform.json").read_text())
    about = {"method": "pca", "from": raw.shape[1], "to": 4, "kept": pytest.approx(kept, abs=1e-6)}
    assert saved["projection"] == about and 0.5 < kept < 1
    for start, length in ((0, 300), (17, 1), (40, 33)):
        found = transform.transform(arrow(items, start, length))
        np.testing.assert_array_equal(found, matrix[start : start + length])
    assert not (tmp_path / "narrow" / "features" / projection.RAW_FILE).exists()
    # Narrow features stay as they are.
    (tmp_path / "wide").mkdir()
    _, wide, _ = run(path, tmp_path / "wide", 300, 305, input_dim=raw.shape[1], **settings)
    np.testing.assert_array_equal(wide, raw)
    # A matrix of another width is refused.
    np.save(tmp_path / "narrow" / "features" / "projection.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(UserError, match=r"projection\.npy is damaged"):
        FeatureTransform.load(tmp_path / "narrow" / "features")


def test_many_columns_are_projected_at_random(monkeypatch, small_rng):
    monkeypatch.setattr(projection, "_MOST_COLUMNS", 99)
    rows = small_rng.normal(size=(40, 100)).astype(np.float32)
    made = [projection.Projection.fit(rows[:n], 60) for n in (40, 3)]
    np.testing.assert_array_equal(made[0].matrix, made[1].matrix)
    assert made[0].about() == {"method": "random", "from": 100, "to": 60, "kept": 1.0}
    # Inner products are kept up to a standard deviation of |a| |b| / sqrt(60), or sqrt(2) of it.
    errors = made[0].apply(rows) @ made[0].apply(rows).T - rows @ rows.T
    lengths = np.linalg.norm(rows, axis=1)
    assert 0.5 < np.std(errors / np.outer(lengths, lengths)) * np.sqrt(60) < 2


def test_words_of_projected_texts_stay(tmp_path):
    items = {name: random_items(120)[name] for name in ("item_id", "title", "description")}
    path = write(items, tmp_path / "i.parquet")
    found = []
    for name, dim in (("raw", 0), ("narrow", 2)):
        (tmp_path / name).mkdir()
        _, matrix, transform = run(path, tmp_path / name, 120, text_dim=4, input_dim=dim)
        values, words = transform.with_words(arrow(items))
        np.testing.assert_array_equal(values, matrix)
        found.append(words)
    assert found[0].shape[1] > 0 and matrix.shape == (120, 2)
    np.testing.assert_array_equal(*found)
