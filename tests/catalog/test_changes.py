"""Changes of a catalog against preparing the changed tables from scratch."""

import csv
import pathlib

import numpy as np
import pytest

import pinsage_jax
from pinsage_jax.catalog.changes import read_changes, write_changed
from pinsage_jax.catalog.prepare import Prepared, open_prepared, prepare
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.features import FeatureTransform

EDGE_COLUMNS = ["collection_id", "item_id", "w"]


def write(path: pathlib.Path, header: list[str], rows) -> str:
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


class Tables:
    """Edges {(collection, item): weight} and titles {item: title}, as files and prepared."""

    def __init__(self, folder: pathlib.Path, edges: dict, titles: dict, rows: list | None = None):
        """`rows` (collection, item, weight) take the place of `edges`, duplicates included."""
        folder.mkdir()
        self.edges, self.titles = edges, titles
        rows = rows or [(*edge, weight) for edge, weight in edges.items()]
        self.config = pinsage_jax.settings(
            folder / "run",
            edges=write(folder / "edges.csv", EDGE_COLUMNS, rows),
            items=write(
                folder / "items.csv", ["item_id", "title", "size"],
                [(item, title, len(item)) for item, title in titles.items()],
            ),
            weight_column="w", text_columns="", mode="prepare",
        )  # fmt: skip
        prepare(self.config)
        self.prepared = open_prepared(self.config.workdir)


def contents(prepared: Prepared) -> tuple[dict, dict]:
    """Edges and titles of a catalog by id; items without edges included."""
    graph = prepared.graph
    items, collections = prepared.item_ids.ids.to_pylist(), prepared.collection_ids.ids.to_pylist()
    edges = {}
    for item in range(graph.num_items):
        for place in range(graph.indptr[item], graph.indptr[item + 1]):
            collection = collections[graph.indices[place] - graph.num_items]
            edges[collection, items[item]] = float(graph.weights[place])
    return edges, dict(zip(items, prepared.titles.to_pylist(), strict=True))


def random_tables(rng: np.random.Generator, folder: pathlib.Path) -> Tables:
    titles = {f"i{item}": f"title {item}" for item in range(12)}
    pairs = {(f"c{rng.integers(5)}", f"i{rng.integers(12)}") for _ in range(25)}
    return Tables(folder, {pair: float(rng.integers(1, 5)) for pair in sorted(pairs)}, titles)


def changed(before: Tables, folder: pathlib.Path, added, removed, items) -> Prepared:
    folder.mkdir()
    tables = {
        "changed_edges": (EDGE_COLUMNS, [(*edge, weight) for edge, weight in added.items()]),
        "removed_edges": (EDGE_COLUMNS[:2], removed),
        "changed_items": (["item_id", "title", "size"], [(i, t, 3) for i, t in items.items()]),
    }
    named = {
        name: write(folder / f"{name}.csv", header, rows)
        for name, (header, rows) in tables.items()
        if rows
    }
    source = pathlib.Path(before.config.workdir) / "prepared"
    transform = FeatureTransform.load(source / "features")
    changes = read_changes(before.prepared, transform, before.config.data, UpdateConfig(**named))
    write_changed(before.prepared, changes, source, folder / "prepared")
    return open_prepared(folder)


def fingerprint(before: Tables, folder: pathlib.Path, added, removed, items) -> str:
    return changed(before, folder, added, removed, items).manifest["fingerprint"]


@pytest.mark.parametrize("seed", range(12))
def test_random_changes_are_as_preparing_the_changed_tables(seed, tmp_path):
    rng = np.random.default_rng(seed)
    before = random_tables(rng, tmp_path / "before")
    held = sorted(before.edges)
    removed = [held[place] for place in rng.permutation(len(held))[: rng.integers(0, 6)]]
    items = {f"i{rng.integers(20)}": f"another {k}" for k in range(rng.integers(0, 5))}
    known = sorted({*before.titles, *items})
    added = {}
    for _ in range(rng.integers(1, 10)):
        edge = (f"c{rng.integers(9)}", known[rng.integers(len(known))])
        if edge not in removed:
            added[edge] = float(rng.integers(1, 5))
    after = changed(before, tmp_path / "after", added, removed, items)
    edges = {edge: w for edge, w in (before.edges | added).items() if edge not in removed}
    fresh = Tables(tmp_path / "fresh", edges, before.titles | items)
    assert contents(after) == contents(fresh.prepared)


@pytest.mark.parametrize("seed", range(12))
def test_an_edge_to_remove_of_an_unknown_collection_is_refused(seed, tmp_path):
    rng = np.random.default_rng(100 + seed)
    before = random_tables(rng, tmp_path / "before")
    # Also beside new collections, which are numbered from the same place on.
    added = {("new", "i3"): 1.0} if seed % 2 else {}
    wrong = ("c-1" if seed % 3 else "new", f"i{rng.integers(12)}")
    with pytest.raises(UserError, match=r"is not in the catalog; leave|is also in"):
        changed(before, tmp_path / "after", added, [wrong], {})


def test_a_title_that_a_change_leaves_out_stays(tmp_path):
    before = random_tables(np.random.default_rng(1), tmp_path / "before")
    after = changed(before, tmp_path / "after", {("c0", "new"): 2.0}, [], {"new": "fresh"})
    titles = contents(after)[1]
    assert titles == before.titles | {"new": "fresh"}


def test_the_row_order_of_changed_edges_changes_no_bit(tmp_path):
    """New collections are numbered by id, and weights of duplicates added as prepare does it."""
    rng = np.random.default_rng(6)
    before = random_tables(rng, tmp_path / "before")
    source = pathlib.Path(before.config.workdir) / "prepared"
    rows = [
        (f"c{rng.integers(3, 20)}", f"i{rng.integers(12)}", str(10.0 ** rng.uniform(-9, 9)))
        for _ in range(300)
    ]
    # Edges that the catalog has get the weight of the change; here all are new or replaced.
    unchanged = [(*e, w) for e, w in before.edges.items() if e not in {row[:2] for row in rows}]
    checksums, found = set(), []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        order = np.random.default_rng(seed).permutation(300) if seed else np.arange(300)
        shuffled = [rows[place] for place in order]
        update = UpdateConfig(changed_edges=write(folder / "e.csv", EDGE_COLUMNS, shuffled))
        changes = read_changes(
            before.prepared, FeatureTransform.load(source / "features"), before.config.data, update
        )
        write_changed(before.prepared, changes, source, folder / "prepared")
        after = open_prepared(folder)
        checksums.add(str(sorted(after.manifest["checksums"].items())))
        found.append(contents(after))
        new = after.collection_ids.ids.to_pylist()[before.prepared.graph.num_collections :]
        assert new == sorted(new) and len(new) > 5
    assert len(checksums) == 1
    fresh = Tables(tmp_path / "fresh", {}, before.titles, [*unchanged, *rows])
    assert found[0] == contents(fresh.prepared)


def test_the_fingerprint_depends_on_every_change(tmp_path):
    before = random_tables(np.random.default_rng(1), tmp_path / "before")
    edge = min(before.edges)
    new = ("c9", "i0")
    cases = [
        ({new: 2.0}, [], {}),
        ({new: 3.0}, [], {}),
        ({edge: 9.0}, [], {}),
        ({}, [edge], {}),
        ({}, [], {"i1": "one title"}),
        ({}, [], {"i1": "another title"}),
        ({}, [], {"i1": ""}),
        ({}, [], {"i2": "one title"}),
        ({}, [], {"i99": "one title"}),
    ]
    found = [fingerprint(before, tmp_path / f"{k}", *case) for k, case in enumerate(cases)]
    assert len({*found, before.prepared.manifest["fingerprint"]}) == len(cases) + 1
    again = [fingerprint(before, tmp_path / f"again-{k}", *case) for k, case in enumerate(cases)]
    assert again == found
