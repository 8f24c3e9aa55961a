"""neighbors.py: the printed table, related_items.parquet and unknown ids."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalog import make_config, make_prepared

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph
from pinsage_jax.retrieval import neighbors


def graph_of(items):
    return Graph.from_edges(np.array([0], np.int32), np.array([0], np.int32), items, 1)


def naive_neighbors(embeddings, query, k):
    scores = embeddings @ embeddings[query]
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    return [(item, scores[item]) for item in order if item != query][:k]


LINE = np.array([[1, 0], [3, 0], [2, 0], [0, 1], [-1, 0]], np.float32)


def test_table_lists_id_score_cosine_and_title(tmp_path, capsys):
    titles = ["Zero", "One\nand a half", None, "Three" * 40, "Four"]
    prepared = make_prepared(graph_of(5), titles=titles)
    neighbors.print_neighbors(make_config(tmp_path, query="item-0, item-3", k=3), prepared, LINE)
    assert capsys.readouterr().out.splitlines() == [
        "query  item-0  Zero",
        "item_id   score  cosine  title",
        "item-1   3.0000  1.0000  One and a half",
        "item-2   2.0000  1.0000",
        "item-3   0.0000  0.0000  " + ("Three" * 40)[:67] + "...",
        "",
        "query  item-3  " + ("Three" * 40)[:67] + "...",
        "item_id   score  cosine  title",
        "item-0   0.0000  0.0000  Zero",
        "item-1   0.0000  0.0000  One and a half",
        "item-2   0.0000  0.0000",
        "",
    ]


def test_on_a_terminal_titles_are_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    prepared = make_prepared(graph_of(5), titles=["Zero", "One and a half of it", "Two", "", ""])
    neighbors.print_neighbors(make_config(tmp_path, query="item-0", k=2), prepared, LINE)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "item_id   score  cosine  title",
        "item-1   3.0000  1.0000  One and a ha...",
        "item-2   2.0000  1.0000  Two",
        "",
    ]


def test_table_without_titles_and_with_few_items(tmp_path, capsys):
    prepared = make_prepared(graph_of(2))
    config = make_config(tmp_path, query="item-1", k=10)
    neighbors.print_neighbors(config, prepared, LINE[:2])
    assert capsys.readouterr().out.splitlines() == [
        "query  item-1",
        "item_id   score  cosine",
        "item-0   3.0000  1.0000",
        "",
    ]


def test_unknown_id_is_named_with_close_ones(tmp_path):
    prepared = make_prepared(graph_of(5))
    with pytest.raises(UserError) as error:
        config = make_config(tmp_path, query="item-2,itm-4")
        neighbors.print_neighbors(config, prepared, LINE)
    assert "no item itm-4" in str(error.value) and "item-4" in str(error.value)
    assert str(error.value).count("item-") == 3
    with pytest.raises(UserError, match=r"no item zzz\. Ids are those"):
        neighbors.print_neighbors(make_config(tmp_path, query="zzz"), prepared, LINE)
    with pytest.raises(UserError, match="names no item"):
        neighbors.print_neighbors(make_config(tmp_path, query=" , "), prepared, LINE)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Film 3, The", ["Film 3, The"]),
        ("Film 3, The,Film 4, The, x", ["Film 3, The", "Film 4, The", "x"]),
        ('"Film 3, The", x', ["Film 3, The", "x"]),
        (" pad ", [" pad "]),
        ("x, pad ,y", ["x", " pad ", "y"]),
        ("x,nowhere, the", ["x", "nowhere", "the"]),
        ('say "x"', ['say "x"']),
        (" , ", []),
    ],
)
def test_ids_of_a_query_may_hold_commas_and_blanks(text, wanted):
    names = ["Film 3, The", "Film 4, The", " pad ", "x", "y", "The", 'say "x"']
    assert neighbors.query_ids(text, IdTable(pa.array(names, pa.large_string()))) == wanted


def test_similar_ids_in_a_large_catalog(monkeypatch):
    monkeypatch.setattr(neighbors, "_MAX_COMPARED_IDS", 50)
    names = [f"product-{number:05d}" for number in range(3000)] + ["other-00017"]
    table = IdTable(pa.array(names, pa.large_string()))
    found = neighbors.similar_ids("product-0001x", table)
    assert len(found) == 3 and all(name.startswith("product-0001") for name in found)


@pytest.mark.parametrize("block", [1 << 21, 10])
def test_related_items_equal_sorting(tmp_path, small_rng, monkeypatch, block):
    monkeypatch.setattr(neighbors, "_MAX_BLOCK_ROWS", block)
    embeddings = small_rng.integers(-2, 3, (23, 3)).astype(np.float32)
    config = make_config(tmp_path, k=4)
    path = neighbors.write_related(config, make_prepared(graph_of(23)), embeddings)
    table = pq.read_table(path)
    assert path == tmp_path / "related_items.parquet"
    assert table.column_names == ["item_id", "rank", "neighbor_id", "score", "cosine"]
    assert table.schema.field("rank").type == pa.int32()
    assert table.schema.field("score").type == table.schema.field("cosine").type == pa.float32()
    cosines = table["cosine"].to_numpy()
    table = table.drop_columns("cosine")
    wanted = [
        {"item_id": f"item-{q}", "rank": rank, "neighbor_id": f"item-{item}", "score": score}
        for q in range(23)
        for rank, (item, score) in enumerate(naive_neighbors(embeddings, q, 4), 1)
    ]
    assert table.to_pylist() == wanted
    row_of = {f"item-{row}": embeddings[row, :-1] for row in range(23)}
    for found, cosine in zip(wanted, cosines):
        first, second = row_of[found["item_id"]], row_of[found["neighbor_id"]]
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        assert cosine == pytest.approx(first @ second / lengths if lengths else 0, abs=1e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["related_items.parquet"]


def test_short_catalogs_give_short_lists(tmp_path):
    path = neighbors.write_related(make_config(tmp_path, k=9), make_prepared(graph_of(3)), LINE[:3])
    assert pq.read_table(path)["rank"].to_pylist() == [1, 2] * 3


def test_a_failure_leaves_the_old_file(tmp_path):
    prepared, config = make_prepared(graph_of(5)), make_config(tmp_path, k=2)
    path = neighbors.write_related(config, prepared, LINE)
    before = path.read_bytes()
    broken = LINE.copy()
    broken[4] = np.nan
    with pytest.raises(UserError, match="not finite"):
        neighbors.write_related(config, prepared, broken)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["related_items.parquet"]
