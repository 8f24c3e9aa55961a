"""Groups of items by a column: few, in order, and every item in one."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.reporting.sections.coloring import (
    MAX_GROUPS,
    check_column,
    groups_of,
    note_on_others,
)


def columns_of(values: pa.Array) -> ItemColumns:
    ids = IdTable(pa.array([f"i{row}" for row in range(len(values))]))
    return ItemColumns(ids, "item_id", {"kind": values.type}, lambda name: values)


def grouped(values: list, kind: pa.DataType) -> tuple[list[int], list[str]]:
    group, labels = groups_of(columns_of(pa.array(values, kind)), "kind")
    assert group.shape == (len(values),) and set(group.tolist()) == set(range(len(labels)))
    return group.tolist(), labels


TEXT = pa.large_string()


def test_texts_by_frequency_and_others_together():
    assert grouped(["b", "a", "b", None], TEXT) == ([0, 1, 0, 2], ["b", "a", "other or none"])
    many = [letter for place, letter in enumerate("abcdefghijkl") for _ in range(20 - place)]
    group, labels = grouped(many, TEXT)
    assert labels == [*"abcdefgh", "other or none"] and len(labels) == MAX_GROUPS + 1
    assert group[-1] == MAX_GROUPS and group[0] == 0


def test_numbers_few_and_many():
    assert grouped([3, 1, 3, 2], pa.int64()) == ([2, 0, 2, 1], ["1", "2", "3"])
    values = list(np.random.default_rng(0).permutation(1000))
    group, labels = grouped([*map(float, values), float("nan"), None], pa.float64())
    assert labels[:5] == ["0 to 199", "200 to 399", "400 to 599", "600 to 799", "800 to 999"]
    assert labels[5:] == ["other or none"] and group[-2:] == [5, 5]
    assert group[:1000] == [value // 200 for value in values]


def test_many_equal_numbers_have_one_group():
    values = [0] * 90 + list(range(1, 11))
    group, labels = grouped(values, pa.int64())
    assert labels == ["0 to 10"] and set(group) == {0}
    group, labels = grouped([0] * 50 + list(range(1, 51)), pa.int64())
    assert labels[0].startswith("0") and len(labels) == len(set(labels)) <= 5


def test_times_truth_and_lists():
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(day) for day in range(20)]
    labels = grouped(days, pa.date32())[1]
    assert len(labels) == 5 and labels[0] == "2020-01-01 to 2020-01-04"
    assert grouped([True, False, None, False], pa.bool_()) == (
        [1, 0, 2, 0],
        ["no", "yes", "other or none"],
    )
    tags = [["a", "b"], [], ["b"], None, ["a"]]
    assert grouped(tags, pa.list_(TEXT)) == ([0, 2, 1, 2, 0], ["a", "b", "other or none"])


def test_a_column_without_values():
    assert grouped([None, None], TEXT) == ([0, 0], ["other or none"])
    assert grouped([float("nan")] * 3, pa.float64()) == ([0, 0, 0], ["other or none"])


def test_a_note_says_if_most_items_are_gray():
    labels = ["a", "other or none"]
    assert note_on_others("<kind>", np.array([0, 1]), labels) == ""
    note = note_on_others("<kind>", np.array([0, 1, 1]), labels)
    assert "67% of the items" in note and "&lt;kind&gt;" in note
    assert note_on_others("kind", np.array([1, 1, 0]), ["a", "b"]) == ""
    assert note_on_others("kind", *groups_of(columns_of(pa.array([], TEXT)), "kind")) == ""


def test_an_unknown_column_is_named_with_the_nearest():
    columns = columns_of(pa.array([1]))
    check_column(columns, "kind")
    with pytest.raises(UserError, match=r"^--color_column=knd is not .* did you mean 'kind'"):
        check_column(columns, "knd")
    with pytest.raises(UserError, match="there are item_id, kind"):
        check_column(columns, "price")
