"""Pallas kernels of pooling and its derivative: weighted sums of gathered rows, for GPUs and TPUs.

A kernel reads the rows of entries with a weight, adds them in float32 in the order of their
list, and writes every sum once; nothing is added in memory.  Of the plain forms
(grouped_pooling.py), that of the derivative reads a padded entry like any other, fills the array
of sums with zeros first, and on GPUs starts several programs a group.  That of pooling itself
depends on what XLA chooses: for a GPU it fuses 50 gathers of 60,000 rows into one loop, but writes
each of 50 gathers of 400,000 rows to memory.  For a TPU v5e or v6e it keeps a block of gathered
rows on the chip, and the kernels, which need packed copies, gain nothing; for a v5p it does not.

Shapes: S lists of T entries; of their transposed lists (batching/transposed.py) groups of G
slots, pieces of W entries; M columns of the table.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from pinsage_jax.batching.transposed import WIDTHS, Layout

# Rows that a TPU adds at a time: the sublanes of a vector register.
_SUBLANES, _LANES = 8, 128
# Bytes of rows that are on their way to a TPU's vector memory.
_IN_FLIGHT = 1 << 21
# Entries of a group of pooled lists, in a TPU's scalar memory; arrays there have such multiples.
_SMEM_SLOTS, _SMEM_STEP = 1 << 14, 1 << 10
# Loads that a thread of a GPU has in flight, and columns of a program.
_AHEAD, _COLUMNS = 8, 1024


def _gathers_stay_on_chip() -> bool:
    """Whether XLA is known to keep blocks of gathered rows on the TPU that is compiled for."""
    try:
        version = pltpu.get_tpu_info().chip_version
    except ValueError:  # No TPU.
        return False
    return version in (pltpu.ChipVersion.TPU_V5E, pltpu.ChipVersion.TPU_V6E)


def suit_tpu(table: jax.Array, layout: Layout) -> bool:
    """Whether a TPU can run these kernels and moves fewer bytes by them."""
    return fits_tpu(table, layout) and not _gathers_stay_on_chip()


def fits_tpu(table: jax.Array, layout: Layout) -> bool:
    """Whether groups have as many pieces as a TPU adds at a time, and rows fill its lanes."""
    lanes = {"bfloat16": 2 * _LANES, "float32": _LANES}.get(table.dtype.name)
    filled = lanes is not None and table.shape[1] % lanes == 0
    fits_group = _SUBLANES * layout.length <= _SMEM_SLOTS
    return filled and fits_group and layout.slots >= _SUBLANES * WIDTHS[-1]


def _firsts(counts: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """int32 [W + 1] each: the first group of every width, and its first sum; last, the ends."""
    pieces = jnp.array([layout.slots // width for width in WIDTHS], jnp.int32)
    zero = jnp.zeros(1, jnp.int32)
    groups = jnp.concatenate([zero, jnp.cumsum(counts, dtype=jnp.int32)])
    return groups, jnp.concatenate([zero, jnp.cumsum(counts * pieces, dtype=jnp.int32)])


def pooled_on_gpu(
    table: jax.Array, entries: jax.Array, weights: jax.Array, interpret: bool = False
) -> jax.Array:
    """The weighted sum of every list, in a program each.

    Args:
      table: [n, M]; entries: int32 [S, T] rows of it; weights: float32 [S, T].
      interpret: runs it as operations of XLA, on any device.

    Returns:
      [S, M] of the dtype of `table`.
    """
    lists, length = entries.shape
    kernel = functools.partial(_list_kernel, length=length)
    out = jax.ShapeDtypeStruct((lists, table.shape[1]), table.dtype)
    return _on_gpu(kernel, lists, out, interpret)(entries.reshape(-1), weights.reshape(-1), table)


def sums_on_gpu(
    table: jax.Array,
    entries: jax.Array,
    weights: jax.Array,
    counts: jax.Array,
    layout: Layout,
    interpret: bool = False,
) -> jax.Array:
    """The sum of every piece, in a program each.

    Args:
      table: [S, M]; entries: int32 [groups, G] rows of it; weights: float32 [groups, G].
      counts: int32 [W], groups in use of each width.

    Returns:
      float32 [layout.sums, M]; places without a piece are not written.
    """
    kernel = functools.partial(_piece_kernel, slots=layout.slots)
    out = jax.ShapeDtypeStruct((layout.sums, table.shape[1]), jnp.float32)
    return _on_gpu(kernel, layout.pieces, out, interpret)(
        *_firsts(counts, layout), entries.reshape(-1), weights.reshape(-1), table
    )


def _on_gpu(kernel, sums: int, out: jax.ShapeDtypeStruct, interpret: bool):
    columns = min(pl.next_power_of_2(out.shape[1]), _COLUMNS)
    return pl.pallas_call(
        functools.partial(kernel, columns=columns),
        out_shape=out,
        grid=(sums, pl.cdiv(out.shape[1], columns)),
        compiler_params=plgpu.CompilerParams(num_warps=max(columns // 256, 1)),
        interpret=interpret,
    )


def _list_kernel(entries, weights, table, out, *, length, columns):
    place, begin = pl.program_id(0), pl.program_id(1) * columns
    slots = place * length, 1, length
    _write_sum(entries, weights, table, out, slots, (place, begin), columns)


def _piece_kernel(groups, sums, entries, weights, table, out, *, slots, columns):
    place, begin = pl.program_id(0), pl.program_id(1) * columns
    kind, width, pieces = jnp.int32(0), jnp.int32(WIDTHS[0]), jnp.int32(slots // WIDTHS[0])
    for number, longer in enumerate(WIDTHS[1:], 1):
        reached = place >= sums[number]
        kind = jnp.where(reached, number, kind)
        width = jnp.where(reached, longer, width)
        pieces = jnp.where(reached, slots // longer, pieces)
    piece = place - sums[kind]
    group = groups[kind] + jax.lax.div(piece, pieces)
    first = group * slots + jax.lax.rem(piece, pieces)

    @pl.when(place < sums[len(WIDTHS)])
    def _():
        of_piece = first, pieces, width
        _write_sum(entries, weights, table, out, of_piece, (place, begin), columns)


def _write_sum(entries, weights, table, out, slots, target, columns):
    """Writes some columns of a sum.

    Args:
      slots: its first slot, the step to the next, and how many; target: its row and first column.
    """
    first, step, length = slots
    place, begin = target
    here = pl.ds(begin, columns)
    exists = begin + jnp.arange(columns) < table.shape[1]

    def add(turn, total):
        for ahead in range(_AHEAD):
            rank = turn * _AHEAD + ahead
            slot = first + jnp.minimum(rank, length - 1) * step
            weight = jnp.where(rank < length, weights[slot], 0.0)
            counts = jnp.broadcast_to(weight != 0.0, exists.shape)
            row = plgpu.load(
                table.at[entries[slot], here], mask=jnp.logical_and(exists, counts), other=0.0
            )
            total = total + row.astype(jnp.float32) * weight
        return total

    turns = jax.lax.div(jnp.int32(length + _AHEAD - 1), _AHEAD)
    total = jax.lax.fori_loop(0, turns, add, jnp.zeros(columns, jnp.float32))
    plgpu.store(out.at[place, here], total.astype(out.dtype), mask=exists)


def pooled_on_tpu(
    table: jax.Array, entries: jax.Array, weights: jax.Array, interpret: bool = False
) -> jax.Array:
    """What `pooled_on_gpu` returns, for TPUs; `fits_tpu` holds."""
    lists, length = entries.shape
    rows = _SMEM_SLOTS // length // _SUBLANES * _SUBLANES
    groups, slots = -(-lists // rows), rows * length
    stride = -(-slots // _SMEM_STEP) * _SMEM_STEP

    def grouped(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, groups * rows - lists), (0, 0)))
        ranked = padded.reshape(groups, rows, length).swapaxes(1, 2).reshape(groups, slots)
        return jnp.pad(ranked, ((0, 0), (0, stride - slots)))

    widths = jnp.full(groups, length, jnp.int32)
    places = jnp.arange(groups, dtype=jnp.int32) * rows
    out = jax.ShapeDtypeStruct((groups * rows, table.shape[1]), table.dtype)
    call = _on_tpu(table, slots, stride, groups, out, interpret)
    return call(widths, places, grouped(entries), grouped(weights))[:lists]


def sums_on_tpu(
    table: jax.Array,
    entries: jax.Array,
    weights: jax.Array,
    counts: jax.Array,
    layout: Layout,
    interpret: bool = False,
) -> jax.Array:
    """What `sums_on_gpu` returns, for TPUs; `fits_tpu` holds."""
    groups, sums = _firsts(counts, layout)
    group = jnp.arange(layout.groups, dtype=jnp.int32)
    kind = jnp.sum(group[:, None] >= groups[None, 1:-1], axis=1)
    widths = jnp.array(WIDTHS, jnp.int32)[kind]
    places = sums[kind] + (group - groups[kind]) * (layout.slots // widths)
    out = jax.ShapeDtypeStruct((layout.sums, table.shape[1]), jnp.float32)
    call = _on_tpu(table, layout.slots, layout.slots, groups[-1], out, interpret)
    return call(widths, places, entries, weights)


def _on_tpu(table, slots, stride, groups, out, interpret):
    """A call of `_tpu_kernel`, a group a step of the grid, for entries [groups, stride].

    A row of bfloat16 shares its words with the next row, and only whole words can be copied, so
    the halves of a row are packed into words of 32 bits first.
    """
    words, columns = _words(table), table.shape[1]
    depth = 2
    while depth < 32 and 2 * depth * _SUBLANES * words.shape[1] * 4 <= _IN_FLIGHT:
        depth *= 2
    scalars = pl.BlockSpec((stride,), lambda at, *_: (at,), memory_space=pltpu.SMEM)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        functools.partial(_tpu_kernel, slots=slots, depth=depth),
        out_shape=out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(groups,),
            in_specs=[scalars, scalars, anywhere],
            out_specs=anywhere,
            scratch_shapes=[
                pltpu.VMEM((depth, _SUBLANES, words.shape[1]), words.dtype),
                pltpu.VMEM((_SUBLANES, columns), jnp.float32),
                pltpu.VMEM((2, _SUBLANES, columns), out.dtype),
                pltpu.SemaphoreType.DMA((depth,)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
    )
    return lambda widths, places, entries, weights: call(
        widths, places, entries.reshape(-1), weights.reshape(-1), words
    )


def _words(table: jax.Array) -> jax.Array:
    """Rows as whole words: float32 as it is, bfloat16 as uint32 (first half low, second high)."""
    if table.dtype == jnp.float32:
        return table
    half = table.shape[1] // 2

    def bits(columns: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(columns, jnp.uint16).astype(jnp.uint32)

    return bits(table[:, :half]) | (bits(table[:, half:]) << 16)


def _unpacked(words: jax.Array) -> list[jax.Array]:
    """The float32 values of words: of the first half of a row and of its second half."""
    if words.dtype == jnp.float32:
        return [words]
    both = (words << 16, words & jnp.uint32(0xFFFF0000))
    return [jax.lax.bitcast_convert_type(each, jnp.float32) for each in both]


def _tpu_kernel(
    widths, places, entries, weights, table, out, rows, total, ready, arrived, written, **sizes
):
    """Sums of one group, eight pieces at a time: their first entries, their second ones, and so on.

    Args:
      rows: [depth, 8, K], where rows of the table arrive; total: float32 [8, M], sums so far.
      ready: [2, 8, M], sums on their way to `out`.
      arrived: a semaphore for each of the first axis of `rows`; written: for that of `ready`.
    """
    width, place = widths[pl.program_id(0)], places[pl.program_id(0)]
    slots, depth = sizes["slots"], sizes["depth"]
    pieces = jax.lax.div(jnp.int32(slots), width)
    steps, ahead = slots // _SUBLANES, depth - 1

    def copy(ring, sublane, row):
        target = rows.at[ring, pl.ds(sublane, 1)]
        return pltpu.make_async_copy(table.at[pl.ds(row, 1)], target, arrived.at[ring])

    def write(block):
        begin = pl.multiple_of(place + block * _SUBLANES, _SUBLANES)
        side = jax.lax.rem(block, 2)
        return pltpu.make_async_copy(
            ready.at[side], out.at[pl.ds(begin, _SUBLANES)], written.at[side]
        )

    def following(rank, block):
        ends = rank + 1 == width
        return jnp.where(ends, 0, rank + 1), jnp.where(ends, block + 1, block)

    def start(step, rank, block):
        first, ring = rank * pieces + block * _SUBLANES, jax.lax.rem(step, depth)
        for sublane in range(_SUBLANES):

            @pl.when(weights[first + sublane] != 0.0)
            def _(sublane=sublane):
                copy(ring, sublane, entries[first + sublane]).start()

        return following(rank, block)

    def add(step, carried):
        rank, block, *next_started = carried

        @pl.when(step + ahead < steps)
        def _():
            start(step + ahead, *next_started)

        first, ring = rank * pieces + block * _SUBLANES, jax.lax.rem(step, depth)
        sublanes = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, _LANES), 0)
        factors = jnp.zeros((_SUBLANES, _LANES), jnp.float32)
        for sublane in range(_SUBLANES):
            weight = weights[first + sublane]
            factors = jnp.where(sublanes == sublane, weight, factors)

            @pl.when(weight != 0.0)
            def _(sublane=sublane):
                copy(ring, sublane, 0).wait()

        for begin in range(0, rows.shape[-1], _LANES):
            words = rows[ring, :, pl.ds(begin, _LANES)]
            for half, values in enumerate(_unpacked(words)):
                here = pl.ds(half * rows.shape[-1] + begin, _LANES)
                # What no row has arrived in may hold anything.
                added = jnp.where(factors != 0.0, values * factors, 0.0)
                total[:, here] = jnp.where(rank == 0, added, total[:, here] + added)

        @pl.when(rank + 1 == width)
        def _():
            @pl.when(block >= 2)
            def _():
                write(block - 2).wait()

            ready[jax.lax.rem(block, 2)] = total[...].astype(ready.dtype)
            write(block).start()

        return *following(rank, block), *following(*next_started)

    begin = (jnp.int32(0), jnp.int32(0))
    started = jax.lax.fori_loop(0, ahead, lambda step, at: start(step, *at), begin)
    blocks = jax.lax.fori_loop(0, steps, add, (*begin, *started))[1]

    @pl.when(blocks >= 2)
    def _():
        write(blocks - 2).wait()

    write(blocks - 1).wait()
