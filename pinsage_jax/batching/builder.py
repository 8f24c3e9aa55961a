"""Builds the minibatch of a step on the host.

PinSage (Ying et al. 2018, section 3.3, "producer-consumer minibatch construction"):
while the device computes step t, host threads draw the pairs and negatives of step
t+1, walk their neighborhoods, re-index the nodes involved into a compact graph G'
and gather its features.  `MinibatchBuilder.make(step)` is a pure function of the
step, so any thread may build any batch, and a resume needs only the step.

Axis letters: n rows of the last frontier, T neighbors, B pairs of one device, R random
negatives, H hard negatives per query, P items of the negative pool.
"""

from __future__ import annotations

import math

import numpy as np
from absl import logging

from pinsage_jax.batching.blocks import BatchInfo, BatchSpec, Budgets, Minibatch, padded_size
from pinsage_jax.batching.frontier import Frontier, FrontierPool
from pinsage_jax.batching.graph_view import GraphView
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.batching.transposed import transpose
from pinsage_jax.sampling import kernels
from pinsage_jax.sampling.pairs import (
    PairBatch,
    PairSource,
    Rankings,
    hard_negatives,
    random_negatives,
)

# Key of the edge dropout among the random draws of a seed.
_EDGE_DROPOUT_STREAM = 0x7374726970

# features, spectral_features and has_spectral of a Minibatch.
_Features = tuple[np.ndarray, np.ndarray, np.ndarray]


class MinibatchBuilder:
    """Makes the minibatch of any step, split into one shard for each device.

    Where several processes are one run, each makes the shards of its own devices only.

    Attributes:
      spec: what a minibatch holds.
      budgets: rows of every frontier; measured on trial batches when not given.
    """

    def __init__(
        self,
        view: GraphView,
        pairs: PairSource,
        spec: BatchSpec,
        negative_pool: np.ndarray,
        budgets: Budgets | None = None,
    ):
        """Prepares a builder.

        Args:
          view: the training graph.
          negative_pool: int32 [P] items that random negatives are drawn from.
        """
        self.spec = spec
        self._lists, self._inputs, self._pairs = view.lists, view.inputs, pairs
        self._pool = negative_pool
        self._source = source = view.lists.source
        self._rankings = Rankings(source.tables, source.sampling, spec.seed, source.threads)
        self._frontiers = FrontierPool(source.num_nodes, view.lists.width)
        self._logq = candidate_logq(pairs.target_probability(), negative_pool, spec)
        self._reverse_logq = self._logq
        if not pairs.is_symmetric:
            self._reverse_logq = candidate_logq(pairs.query_probability(), negative_pool, spec)
        self.budgets = budgets or self._measure_budgets()

    @property
    def pairs_per_epoch(self) -> int:
        """Training pairs in one epoch."""
        return self._pairs.per_epoch

    @property
    def input_dim(self) -> int:
        """D, the width of an input vector."""
        return self._inputs.dim

    @property
    def num_nodes(self) -> int:
        """The number of nodes that a minibatch can contain."""
        return self._source.num_nodes

    def epoch_of(self, step: int) -> int:
        """Epoch (from 0) in which the pairs of `step` (from 0) begin."""
        return self._pairs.epoch_of(step * self.spec.train.batch_size)

    @property
    def inputs(self) -> NodeInputs:
        """Where the batches' inputs come from."""
        return self._inputs

    def make(self, step: int, devices: range | None = None) -> tuple[Minibatch, BatchInfo]:
        """The minibatch of `step`.

        Args:
          devices: the shards to make; by default spec.local_devices.

        Returns:
          (Minibatch, BatchInfo), both of `devices`.  Every array has a leading device
          axis; the random negatives are the same on each device.
        """
        spec, negatives = self.spec, self._shared_negatives(step)
        made = []
        for device in devices or spec.local_devices or range(spec.num_devices):
            with self._frontiers.frontier(self.budgets.rows) as frontier:
                shard, info = self._device_shard(step, device, negatives, frontier)
            if spec.transposed:
                lists = transpose(self.budgets.rows, shard.neighbors, shard.weights)
                shard = shard._replace(transposed=lists)
            made.append((shard, info))
        shards, infos = zip(*made)
        info = BatchInfo(
            tuple(int(sum(column)) for column in zip(*(info.used for info in infos))),
            sum(info.left_out for info in infos),
            float(np.mean([info.hard_per_query for info in infos])),
            float(np.mean([info.edge_dropout_share for info in infos])),
        )
        if len(shards) == 1:
            return Minibatch(*(array[None] for array in shards[0])), info
        return Minibatch(*(np.stack(arrays) for arrays in zip(*shards))), info

    def _measure_budgets(self) -> Budgets:
        """Budgets from trial batches, early and late enough to hold all hard negatives."""
        spec, train = self.spec, self.spec.train
        size, nodes = self._lists.width, self.num_nodes
        limits = [2 * spec.pairs_per_device + math.prod(spec.hard_shape) + train.random_negatives]
        for _ in range(spec.num_layers):
            limits.append(min(limits[0] + nodes, limits[-1] * (size + 1)))
        late = self._pairs.per_epoch * max(train.hard_max + 1, 1) // train.batch_size + 1
        most = np.zeros(spec.num_layers + 1, np.int64)
        for step in (0, 1, late, late + 1):
            negatives = self._shared_negatives(step)
            for device in range(spec.num_devices):
                with self._frontiers.frontier(tuple(limits), padded=False) as frontier:
                    _, info = self._device_shard(step, device, negatives, frontier)
                most = np.maximum(most, info.used)
        rows: list[int] = []
        for layer, used in enumerate(most):
            bound = limits[0] if layer == 0 else min(nodes, rows[-1] * size)
            rows.append(padded_size(int(used), bound) + (rows[-1] if rows else 0))
        # The late trial batches were of a later epoch than the first step's.
        self._source.clear_epoch_lists()
        budgets = Budgets(tuple(rows))
        logging.debug("rows of each frontier, seeds first: %s", budgets.rows)
        return budgets

    def _shared_negatives(self, step: int) -> np.ndarray:
        """Random negatives int32 [R] of a step, the same for all devices."""
        return random_negatives(self._pool, self.spec.train.random_negatives, self.spec.seed, step)

    def _device_shard(
        self, step: int, device: int, negatives: np.ndarray, frontier: Frontier
    ) -> tuple[Minibatch, BatchInfo]:
        """One device's shard of a step, without the device axis."""
        epoch = self.epoch_of(step)
        first = step * self.spec.train.batch_size + device * self.spec.pairs_per_device
        pairs = self._pairs.batch(first, self.spec.pairs_per_device)
        hard = self._hard_negatives(pairs, step, first)
        (collection_q, neighbor_q), (collection_t, neighbor_t) = self._masks(pairs)
        queries = frontier.add_seeds(pairs.queries, collection_q, neighbor_q)
        targets = frontier.add_seeds(pairs.targets, collection_t, neighbor_t)
        negative_rows = frontier.add_seeds(negatives)
        hard_rows = frontier.add_seeds(hard.reshape(-1)).reshape(hard.shape)
        features, dropped_edges = self._expanded(frontier, epoch, step)
        counts = (pairs.targets >= 0) & (queries >= 0) & (targets >= 0)
        batch = Minibatch(
            *features,
            node_ids=frontier.nodes,
            neighbors=np.maximum(frontier.neighbors, 0),
            weights=frontier.weights,
            queries=np.maximum(queries, 0),
            targets=np.maximum(targets, 0),
            pair_weights=counts.astype(np.float32),
            negatives=np.maximum(negative_rows, 0),
            hard=np.maximum(hard_rows, 0),
            query_ids=pairs.queries,
            target_ids=pairs.targets,
            negative_ids=np.where(negative_rows >= 0, negatives, -1),
            hard_ids=np.where(hard_rows >= 0, hard, -1),
            query_logq=self._reverse_logq[pairs.queries],
            target_logq=self._logq[np.maximum(pairs.targets, 0)],
            negative_logq=self._logq[negatives],
            hard_logq=self._logq[np.maximum(hard, 0)],
            reverse_negative_logq=self._reverse_logq[negatives],
            transposed=np.zeros(0, np.int32),
        )
        info = BatchInfo(
            tuple(frontier.used),
            frontier.left_out,
            float((batch.hard_ids >= 0).sum() / len(hard)),
            float(dropped_edges.sum() / max(sum(frontier.used), 1)),
        )
        return batch, info

    def _masks(self, pairs: PairBatch) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """(masked collection, masked neighbor) of the queries, and of the targets."""
        none = np.full(len(pairs.queries), -1, np.int32)
        if (pairs.source_collection >= 0).all():
            return (pairs.source_collection, none), (pairs.source_collection, none)
        # Listed pairs come from no collection: each item is masked in the other's list.
        return (none, pairs.targets), (none, pairs.queries)

    def _hard_negatives(self, pairs: PairBatch, step: int, first: int) -> np.ndarray:
        """Hard negatives int32 [G, H]; -1 beyond what the curriculum allows.

        Those that are shared belong to the first queries of the step, so that they are the
        same on each device.
        """
        shared = self.spec.train.shared_hard_queries
        if shared:
            first = step * self.spec.train.batch_size
            pairs = self._pairs.batch(first, shared)
        hard = np.full((len(pairs.queries), self.spec.hard_slots), -1, np.int32)
        wanted = min(self.spec.hard_in_epoch(self.epoch_of(step)), self.spec.hard_slots)
        if wanted:
            hard[:, :wanted] = hard_negatives(self._rankings, pairs, size=wanted, first=first)
        return hard.reshape(self.spec.hard_shape)

    def _expanded(self, frontier: Frontier, epoch: int, step: int) -> tuple[_Features, np.ndarray]:
        """Adds all neighbors to a frontier of seeds.

        Returns:
          (features, spectral_features, has_spectral) of a Minibatch, and bool [n]: rows
          trained as if they had no edges.
        """

        def list_neighbors(nodes, masked_collection, masked_neighbor):
            dropped = self._edge_dropout(nodes, step)
            ids, weights = self._lists.lookup(
                nodes, epoch, masked_collection, masked_neighbor, dropped
            )
            return ids, weights, dropped

        dropped_edges = frontier.expand(list_neighbors)
        # Padding between frontiers reads as node 0; nothing points to it.
        nodes = np.maximum(frontier.nodes[: frontier.end], 0)
        # Rows of the last frontier have no list, but may have lost their edges too.
        leaves = self._edge_dropout(nodes[len(dropped_edges) :], step)
        dropped_edges = np.concatenate([dropped_edges, leaves])
        masked_collection = frontier.masked_collection[: frontier.end]
        return self._features(nodes, masked_collection, dropped_edges, frontier.rows), dropped_edges

    def _features(self, nodes, masked_collection, dropped_edges, rows) -> _Features:
        """features, spectral_features and has_spectral of a Minibatch."""
        read = {"masked_collection": masked_collection, "isolated": dropped_edges}
        if not self.spec.table_on_device:
            whole = self._inputs.gather(nodes, rows[-1], **read)
            return whole, np.zeros((0, 0), np.float32), np.zeros(0, np.bool_)
        # Pairs come first, and no other row has a masked collection.
        first = min(2 * self.spec.pairs_per_device, rows[0])
        return self._inputs.gather_for_table(nodes, rows[-1], first=first, **read)

    def _edge_dropout(self, nodes: np.ndarray, step: int) -> np.ndarray:
        """bool [n]: nodes that this step trains as if they had no edges."""
        chosen = np.zeros(len(nodes), np.bool_)
        if self.spec.train.edge_dropout > 0:
            below = np.uint64(round(self.spec.train.edge_dropout * 2**32))
            key = np.uint64(self.spec.seed ^ _EDGE_DROPOUT_STREAM)
            kernels.choose_nodes(nodes, key, np.uint64(step), below, chosen)
        return chosen


def candidate_logq(
    probability: np.ndarray, negative_pool: np.ndarray, spec: BatchSpec
) -> np.ndarray:
    """log of the expected share of each item among the candidates of a softmax.

    Candidates are the targets of the batch (the queries in the reverse direction), drawn
    by popularity, and uniform random negatives; an item can come from either.

    Args:
      probability: float32 [num_items], of a drawn pair's target (or query).
      negative_pool: int32 [P] items that random negatives are drawn from.

    Returns:
      float32 [num_items].
    """
    train = spec.train
    uniform = np.zeros_like(probability)
    uniform[negative_pool] = 1.0 / len(negative_pool)
    in_batch = train.batch_size if train.in_batch else 0
    share = in_batch * probability + train.random_negatives * uniform
    # An item that can be no candidate keeps a finite entry, for hard negatives.
    share = np.maximum(share / (in_batch + train.random_negatives), 1e-12)
    return np.log(share).astype(np.float32)
