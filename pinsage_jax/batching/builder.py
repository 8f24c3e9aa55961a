"""Builds the minibatch of a step on the host: the producer's half of the work.

PinSage (Ying et al. 2018, section 3.3, "producer-consumer minibatch construction"):
while the device computes step t, host threads draw the pairs and negatives of step
t+1, walk their neighborhoods, re-index the nodes involved into a compact graph G'
and gather its features.  `MinibatchBuilder.make(step)` is a pure function of the
step, so any thread may build any batch, and a resume needs only the step.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging

from pinsage_jax.batching import block_kernels
from pinsage_jax.batching.blocks import BatchInfo, Budgets, Minibatch, padded_size
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.sampling import kernels
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.pairs import (
    PairBatch,
    PairSource,
    Rankings,
    hard_negatives,
    random_negatives,
)

_STRIP_STREAM = 0x7374726970


class MinibatchBuilder:
    """Makes the minibatch of any step, cut into one part per device.

    Where several processes are one run, each makes the parts of its own devices only.

    Attributes:
      num_devices: parts that a step is cut into, over all processes.
      budgets: rows of every frontier; measured on trial batches when not given.
    """

    def __init__(
        self,
        lists: NeighborLists,
        inputs: NodeInputs,
        pairs: PairSource,
        train: TrainConfig,
        model: ModelConfig,
        *,
        seed: int,
        num_devices: int,
        hard_in_epoch: Callable[[int], int],
        hard_slots: int,
        negative_pool: np.ndarray,
        budgets: Budgets | None = None,
        table_on_device: bool = False,
        own_devices: range | None = None,
    ):
        """Prepares a builder.

        Args:
          own_devices: the parts to make; all of them when not given.
          hard_in_epoch: hard negatives per query in an epoch (from 0).
          hard_slots: H, the most that hard_in_epoch ever gives.
          negative_pool: int32 [P] items that random negatives are drawn from.
          table_on_device: batches name rows of `table` and bring only what it lacks.

        Raises:
          ValueError: the batch size is not a multiple of the devices.
        """
        if train.batch_size % num_devices:
            raise ValueError(
                f"batch_size={train.batch_size} is not a multiple of {num_devices} devices"
            )
        self._lists = lists
        self._source = lists.source
        self._inputs = inputs
        self._pairs = pairs
        self._train = train
        self._model = model
        self._seed = seed
        self.num_devices = num_devices
        self._own_devices = own_devices or range(num_devices)
        self._hard_in_epoch = hard_in_epoch
        self._hard_slots = hard_slots
        self._pool = negative_pool
        source = self._source
        self._rankings = Rankings(source.tables, source.sampling, seed, source.threads)
        self._table_on_device = table_on_device
        self._spare: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self._logq = self._log_chances(pairs.target_probability())
        self.budgets = budgets or self._measure_budgets()

    @property
    def num_nodes(self) -> int:
        """Nodes that can stand in a minibatch."""
        return self._source.num_nodes

    def table(self) -> np.ndarray | None:
        """float32 [N, D] for the devices to read inputs from; None: batches bring them."""
        return self._inputs.table() if self._table_on_device else None

    def _log_chances(self, target_chance: np.ndarray) -> np.ndarray:
        """float32 [num_items] log of the expected share of each item among candidates.

        Candidates of a softmax are the targets of the batch (or of its part on one
        device), drawn by popularity, and uniform random negatives; an item can come
        from either.
        """
        train = self._train
        together = train.batch_size
        if not train.gather_in_batch:
            together //= self.num_devices
        uniform = np.zeros_like(target_chance)
        uniform[self._pool] = 1.0 / len(self._pool)
        in_batch = together if train.in_batch else 0
        share = in_batch * target_chance + train.random_negatives * uniform
        # An item that can be no candidate keeps a finite entry, for hard negatives.
        share = np.maximum(share / (in_batch + train.random_negatives), 1e-12)
        return np.log(share).astype(np.float32)

    def _measure_budgets(self) -> Budgets:
        """Budgets from trial batches, early and late enough to hold all hard negatives."""
        train, layers = self._train, self._model.num_layers
        size = self._lists.width
        limits = [
            train.batch_size // self.num_devices * (2 + self._hard_slots) + train.random_negatives
        ]
        for _ in range(layers):
            limits.append(min(limits[0] + self._source.num_nodes, limits[-1] * (size + 1)))
        late = self._pairs.per_epoch * max(train.hard_max + 1, 1) // train.batch_size + 1
        most = np.zeros(layers + 1, np.int64)
        for step in (0, 1, late, late + 1):
            for device in range(self.num_devices):
                with self._frontier(tuple(limits), padded=False) as frontier:
                    _, info = self._part(step, device, self._common(step), frontier)
                most = np.maximum(most, info.used)
        rows: list[int] = []
        for layer, used in enumerate(most):
            bound = limits[0] if layer == 0 else min(self._source.num_nodes, rows[-1] * size)
            rows.append(padded_size(int(used), bound) + (rows[-1] if rows else 0))
        # The late trial batches were of a later epoch than the first step's.
        self._source.forget_epochs()
        budgets = Budgets(tuple(rows))
        logging.info("rows of each frontier, seeds first: %s", budgets.rows)
        return budgets

    def make(self, step: int, devices: range | None = None) -> tuple[Minibatch, BatchInfo]:
        """The minibatch of `step`.

        Returns:
          (Minibatch, BatchInfo), both of `devices`, by default the own ones.  Every array
          has a leading device axis; the random negatives are the same on each device.
        """
        common = self._common(step)
        made = []
        for device in devices or self._own_devices:
            with self._frontier(self.budgets.rows) as frontier:
                made.append(self._part(step, device, common, frontier))
        parts, infos = zip(*made)
        used = tuple(int(sum(column)) for column in zip(*(info.used for info in infos)))
        info = BatchInfo(
            used,
            sum(info.left_out for info in infos),
            float(np.mean([info.hard_per_query for info in infos])),
            float(np.mean([info.stripped for info in infos])),
        )
        if len(parts) == 1:
            return Minibatch(*(array[None] for array in parts[0])), info
        return Minibatch(*(np.stack(arrays) for arrays in zip(*parts))), info

    @contextlib.contextmanager
    def _frontier(self, rows: tuple[int, ...], padded: bool = True) -> Iterator[_Frontier]:
        """An empty frontier; the table over all nodes behind it is used again and again."""
        try:
            plain = self._spare.get_nowait()
        except queue.Empty:
            # Of zeros: the system makes its pages when they are first written.
            plain = np.zeros(self.num_nodes, np.int32)
        frontier = _Frontier(rows, self._lists.width, plain, padded)
        yield frontier
        block_kernels.forget(frontier.nodes, frontier.end, plain)
        self._spare.put(plain)

    def _common(self, step: int) -> tuple[int, np.ndarray]:
        """What all devices of a step share: the epoch and the random negatives."""
        epoch = self._pairs.epoch_of(step * self._train.batch_size)
        negatives = random_negatives(self._pool, self._train.random_negatives, self._seed, step)
        return epoch, negatives

    def _hidden_from(self, pairs: PairBatch) -> tuple[np.ndarray, ...]:
        """(hidden, dropped) of queries and of targets: what a pair must not see."""
        none = np.full(len(pairs.queries), -1, np.int32)
        mode = self._source.sampling.hide_positive
        if mode == "none":
            return none, none, none, none
        if mode == "collection" and (pairs.via >= 0).all():
            return pairs.via, none, pairs.via, none
        return none, pairs.targets, none, pairs.queries

    def _hard(self, pairs: PairBatch, epoch: int, first: int) -> np.ndarray:
        """Hard negatives int32 [B, H]; -1 beyond what the curriculum allows."""
        hard = np.full((len(pairs.queries), self._hard_slots), -1, np.int32)
        wanted = min(self._hard_in_epoch(epoch), self._hard_slots)
        if wanted:
            hard[:, :wanted] = hard_negatives(self._rankings, pairs, size=wanted, first=first)
        return hard

    def _part(
        self, step: int, device: int, common: tuple[int, np.ndarray], frontier: _Frontier
    ) -> tuple[Minibatch, BatchInfo]:
        """One device's share of a step."""
        epoch, negatives = common
        each = self._train.batch_size // self.num_devices
        first = step * self._train.batch_size + device * each
        pairs = self._pairs.batch(first, each)
        hard = self._hard(pairs, epoch, first)
        hidden_q, dropped_q, hidden_t, dropped_t = self._hidden_from(pairs)
        queries = frontier.seeds(pairs.queries, hidden_q, dropped_q)
        targets = frontier.seeds(pairs.targets, hidden_t, dropped_t)
        shared = frontier.seeds(negatives)
        hard_rows = frontier.seeds(hard.reshape(-1)).reshape(hard.shape)
        stripped = frontier.expand(
            lambda nodes, hidden, dropped: self._listed(nodes, hidden, dropped, epoch, step)
        )
        # Padding between frontiers reads as node 0; nothing points to it.
        nodes = np.maximum(frontier.nodes[: frontier.end], 0)
        hidden = frontier.hidden[: frontier.end]
        # Rows of the last frontier have no list of their own but may be stripped too.
        leaves = self._stripped(nodes[len(stripped) :], step)
        stripped = np.concatenate([stripped, leaves])
        features, places, placed = self._features(nodes, hidden, stripped, frontier.rows)
        counts = (pairs.targets >= 0) & (queries >= 0) & (targets >= 0)
        batch = Minibatch(
            features=features,
            places=places,
            placed=placed,
            node_ids=frontier.nodes,
            neighbors=np.maximum(frontier.neighbors, 0),
            weights=frontier.weights,
            queries=np.maximum(queries, 0),
            targets=np.maximum(targets, 0),
            pair_weights=counts.astype(np.float32),
            negatives=np.maximum(shared, 0),
            hard=np.maximum(hard_rows, 0),
            query_ids=pairs.queries,
            target_ids=pairs.targets,
            negative_ids=np.where(shared >= 0, negatives, -1),
            hard_ids=np.where(hard_rows >= 0, hard, -1),
            query_logq=self._logq[pairs.queries],
            target_logq=self._logq[np.maximum(pairs.targets, 0)],
            negative_logq=self._logq[negatives],
            hard_logq=self._logq[np.maximum(hard, 0)],
        )
        info = BatchInfo(
            tuple(frontier.used),
            frontier.left_out,
            float((batch.hard_ids >= 0).sum() / each),
            float(stripped.sum() / max(sum(frontier.used), 1)),
        )
        return batch, info

    def _features(self, nodes, hidden, stripped, rows) -> tuple[np.ndarray, ...]:
        """features, places and placed of a Minibatch."""
        if not self._table_on_device:
            whole = self._inputs.gather(nodes, rows[-1], hidden=hidden, edgeless=stripped)
            return whole, np.zeros((0, 0), np.float32), np.zeros(0, np.bool_)
        # Pairs come first and nothing else hides anything.
        first = min(2 * self._train.batch_size // self.num_devices, rows[0])
        return self._inputs.gather_own(
            nodes, rows[-1], hidden=hidden, edgeless=stripped, first=first
        )

    def _stripped(self, nodes: np.ndarray, step: int) -> np.ndarray:
        """bool [n]: nodes that this step trains as if they had no edges."""
        chosen = np.zeros(len(nodes), np.bool_)
        if self._train.edge_dropout > 0:
            below = np.uint64(round(self._train.edge_dropout * 2**32))
            key = np.uint64(self._seed ^ _STRIP_STREAM)
            kernels.chosen_nodes(nodes, key, np.uint64(step), below, chosen)
        return chosen

    def _listed(self, nodes, hidden, dropped, epoch, step):
        """Neighbor ids and weights [n, T] of instances, and which were stripped."""
        stripped = self._stripped(nodes, step)
        ids, weights = self._lists.of(nodes, epoch, hidden, dropped, stripped)
        return ids, weights, stripped


class _Frontier:
    """The growing node set of one minibatch; see blocks and block_kernels for the layout.

    Attributes:
      rows: most rows of each frontier, seeds first.
      nodes, hidden: int32 [n_0], what each row stands for; a node of -1 is padding.
      neighbors: int32 [n_1, T], lists as rows of this frontier; weights: float32.
      end: rows laid out so far, with the padding between frontiers.
      used: rows that each frontier really added.
      left_out: neighbors that found no room.
    """

    def __init__(
        self, rows: tuple[int, ...], num_neighbors: int, plain: np.ndarray, padded: bool = True
    ):
        """Starts with no node.

        Args:
          plain: int32 [num_nodes] of zeros, written to; see block_kernels.insert_seeds.
          padded: whether a frontier begins where the budget of the one before it ends,
            or follows without a gap (trial batches).
        """
        # Only seeds have anything hidden from them.
        capacity = 4
        while capacity < 2 * rows[0]:
            capacity *= 2
        self.rows = rows
        self._padded = padded
        self._plain = plain
        self._table = np.full(capacity, -1, np.int32)
        self.nodes = np.full(rows[-1], -1, np.int32)
        self.hidden = np.full(rows[-1], -1, np.int32)
        self._dropped = np.full(rows[-1], -1, np.int32)
        listed = rows[-2] if len(rows) > 1 else 0
        self.neighbors = np.full((listed, num_neighbors), -1, np.int32)
        self.weights = np.zeros((listed, num_neighbors), np.float32)
        self.end = 0
        self.used: list[int] = []
        self.left_out = 0

    def seeds(
        self,
        wanted: np.ndarray,
        hidden: np.ndarray | None = None,
        dropped: np.ndarray | None = None,
    ) -> np.ndarray:
        """Adds seeds; int32 rows of the frontier, -1 where none was wanted or fits."""
        wanted = np.ascontiguousarray(wanted, np.int32)
        none = np.full(wanted.shape, -1, np.int32)
        found = np.empty(wanted.shape, np.int32)
        self.end, missing = block_kernels.insert_seeds(
            wanted,
            none if hidden is None else hidden,
            none if dropped is None else dropped,
            self.rows[0],
            self.nodes,
            self.hidden,
            self._dropped,
            self._plain,
            self._table,
            self.end,
            found,
        )
        self.left_out += missing
        return found

    def expand(self, lists: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
        """Adds the neighbors of every frontier in turn.

        Args:
          lists: (nodes, hidden, dropped) -> ids [n, T], weights [n, T], stripped [n].

        Returns:
          bool [rows with a list], which rows were stripped.
        """
        self.used.append(self.end)
        stripped = [np.zeros(0, np.bool_)]
        listed = 0
        for layer in range(len(self.rows) - 1):
            last = self.end
            rows = slice(listed, last)
            ids, weights, bare = lists(self.nodes[rows], self.hidden[rows], self._dropped[rows])
            # The padding of S(k) stays between its rows and the new ones, so that
            # S(k) is a prefix of S(k-1) at a fixed size.
            begin = self.rows[layer] if self._padded else last
            stripped += [bare, np.zeros(begin - last, np.bool_)]
            self.end, missing = block_kernels.insert_neighbors(
                ids,
                listed,
                last,
                self.rows[layer + 1],
                self.nodes,
                self._plain,
                begin,
                self.neighbors,
            )
            self.weights[rows] = weights
            if missing:
                kept = np.where(self.neighbors[rows] >= 0, weights, np.float32(0.0))
                total = kept.sum(axis=1, keepdims=True)
                self.weights[rows] = kept / np.where(total > 0, total, 1.0)
                self.left_out += missing
            self.used.append(self.end - begin)
            listed = begin
        return np.concatenate(stripped)
