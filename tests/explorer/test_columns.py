"""Colors and texts of columns, against counts and positions made by hand."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hostile_catalog import ITEMS, small_prepared
from item_tables import with_columns

from pinsage_jax.core.errors import UserError
from pinsage_jax.explorer import columns


def coloring(values):
    prepared = with_columns(small_prepared(), it=values)
    found = columns.color_columns(prepared.item_columns, ())
    return found[0] if found else None


def test_the_twelve_most_frequent_values_have_colors_and_the_others_one():
    values = [f"v{row % 15 if row < 40 else row % 3:02d}" for row in range(60)]
    values[5] = None
    found = columns._coloring("it", pa.array(values))
    counts = {value: values.count(value) for value in values if value}
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    assert found["labels"] == ranked[:12] and found["others"] == len(counts) - 12
    wanted = [-1 if v is None else ranked.index(v) if v in ranked[:12] else 12 for v in values]
    assert found["codes"].tolist() == wanted


def test_tags_take_the_first_value_with_a_color_and_bools_say_yes():
    tags = [["rare", "a"] if row % 2 else ["b"] for row in range(ITEMS)]
    found = coloring(pa.array(tags, pa.list_(pa.string())))
    assert [found["labels"][code] for code in found["codes"][:2]] == ["b", "rare"]
    found = coloring([row % 3 == 0 for row in range(ITEMS)])
    assert [found["labels"][code] for code in found["codes"][:3]] == ["yes", "no", "no"]


@pytest.mark.parametrize("values", [["a"] * ITEMS, [f"t{n}" for n in range(ITEMS)], [None] * ITEMS])
def test_a_column_of_one_value_or_of_a_text_for_each_item_has_no_colors(values):
    assert coloring(pa.array(values, pa.string())) is None


def test_numbers_lie_on_a_ramp_from_low_to_high():
    numbers = np.linspace(10, 20, ITEMS)
    values = [None, float("nan"), *numbers[2:].tolist()]
    found = coloring(values)
    codes = found["codes"]
    assert codes[:2].tolist() == [-1, -1] and codes[2:].min() == 0
    assert codes.max() == found["steps"] and (np.diff(codes[2:]) >= 0).all() and not found["log"]
    assert found["ends"][0].startswith("\u2264") and found["ends"][2].startswith("\u2265")


def test_numbers_over_many_magnitudes_are_colored_by_their_logarithm():
    found = coloring((10.0 ** np.linspace(0, 6, ITEMS)).tolist())
    assert found["log"]
    steps = np.diff(found["codes"][2:-2])
    assert np.ptp(steps) <= 1


def test_few_numbers_are_categories_in_their_order_and_times_have_dates():
    found = coloring([float(row % 3) for row in range(ITEMS)])
    assert found["labels"] == ["0", "1", "2"]
    assert found["codes"].tolist() == [row % 3 for row in range(ITEMS)]
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(row) for row in range(ITEMS)]
    assert "2024-01-" in coloring(days)["ends"][1]


def test_texts_as_they_are_shown():
    prepared = with_columns(
        small_prepared(),
        price=[2.5, None, float("nan"), 1234567.0] + [1.0] * (ITEMS - 4),
        stock=[True, False, None, True] + [True] * (ITEMS - 4),
        tags=pa.array([["x", "y"], [], None] + [["z"]] * (ITEMS - 3), pa.list_(pa.string())),
        long=["l" * 500] * ITEMS,
    )
    shown = {
        name: columns.shown_texts(prepared.item_columns, name, np.arange(4))
        for name in ("price", "stock", "tags", "long")
    }
    assert shown["price"] == ["2.5", None, None, "1,234,567"]
    assert shown["stock"] == ["yes", "no", None, "yes"]
    assert shown["tags"] == ["x, y", None, None, "z"]
    assert {len(text) for text in shown["long"]} == {200}


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    prepared = with_columns(small_prepared(), brand=["b"] * ITEMS)
    with pytest.raises(UserError, match=r"--show_columns.*'brnd'.*did you mean 'brand'"):
        columns.require_column(prepared.item_columns, "brnd", "show_columns")
    with pytest.raises(UserError, match=r"it has item_id, brand\."):
        columns.require_column(prepared.item_columns, "zzz", "show_columns")
