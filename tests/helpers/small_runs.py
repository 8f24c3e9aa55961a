"""Small graphs with difficult cases, and the components of a run over them.

Features are node ids, so that a batch can be read back by value: column 0 of an
item's features is its id plus one times `Run.unit`, and a row of zeros is padding or a collection.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from pinsage_jax.batching.blocks import BatchSpec, Minibatch
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.graph_view import GraphView
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.training.curriculum import hard_negatives_in, hard_slots

# What the package scales log(1 + degree) by.
DEGREE_SCALE = 0.1


def nasty_graph(items: int = 40, collections: int = 12, seed: int = 0) -> Graph:
    """Items 0 and 1 have no edge, 2 and 3 one and the same collection and no other.

    Collection 0 holds only items 2 and 3 (and 4), collection 1 a single item, the
    last collection none; item 5 is in every other collection.
    """
    rng = np.random.default_rng(seed)
    edges = {(2, 0), (3, 0), (4, 0), (6, 1)}
    edges |= {(5, collection) for collection in range(2, collections - 1)}
    for item in range(4, items):
        for collection in rng.choice(np.arange(2, collections - 1), rng.integers(1, 4)):
            edges.add((item, int(collection)))
    pairs = np.array(sorted(edges), np.int32)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], items, collections)


def random_links(graph: Graph, size: int, seed: int = 0) -> ContentLinks:
    """Links of random length to items with edges, with shares that sum to 1 (or 0)."""
    rng = np.random.default_rng(seed)
    linked = np.flatnonzero(graph.degree()[: graph.num_items])
    ids = np.full((graph.num_items, size), -1, np.int32)
    shares = np.zeros((graph.num_items, size), np.float32)
    for item in range(graph.num_items):
        others = rng.permutation(linked[linked != item])[: rng.integers(0, size + 1)]
        ids[item, : len(others)] = others
        mass = rng.random(len(others)) + 0.1
        shares[item, : len(others)] = mass / max(mass.sum(), 1e-9)
    return ContentLinks(ids, shares)


def random_params(config: ModelConfig, input_dim: int, num_ids: int = 0, seed: int = 0):
    """Parameters of the network, none of them zero, so that a forgotten one shows."""
    model = PinSage(config, (1,) * (config.num_layers + 1), num_ids)
    params = jax.jit(model.init)(
        jax.random.key(seed),
        np.zeros((1, input_dim), np.float32),
        np.zeros(1, np.int32),
        np.zeros((1, 1), np.int32),
        np.zeros((1, 1), np.float32),
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), np.float32), params
    )


def embed_batch(model: PinSage, params, batch: Minibatch, device: int = 0) -> np.ndarray:
    """Embeddings [n_K, Z] of the seeds of one device's part."""
    names = ("features", "node_ids", "neighbors", "weights")
    return apply(model, params, *(getattr(batch, name)[device] for name in names))


def apply(model: PinSage, params, *arrays: np.ndarray) -> np.ndarray:
    """The network compiled, which is much faster than one operation at a time."""
    return np.asarray(jax.jit(model.apply)(params, *arrays))


class WithoutMasks(MinibatchBuilder):
    """Builds minibatches in which a pair sees everything, as in inference."""

    def _masks(self, pairs):
        none = np.full(len(pairs.queries), -1, np.int32)
        return (none, none), (none, none)


@dataclasses.dataclass
class Run:
    """One run's pieces, put together as the stages do.

    Attributes:
      masked: whether the collection of a pair, or its other end, is masked.
    """

    graph: Graph
    sampling: SamplingConfig
    model: ModelConfig
    train: TrainConfig
    lists: NeighborLists
    inputs: NodeInputs
    pairs: PairSource
    seed: int
    links: ContentLinks | None
    masked: bool = True

    @property
    def unit(self) -> float:
        """Factor that the stored features are scaled by (item 0 has the feature 1)."""
        return float(self.inputs.gather(np.zeros(1, np.int32))[0, 0])

    def builder(
        self,
        devices: int = 1,
        budgets=None,
        pool=None,
        local=None,
        table: bool | str = False,
        transposed: bool = False,
    ) -> MinibatchBuilder:
        if pool is None:
            pool = np.arange(self.graph.num_items, dtype=np.int32)
        return (MinibatchBuilder if self.masked else WithoutMasks)(
            GraphView(self.lists, self.inputs),
            self.pairs,
            BatchSpec(
                self.train,
                self.model.num_layers,
                self.seed,
                hard_in_epoch=lambda epoch: hard_negatives_in(epoch, self.train),
                hard_slots=hard_slots(self.train, self.pairs.per_epoch),
                num_devices=devices,
                local_devices=local,
                table=table if isinstance(table, str) else ("whole" if table else "none"),
                transposed=transposed,
            ),
            negative_pool=pool,
            budgets=budgets,
        )


def make_run(
    graph: Graph | None = None,
    *,
    seed: int = 3,
    threads: int = 1,
    links: int = 0,
    kept: bool = True,
    features: np.ndarray | None = None,
    train_pairs: np.ndarray | None = None,
    masked: bool = True,
    sampling: dict | None = None,
    model: dict | None = None,
    train: dict | None = None,
) -> Run:
    """A run over `graph`; the dictionaries override settings."""
    graph = graph or nasty_graph()
    sampling_config = SamplingConfig(
        **{
            "num_neighbors": 4,
            "num_walks": 12,
            "walk_length": 2,
            "hard_low": 3,
            "hard_high": 9,
            "hard_scale": False,
            "hard_walks": 50,
            "content_kappa": 0.5,
            "pair_power": 1.0,
            **(sampling or {}),
        }
    )
    model_config = ModelConfig(
        **{"num_layers": 2, "hidden_dim": 12, "layer_dim": 10, "output_dim": 8, **(model or {})}
    )
    train_config = TrainConfig(
        **{
            "batch_size": 8,
            "random_negatives": 6,
            "epochs": 4.0,
            "hard_max": 2,
            "edge_dropout": 0.0,
            **(train or {}),
        }
    )
    if features is None:
        features = (np.arange(graph.num_items, dtype=np.float32) + 1.0)[:, None]
    source = NeighborhoodSource(graph, sampling_config, seed, threads)
    if kept:
        source.materialize()
    made = random_links(graph, links) if links else None
    lists = NeighborLists(source, model_config.pooling, made, sampling_config.content_kappa)
    inputs = NodeInputs(
        features,
        graph.degree(),
        isolated_feature=model_config.isolated_feature,
        node_type=sampling_config.neighborhood == "all",
        whiten=model_config.whiten,
    )
    pairs = PairSource(
        graph, seed, train_pairs, train_config.pairs_per_epoch, sampling_config.pair_power
    )
    return Run(
        graph, sampling_config, model_config, train_config, lists, inputs, pairs, seed, made, masked
    )


def unit_features(items: int, width: int = 6, seed: int = 5) -> np.ndarray:
    """Random float32 [items, width] of unit length, for runs that compute."""
    rows = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1; zeros stay zeros."""
    return vector / max(np.linalg.norm(vector), 1e-12)


def pairs_of(run: Run, count: int = 64) -> np.ndarray:
    """int32 [count, 2] of the pairs that the run draws, as --train_pairs would list them."""
    drawn = run.pairs.batch(0, count)
    pairs = np.stack([drawn.queries, drawn.targets], axis=1)
    return pairs[(pairs >= 0).all(axis=1)]
