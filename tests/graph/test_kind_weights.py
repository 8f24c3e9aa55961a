"""--kind_weights=auto: a kind without meaning gets less weight, equal kinds stay equal."""

import numpy as np
import pytest

from pinsage_jax.config.data import AUTO, DataConfig, SplitConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.edge_weights import EdgeWeights
from pinsage_jax.graph.kind_weights import choose_weights
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.stages.prepare import load_graph

NAMES = ["bought", "viewed"]


def whole(masks, weights=None):
    """A graph with a collection for each row of masks [C, N], its edges' kinds, an empty split."""
    collections, items = np.nonzero(masks)
    graph = Graph.from_edges(
        items.astype(np.int32), collections.astype(np.int32), masks.shape[1], len(masks),
        None if weights is None else weights[collections, items],
    )  # fmt: skip
    owner = np.repeat(np.arange(graph.num_items), np.diff(graph.indptr[: graph.num_items + 1]))
    kinds = masks[graph.indices[: graph.num_edges] - graph.num_items, owner].astype(np.uint16)
    none = np.empty(0, np.int32)
    split = ValidationSplit(graph, none, none, np.empty((0, 2), np.int32), np.empty(0, "<U4"))
    return graph, kinds, split


def by_edge(graph):
    count = graph.num_edges
    items = np.repeat(np.arange(graph.num_items), np.diff(graph.indptr[: graph.num_items + 1]))
    return {
        (int(item), int(node) - graph.num_items): float(weight)
        for item, node, weight in zip(items, graph.indices[:count], graph.weights[:count])
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_every_trial_weighs_the_edges_of_its_kind_and_leaves_out_what_is_withheld(weighted):
    masks = np.array([[1, 1, 0], [2, 3, 0], [0, 2, 2], [1, 0, 2]])
    own = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    graph, kinds, split = whole(masks, own if weighted else None)
    split = ValidationSplit(
        graph, np.array([3], np.int32), np.array([2], np.int32), split.pairs, split.kinds
    )
    seen = []

    def hits(trial):
        seen.append(by_edge(trial))
        return np.zeros(5)

    choice = choose_weights(graph, kinds, NAMES, split, hits)
    assert choice.text == "" and choice.weights == {"bought": 1.0, "viewed": 1.0}
    assert len(seen) == len(choice.tried) == 1 + 2 * 4
    for found, trial in zip(seen, choice.tried):
        weights = trial["weights"]
        wanted = {}
        for collection, item in np.argwhere(masks):
            if collection == 3 or item == 2:
                continue
            of = [
                weights[name]
                for bit, name in enumerate(NAMES)
                if masks[collection, item] >> bit & 1
            ]
            product = own[collection, item] * np.mean(of) if weighted else sum(of)
            wanted[int(item), int(collection)] = pytest.approx(product)
        assert found == wanted


def test_only_gains_beyond_noise_are_taken_one_kind_after_the_other():
    graph, kinds, split = whole(np.array([[1, 1, 1], [2, 2, 0]]))
    noise = np.tile([0.3, -0.3], 200)

    def hits(trial):
        bought, viewed = (by_edge(trial)[0, collection] for collection in (0, 1))
        # Better by a tenth of its noise for a high weight of one kind, by much for a low other.
        return 0.002 * np.log2(bought) * (1 + noise) - 0.1 * np.log2(viewed) + noise * (bought > 1)

    choice = choose_weights(graph, kinds, NAMES, split, hits)
    assert choice.weights == {"bought": 1.0, "viewed": 0.25}
    assert choice.text == "bought=1,viewed=0.25"
    assert choice.hits == pytest.approx(0.2) and choice.tried[0]["hits"] == 0


def write_edges(path, noisy):
    """Collections of two items of a group of twelve; of the kind `viewed` at random, if noisy."""
    rng = np.random.default_rng(4)
    lines = ["collection_id,item_id,kind"]
    for collection in range(2400):
        group, kind = rng.integers(25), ("bought", "viewed")[collection % 2]
        items = 12 * group + rng.permutation(12)[:2]
        if kind == "viewed" and noisy:
            items = rng.permutation(300)[:2]
        lines += [f"c{collection},i{item},{kind}" for item in items]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("noisy", [True, False])
def test_a_kind_at_random_weighs_less(tmp_path, noisy):
    config = Config(
        mode="prepare",
        workdir=str(tmp_path / "run"),
        threads=1,
        split=SplitConfig(validation_collections=0.3),
        sampling=SamplingConfig(num_walks=20),
        data=DataConfig(
            edges=write_edges(tmp_path / "e.csv", noisy), kind_column="kind", kind_weights=AUTO
        ),
    )
    prepared = load_graph(config)
    chosen = prepared.manifest["edge_weights"]["kind_weights"]
    if not noisy:
        assert chosen == "" and prepared.graph.weights is None
        assert prepared.edge_weights(config.data) is None
        return
    weights = DataConfig(kind_column="kind", kind_weights=chosen).weight_by_kind()
    assert weights["viewed"] < weights["bought"]
    # Later edges weigh by what was chosen, and the same settings find the folder again.
    how = prepared.edge_weights(config.data)
    assert isinstance(how, EdgeWeights) and how.data.weight_by_kind() == weights
    assert set(np.unique(prepared.graph.weights)) == set(np.float32(list(weights.values())))
    assert load_graph(config).manifest == prepared.manifest


def test_auto_needs_kinds():
    with pytest.raises(UserError, match="--kind_weights=auto needs --kind_column"):
        DataConfig(kind_weights=AUTO).validate()
