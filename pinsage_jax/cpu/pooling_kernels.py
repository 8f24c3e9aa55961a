"""Numba kernels for CPUs: reading rows, weighted sums over lists of rows, and their derivative.

XLA's gather on a CPU goes through memory twice, on one thread, and its scatter, the derivative
of a gather, is serial.  Here a weighted sum over lists is one pass, and so is its derivative:
the lists are transposed first (which lists name this row?), so that every row of the output is
written once, in order.

`tasks` has the kernels as C functions for ffi_handlers.py, in chunks of output rows.  Host code
may call the kernels themselves; they are serial and release the GIL.

Shapes: n rows of vectors of M entries; S lists of T row numbers; s rows of an output.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from pinsage_jax.cpu.ffi_handlers import FAILED, OPERAND, SUCCEEDED, TASK
from pinsage_jax.cpu.intrinsics import pointer
from pinsage_jax.cpu.kernel_cache import cfunc, njit
from pinsage_jax.cpu.prefetch import LINE_BYTES, nontemporal_copy, prefetch

_LINE = LINE_BYTES // 4  # entries of float32
_AHEAD = 24  # rows between the prefetch of one and its use
_ZERO = np.float32(0.0)


@njit(nogil=True, cache=True)
def _relu(value):
    # Compiles to better code than max().
    return value if value > _ZERO else _ZERO


@njit(nogil=True, cache=True)
def _entry(indices, weights, place, rank):
    """A row number and its weight; for none, which is -1, row 0 with weight 0."""
    row = indices[place, rank]
    return (row, weights[place, rank]) if row >= 0 else (np.int32(0), _ZERO)


@njit(nogil=True, cache=True)
def _prefetch_rows(table, rows, begin, end):
    """Prefetches the rows rows[begin], ..., rows[end - 1] of a matrix, as far as there are any."""
    for place in range(begin, min(end, rows.shape[0])):
        first = np.int64(rows[place]) * table.shape[1]
        for column in range(0, table.shape[1], _LINE):
            prefetch(table, first + column)


@njit(nogil=True, cache=True)
def weighted_relu_sum(vectors, bias, indices, weights, begin, out):
    """out[i] = sum over t of weights[j, t] * ReLU(vectors[indices[j, t]] + bias), j = begin + i.

    Args:
      vectors: float32 [n, M], finite; may be a memory map, of which the rows that are named
        are read, and row 0.
      bias: float32 [M].
      indices: int32 [S, T] rows of it, contiguous, -1 for none; weights: float32 [S, T].
      begin: the first list of the output.
      out: float32 [s, M] output.
    """
    length, whole = indices.shape[1], indices.shape[1] // 4 * 4
    flat = indices.reshape(indices.size)
    for place in range(out.shape[0]):
        row = begin + place
        total = out[place]
        for column in range(total.shape[0]):
            total[column] = _ZERO
        # Four at a time: their cache misses overlap and the sum is read and written once.
        for first in range(0, whole, 4):
            ahead = row * length + first + _AHEAD
            _prefetch_rows(vectors, flat, ahead, ahead + 4)
            n0, w0 = _entry(indices, weights, row, first)
            n1, w1 = _entry(indices, weights, row, first + 1)
            n2, w2 = _entry(indices, weights, row, first + 2)
            n3, w3 = _entry(indices, weights, row, first + 3)
            if w0 == _ZERO and w1 == _ZERO and w2 == _ZERO and w3 == _ZERO:
                continue
            p0, p1, p2, p3 = vectors[n0], vectors[n1], vectors[n2], vectors[n3]
            for column in range(total.shape[0]):
                shift = bias[column]
                total[column] += (
                    w0 * _relu(p0[column] + shift)
                    + w1 * _relu(p1[column] + shift)
                    + w2 * _relu(p2[column] + shift)
                    + w3 * _relu(p3[column] + shift)
                )
        for rank in range(whole, length):
            ahead = row * length + rank + _AHEAD
            _prefetch_rows(vectors, flat, ahead, ahead + 1)
            named, weight = _entry(indices, weights, row, rank)
            vector = vectors[named]
            for column in range(total.shape[0]):
                total[column] += weight * _relu(vector[column] + bias[column])


@njit(nogil=True, cache=True)
def max_rows(vectors, indices, weights, out):
    """out[i] = elementwise maximum of 0 and the rows that list i names with a weight above 0.

    Args:
      vectors, indices, weights: as in `weighted_relu_sum`; out: float32 [S, M] output.
    """
    length, flat = indices.shape[1], indices.reshape(indices.size)
    for row in range(out.shape[0]):
        largest = out[row]
        for column in range(largest.shape[0]):
            largest[column] = 0.0
        for rank in range(length):
            ahead = row * length + rank + _AHEAD
            _prefetch_rows(vectors, flat, ahead, ahead + 1)
            named, weight = _entry(indices, weights, row, rank)
            if weight > 0.0:
                vector = vectors[named]
                for column in range(largest.shape[0]):
                    largest[column] = max(largest[column], vector[column])


@njit(nogil=True, cache=True)
def transpose_lists(indices, weights, starts, lists, list_weights):
    """For every row the lists that name it: a counting sort of all entries with a weight.

    Args:
      indices: int32 [S, T] below n; weights: float32 [S, T], 0 where masked.
      starts: int32 [n + 1] output: row i is named by lists[starts[i] : starts[i + 1]].
      lists: int32 [S * T] output, ascending for every row.
      list_weights: float32 [S * T] output.
    """
    starts[:] = 0
    for place in range(indices.shape[0]):
        for rank in range(indices.shape[1]):
            if weights[place, rank] != 0.0:
                starts[indices[place, rank]] += 1
    total = 0
    for row in range(starts.shape[0]):
        total += starts[row]
        starts[row] = total
    # From the end, so that starts[i] comes down from the end of its lists to their start.
    for place in range(indices.shape[0] - 1, -1, -1):
        for rank in range(indices.shape[1] - 1, -1, -1):
            if weights[place, rank] != 0.0:
                row = indices[place, rank]
                starts[row] -= 1
                lists[starts[row]] = place
                list_weights[starts[row]] = weights[place, rank]


@njit(nogil=True, cache=True)
def weighted_sum_vjp(vectors, bias, cotangents, transposed, begin, out):
    """The derivative of `weighted_relu_sum` by rows of `vectors`, from row `begin` on.

    out[i] = sum over the lists that name row begin + i of weight * cotangents[list], where the
    ReLU let that entry of the row pass, and 0 elsewhere.

    Args:
      vectors: float32 [n, M]; bias: float32 [M]; cotangents: float32 [S, M].
      transposed: starts, lists and list_weights of `transpose_lists`.
      out: float32 [s, M] output.
    """
    starts, lists, weights = transposed
    for place in range(out.shape[0]):
        row = begin + place
        total = out[place]
        for column in range(total.shape[0]):
            total[column] = _ZERO
        first, last = starts[row], starts[row + 1]
        for entry in range(first, last - 1, 2):
            _prefetch_rows(cotangents, lists, entry + _AHEAD, entry + 2 + _AHEAD)
            w0, w1 = weights[entry], weights[entry + 1]
            c0, c1 = cotangents[lists[entry]], cotangents[lists[entry + 1]]
            for column in range(total.shape[0]):
                total[column] += w0 * c0[column] + w1 * c1[column]
        if (last - first) % 2:
            _prefetch_rows(cotangents, lists, last - 1 + _AHEAD, last + _AHEAD)
            weight, cotangent = weights[last - 1], cotangents[lists[last - 1]]
            for column in range(total.shape[0]):
                total[column] += weight * cotangent[column]
        vector = vectors[row]
        for column in range(total.shape[0]):
            total[column] = total[column] if vector[column] + bias[column] > _ZERO else _ZERO


@njit(nogil=True, cache=True)
def read_rows(table, rows, begin, out):
    """out[i] = table[max(rows[begin + i], 0)].

    Args:
      table: float32 [n, D]; rows: int32 [S]; out: float32 [s, D] output.
    """
    is_aligned = out.shape[1] % _LINE == 0 and out.ctypes.data % LINE_BYTES == 0
    for place in range(out.shape[0]):
        ahead = begin + place + _AHEAD
        _prefetch_rows(table, rows, ahead, ahead + 1)
        source, target = table[max(rows[begin + place], 0)], out[place]
        for column in range(0, target.shape[0], _LINE if is_aligned else 1):
            if is_aligned:
                # Past the caches: the output is larger than they are.
                nontemporal_copy(target, column, source, column)
            else:
                target[column] = source[column]


@njit(nogil=True, cache=True)
def _matrix(operands, number, dtype):
    """An operand or result of a task, by its number; results come after the operands."""
    words = carray(pointer(operands + 8 * OPERAND.words * number), OPERAND.words, np.int64)
    shape = (words[OPERAND.rows], words[OPERAND.columns])
    return carray(pointer(words[OPERAND.data]), shape, dtype)


@njit(nogil=True, cache=True)
def _vector(operands, number, dtype):
    matrix = _matrix(operands, number, dtype)
    return matrix.reshape(matrix.size)


@njit(nogil=True, cache=True)
def _range_of_chunk(rows, chunk, chunks):
    """The rows [begin, end) of one of `chunks` chunks of like size."""
    return rows * chunk // chunks, rows * (chunk + 1) // chunks


def tasks() -> dict[str, int]:
    """Addresses of C functions ffi_handlers.TASK, by the names of the kernels that they run.

    Operands and results are those of the kernel, in its order, without `begin`.
    """

    @cfunc(TASK)
    def read_rows_task(operands, chunk, chunks):
        try:
            table, rows = _matrix(operands, 0, np.float32), _vector(operands, 1, np.int32)
            out = _matrix(operands, 2, np.float32)
            begin, end = _range_of_chunk(out.shape[0], chunk, chunks)
            read_rows(table, rows, begin, out[begin:end])
        except Exception:
            return FAILED
        return SUCCEEDED

    @cfunc(TASK)
    def weighted_relu_sum_task(operands, chunk, chunks):
        try:
            vectors, bias = _matrix(operands, 0, np.float32), _vector(operands, 1, np.float32)
            indices, weights = _matrix(operands, 2, np.int32), _matrix(operands, 3, np.float32)
            out = _matrix(operands, 4, np.float32)
            begin, end = _range_of_chunk(out.shape[0], chunk, chunks)
            weighted_relu_sum(vectors, bias, indices, weights, begin, out[begin:end])
        except Exception:
            return FAILED
        return SUCCEEDED

    @cfunc(TASK)
    def transpose_lists_task(operands, chunk, chunks):
        try:
            indices, weights = _matrix(operands, 0, np.int32), _matrix(operands, 1, np.float32)
            starts, lists = _vector(operands, 2, np.int32), _vector(operands, 3, np.int32)
            # In one chunk.
            transpose_lists(indices, weights, starts, lists, _vector(operands, 4, np.float32))
        except Exception:
            return FAILED
        return SUCCEEDED

    @cfunc(TASK)
    def weighted_sum_vjp_task(operands, chunk, chunks):
        try:
            vectors, bias = _matrix(operands, 0, np.float32), _vector(operands, 1, np.float32)
            cotangents, starts = _matrix(operands, 2, np.float32), _vector(operands, 3, np.int32)
            lists, weights = _vector(operands, 4, np.int32), _vector(operands, 5, np.float32)
            out = _matrix(operands, 6, np.float32)
            begin, end = _range_of_chunk(out.shape[0], chunk, chunks)
            transposed = (starts, lists, weights)
            weighted_sum_vjp(vectors, bias, cotangents, transposed, begin, out[begin:end])
        except Exception:
            return FAILED
        return SUCCEEDED

    return {
        "read_rows": read_rows_task.address,
        "weighted_relu_sum": weighted_relu_sum_task.address,
        "transpose_lists": transpose_lists_task.address,
        "weighted_sum_vjp": weighted_sum_vjp_task.address,
    }
