"""The programs of a run as functions and shapes, at fixed sizes: nothing is computed.

`default` has the default settings on the 20,000 items of benchmarks/end_to_end.py with 512
features, `workload` those of its comparison with DGL at T=50 on the graph `small` of
benchmarks/graphs.py.  `paper` has the sizes of Ying et al. 2018 (T=50, m=2048, d=1024, 2,048
pairs, 500 shared and 6 hard negatives, 4,352 features, bfloat16) on the graph `large`, and
`paper-soft` the same without hard negatives and with 1,024 features on the graph `small`.
`smallest` is for tests of the compilers.  Every device has a batch of its size: several devices
train on proportionally more pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator, end_to_end, graphs, train_step
from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.batching.transposed import WIDTHS, layouts, transpose, transposed_size
from pinsage_jax.config.settings import Config
from pinsage_jax.inference import map_reduce
from pinsage_jax.model.init import init_model
from pinsage_jax.retrieval import topk
from pinsage_jax.retrieval.blocks import best_of
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

TOP_K = 100
STAGES = ("project", "combine", "finish", "top-k", "catalog top-k", "approximate top-k")
RECALL = 0.95


@dataclasses.dataclass(frozen=True)
class Size:
    """One size of the programs.

    Attributes:
      config: makes the settings.
      graph: a name of benchmarks/graphs.py; "" for the graph of benchmarks/end_to_end.py.
      items, features: rows and columns of the item features.
      hard: hard negatives of every query.
      rows: rows of the frontiers, seeds first; groups: for every layer, the first layer first,
        the groups of its transposed lists (counts of batching/transposed.py).  `measured` finds
        both in real batches (`--frontiers`); rows of `paper-soft` are round numbers.
      on_device: type of the table of input vectors on the device; empty: batches bring them.
    """

    config: Callable[[], Config]
    graph: str
    items: int
    features: int
    hard: int
    rows: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    on_device: str

    @property
    def lists(self) -> int:
        """Length of a neighbor list, content links included."""
        sampling = self.config().sampling
        return sampling.num_neighbors + sampling.content_neighbors

    def trips(self) -> dict[str, int]:
        """Iterations of the loops that depend on the batch, by their jax.named_scope."""
        found = {}
        for layout, counts in zip(layouts(self.rows, self.lists), self.groups):
            names = [f"pieces_{layout.rows}_{width}" for width in WIDTHS]
            found |= dict(zip([*names, f"merges_{layout.rows}"], counts, strict=True))
        return found

    def kernel_bytes(self) -> dict[str, float]:
        """Bytes that model/row_sum_kernels.py moves for each layer, by its jax.named_scope.

        The rows of entries without padding, every sum once, and the lists.
        """
        model, found = self.config().model, {}
        entry = jnp.dtype(model.compute_dtype).itemsize
        for layout, counts in zip(layouts(self.rows, self.lists), self.groups):
            pieces = sum(count * layout.slots // width for count, width in zip(counts, WIDTHS))
            slots = layout.slots * sum(counts[:-1])
            for name, sums, listed in (
                ("pooled", layout.lists * entry, layout.entries),
                ("row_sums", pieces * 4, slots),
            ):
                numbers = layout.entries * entry + sums
                found[f"{name}_{layout.rows}"] = float(model.hidden_dim * numbers + 8 * listed)
        return found


def _paper(hard: int) -> Config:
    sizes = dataclasses.replace(accelerator.PAPER, hard=hard)
    return accelerator.config(sizes, "bfloat16")


def _smallest() -> Config:
    sizes = accelerator.Sizes(50, 256, 64, 32, 32, 1, 31, 0, 0)
    return accelerator.config(sizes, "bfloat16")


# Groups of `workload` and `paper` are measured; the others' are in proportion to their entries.
SIZES = {
    "smallest": Size(
        _smallest, "", 5_000, 31, 1, (128, 1024, 4096), ((4,) * 10, (4,) * 10), "float32"
    ),
    "default": Size(
        *(train_step.defaults, "", 20_000, 512, 0, (2560, 12_864)),
        groups=((1,) * 10,),
        on_device="float32",
    ),
    "workload": Size(
        *(lambda: end_to_end.settings(50), "small", 200_000, 256, 0, (768, 28_160, 193_152)),
        groups=((2, 4, 14, 24, 20, 14, 10, 8, 17, 5), (3, 1, 1, 1, 1, 1, 1, 1, 1, 0)),
        on_device="float32",
    ),
    "paper-soft": Size(
        *(lambda: _paper(0), "small", 200_000, 1024, 0, (4608, 60_000, 120_000)),
        groups=((4, 9, 31, 53, 44, 31, 22, 18, 37, 11), (4, 4, 4, 4, 3, 2, 2, 1, 1, 1)),
        on_device="",
    ),
    "paper": Size(
        *(lambda: _paper(6), "large", 1_000_000, 4352, 6, (16_884, 422_324, 1_021_428)),
        groups=(
            (1, 3, 17, 116, 369, 376, 251, 184, 362, 80),
            (16, 11, 10, 7, 5, 4, 3, 3, 4, 1),
        ),
        on_device="bfloat16",
    ),
}


def measured(size: Size, folder: pathlib.Path) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """`rows` and `groups` of real batches of a size; graphs are kept in `folder`."""
    graph = graphs.load(size.graph, folder)[0] if size.graph else end_to_end.bipartite("")
    features = np.zeros((graph.num_items, 1), np.float32)
    training = end_to_end.Training(
        graph, size.config(), features, way="on the fly", hard=size.hard, warm_up=0
    )
    batch, _ = training.make(0)
    lists = transpose(training.rows, batch.neighbors[0], batch.weights[0])
    groups = []
    for layout in layouts(training.rows, size.lists):
        groups.append(tuple(layout.split(lists[: layout.size])["counts"].tolist()))
        lists = lists[layout.size :]
    return training.rows, groups


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A train step and the shapes of its arguments; leaves of the batch have a device axis."""

    step: Callable[..., Any]
    state: Any
    batch: Minibatch
    constants: tuple[Any, ...]

    def jaxpr(self) -> Any:
        """The differentiated step of one device."""
        batch = jax.tree.map(lambda leaf: _shape(leaf.shape[1:], leaf.dtype), self.batch)
        return jax.make_jaxpr(self.step)(self.state, batch, *self.constants).jaxpr


def step_program(size: Size, num_devices: int) -> StepProgram:
    """The train step of a size, for `num_devices` devices."""
    config = size.config()
    input_dim = size.features + 1 + int(config.model.isolated_feature)
    made: dict[str, Any] = {}

    def parameters():
        made["model"], params = init_model(config, input_dim, size.items, size.rows)
        return params

    params = jax.eval_shape(parameters)
    optimizer = make_optimizer(config.train, 1000.0)
    state = jax.eval_shape(lambda params: initial_state(params, optimizer), params)
    step = make_train_step(made["model"], config.train, optimizer)
    table = (_shape((size.items, input_dim), size.on_device),) if size.on_device else ()
    return StepProgram(step, state, batch_shapes(size, num_devices), table)


def batch_shapes(size: Size, num_devices: int) -> Minibatch:
    """A minibatch of batching/builder.py as shapes."""
    config = size.config()
    columns = 1 + int(config.model.isolated_feature)
    pairs, random = config.train.batch_size, config.train.random_negatives
    listed, nodes = size.rows[-2:]
    neighbors = size.lists

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return _shape((num_devices, *shape), jnp.int32)

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return _shape((num_devices, *shape))

    table = bool(size.on_device)
    return Minibatch(
        features=floats(nodes, columns if table else size.features + columns),
        spectral_features=floats(*(min(2 * pairs, size.rows[0]), 0) if table else (0, 0)),
        has_spectral=_shape((num_devices, nodes if table else 0), jnp.bool_),
        node_ids=ints(nodes),
        neighbors=ints(listed, neighbors),
        weights=floats(listed, neighbors),
        queries=ints(pairs),
        targets=ints(pairs),
        pair_weights=floats(pairs),
        negatives=ints(random),
        hard=ints(pairs, size.hard),
        query_ids=ints(pairs),
        target_ids=ints(pairs),
        negative_ids=ints(random),
        hard_ids=ints(pairs, size.hard),
        query_logq=floats(pairs),
        target_logq=floats(pairs),
        negative_logq=floats(random),
        hard_logq=floats(pairs, size.hard),
        reverse_negative_logq=floats(random),
        transposed=ints(transposed_size(size.rows, neighbors)),
    )


def stage_programs(size: Size) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Stages of whole-catalog inference on one block of nodes, and of top-k on one of items.

    `catalog top-k` scores a catalog that is on the device, and `approximate top-k` finds RECALL of
    it on TPUs.

    Returns:
      name -> (a jitted function, its arguments as shapes).
    """
    config = size.config()
    model, block = config.model, config.embed.embed_block
    params = step_program(size, 1).state.params
    embeddings = params["params"].get("neighbor_embeddings")
    stages = map_reduce.compiled_stages(model, 0 if embeddings is None else len(embeddings))
    input_dim = size.features + 1 + int(model.isolated_feature)
    features, ids = _shape((block, input_dim)), _shape((block,), jnp.int32)
    h = _shape((block, model.layer_dim)) if model.num_layers > 1 else features
    pooled = _shape((block, model.hidden_dim))
    queries = _shape((topk.TOP_K_QUERIES, model.output_dim))
    items = _shape((topk.TOP_K_ROWS, model.output_dim))
    best = (_shape((topk.TOP_K_QUERIES, TOP_K + 1)),)
    best += (_shape(best[0].shape, jnp.int32),)
    fold = jax.jit(functools.partial(topk.fold_block, rows=topk.TOP_K_ROWS))
    blocks = -(-size.items // topk.TOP_K_ROWS)
    resident = (
        _shape((topk.RESIDENT_QUERIES, model.output_dim)),
        _shape((blocks, topk.TOP_K_ROWS, model.output_dim)),
        *(_shape((), jnp.int32),) * 2,
    )
    exact, approximate = (
        jax.jit(functools.partial(best_of, depth=TOP_K + 1, recall=recall))
        for recall in (1.0, RECALL)
    )
    project = jax.jit(lambda params, *args: stages["project"](params, 1, *args))
    combine = jax.jit(lambda params, *args: stages["combine"](params, 1, *args))
    return dict(
        zip(
            STAGES,
            (
                (project, (params, features, ids)),
                (combine, (params, features, pooled)),
                (stages["finish"], (params, h, pooled, features)),
                (fold, (*best, queries, items, _shape((), jnp.int32))),
                (exact, resident),
                (approximate, resident),
            ),
            strict=True,
        )
    )


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
