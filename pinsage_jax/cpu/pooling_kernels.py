"""Numba kernels that XLA calls from inside the compiled step on CPUs: reading rows and pooling.

XLA's own scatter on a CPU is serial, its gathers go through memory twice on one thread,
and pooling would take longer than all matrix products of a step.  Here the sum over a
node's neighbors is one pass, and its derivative is one too, because lists are turned
round first (who names this node?), so that every output row is written once, in order.
Whole-catalog inference calls the same kernels from the host.

`works` has what a call of XLA does, cut into parts; xla_handlers.py calls it.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types

from pinsage_jax.cpu.ffi_handlers import OPERAND_WORDS
from pinsage_jax.cpu.intrinsics import pointer
from pinsage_jax.cpu.kernel_cache import cfunc, njit
from pinsage_jax.cpu.prefetch import LINE_BYTES, copy_line, nontemporal_copy, prefetch
from pinsage_jax.cpu.tiles import TILE_COLUMNS, TILE_ROWS, add_tile

_WORK = types.int64(types.int64, types.int64, types.int64)
_BLOCK = 64  # rows whose product is made at once: they and the sums fit the second-level cache
_LINE = LINE_BYTES // 4  # entries of float32
_AHEAD = 24  # rows between asking for one and reading it


@njit(nogil=True, cache=True)
def _relu(value):
    # Compiles to better code than max().
    return value if value > np.float32(0.0) else np.float32(0.0)


@njit(nogil=True, cache=True)
def _entry(neighbors, weights, row, place):
    """A neighbor and its weight; for none, which is -1, the first with no weight."""
    node = neighbors[row, place]
    return (node, weights[row, place]) if node >= 0 else (np.int32(0), np.float32(0.0))


@njit(nogil=True, cache=True)
def _ask_for_row(table, row):
    for column in range(0, table.shape[1], _LINE):
        prefetch(table, np.int64(row) * table.shape[1] + column)


@njit(nogil=True, cache=True)
def _ask_for_rows(table, rows, begin, end):
    """Asks for the rows rows[begin], ..., rows[end - 1] of a matrix, as far as there are any."""
    for place in range(begin, min(end, rows.shape[0])):
        _ask_for_row(table, rows[place])


@njit(nogil=True, cache=True)
def weighted_rows(projected, bias, neighbors, weights, begin, out):
    """out[i] = sum over t of weights[j, t] * ReLU(projected[neighbors[j, t]] + bias).

    Here j = begin + i: any range of rows can be made alone.

    Args:
      projected: float32 [n, M], finite; may be a memory map, of which the named rows are
        read, and the first.
      bias: float32 [M].
      neighbors: int32 [S, T] rows of it, contiguous, -1 for none; weights: float32 [S, T].
      out: float32 [s, M] output.
    """
    nought = np.float32(0.0)
    width, whole = neighbors.shape[1], neighbors.shape[1] // 4 * 4
    listed = neighbors.reshape(neighbors.size)
    for place in range(out.shape[0]):
        row = begin + place
        total = out[place]
        for column in range(total.shape[0]):
            total[column] = nought
        # Four at a time: their cache misses overlap and the sum is read and written once.
        for first in range(0, whole, 4):
            ahead = row * width + first + _AHEAD
            _ask_for_rows(projected, listed, ahead, ahead + 4)
            n0, w0 = _entry(neighbors, weights, row, first)
            n1, w1 = _entry(neighbors, weights, row, first + 1)
            n2, w2 = _entry(neighbors, weights, row, first + 2)
            n3, w3 = _entry(neighbors, weights, row, first + 3)
            if w0 == nought and w1 == nought and w2 == nought and w3 == nought:
                continue
            p0, p1, p2, p3 = projected[n0], projected[n1], projected[n2], projected[n3]
            for column in range(total.shape[0]):
                shift = bias[column]
                total[column] += (
                    w0 * _relu(p0[column] + shift)
                    + w1 * _relu(p1[column] + shift)
                    + w2 * _relu(p2[column] + shift)
                    + w3 * _relu(p3[column] + shift)
                )
        for rest in range(whole, width):
            ahead = row * width + rest + _AHEAD
            _ask_for_rows(projected, listed, ahead, ahead + 1)
            node, weight = _entry(neighbors, weights, row, rest)
            sent = projected[node]
            for column in range(total.shape[0]):
                total[column] += weight * _relu(sent[column] + bias[column])


@njit(nogil=True, cache=True)
def max_rows(projected, neighbors, weights, out):
    """out[i] = the maximum of the rows of `projected` that have a weight; no entry is below 0.

    Args:
      projected, neighbors, weights: as in `weighted_rows`; out: float32 [S, M] output.
    """
    width, listed = neighbors.shape[1], neighbors.reshape(neighbors.size)
    for row in range(out.shape[0]):
        best = out[row]
        for column in range(best.shape[0]):
            best[column] = 0.0
        for rank in range(width):
            ahead = row * width + rank + _AHEAD
            _ask_for_rows(projected, listed, ahead, ahead + 1)
            node, weight = _entry(neighbors, weights, row, rank)
            if weight > 0.0:
                sent = projected[node]
                for column in range(best.shape[0]):
                    best[column] = max(best[column], sent[column])


@njit(nogil=True, cache=True)
def transpose_neighbor_lists(neighbors, weights, starts, rows, masses):
    """Lists by the node that is named: a counting sort of all entries with a weight.

    Args:
      neighbors: int32 [S, T] below n; weights: float32 [S, T], 0 where masked.
      starts: int32 [n + 1] output; node i is named by rows[starts[i] : starts[i + 1]].
      rows: int32 [S * T] output, in order within a node; masses: float32 [S * T] output.
    """
    starts[:] = 0
    for row in range(neighbors.shape[0]):
        for place in range(neighbors.shape[1]):
            if weights[row, place] != 0.0:
                starts[neighbors[row, place]] += 1
    total = 0
    for node in range(starts.shape[0]):
        total += starts[node]
        starts[node] = total
    # From the end, so that starts[i] comes down from the end of its list to its start.
    for row in range(neighbors.shape[0] - 1, -1, -1):
        for place in range(neighbors.shape[1] - 1, -1, -1):
            if weights[row, place] != 0.0:
                node = neighbors[row, place]
                starts[node] -= 1
                rows[starts[node]] = row
                masses[starts[node]] = weights[row, place]


@njit(nogil=True, cache=True)
def _returned_row(projected, bias, cotangents, lists, node, total):
    """One row of `weighted_sum_vjp`, as float32 [M] into `total`."""
    starts, rows, masses = lists
    nought = np.float32(0.0)
    for column in range(total.shape[0]):
        total[column] = nought
    first, last = starts[node], starts[node + 1]
    for entry in range(first, last - 1, 2):
        _ask_for_rows(cotangents, rows, entry + _AHEAD, entry + 2 + _AHEAD)
        w0, w1 = masses[entry], masses[entry + 1]
        c0, c1 = cotangents[rows[entry]], cotangents[rows[entry + 1]]
        for column in range(total.shape[0]):
            total[column] += w0 * c0[column] + w1 * c1[column]
    if (last - first) % 2:
        _ask_for_rows(cotangents, rows, last - 1 + _AHEAD, last + _AHEAD)
        weight, sent = masses[last - 1], cotangents[rows[last - 1]]
        for column in range(total.shape[0]):
            total[column] += weight * sent[column]
    own = projected[node]
    for column in range(total.shape[0]):
        total[column] = total[column] if own[column] + bias[column] > nought else nought


@njit(nogil=True, cache=True)
def weighted_sum_vjp(projected, bias, cotangents, lists, begin, out):
    """The derivative of `weighted_rows` towards row begin + i of `projected`, as out[i].

    out[i] = the sum over the rows that name node begin + i of mass * cotangents[row], where
    the ReLU let the node's vector pass.

    Args:
      projected: float32 [n, M]; bias: float32 [M]; cotangents: float32 [S, M].
      lists: starts, rows and masses of `transpose_neighbor_lists`.
      out: float32 [s, M] output.
    """
    for place in range(out.shape[0]):
        _returned_row(projected, bias, cotangents, lists, begin + place, out[place])


@njit(nogil=True, cache=True)
def _pack(vector, packed, row):
    """Writes row `row` of a block where tiles read it: a line, then the next, a block apart."""
    whole = vector.shape[0] // _LINE
    for line in range(whole):
        copy_line(packed, (line * _BLOCK + row) * _LINE, vector, line * _LINE)
    at = (whole * _BLOCK + row) * _LINE
    for column in range(vector.shape[0] - whole * _LINE):
        packed[at + column] = vector[whole * _LINE + column]


@njit(nogil=True, cache=True)
def projection_vjp(inputs, projected, bias, cotangents, lists, begin, end, out):
    """Derivatives towards Q and q from the rows [begin, end) of `weighted_sum_vjp`.

    Those rows are multiplied while they are in the cache, and never written to memory.

    Args:
      inputs: float32 [n, D], of which `projected` is the product with Q; the rest: as there.
      out: float32 [D + 1, M] output; q's is its last row.
    """
    depth, width, tile = inputs.shape[1], projected.shape[1], TILE_ROWS * TILE_COLUMNS
    high, wide = -(-depth // TILE_ROWS), -(-width // TILE_COLUMNS)
    left = np.zeros(-(-depth // _LINE) * _BLOCK * _LINE, np.float32)
    right = np.zeros(-(-width // _LINE) * _BLOCK * _LINE, np.float32)
    sums = np.zeros(high * wide * tile, np.float32)
    total, all_rows = np.empty(width, np.float32), out[depth]
    all_rows[:] = np.float32(0.0)
    for first in range(begin, end, _BLOCK):
        size = min(_BLOCK, end - first)
        for row in range(size):
            # In turns with other reads, which makes them hard to foresee.
            _ask_for_row(inputs, first + row + _AHEAD)
            _ask_for_row(projected, first + row + _AHEAD)
            _returned_row(projected, bias, cotangents, lists, first + row, total)
            for column in range(width):
                all_rows[column] += total[column]
            _pack(total, right, row)
            _pack(inputs[first + row], left, row)
        for i in range(high):
            line, lane = i * TILE_ROWS // _LINE, i * TILE_ROWS % _LINE
            for j in range(wide):
                at = line * _BLOCK * _LINE + lane, j * _BLOCK * _LINE
                add_tile(sums, (i * wide + j) * tile, left, at[0], right, at[1], size)
    for row in range(depth):
        i, lane = row // TILE_ROWS, row % TILE_ROWS
        for column in range(width):
            at = (i * wide + column // TILE_COLUMNS) * tile + lane * TILE_COLUMNS
            out[row, column] = sums[at + column % TILE_COLUMNS]


@njit(nogil=True, cache=True)
def read_rows(table, rows, begin, out):
    """out[i] = table[rows[begin + i]], of row 0 where that is below 0.

    Args:
      table: float32 [n, D]; rows: int32 [S]; out: float32 [s, D] output.
    """
    on_lines = out.shape[1] % _LINE == 0 and out.ctypes.data % LINE_BYTES == 0
    for place in range(out.shape[0]):
        ahead = begin + place + _AHEAD
        _ask_for_rows(table, rows, ahead, ahead + 1)
        source, target = table[max(rows[begin + place], 0)], out[place]
        for column in range(0, target.shape[0], _LINE if on_lines else 1):
            if on_lines:
                # Nobody reads it soon: past the caches.
                nontemporal_copy(target, column, source, column)
            else:
                target[column] = source[column]


@njit(nogil=True, cache=True)
def _matrix(operands, place, dtype):
    """An operand or result of a call, by its place among them."""
    at = pointer(operands + 8 * OPERAND_WORDS * place)
    words = carray(at, OPERAND_WORDS, np.int64)
    return carray(pointer(words[0]), (words[1], words[2]), dtype)


@njit(nogil=True, cache=True)
def _vector(operands, place, dtype):
    matrix = _matrix(operands, place, dtype)
    return matrix.reshape(matrix.size)


@njit(nogil=True, cache=True)
def _share(rows, part, parts):
    """The rows [begin, end) of one of `parts` like shares."""
    return rows * part // parts, rows * (part + 1) // parts


@njit(nogil=True, cache=True)
def _of_returned(operands):
    """What `weighted_sum_vjp` and `projection_vjp` have alike: up to `lists`."""
    projected, bias = _matrix(operands, 1, np.float32), _vector(operands, 2, np.float32)
    starts, rows = _vector(operands, 4, np.int32), _vector(operands, 5, np.int32)
    lists = starts, rows, _vector(operands, 6, np.float32)
    return projected, bias, _matrix(operands, 3, np.float32), lists


def tasks() -> dict[str, int]:
    """What XLA's calls do, as C functions for xla_handlers: names and addresses.

    The first operand is the number of parts; the others are those of the kernel of the
    name, as it has them, and then come the results.
    """

    @cfunc(_WORK)
    def read(operands, part, parts):
        out = _matrix(operands, 3, np.float32)
        begin, end = _share(out.shape[0], part, parts)
        table, rows = _matrix(operands, 1, np.float32), _vector(operands, 2, np.int32)
        read_rows(table, rows, begin, out[begin:end])
        return 0

    @cfunc(_WORK)
    def weighted(operands, part, parts):
        out = _matrix(operands, 5, np.float32)
        begin, end = _share(out.shape[0], part, parts)
        projected, bias = _matrix(operands, 1, np.float32), _vector(operands, 2, np.float32)
        lists = _matrix(operands, 3, np.int32), _matrix(operands, 4, np.float32)
        weighted_rows(projected, bias, lists[0], lists[1], begin, out[begin:end])
        return 0

    @cfunc(_WORK)
    def transpose(operands, part, parts):
        lists = _matrix(operands, 1, np.int32), _matrix(operands, 2, np.float32)
        starts, rows = _vector(operands, 3, np.int32), _vector(operands, 4, np.int32)
        transpose_neighbor_lists(lists[0], lists[1], starts, rows, _vector(operands, 5, np.float32))
        return 0

    @cfunc(_WORK)
    def returned(operands, part, parts):
        out = _matrix(operands, 7, np.float32)
        begin, end = _share(out.shape[0], part, parts)
        projected, bias, cotangents, lists = _of_returned(operands)
        weighted_sum_vjp(projected, bias, cotangents, lists, begin, out[begin:end])
        return 0

    @cfunc(_WORK)
    def products(operands, part, parts):
        projected, bias, cotangents, lists = _of_returned(operands)
        begin, end = _share(projected.shape[0], part, parts)
        inputs, all_out = _matrix(operands, 7, np.float32), _matrix(operands, 8, np.float32)
        size = inputs.shape[1] + 1
        out = all_out[part * size : (part + 1) * size]
        projection_vjp(inputs, projected, bias, cotangents, lists, begin, end, out)
        return 0

    return {
        "pinsage_read_rows": read.address,
        "pinsage_weighted_rows": weighted.address,
        "pinsage_turned_lists": transpose.address,
        "pinsage_returned_rows": returned.address,
        "pinsage_returned_products": products.address,
    }
