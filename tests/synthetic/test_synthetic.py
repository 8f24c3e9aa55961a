"""The embedded example: its tables, and that neither features nor graph suffice alone."""

import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import SyntheticCatalog
from pinsage_jax.core.errors import UserError
from pinsage_jax.synthetic import generator, latents

SMALL = SyntheticCatalog(
    items=2000,
    collections=500,
    edges=20_000,
    topics=24,
    styles=4,
    pairs=1000,
)
INPUTS = ("edges", "items", "train_pairs", "eval_pairs")


def numbers(column: pa.ChunkedArray, prefix: str) -> np.ndarray:
    texts = column.to_pylist()
    assert all(text.startswith(prefix) for text in texts)
    return np.array([int(text.removeprefix(prefix)) for text in texts], np.int64)


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)


class WrittenCatalog:
    """A synthetic catalog that was written to a folder and read back."""

    def __init__(self, settings: SyntheticCatalog, folder: pathlib.Path):
        self.settings = settings
        self.paths = generator.write_catalog(settings, folder)
        self.tables = {name: pq.read_table(path) for name, path in self.paths.items()}
        edges = self.tables["edges"]
        self.boards = numbers(edges["collection_id"], "board")
        self.pins = numbers(edges["item_id"], "pin")
        self.manifest = json.loads((folder / "manifest.json").read_text())

    def pairs(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = self.tables[name]
        items = (numbers(table[column], "pin") for column in ("query_id", "target_id"))
        return (*items, np.array(table["kind"].to_pylist()))

    def degrees(self) -> np.ndarray:
        """Number of distinct boards of each item, int [N]."""
        edges = np.unique(self.boards * self.settings.items + self.pins)
        return np.bincount(edges % self.settings.items, minlength=self.settings.items)

    def content(self) -> np.ndarray:
        items = self.tables["items"]
        parts = [vectors(items[name]) for name in ("visual", "text_vector")]
        return unit(np.concatenate([unit(part) for part in parts], axis=1))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> WrittenCatalog:
    return WrittenCatalog(SMALL, tmp_path_factory.mktemp("catalog") / "small")


def test_schema_and_ids(small):
    schemas = {name: table.schema for name, table in small.tables.items()}
    assert schemas["edges"].names == ["collection_id", "item_id"]
    assert schemas["items"].names == ["item_id", "name", "visual", "text_vector"]
    for name in ("train_pairs", "eval_pairs"):
        assert schemas[name].names == ["query_id", "target_id", "kind"]
    assert schemas["items"].field("visual").type == pa.list_(pa.float32(), 64)
    assert schemas["items"].field("text_vector").type == pa.list_(pa.float32(), 32)
    for schema in schemas.values():
        for field in schema:
            assert field.name in ("visual", "text_vector") or field.type == pa.string()
    for table in small.tables.values():
        table.validate(full=True)
        assert all(column.null_count == 0 for column in table.columns)

    items = small.tables["items"]
    assert items["item_id"].to_pylist() == [f"pin{number:07d}" for number in range(2000)]
    item_latents = latents.draw_items(SMALL)
    names = items["name"].to_pylist()
    found = [re.fullmatch(r"(\w+) [^()]+ \(([^()]+)\) (\d+)", name).groups() for name in names]
    assert [int(number) for _, _, number in found] == list(range(2000))
    # A title tells topic and style: each has a word of its own.
    topics, styles = np.divmod(item_latents.groups[:, 0], SMALL.styles)
    for latent, shown in ((topics, 1), (styles, 0)):
        both = {(int(one), parts[shown]) for one, parts in zip(latent, found)}
        assert len(both) == len({one for one, _ in both}) == len({word for _, word in both})
    assert np.isfinite(small.content()).all()
    assert small.tables["edges"]["collection_id"][0].as_py() == f"board{small.boards[0]:06d}"


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [(5, "x000", "x004"), (1000, "x000", "x999"), (1001, "x0000", "x1000")],
)
def test_all_ids_have_as_many_digits_as_the_largest(count, first, last):
    ids = generator.id_strings("x", np.arange(count), count, 3)
    ids.validate(full=True)
    assert (ids[0].as_py(), ids[-1].as_py()) == (first, last)
    assert len(ids.unique()) == count
    assert len(generator.id_strings("x", np.arange(0), count, 3)) == 0


def test_paths_are_those_of_data_config_and_the_manifest_describes_the_files(small):
    assert set(small.paths) == set(INPUTS)
    assert small.manifest["settings"] == dataclasses.asdict(SMALL)
    counts = small.manifest["counts"]
    assert counts["edge_rows"] == len(small.pins)
    assert counts["items_without_edges"] == int((small.degrees() == 0).sum())
    assert counts["train_pairs"] == small.tables["train_pairs"].num_rows
    kinds = small.pairs("eval_pairs")[2]
    assert counts["eval_pairs_cold"] == (kinds == "cold").sum()
    assert counts["eval_pairs_warm"] == (kinds == "warm").sum()
    assert set(small.manifest["files"]) == {f"{name}.parquet" for name in INPUTS}


def test_counts_are_those_of_the_settings(small):
    degrees = small.degrees()
    assert len(small.pins) == SMALL.edges
    assert degrees.sum() > 0.85 * SMALL.edges, "too many duplicates"
    assert small.tables["items"].num_rows == SMALL.items
    assert len(np.unique(small.boards)) == SMALL.collections
    assert (degrees == 0).sum() == round(SMALL.isolated * SMALL.items)
    assert small.tables["train_pairs"].num_rows == SMALL.pairs
    assert small.tables["eval_pairs"].num_rows == SMALL.pairs


def digests(paths: dict[str, str]) -> dict[str, str]:
    return {
        name: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        for name, path in paths.items()
    }


def test_equal_seeds_write_equal_files(small, tmp_path):
    same = generator.write_catalog(SMALL, tmp_path / "same")
    other = generator.write_catalog(dataclasses.replace(SMALL, seed=1), tmp_path / "other")
    expected = digests(small.paths)
    assert digests(same) == expected
    assert all(digest != expected[name] for name, digest in digests(other).items())


def test_an_existing_folder_is_replaced(tmp_path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "left_over").write_text("old")
    settings = SyntheticCatalog(items=20, collections=4, edges=30, pairs=5)
    generator.write_catalog(settings, folder)
    assert not (folder / "left_over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["catalog"]


@pytest.mark.parametrize("columns", [1, 4, 5])
def test_rows_of_a_stream_do_not_depend_on_the_block(columns):
    stream = latents.Stream.EDGES
    whole = latents.uniforms(3, stream, 0, 50, columns)
    assert whole.shape == (50, columns) and whole.min() >= 0 and whole.max() < 1
    parts = [latents.uniforms(3, stream, first, 10, columns) for first in range(0, 50, 10)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    other = latents.uniforms(3, latents.Stream.ITEMS, 0, 50, columns)
    assert not (other == whole).any()
    assert not (latents.uniforms(4, stream, 0, 50, columns) == whole).any()
    normals = latents.normals(3, stream, 7, 20_000, columns)
    np.testing.assert_allclose(normals.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(normals.std(axis=0), 1, atol=0.04)


def test_the_catalog_does_not_depend_on_block_sizes(small, monkeypatch):
    whole = latents.draw_items(SMALL)
    monkeypatch.setattr(latents, "_ITEM_BLOCK", 77)
    items = latents.draw_items(SMALL)
    for field in dataclasses.fields(items):
        np.testing.assert_array_equal(getattr(items, field.name), getattr(whole, field.name))

    blocks = list(generator.edge_blocks(SMALL, items, block=331))
    assert len(blocks) > 20
    boards, pins = (np.concatenate(parts) for parts in zip(*blocks))
    np.testing.assert_array_equal(boards, small.boards)
    np.testing.assert_array_equal(pins, small.pins)

    pairs = generator.draw_pairs(SMALL, items, block=97)
    for name, columns in pairs.items():
        for left, right in zip(columns, small.pairs(name)):
            np.testing.assert_array_equal(left, right)

    visual = vectors(small.tables["items"]["visual"])
    view = latents.FeatureView(SMALL, text=False)
    parts = [view.rows(items, first, min(first + 331, 2000)) for first in range(0, 2000, 331)]
    np.testing.assert_array_equal(np.concatenate(parts), visual)


def test_weighted_groups_draw_in_proportion_to_weights():
    groups = np.array([2, 0, 2, 0, 2, 3])
    weights = np.array([1.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    table = latents.WeightedGroups(groups, np.arange(10, 16), weights, 5)
    uniform = np.random.default_rng(0).random(20_000)
    drawn = table.draw(np.full(20_000, 2), uniform)
    share = np.bincount(drawn, minlength=16) / 20_000
    np.testing.assert_allclose(share[[10, 12, 14]], [1 / 8, 3 / 8, 1 / 2], atol=0.02)
    assert set(table.draw(np.zeros(100, int), uniform[:100])) == {11}
    # The only member of group 3 has weight 0; groups 1 and 4 have no member.
    assert set(table.draw(np.array([1, 3, 4]), np.array([0.0, 0.5, 1 - 2**-53]))) == {-1}
    # The largest random number times a small weight, added to a large sum, is rounded up to
    # the next group.
    uneven = latents.WeightedGroups(np.arange(3), np.arange(3), np.array([1e9, 1.0, 1.0]), 3)
    assert uneven.draw(np.array([1]), np.array([1 - 2**-53])).tolist() == [1]
    empty = latents.WeightedGroups(groups[:0], groups[:0], weights[:0], 5)
    assert empty.draw(np.array([0, 4]), np.array([0.1, 0.9])).tolist() == [-1, -1]


def test_degrees_have_power_law_tails(small):
    for degrees in (small.degrees(), np.bincount(small.boards)):
        degrees = np.sort(degrees[degrees > 0])[::-1]
        half, top = degrees[: len(degrees) // 2].sum(), degrees[: len(degrees) // 100].sum()
        assert degrees[0] > 8 * np.median(degrees)
        assert top > 0.05 * degrees.sum() and half > 0.65 * degrees.sum()
        # The Hill estimate of the tail exponent over the top tenth is that of a Pareto tail.
        tail = degrees[: len(degrees) // 10].astype(float)
        assert 0.8 < 1 / np.log(tail / tail[-1]).mean() < 4.0


def test_pairs_are_disjoint_and_of_their_kind(small):
    degrees, seen = small.degrees(), {}
    for name in ("train_pairs", "eval_pairs"):
        query, target, kind = small.pairs(name)
        assert (query != target).all()
        assert (degrees[query] > 0).all()
        assert (degrees[target[kind == "warm"]] > 0).all()
        assert (degrees[target[kind == "cold"]] == 0).all()
        seen[name] = [frozenset(pair) for pair in zip(query.tolist(), target.tolist())]
        assert len(set(seen[name])) == len(seen[name])
    assert not set(seen["train_pairs"]) & set(seen["eval_pairs"])
    assert set(small.pairs("train_pairs")[2]) == {"warm"}
    cold = (small.pairs("eval_pairs")[2] == "cold").mean()
    assert cold == pytest.approx(generator.COLD_SHARE, abs=0.01)


def test_noise_boards_do_not_follow_topics(small):
    items = latents.draw_items(SMALL)
    boards = latents.draw_boards(SMALL, 10_000)
    assert 0.06 < boards.noise.mean() < 0.14
    assert boards.offsets[-1] == 10_000
    topic = items.groups[:, 0] // SMALL.styles
    purity = np.array(
        [
            np.bincount(topic[small.pins[small.boards == board]]).max()
            / np.sum(small.boards == board)
            for board in range(SMALL.collections)
        ]
    )
    assert purity[~boards.noise].mean() > purity[boards.noise].mean() + 0.15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"collections": 4, "edges": 20, "pairs": 1},
        {"edges": 20, "isolated": 0.0},
        {"isolated": 0.9, "styles": 1, "topics": 2},
        {"noise_boards": 1.0, "visual_dim": 1, "text_dim": 3},
        {"noise_boards": 0.0, "topics": 500, "noise": 0.0},
    ],
)
def test_extreme_settings(tmp_path, changes, seed):
    base = {"items": 20, "collections": 9, "edges": 200, "pairs": 40}
    settings = SyntheticCatalog(**{**base, "seed": seed, **changes})
    catalog = WrittenCatalog(settings, tmp_path / "catalog")
    assert len(catalog.pins) == settings.edges
    assert catalog.tables["items"].num_rows == 20
    isolated = (catalog.degrees() == 0).sum()
    assert isolated == round(20 * settings.isolated)
    query, target, kind = catalog.pairs("eval_pairs")
    assert 0 < len(query) <= settings.pairs
    assert catalog.tables["train_pairs"].num_rows <= settings.pairs
    assert (catalog.degrees()[target] == 0).tolist() == (kind == "cold").tolist()
    assert (kind == "cold").any() <= (isolated > 0)


def test_with_fewer_edges_than_items_more_items_are_isolated(tmp_path):
    settings = SyntheticCatalog(items=100, collections=10, edges=30, pairs=10)
    catalog = WrittenCatalog(settings, tmp_path / "catalog")
    assert (catalog.degrees() > 0).sum() == 30
    query, target, kind = catalog.pairs("eval_pairs")
    assert (catalog.degrees()[query] > 0).all()
    assert (catalog.degrees()[target] == 0).tolist() == (kind == "cold").tolist()


def test_invalid_settings_raise_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"^items=5 must be at least 20"):
        generator.write_catalog(SyntheticCatalog(items=5), tmp_path / "catalog")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        generator.write_catalog(SyntheticCatalog(items=20), tmp_path / "file" / "a" / "catalog")


def hits(score: np.ndarray, query: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """Whether the target is among the k best of its query, bool [n]; ties count as misses."""
    score = score[query]
    rows = np.arange(len(query))
    score[rows, query] = -np.inf
    return (score >= score[rows, target, None]).sum(axis=1) <= k


def walk_scores(catalog: WrittenCatalog) -> np.ndarray:
    """Visit probabilities [N, N] of item-board-item walks of one to three steps."""
    settings = catalog.settings
    incidence = np.zeros((settings.items, settings.collections), np.float32)
    incidence[catalog.pins, catalog.boards] = 1
    step = (incidence / np.maximum(incidence.sum(1, keepdims=True), 1)) @ (
        incidence / np.maximum(incidence.sum(0), 1)
    ).T
    visits, reached = step.copy(), step
    for decay in (0.5, 0.25):
        reached = reached @ step
        visits += decay * reached
    np.fill_diagonal(visits, 0)
    return visits


@pytest.mark.parametrize("seed", range(4))
def test_neither_features_nor_graph_suffice(tmp_path, seed):
    catalog = WrittenCatalog(dataclasses.replace(SMALL, seed=seed), tmp_path / "catalog")
    content, walk = catalog.content(), walk_scores(catalog)
    # An untrained PinSage: features pooled over the 20 most visited neighbors.
    nearest = np.argsort(-walk, axis=1, kind="stable")[:, :20]
    weights = np.take_along_axis(walk, nearest, axis=1)
    pooled = unit((content[nearest] * weights[:, :, None]).sum(axis=1))
    both = unit(content + 0.5 * pooled)

    query, target, kind = catalog.pairs("eval_pairs")
    warm = kind == "warm"
    for k, gain, low, high in ((10, 1.25, 0.06, 0.5), (100, 1.15, 0.3, 0.85)):
        found = {
            name: hits(score, query, target, k)
            for name, score in (
                ("content", content @ content.T),
                ("walk", walk),
                ("both", both @ both.T),
            )
        }
        share = {name: hit[warm].mean() for name, hit in found.items()}
        assert share["both"] > gain * max(share["content"], share["walk"]), (k, share)
        assert low < min(share["content"], share["walk"]) and share["both"] < high, (k, share)
        # Walks never find cold targets; features find them nearly as often as warm ones.
        assert not found["walk"][~warm].any()
        assert found["content"][~warm].mean() > 0.7 * share["content"]


def reference_fill(settings, boards, by_group, overall, low, high):
    """generator._fill_boards with NumPy, one attempt at a time over all boards."""
    first, stop = int(boards.offsets[low]), int(boards.offsets[high])
    board = np.repeat(np.arange(low, high), np.diff(boards.offsets[low : high + 1]))
    draws = latents.uniforms(settings.seed, latents.Stream.EDGES, first, stop - first, 12)

    def draw(group, off_topic, uniform):
        items = by_group.draw(group, uniform)
        rows = np.flatnonzero(off_topic | (items < 0))
        items[rows] = overall.draw(np.zeros(len(rows), np.int64), uniform[rows])
        return items

    part = np.minimum((draws[:, :1] >= boards.cumulative[board]).sum(axis=1), 7)
    group = boards.groups[board, part]
    style = (draws[:, 1] / 0.15 * settings.styles).astype(np.int64)
    group = np.where(draws[:, 1] < 0.15, group - group % settings.styles + style, group)
    off_topic = boards.noise[board] | (draws[:, 3] < 0.08)
    items = draw(group, off_topic, draws[:, 2])
    for attempt in range(4):
        repeated = np.ones(stop - first, bool)
        repeated[np.unique(board * settings.items + items, return_index=True)[1]] = False
        rows = np.flatnonzero(repeated)
        group = boards.groups[board[rows], (draws[rows, 4 + 2 * attempt] * 8).astype(np.int64)]
        items[rows] = draw(group, off_topic[rows], draws[rows, 5 + 2 * attempt])
    return board, items


@pytest.mark.parametrize("items, collections", [(60, 5), (2000, 500)])
def test_boards_are_filled_as_by_numpy(items, collections):
    settings = dataclasses.replace(SMALL, items=items, collections=collections, noise_boards=0.3)
    found = latents.draw_items(settings)
    boards = latents.draw_boards(settings, 6000)
    count = latents.group_count(settings)
    members = found.by_group(count, 1.0), found.overall(1.0)
    expected = reference_fill(settings, boards, *members, 0, collections)
    filled = generator._fill_boards(settings, boards, *members, 0, collections)
    for left, right in zip(filled, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_ids_may_be_numbers_and_items_without_names(small, tmp_path):
    settings = dataclasses.replace(SMALL, number_ids=True, names=False)
    paths = generator.write_catalog(settings, tmp_path / "numbers")
    edges = pq.read_table(paths["edges"])
    np.testing.assert_array_equal(edges["collection_id"].to_numpy(), small.boards)
    np.testing.assert_array_equal(edges["item_id"].to_numpy(), small.pins)
    assert pq.read_schema(paths["items"]).names == ["item_id", "visual", "text_vector"]
