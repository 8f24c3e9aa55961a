"""A few real steps of training, and of embedding, with made-up inputs of the right size.

The graph, the settings and the shapes are those of the run; what would take minutes to
find (features, spectral features, content links) is made up, because its values change nothing
of what a step costs.  Nothing is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pinsage_jax.batching.blocks import BatchInfo, BatchSpec, Minibatch
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.graph_view import GraphView
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.checkup.clock import now, timed
from pinsage_jax.config.settings import Config
from pinsage_jax.cpu import ops
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.model.init import init_model
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.training.curriculum import Schedule, hard_negatives_in, hard_slots
from pinsage_jax.training.device_inputs import keeps_table
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

_STEPS = 8
_EMBEDDED = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What was measured; seconds as in probe.py.

    Attributes:
      total_steps: steps of the run; validations: how often it validates and saves.
      step_seconds: of a step, batches being made beside it; hard negatives not counted.
      budget_seconds: of measuring the size of batches; compile_seconds: of making
        parameters and compiling the step and the embedding.
      embed_seconds: a node.
      state_bytes: of parameters and optimizer; pairs_per_epoch: of the schedule.
    """

    total_steps: int
    validations: int
    step_seconds: np.ndarray
    budget_seconds: np.ndarray
    compile_seconds: np.ndarray
    embed_seconds: np.ndarray
    state_bytes: int
    parameter_bytes: int
    pairs_per_epoch: int


def try_training(
    config: Config, graph: Graph, width: int, places: int, given: np.ndarray | None, threads: int
) -> Trial:
    """Compiles the step of the run and takes a few.

    Args:
      width: feature columns; places: dimensions of the spectral features.
      given: int32 [P, 2] training pairs, if there are.
      threads: host threads.

    Raises:
      UserError: what training would refuse.
    """
    ops.choose_kernels(config.train.cpu_kernels)
    devices = make_devices(config.train.devices)
    view = _made_up_view(config, graph, width, places, threads)
    inputs = view.inputs
    pairs = PairSource(
        graph, config.seed, given, config.train.pairs_per_epoch, config.sampling.pair_power
    )
    start = now()
    builder = MinibatchBuilder(
        view,
        pairs,
        BatchSpec(
            config.train,
            config.model.num_layers,
            config.seed,
            hard_in_epoch=lambda epoch: hard_negatives_in(epoch, config.train),
            hard_slots=hard_slots(config.train, pairs.per_epoch),
            num_devices=len(devices),
            table_on_device=keeps_table(config.train, inputs),
        ),
        negative_pool=np.arange(graph.num_items, dtype=np.int32),
    )
    budget_seconds = now() - start
    schedule = Schedule.from_config(config.train, pairs.per_epoch)
    start = now()
    model, params = init_model(config, inputs.dim, builder.num_nodes, builder.budgets.rows)
    optimizer = make_optimizer(config.train, schedule.steps_per_epoch)
    state = initial_state(params, optimizer)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    table = builder.table()
    constants = () if table is None else (replicate(table, devices),)
    run = compile_step(
        make_train_step(model, config.train, optimizer), len(devices), constants=len(constants)
    )
    state = replicate(state, devices)
    state, told = run(state, builder.make(0)[0], *constants)
    jax.block_until_ready((state, told))
    compile_seconds = now() - start
    epoch = max(int(schedule.steps_per_epoch), 1)
    step_seconds = _seconds_a_step(
        config, builder, epoch, state, lambda s, b: run(s, b, *constants)
    )
    first, each = _embedding(config, params, inputs, view.lists.width, builder.num_nodes)
    return Trial(
        total_steps=schedule.total,
        validations=-(-schedule.total // schedule.validate_every),
        step_seconds=step_seconds,
        budget_seconds=budget_seconds,
        compile_seconds=compile_seconds + first,
        embed_seconds=each,
        state_bytes=size,
        parameter_bytes=parameters,
        pairs_per_epoch=pairs.per_epoch,
    )


def _made_up_view(config: Config, graph: Graph, width: int, places: int, threads: int) -> GraphView:
    """The graph with features of zeros and random content links."""
    source = NeighborhoodSource(graph, config.sampling, config.seed, threads, "none")
    lists = NeighborLists.from_config(source, _links(config, graph, width), config)
    # Zero pages take no memory until they are written; places stand for as many features.
    features = np.zeros((graph.num_items, width + places), np.float32)
    inputs = NodeInputs(
        features,
        graph.degree(),
        isolated_feature=config.model.isolated_feature,
        node_type=config.sampling.neighborhood == "all",
    )
    return GraphView(lists, inputs)


def _seconds_a_step(
    config: Config,
    builder: MinibatchBuilder,
    epoch: int,
    state: Any,
    run: Callable[[Any, Minibatch], tuple[Any, Any]],
) -> np.ndarray:
    """Mean seconds of _STEPS steps after one more, batches being made beside them.

    Args:
      epoch: steps of the first epoch.  It has no hard negatives; their cost is counted by
        query.
    """

    def make(index: int) -> tuple[Minibatch, BatchInfo]:
        return builder.make(index % epoch)

    train = config.train
    with Prefetcher(make, 1, 2 + _STEPS, train.batches_ahead, train.producers) as queue:
        batch, _ = next(queue)
        state, told = run(state, batch)
        jax.block_until_ready(told)
        start = now()
        for batch, _ in queue:
            state, told = run(state, batch)
        jax.block_until_ready((state, told))
        return (now() - start) / _STEPS


def _links(config: Config, graph: Graph, width: int) -> ContentLinks:
    """Links to random items where the run would have links."""
    size, items = config.sampling.content_neighbors, graph.num_items
    if not size or not width:
        return ContentLinks.none(items)
    ids = np.random.default_rng(0).integers(0, items, (4096, size)).astype(np.int32)
    shares = np.full(ids.shape, np.float32(1.0 / size))
    return ContentLinks(ids, shares, np.arange(items, dtype=np.int32) % len(ids))


def _embedding(
    config: Config, params: object, inputs: NodeInputs, width: int, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to compile the embedding of nodes, and seconds a node of it."""
    count = min(nodes, _EMBEDDED)
    ids = np.random.default_rng(0).integers(0, count, (count, width)).astype(np.int32)
    weights = np.full(ids.shape, np.float32(1.0 / width))

    options = PassOptions(_EMBEDDED, quiet=True)

    def embed() -> None:
        embed_all(config.model, params, inputs, (ids, weights), options)

    first, second = timed(embed), timed(embed)
    return np.maximum(first - second, 0.0), second / count
