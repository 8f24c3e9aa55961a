"""Times a few steps of training and of embedding, with placeholder inputs of the right size.

The graph, the settings and the shapes are those of the run.  Features, spectral features and
content links would take minutes to compute, and their values do not affect the time of a
step, so zeros and random links stand in for them.  No file is written.
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
from pinsage_jax.model import grouped_pooling
from pinsage_jax.model.init import init_model
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.training.curriculum import Schedule, hard_negatives_in, hard_slots
from pinsage_jax.training.device_inputs import local_table_form, table_arguments
from pinsage_jax.training.feed import queue_of
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

_STEPS = 8
_EMBEDDED_NODES = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The measurements; seconds as in clock.py.

    Attributes:
      total_steps: number of steps of the run.
      validations: number of times that the run validates and saves.
      step_seconds: time of a step while batches are made in parallel, without the time to
        rank hard negatives.
      budget_seconds: time to measure the size of batches.
      compile_seconds: time to make the parameters and to compile the step and the embedding.
      embed_seconds: time to embed a node.
      state_bytes: size of the parameters and the optimizer state.
      parameter_bytes: size of the parameters.
      pairs_per_epoch: pairs of an epoch of the schedule.
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
    config: Config,
    graph: Graph,
    width: int,
    spectral_dim: int,
    train_pairs: np.ndarray | None,
    threads: int,
) -> Trial:
    """Compiles the step of the run and times a few steps.

    Args:
      width: number of feature columns.
      spectral_dim: dimensions of the spectral features.
      train_pairs: int32 [P, 2], the table of training pairs, or None.
      threads: host threads.

    Raises:
      UserError: training would refuse these settings.
    """
    ops.choose_kernels(config.train.cpu_kernels)
    grouped_pooling.choose_kernels(config.train.accelerator_kernels)
    devices = make_devices(config.train.devices)
    view = _placeholder_view(config, graph, width, spectral_dim, threads)
    inputs = view.inputs
    pairs = PairSource(
        graph, config.seed, train_pairs, config.train.pairs_per_epoch, config.sampling.pair_power,
        config.data.weighs_edges, config.train.least_epoch_pairs,
    )  # fmt: skip
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
            table=local_table_form(config.train, inputs),
            transposed=ops.needs_transposed_lists(config.model.pooling),
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
    constants = table_arguments(builder, config.train, devices)
    run = compile_step(
        make_train_step(model, config.train, optimizer),
        len(devices),
        constants=len(constants),
        split=builder.spec.table_is_split,
    )
    state = replicate(state, devices)
    state, metrics = run(state, builder.make(0)[0], *constants)
    jax.block_until_ready((state, metrics))
    compile_seconds = now() - start
    epoch = max(int(schedule.steps_per_epoch), 1)
    step_seconds = _step_seconds(config, builder, epoch, state, lambda s, b: run(s, b, *constants))
    embed_compile_seconds, embed_seconds = _embedding(
        config, params, inputs, view.lists.width, builder.num_nodes
    )
    return Trial(
        total_steps=schedule.total,
        validations=schedule.validations,
        step_seconds=step_seconds,
        budget_seconds=budget_seconds,
        compile_seconds=compile_seconds + embed_compile_seconds,
        embed_seconds=embed_seconds,
        state_bytes=size,
        parameter_bytes=parameters,
        pairs_per_epoch=pairs.per_epoch,
    )


def _placeholder_view(
    config: Config, graph: Graph, width: int, spectral_dim: int, threads: int
) -> GraphView:
    """A view of the graph with features of zeros and random content links."""
    source = NeighborhoodSource(graph, config.sampling, config.seed, threads, "none")
    lists = NeighborLists.from_config(source, _links(config, graph, width), config)
    # Zero pages take no memory until they are written.  Spectral features count as features.
    features = np.zeros((graph.num_items, width + spectral_dim), np.float32)
    inputs = NodeInputs(
        features,
        graph.degree(),
        isolated_feature=config.model.isolated_feature,
        node_type=config.sampling.neighborhood == "all",
    )
    return GraphView(lists, inputs)


def _step_seconds(
    config: Config,
    builder: MinibatchBuilder,
    epoch: int,
    state: Any,
    run: Callable[[Any, Minibatch], tuple[Any, Any]],
) -> np.ndarray:
    """Mean seconds of _STEPS steps after a warm-up step, with batches made in parallel.

    Args:
      epoch: steps of the first epoch, which has no hard negatives; the forecast counts their
        cost by query.
    """

    def make(index: int) -> tuple[Minibatch, BatchInfo]:
        return builder.make(index % epoch)

    with Prefetcher(make, 1, 2 + _STEPS, *queue_of(config)) as queue:
        batch, _ = next(queue)
        state, metrics = run(state, batch)
        jax.block_until_ready(metrics)
        start = now()
        for batch, _ in queue:
            state, metrics = run(state, batch)
        jax.block_until_ready((state, metrics))
        return (now() - start) / _STEPS


def _links(config: Config, graph: Graph, width: int) -> ContentLinks:
    """Random content links for the items that have links in the run."""
    size, items = config.sampling.content_neighbors, graph.num_items
    if not size or not width:
        return ContentLinks.none(items)
    ids = np.random.default_rng(0).integers(0, items, (4096, size)).astype(np.int32)
    shares = np.full(ids.shape, np.float32(1.0 / size))
    return ContentLinks(ids, shares, np.arange(items, dtype=np.int32) % len(ids))


def _embedding(
    config: Config, params: object, inputs: NodeInputs, width: int, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to compile the embedding of nodes, and seconds to embed a node."""
    count = min(nodes, _EMBEDDED_NODES)
    ids = np.random.default_rng(0).integers(0, count, (count, width)).astype(np.int32)
    weights = np.full(ids.shape, np.float32(1.0 / width))

    options = PassOptions(_EMBEDDED_NODES, quiet=True)

    def embed() -> None:
        embed_all(config.model, params, inputs, (ids, weights), options)

    first, second = timed(embed), timed(embed)
    return np.maximum(first - second, 0.0), second / count
