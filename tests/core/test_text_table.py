"""Tables: whole in files and pipes, and no wider than a terminal."""

import sys

import pytest

from pinsage_jax.core.text_table import (
    aligned,
    columns_that_fit,
    terminal_width,
    with_last_column,
)

ROWS = [["method", "hit@10", "minutes"], ["a-long-name", "0.5", "12.25"], ["b", "", "1.0"]]


def test_without_a_width_nothing_is_cut():
    assert aligned(ROWS) == [
        "method       hit@10  minutes",
        "a-long-name     0.5    12.25",
        "b                        1.0",
    ]
    assert aligned(ROWS, 28) == aligned(ROWS)


def test_columns_that_do_not_fit_are_named():
    assert aligned(ROWS, 27) == [
        "method       hit@10",
        "a-long-name     0.5",
        "b",
        "Not shown: minutes.",
    ]
    assert [columns_that_fit(ROWS, width) for width in (28, 27, 19, 3)] == [3, 2, 2, 2]


def test_columns_that_stay_are_narrowed_and_say_so():
    assert aligned(ROWS, 25, least=3) == [
        "method    hit@10  minutes",
        "a-lon...     0.5    12.25",
        "b                     1.0",
    ]


@pytest.mark.parametrize("width", range(14, 40))
def test_no_line_is_wider(width):
    for least in (1, 2):
        assert max(map(len, aligned(ROWS, width, least))) <= width


def test_texts_behind_a_table_are_cut_and_its_ids_are_not():
    lines, texts = ["item_id  score", "an-id      1.5"], ["title", "some words of it"]
    assert with_last_column(lines, texts) == [
        "item_id  score  title",
        "an-id      1.5  some words of it",
    ]
    assert with_last_column(lines, texts, 25)[1] == "an-id      1.5  some w..."
    assert with_last_column(lines, texts, 10) == lines


def test_only_a_terminal_has_a_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    assert terminal_width() is None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal_width() == 72
