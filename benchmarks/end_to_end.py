"""End-to-end training, compared with a DGL loop on the same workload.

Two layers, 256 pairs and 256 random negatives a step (shared by the pairs, so that 768
seeds are embedded as in DGL, with more scores), 256 random features, width 128,
margin loss, no masks and no edge dropout.  T=10 from 50 walks of 2 steps, T=50 from 100
walks of 5 steps; neighborhoods walked anew for every batch ("on the fly"), once an epoch,
when first needed ("once an epoch"; the rate is that of a whole epoch, computed from its slower
beginning and the steps after it), or once before training ("cached").

  python -m benchmarks.run end_to_end --graph_file=graphs/small.npz \\
      --dgl_python=dgl-env/bin/python

The graph file holds a bipartite graph as CSR both ways (pb_indptr, pb_indices,
bp_indptr, bp_indices); without one a smaller graph is generated.  With --dgl_python the
same workload runs in DGL and PyTorch (benchmarks/dgl_worker.py) in the fastest of a few
ways.  Both sides run in turns (A B A B), and ratios are those of medians.  Other processes slow
them down differently, so the ratio of CPU times is reported too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import dgl
from pinsage_jax.batching.blocks import BatchSpec
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.graph_view import GraphView
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.cpu import ops
from pinsage_jax.cpu.allocator import keep_freed_memory
from pinsage_jax.distributed.devices import compile_step, make_devices, place_batch, replicate
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.model.init import init_model
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.training.device_clock import DeviceClock
from pinsage_jax.training.device_inputs import table_arguments, table_form
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

WALKS = {10: (50, 2, 0.5), 50: (100, 5, 0.0)}  # T -> walks, steps, restart
WARM_UP = 3

# Ways in which the DGL loop may run: bits of an id, processes that make batches ahead.
DGL_WAYS = ((64, 0), (64, 1), (64, 2), (32, 0))
STEPS = {10: (40, 10), 50: (8, 2)}  # T -> steps of a timing, ours and DGL's
PAIRS_PER_EPOCH = 2**18
BEGINNING = {10: 256, 50: 32}  # T -> steps in which most nodes are met for the first time
WAYS = ("on the fly", "once an epoch", "cached")


def bipartite(path: str) -> Graph:
    """The graph of a file, or a generated one of 20,000 items, 5,000 collections, 400,000 edges."""
    if not path:
        rng = np.random.default_rng(0)
        weights = (np.arange(20_000) + 10.0) ** -0.7
        items = rng.choice(20_000, 400_000, p=weights / weights.sum())
        collections = rng.integers(0, 5_000, 400_000)
        pairs = np.unique(np.stack([items, collections], 1).astype(np.int32), axis=0)
        return Graph.from_edges(pairs[:, 0], pairs[:, 1], 20_000, 5_000)
    with np.load(path, allow_pickle=False) as arrays:
        item_ptr, collection_ptr = arrays["pb_indptr"], arrays["bp_indptr"]
        items = len(item_ptr) - 1
        indptr = np.concatenate([item_ptr, item_ptr[-1] + collection_ptr[1:]]).astype(np.int64)
        indices = np.concatenate([arrays["pb_indices"] + np.int32(items), arrays["bp_indices"]])
    return Graph(indptr, indices.astype(np.int32), None, items, len(collection_ptr) - 1)


def settings(top: int, device_features: str = "auto") -> Config:
    """The settings for one T."""
    walks, length, restart = WALKS[top]
    return Config(
        mode="train",
        workdir="-",
        seed=0,
        threads=None,
        sampling=SamplingConfig(
            num_neighbors=top,
            num_walks=walks,
            walk_length=length,
            restart=restart,
            content_neighbors=0,
            pair_power=1.0,
        ),
        model=ModelConfig(
            num_layers=2,
            hidden_dim=128,
            layer_dim=128,
            output_dim=128,
            spectral_dim=0,
            isolated_feature=False,
            popularity_bias=False,
            skip=False,
            neighbor_embeddings="off",
            whiten=0.0,
        ),
        train=TrainConfig(
            loss="margin",
            symmetric=False,
            batch_size=256,
            random_negatives=256,
            hard_start="none",
            edge_dropout=0.0,
            device_features=device_features,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
    )


def joined_pairs(graph: Graph, count: int) -> np.ndarray:
    """int32 [count, 2]: random items, and the ends of an item-collection-item step from them."""
    rng = np.random.default_rng(1)
    heads = rng.integers(0, graph.num_items, count)
    ends = heads[graph.degree()[heads] > 0]
    heads = ends
    for _ in range(2):
        places = graph.indptr[ends] + (rng.random(len(ends)) * graph.degree()[ends]).astype(int)
        ends = graph.indices[places]
    return np.stack([heads, ends], axis=1).astype(np.int32)


class Pace(NamedTuple):
    """The speed of some steps.

    Attributes:
      wait_share: share of the time in which the device had no batch.
      producers_needed: number of threads that make batches as fast as the device uses them.
      cpu_ms: CPU time per step, of all threads.
    """

    pairs_per_s: float
    wait_share: float
    producers_needed: int
    cpu_ms: float


class Training:
    """A training run that can take steps.

    Attributes:
      config, inputs: what the run was made of; params: before the first step.
      rows: rows of the frontiers, seeds first, with padding; used: without, of the last batch.
    """

    def __init__(
        self,
        graph: Graph,
        config: Config,
        features: np.ndarray,
        way: str,
        *,
        warm_up: int = WARM_UP,
        producers: int = 1,
        hard: int = 0,
        num_devices: int = 1,
    ):
        """Prepares a run and takes `warm_up` steps.

        Args:
          features: float32 [num_items, F].
          way: one of WAYS.
          producers: threads that make batches; the queue holds one batch for each, at least two.
          hard: hard negatives of every query.
          num_devices: over which each batch is split.
        """
        sampling = dataclasses.replace(config.sampling, resample=way == WAYS[1])
        store = "none" if way == WAYS[0] else "memory"
        threads = len(os.sched_getaffinity(0))
        source = NeighborhoodSource(graph, sampling, config.seed, threads, store)
        if way == WAYS[2]:
            source.materialize()
        self.inputs = inputs = NodeInputs(
            features,
            graph.degree(),
            isolated_feature=config.model.isolated_feature,
            whiten=config.model.whiten,
        )
        pairs = PairSource(graph, config.seed, joined_pairs(graph, PAIRS_PER_EPOCH))
        self._steps_per_epoch = pairs.per_epoch // config.train.batch_size
        self.config = config
        self.lists = NeighborLists(source, config.model.pooling)
        self._builder = MinibatchBuilder(
            GraphView(self.lists, inputs),
            pairs,
            BatchSpec(
                config.train,
                config.model.num_layers,
                config.seed,
                hard_in_epoch=lambda epoch: hard,
                hard_slots=hard,
                num_devices=num_devices,
                table=table_form(config.train, inputs),
                transposed=ops.needs_transposed_lists(config.model.pooling),
            ),
            negative_pool=np.arange(graph.num_items, dtype=np.int32),
        )
        self.rows = self._builder.budgets.rows
        model, params = init_model(config, inputs.dim, graph.num_items, self.rows)
        self.params = params
        optimizer = make_optimizer(config.train, pairs.per_epoch / config.train.batch_size)
        devices = make_devices(num_devices)
        self._constants = table_arguments(self._builder, config.train, devices)
        self._pure = make_train_step(model, config.train, optimizer)
        self._step = compile_step(self._pure, num_devices, constants=len(self._constants))
        self._state = replicate(initial_state(params, optimizer), devices)
        self._batch = config.train.batch_size
        self._done = 0
        self._producers = producers
        self.used: tuple[int, ...] = ()
        if warm_up:
            self._take(warm_up)

    def _take(self, steps: int) -> Pace:
        first, self._done = self._done, self._done + steps + 1
        depth = max(self._producers, 2)
        span = (first, first + steps + 1)
        batches = Prefetcher(self._builder.make, *span, depth, self._producers)
        processor = time.process_time()
        with batches, DeviceClock() as clock:
            # The first batch fills the queue and is not timed.
            for number, (batch, info) in enumerate(batches):  # noqa: B007
                self._state, metrics = self._step(self._state, batch, *self._constants)
                clock.step_dispatched(metrics)
                if number == 0:
                    idle, made = clock.idle_seconds(), batches.make_seconds
                    begun = time.perf_counter()
            idle = clock.idle_seconds() - idle
            seconds, made = time.perf_counter() - begun, batches.make_seconds - made
        self.used = info.used
        needed = math.ceil(made / max(seconds - idle, 1e-9))
        # One step more than is timed, but the processor works for it.
        cpu_ms = 1e3 * (time.process_time() - processor) / (steps + 1)
        return Pace(steps * self._batch / seconds, idle / seconds, needed, cpu_ms)

    def make(self, step: int) -> Any:
        """The minibatch of a step and its info, made on this thread."""
        return self._builder.make(step)

    def repeated_step(self) -> Callable[[], Any]:
        """A function that takes a step on the same batch in every call."""
        batch = place_batch(self.make(self._done)[0], make_devices(1))

        def take():
            self._state, metrics = self._step(self._state, batch, *self._constants)
            return self._state, metrics

        take()
        return take

    def jaxpr(self) -> Any:
        """The jaxpr of the training step, with every product as an operation of XLA."""
        batch = jax.tree.map(lambda leaf: leaf[0], self.make(0)[0])
        with mock.patch.object(ops, "kernels_are_used", return_value=False):
            return jax.make_jaxpr(self._pure)(self._state, batch, *self._constants).jaxpr

    @functools.cached_property
    def _all_lists(self) -> tuple[Any, Any]:
        return self.lists.all_rows()

    def embed(self, block: int, threads: int) -> np.ndarray:
        """Embeds the items with the initial parameters: float32 [num_items, Z]."""
        return embed_all(
            self.config.model,
            self.params,
            self.inputs,
            self._all_lists,
            PassOptions(block, threads, quiet=True),
        )

    def parameters(self) -> Any:
        """The current parameters as NumPy arrays."""
        return jax.tree.map(np.asarray, self._state.params)

    def measure(self, steps: int) -> Pace:
        """The pace of the next steps."""
        return self._take(steps)

    def measure_epoch(self, steps: int) -> Pace:
        """The pace of the next epoch, from its beginning and `steps` steps after it."""
        beginning = BEGINNING[self.config.sampling.num_neighbors]
        self._done += -self._done % self._steps_per_epoch
        begun = time.perf_counter()
        first = self._take(beginning - 1)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - begun
        rest = self._take(steps)
        left = self._steps_per_epoch - beginning
        seconds += left * self._batch / rest.pairs_per_s
        return rest._replace(
            pairs_per_s=self._steps_per_epoch * self._batch / seconds,
            cpu_ms=(beginning * first.cpu_ms + left * rest.cpu_ms) / self._steps_per_epoch,
        )


class _DglLoop:
    """The DGL loop for one T, in the way of DGL_WAYS that was fastest in a trial."""

    def __init__(self, worker: dgl.Worker, graph_file: str, top: int):
        self._worker, self._file, self._top = worker, graph_file, top
        trials = {way: self._ask(way, 1)["seconds"] for way in DGL_WAYS}
        self._way = min(trials, key=trials.__getitem__)
        self.name = "{} bits, {} processes ahead".format(*self._way)
        self._spent: list[dict[str, float]] = []

    def _ask(self, way: tuple[int, int], steps: int) -> dict[str, float]:
        walks, traversals, stop = WALKS[self._top]
        self._worker.ask("graph", path=self._file, bits=way[0])
        settings = {"walks": walks, "traversals": traversals, "stop": stop, "top": self._top}
        return self._worker.ask(
            "train", steps=steps, workers=way[1], pairs=256, features=256, width=128, **settings
        )

    def measure(self) -> None:
        """Takes the steps of one timing."""
        self._spent.append(self._ask(self._way, STEPS[self._top][1]))

    def step_ms(self, clock: str) -> float:
        """Median milliseconds per step by the clock "seconds" (wall-clock time) or "cpu"."""
        spent = statistics.median(each[clock] for each in self._spent)
        return 1e3 * spent / (STEPS[self._top][1] + (clock == "cpu"))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each T and way of sampling."""
    keep_freed_memory()
    graph = bipartite(options.graph_file)
    features = np.random.default_rng(0).standard_normal((graph.num_items, 256), np.float32)
    notes = [{"note": dgl.SKIPPED}]
    with contextlib.ExitStack() as stack:
        worker = None
        if options.dgl_python and options.graph_file:
            worker = stack.enter_context(dgl.Worker(options.dgl_python, options.threads))
            notes = [{"note": "DGL {dgl} with torch {torch}.".format(**worker.versions)}]
        rows = [row for top in options.tops for row in _rows(graph, features, top, worker, options)]
    return rows + notes


def _rows(graph, features, top, worker, options) -> list[dict[str, Any]]:
    sides = {
        way: Training(graph, settings(top), features, way, producers=options.producers)
        for way in WAYS
    }
    dgl_loop = (
        _DglLoop(worker, str(pathlib.Path(options.graph_file).resolve()), top) if worker else None
    )
    found: dict[str, list[Pace]] = {way: [] for way in sides}
    for _ in range(options.repeat):
        for way, side in sides.items():
            take = side.measure_epoch if way == WAYS[1] else side.measure
            found[way].append(take(STEPS[top][0]))
        if dgl_loop:
            dgl_loop.measure()
    rows = []
    for way, side in sides.items():
        rate = statistics.median(pace.pairs_per_s for pace in found[way])
        cpu_ms = statistics.median(pace.cpu_ms for pace in found[way])
        row = {
            "T": top,
            "neighborhoods": way,
            "pairs_per_s": rate,
            "step_ms": 256e3 / rate,
            "cpu_ms": cpu_ms,
            "wait_share": statistics.median(pace.wait_share for pace in found[way]),
            "producers": options.producers,
            "padding_share": 1 - sum(side.used) / side.rows[-1],
            "rows": " ".join(str(size) for size in side.rows),
            "rounds": options.repeat,
        }
        if dgl_loop:
            row["dgl_pairs_per_s"] = 256e3 / dgl_loop.step_ms("seconds")
            row["ratio"] = dgl_loop.step_ms("seconds") / row["step_ms"]
            row["cpu_ratio"] = dgl_loop.step_ms("cpu") / cpu_ms
            row["dgl"] = dgl_loop.name
        rows.append(row)
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--tops", type=int, nargs="+", default=[10, 50], choices=sorted(WALKS))
    parser.add_argument("--producers", type=int, default=1, help="threads that make batches")
