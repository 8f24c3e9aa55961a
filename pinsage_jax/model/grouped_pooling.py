"""Pooling for accelerators, without an array [S, T, M] and without a scatter.

Forward, GPUs fuse the gather with its weighting and sum; TPUs would write what they gather to
memory, so they pool a block of rows at a time.  Backward, the gradient of a row is a sum over
the lists that name it, which the host lays out (batching/transposed.py).  Sums are in float32,
in a fixed order.  The readable reference is `plain_weighted_relu_sum` of cpu/ops.py.

Pallas kernels (row_sum_kernels.py) move fewer bytes than the plain form of this module;
`choose_kernels` chooses.

Shapes: S lists of T entries over n rows of M entries; G slots of a group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pinsage_jax.batching.transposed import MERGE_ROWS, WIDTHS, Layout, transpose
from pinsage_jax.core.errors import described

# Most rows that TPUs gather at a time, and their bytes as float32: XLA keeps what is gathered in
# the vector memory of the chip (128 MiB of a v5e) where it fits, and writes it out otherwise.
_BLOCK, _BLOCK_BYTES = 1 << 14, 1 << 25
# Terms of a sum that is written out.
_MOST_TERMS = 64
# The process-wide choice.
_settings = {"kernels": "auto"}


def choose_kernels(choice: str) -> None:
    """Chooses the kernels of pooling in what this process compiles from now on.

    On an accelerator the kernels first pool a small problem; if they fail or differ from the
    plain form, that is told and the plain form is taken.

    Args:
      choice: auto takes Pallas kernels on GPUs of NVIDIA, and on TPUs other than v5e and v6e
        where rows fill their lanes; off takes operations of XLA.
    """
    assert choice in ("auto", "off")
    _settings["kernels"] = choice
    if choice == "auto" and jax.default_backend() != "cpu" and (fault := kernel_fault()):
        logging.warning("pooling: XLA, since the Pallas kernels %s", fault)
        _settings["kernels"] = "off"


def kernel_fault() -> str:
    """Why the Pallas kernels cannot be used here: what they did to a small problem; "" if nothing.

    It leaves the choice of kernels as it is.
    """
    lists, length, rows, columns = 2600, 6, 300, 512
    rng = np.random.Generator(np.random.Philox(0))
    neighbors = rng.integers(0, rows, (lists, length)).astype(np.int32)
    weights = rng.random((lists, length), np.float32)
    transposed = transpose((lists, rows), neighbors, weights)
    layout, choice = Layout(lists, length, rows), _settings["kernels"]
    values = [rng.standard_normal((count, columns)) for count in (rows, lists)]

    def pooled(kernels: str, dtype: str) -> list[np.ndarray]:
        _settings["kernels"] = kernels
        projected = jnp.asarray(values[0], dtype)
        bias = jnp.zeros(columns, dtype)

        @jax.jit
        def both_ways(projected, bias, cotangent):
            value, back = jax.vjp(
                lambda *given: weighted_relu_sum(*given, neighbors, weights, transposed, layout),
                projected, bias,
            )  # fmt: skip
            return value, *back(cotangent)

        found = both_ways(projected, bias, jnp.asarray(values[1], dtype))
        return [np.asarray(each, np.float32) for each in found]

    try:
        for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 2e-2)):
            for fast, plain in zip(pooled("auto", dtype), pooled("off", dtype), strict=True):
                if not np.allclose(fast, plain, tolerance, tolerance * np.abs(plain).max()):
                    return f"sum {dtype} otherwise than the plain form"
    except Exception as error:  # A compiler or driver may raise anything.
        return f"do not run here ({described(error)})"
    finally:
        _settings["kernels"] = choice
    return ""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def weighted_relu_sum(
    projected: jax.Array,
    bias: jax.Array,
    neighbors: jax.Array,
    weights: jax.Array,
    transposed: jax.Array,
    layout: Layout,
) -> jax.Array:
    """sum over t of weights[:, t] * ReLU(projected[neighbors[:, t]] + bias).

    Args:
      projected: [n, M], finite; bias: [M].
      neighbors: int32 [S, T] rows of `projected`; weights: float32 [S, T], 0 where masked.
      transposed: int32 [layout.size], the lists transposed (batching/transposed.py); read by
        the derivative.

    Returns:
      [S, M] of the dtype of `projected`.
    """
    return _forward(projected, bias, neighbors, weights, transposed, layout)[0]


def _sum_at_once(messages: jax.Array, neighbors: jax.Array, weights: jax.Array) -> jax.Array:
    """[S, M], in float32 until the end; one fused loop on a GPU.

    Term by term: of a sum over an axis [T] XLA may write the array [S, M, T] to memory.
    """
    if neighbors.shape[1] > _MOST_TERMS:
        return _sum_by_blocks(messages, neighbors, weights)
    total = jnp.zeros((len(neighbors), messages.shape[1]), jnp.float32)
    for rank in range(neighbors.shape[1]):
        sent = messages[neighbors[:, rank]].astype(jnp.float32)
        total = total + sent * weights[:, rank, None]
    return total.astype(messages.dtype)


def _block_rows(columns: int) -> int:
    """Rows that TPUs gather at a time: a power of two."""
    rows = _BLOCK
    while rows > 8 and rows * columns * 4 > _BLOCK_BYTES:
        rows //= 2
    return rows


def _sum_by_blocks(messages: jax.Array, neighbors: jax.Array, weights: jax.Array) -> jax.Array:
    """`_sum_at_once` of some rows at a time, the first neighbors of all, then the second."""
    lists, length = neighbors.shape
    rows = max(_block_rows(messages.shape[1]) // length // 8, 1) * 8
    blocks = -(-lists // rows)

    def cut(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, blocks * rows - lists), (0, 0)))
        return padded.reshape(blocks, rows, length).swapaxes(1, 2)

    def block(lists: tuple[jax.Array, jax.Array]) -> jax.Array:
        gathered = messages[lists[0].reshape(-1)].reshape(length, rows, -1)
        summed = (gathered.astype(jnp.float32) * lists[1][..., None]).sum(axis=0)
        return summed.astype(messages.dtype)

    pooled = jax.lax.map(block, (cut(neighbors), cut(weights)))
    return pooled.reshape(blocks * rows, -1)[:lists]


def _forward(projected, bias, neighbors, weights, transposed, layout):
    messages = jax.nn.relu(projected + bias[None, :])
    ways: dict[str, Callable[..., jax.Array]] = {"tpu": _sum_by_blocks, "default": _sum_at_once}
    if _settings["kernels"] == "auto":
        # Pallas takes a second to import, which no CPU needs.
        from pinsage_jax.model import row_sum_kernels

        ways["cuda"] = row_sum_kernels.pooled_on_gpu
        if row_sum_kernels.suit_tpu(messages, layout):
            ways["tpu"] = row_sum_kernels.pooled_on_tpu
    with jax.named_scope(f"pooled_{layout.rows}"):
        pooled = jax.lax.platform_dependent(messages, neighbors, weights, **ways)
    # Where a message is positive, what was projected passes its ReLU: one array serves both.
    return pooled, (messages, neighbors, transposed)


def _backward(layout, saved, cotangents):
    messages, neighbors, transposed = saved
    sums = _sums(cotangents, transposed, layout)
    rows = layout.split(jnp.asarray(transposed))["rows"]
    to_projected, to_bias = jax.lax.platform_dependent(
        sums, rows, messages, tpu=_rows_by_blocks, default=_rows_at_once
    )

    def dot(_, neighbor: jax.Array):
        sent = messages[neighbor].astype(jnp.float32)
        return None, jnp.sum(cotangents.astype(jnp.float32) * sent, axis=1)

    # In training the weights are data: XLA leaves this out, since nobody reads it.
    to_weights = jax.lax.scan(dot, None, neighbors.T)[1].T
    nothing = [np.zeros(each.shape, jax.dtypes.float0) for each in (neighbors, transposed)]
    return to_projected, to_bias.astype(messages.dtype), nothing[0], to_weights, nothing[1]


weighted_relu_sum.defvjp(_forward, _backward)


def _parts(transposed: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """The parts of a layout by name, weights as float32."""
    found = layout.split(transposed)
    weights = jax.lax.bitcast_convert_type(found["weights"], jnp.float32)
    return {**found, "weights": weights}


def _sums(cotangents: jax.Array, transposed: jax.Array, layout: Layout) -> jax.Array:
    """float32 [layout.sums, M]: sums of the pieces, and of pieces, of all rows."""
    blocks = max(layout.slots // _block_rows(cotangents.shape[1]), 1)
    ways = {
        "tpu": functools.partial(_sums_of_pieces, layout=layout, blocks=blocks),
        "default": functools.partial(_sums_of_pieces, layout=layout),
    }
    if _settings["kernels"] == "auto":
        from pinsage_jax.model import row_sum_kernels

        ways["cuda"] = functools.partial(
            _sums_by_kernel, layout=layout, kernel=row_sum_kernels.sums_on_gpu
        )
        if row_sum_kernels.suit_tpu(cotangents, layout):
            ways["tpu"] = functools.partial(
                _sums_by_kernel, layout=layout, kernel=row_sum_kernels.sums_on_tpu
            )
    parts = _parts(jnp.asarray(transposed), layout)
    return _merged(jax.lax.platform_dependent(cotangents, parts, **ways), parts, layout)


def _sums_by_kernel(
    cotangents: jax.Array, parts: dict[str, jax.Array], layout: Layout, kernel: Callable
) -> jax.Array:
    with jax.named_scope(f"row_sums_{layout.rows}"):
        return kernel(cotangents, parts["entries"], parts["weights"], parts["counts"][:-1], layout)


def _sums_of_pieces(
    cotangents: jax.Array, parts: dict[str, jax.Array], layout: Layout, blocks: int = 1
) -> jax.Array:
    """float32 [layout.sums, M]: sums of the pieces of all rows, without those of several.

    Args:
      blocks: a power of two, how many times the pieces of a group are gathered.
    """
    counts, columns = parts["counts"], cotangents.shape[1]
    sums = jnp.zeros((layout.sums, columns), jnp.float32)
    group, place = jnp.int32(0), jnp.int32(0)
    for kind, width in enumerate(WIDTHS):
        pieces = layout.slots // width
        some = pieces // min(blocks, pieces)

        def add_pieces(at, sums, width=width, pieces=pieces, some=some, group=group, place=place):
            entries = parts["entries"][group + at].reshape(width, pieces)
            weights = parts["weights"][group + at].reshape(width, pieces)

            def add_block(block, sums):
                begin = block * some
                named = jax.lax.dynamic_slice(entries, (0, begin), (width, some))
                factors = jax.lax.dynamic_slice(weights, (0, begin), (width, some))
                sent = cotangents[named.reshape(-1)].astype(jnp.float32)
                sent = sent * factors.reshape(-1, 1)
                added = sent.reshape(width, some, columns).sum(axis=0)
                return jax.lax.dynamic_update_slice(sums, added, (place + at * pieces + begin, 0))

            if some == pieces:
                return add_block(0, sums)
            return jax.lax.fori_loop(0, pieces // some, add_block, sums)

        with jax.named_scope(f"pieces_{layout.rows}_{width}"):
            sums = jax.lax.fori_loop(0, counts[kind], add_pieces, sums)
        group, place = group + counts[kind], place + counts[kind] * pieces
    return sums


def _merged(sums: jax.Array, parts: dict[str, jax.Array], layout: Layout) -> jax.Array:
    """Adds the sums of pieces of rows with several."""

    def merge(at, sums):
        named = parts["merges"][at]
        gathered = jnp.where(named[..., None] >= 0, sums[jnp.maximum(named, 0)], 0.0)
        begin = layout.pieces + at * MERGE_ROWS
        return jax.lax.dynamic_update_slice(sums, gathered.sum(axis=0), (begin, 0))

    with jax.named_scope(f"merges_{layout.rows}"):
        return jax.lax.fori_loop(0, parts["counts"][-1], merge, sums)


def _rows_at_once(
    sums: jax.Array, rows: jax.Array, messages: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """sums[rows] of named rows with positive messages, [n, M], and their sum, float32 [M]."""
    passed = (rows >= 0)[:, None] & (messages > 0)
    found = jnp.where(passed, sums[jnp.maximum(rows, 0)], 0.0)
    return found.astype(messages.dtype), found.sum(axis=0)


def _rows_by_blocks(
    sums: jax.Array, rows: jax.Array, messages: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`_rows_at_once` of some rows at a time."""
    size = min(_block_rows(messages.shape[1]), len(rows))
    whole = len(rows) // size * size

    def write(carried, begin, some, sent):
        out, total = carried
        found, added = _rows_at_once(sums, some, sent)
        return jax.lax.dynamic_update_slice(out, found, (begin, 0)), total + added

    def block(number, carried):
        begin = number * size
        some = jax.lax.dynamic_slice(rows, (begin,), (size,))
        sent = jax.lax.dynamic_slice(messages, (begin, 0), (size, messages.shape[1]))
        return write(carried, begin, some, sent)

    start = jnp.zeros_like(messages), jnp.zeros(messages.shape[1], jnp.float32)
    carried = jax.lax.fori_loop(0, whole // size, block, start)
    if whole == len(rows):
        return carried
    return write(carried, whole, rows[whole:], messages[whole:])
