"""Which columns become features, as what, and why others do not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig
from pinsage_jax.data import column_choice, tables
from pinsage_jax.data.column_choice import choose_columns
from pinsage_jax.data.feature_blocks import CategoricalFit, NumericFit
from pinsage_jax.data.tables import open_table

ROWS = 400


def columns():
    rng = np.random.default_rng(0)
    prose = ["small oak table", "a lamp for kitchens", "garden chairs, two of them"]
    return {
        "item_id": [f"i{n}" for n in range(ROWS)],
        "title": [f"thing {n}" for n in range(ROWS)],
        "story": [f"{prose[n % 3]} number {n}" for n in range(ROWS)],
        "color": [["red", "blue", "green"][n % 3] for n in range(ROWS)],
        "brand": [f"brand{n % 80}" for n in range(ROWS)],
        "image_url": [f"https://example.com/{n}.jpg" for n in range(ROWS)],
        "code": [f"x{n}" for n in range(ROWS)],
        "same": ["one"] * ROWS,
        "vector_text": [f"{n} 0.5 1e-3" for n in range(ROWS)],
        "genres": ["Action|Comedy" if n % 2 else "Comedy|Drama" for n in range(ROWS)],
        "price": np.round(np.exp(rng.normal(3, 1.5, ROWS)), 2).tolist(),
        "score": rng.normal(size=ROWS).tolist(),
        "isbn": rng.integers(10**9, 10**10, ROWS).tolist(),
        "row": list(range(ROWS)),
        "Unnamed: 0": rng.permutation(ROWS).tolist(),
    }


def chosen_of(path, **settings):
    table = open_table(path, "items")
    chosen = choose_columns(table, DataConfig(**settings))
    return chosen, chosen.line(table)


@pytest.mark.parametrize("batch_rows", [7, 8192])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_kinds_by_values_and_the_line_that_says_them(kind, batch_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(column_choice, "_BATCH_ROWS", batch_rows)
    path = tmp_path / f"i.{kind}"
    if kind == "csv":
        names = list(columns())
        rows = [names, *zip(*columns().values())]
        path.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in rows) + "\n")
    else:
        pq.write_table(pa.table(columns()), path)
    chosen, line = chosen_of(path)
    assert chosen.text == ("title", "story") and chosen.categorical == ("color", "genres")
    assert chosen.numeric == ("price", "score") and chosen.skewed == {"price"}
    assert "numbers: price (logarithm), score;" in line
    for reason in (
        "brand (80 values; --categorical_columns=brand?)",
        "image_url (addresses, not prose)",
        "code (text that is not prose, another in every row)",
        "same (one value)",
        "vector_text (numbers in text; --dense_columns=vector_text?)",
        "isbn (numbers that are names; --categorical_columns=isbn?)",
        "row (row numbers; --numeric_columns=row?)",
        "Unnamed: 0 (row numbers;",
    ):
        assert reason in line, (reason, line)
    chosen, _ = chosen_of(path, numeric_columns="row", categorical_columns="brand")
    assert chosen.numeric == ("row",) and chosen.categorical == ("brand",)


def test_numbers_that_are_names(tmp_path):
    (tmp_path / "i.csv").write_text(
        "item_id,title,isbn,zip,plain\n0,1984,0195153448,02139,5\n1,2001,0002005018,90210,7\n"
    )
    chosen, line = chosen_of(tmp_path / "i.csv")
    assert chosen.text == ("title",) and chosen.numeric == ("plain",)
    assert "isbn (numbers that are names" in line and "zip (numbers that are names" in line
    pq.write_table(pa.table({"item_id": ["a"], "__index_level_0__": [7]}), tmp_path / "i.parquet")
    assert chosen_of(tmp_path / "i.parquet")[0].all() == []


def test_the_kind_of_a_csv_column_is_decided_by_all_its_rows(tmp_path, monkeypatch):
    """Arrow infers the type from the first block alone."""
    monkeypatch.setattr(tables, "_CSV_BLOCK", 64)
    rows = "".join(f"i{n},{n % 7}\n" for n in range(200))
    (tmp_path / "i.csv").write_text("item_id,x\n" + rows + "last,many words in here\n")
    chosen, line = chosen_of(tmp_path / "i.csv")
    assert chosen.numeric == () and chosen.categorical == ("x",), line


def test_lists_of_strings_are_several_hot():
    def where(row):
        return str(row)

    lists = pa.array([["a", "b"], ["b"], None, ["c", "b"], []])
    cells = pa.array(["a|b", "b", None, "c | b", ""])
    for column in (lists, cells):
        fit = CategoricalFit("tags", 2, "|")
        fit.add(lambda _, column=column: column, 5, where)
        block = fit.finish()
        assert block.values == ("b", "a") and fit.missing == 2
        expected = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
        assert block.transform(lambda _, column=column: column, 5, where).tolist() == expected


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("value", [-1e6, 1.7e12, 1e300])
def test_numbers_off_scale_are_clipped_and_named(value, logarithm, caplog):
    fit = NumericFit("price", logarithm)
    fit.add(lambda _: pa.array([float(n % 50) for n in range(300)]), 300, str)
    block = fit.finish()
    rows = block.transform(lambda _: pa.array([0.0, value, 49.0]), 3, lambda row: f"row {row + 1}")
    assert rows[1] in rows[[0, 2]] and np.isfinite(rows).all()
    assert "'price' is" in caplog.text and "row 2, outside of what" in caplog.text
    caplog.clear()
    block.transform(lambda _: pa.array([0.0, 49.0]), 2, str)
    assert not caplog.text


def test_numbers_of_any_size_are_profiled():
    largest = np.finfo(np.float64).max
    profile = column_choice._Profile("n")
    for batch in ([largest] * 15, [-largest, 1.0, largest] * 5, [1e200] * 20, [0.0, 1e-300]):
        profile.add(pa.array(batch), False, "")
    assert not profile.skewness() > column_choice._SKEWED and profile.largest == largest
    profile = column_choice._Profile("n")
    profile.add(pa.array([0.0] * 40 + [largest]), False, "")
    assert np.isnan(profile.skewness()) or profile.skewness() >= 0
