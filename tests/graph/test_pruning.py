"""Pruning against a slow reference on edge sets."""

import collections
import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_graph import SETTINGS, hub_graph

from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig, PruneConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.pruning import keep_edges, kept_edges, num_kept


def edge_list(graph: Graph) -> list[tuple[int, int, float]]:
    found = []
    for item in range(graph.num_items):
        for place in range(graph.indptr[item], graph.indptr[item + 1]):
            weight = 1.0 if graph.weights is None else float(graph.weights[place])
            found.append((item, int(graph.indices[place]) - graph.num_items, weight))
    return found


def entropy(topics: list[int]) -> float:
    shares = [n / len(topics) for n in collections.Counter(topics).values()]
    return -sum(share * math.log2(share) for share in shares)


def expected_edges(edges, topics, config: PruneConfig) -> tuple[dict[int, int], set[int]]:
    """Edges that every item keeps, and the collections that stay."""
    members = collections.defaultdict(list)
    for item, collection, _ in edges:
        members[collection].append(item)
    stay = set(members)
    if config.prune_collection_items:
        stay = {c for c in stay if len(members[c]) <= config.prune_collection_items}
    if config.prune_entropy:
        known = {c: [topics[i] for i in members[c] if topics[i] >= 0] for c in members}
        stay = {c for c in stay if entropy(known[c]) <= config.prune_entropy}
    left = collections.Counter(item for item, c, _ in edges if c in stay)
    keep = {
        i: n if config.prune_power == 1.0 else min(
            n, max(math.ceil(n**config.prune_power), config.prune_from)
        )
        for i, n in left.items()
    }  # fmt: skip
    return keep, stay


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_pruning_keeps_what_the_reference_keeps(name, weighted):
    config = SETTINGS[name]
    graph, topics = hub_graph(weighted)
    edges = edge_list(graph)
    mask = kept_edges(graph, config, 5, topics)
    kept = [edge for edge, stays in zip(edges, mask) if stays]
    keep, stay = expected_edges(edges, topics, config)
    assert collections.Counter(item for item, _, _ in kept) == collections.Counter(keep)
    assert {c for _, c, _ in kept} <= stay
    assert (len(kept) < len(edges)) == (name != "none")
    if weighted:
        for item, count in keep.items():
            own = sorted((w for i, c, w in edges if i == item and c in stay), reverse=True)
            assert sorted((w for i, _, w in kept if i == item), reverse=True) == own[:count]
    rebuilt, _ = keep_edges(graph, None, mask, None)
    assert edge_list(rebuilt) == kept
    assert (rebuilt.num_items, rebuilt.num_collections) == (50, 30)


def test_a_sample_depends_on_the_seed_alone():
    graph, _ = hub_graph(False)
    config = SETTINGS["degree"]
    first = kept_edges(graph, config, 5)
    np.testing.assert_array_equal(first, kept_edges(graph, config, 5))
    assert (first != kept_edges(graph, config, 6)).any()


def test_num_kept():
    config = PruneConfig(prune_power=0.5, prune_from=4)
    degree = np.array([0, 1, 4, 5, 16, 17, 10_000])
    assert num_kept(degree, config).tolist() == [0, 1, 4, 4, 4, 5, 100]


def test_prepare_prunes_and_says_so(tmp_path):
    graph, topics = hub_graph(False)
    edges = edge_list(graph)
    table = {
        "item_id": [f"i{item:02d}" for item, _, _ in edges],
        "collection_id": [f"c{collection}" for _, collection, _ in edges],
    }
    pq.write_table(pa.table(table), tmp_path / "edges.parquet")
    items = {
        "item_id": [f"i{item:02d}" for item in range(50)],
        "topic": [None if topic < 0 else f"t{topic}" for topic in topics],
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    data = DataConfig(data_dir=str(tmp_path), edges="edges.parquet", items="items.parquet")
    config = Config("prepare", str(tmp_path / "run"), 5, 1, data=data, prune=SETTINGS["all"])
    prepared = prepare(config)
    keep, _ = expected_edges(edges, topics, config.prune)
    degree = prepared.graph.degree()
    assert {item: int(degree[item]) for item in keep} == keep
    counts = prepared.manifest["counts"]
    assert counts["pruned_edges"] == len(edges) - sum(keep.values()) > 0
    assert counts["duplicate_edges"] == 0
    # Other settings are another graph.
    whole = prepare(dataclasses.replace(config, prune=PruneConfig()))
    assert whole.graph.num_edges == len(edges)


def test_entropy_needs_a_column_that_is_there():
    with pytest.raises(UserError, match="--prune_topic_column"):
        PruneConfig(prune_entropy=1.0).validate()
