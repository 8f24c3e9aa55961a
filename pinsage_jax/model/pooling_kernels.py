"""Numba kernels that XLA calls from inside the compiled step on CPUs: reading rows and pooling.

XLA's own scatter on a CPU is serial, its gathers go through memory twice on one thread,
and pooling would take longer than all matrix products of a step.  Here the sum over a
node's neighbours is one pass, and its derivative is one too, because lists are turned
round first (who names this node?), so that every output row is written once, in order.
Whole-catalogue inference calls the same kernels from the host.

XLA's foreign function interface hands a call frame to a C function: the addresses and
shapes of operands and results in structures of its stable binary interface (major
version 0; `xla/ffi/api/c_api.h` beside jaxlib), read here as 64-bit words.  A call cuts
its rows into parts and asks XLA's thread pool for help: whoever is free takes the next
part, the caller first, and nobody waits for help that has not come.  What a part writes
does not depend on who writes it.

Everything that calls another kernel is in this file, as compiled code is cached.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from numba import carray, cfunc, njit, types

from pinsage_jax.cache_lines import LINE_BYTES, ask_for, stream
from pinsage_jax.model.pointers import (
    TASK_SYMBOL,
    add_to_word,
    allocate,
    call,
    free,
    give_way,
    pointer,
    task_address,
)

# Places of 64-bit words in XLA's structures.
_FRAME_WORDS, _EXTENSION, _API, _CONTEXT, _ARGS, _RETS = 15, 1, 2, 3, 9, 14
_BUFFER_WORDS, _DATA, _DIMS = 6, 3, 5
_SCHEDULE, _NUM_THREADS, _API_WORDS = 17, 18, 19
_METADATA_EXTENSION = 1
_HANDLER = types.voidptr(types.voidptr)
# Words of a shared call: who holds it, the next part, parts that are done, all parts, what
# is to be done, XLA's frame; then the arguments of a call to the thread pool.
_HOLDERS, _NEXT, _DONE, _PARTS, _WORK, _FRAME, _POOL_CALL, _JOB_WORDS = 0, 1, 2, 3, 4, 5, 6, 12
_WEIGHTED, _RETURNED, _READ = 0, 1, 2
_PARTS_A_THREAD = 16
_SMALL = 1 << 13  # rows read that are not worth a part of their own
_LINE = LINE_BYTES // 4  # entries of float32
_AHEAD = 24  # rows between asking for one and reading it


@njit(nogil=True, cache=True)
def _words(address, count):
    return carray(pointer(address), count, np.int64)


@njit(nogil=True, cache=True)
def _answered_query(frame):
    """Whether this call only asks which version of the interface the function was made for."""
    if frame[_EXTENSION] == 0:
        return False
    extension = _words(frame[_EXTENSION], 4)
    if extension[1] & 0xFFFFFFFF == _METADATA_EXTENSION:
        # The caller's own version: what is read here has its place in all of major 0.
        _words(extension[3], 4)[3] = _words(frame[_API], 5)[4]
    return True


@njit(nogil=True, cache=True)
def _buffer(frame, list_word, place):
    pointers = _words(frame[list_word], place + 1)
    return _words(pointers[place], _BUFFER_WORDS)


@njit(nogil=True, cache=True)
def _matrix(buffer, dtype):
    dims = _words(buffer[_DIMS], 2)
    return carray(pointer(buffer[_DATA]), (dims[0], dims[1]), dtype)


@njit(nogil=True, cache=True)
def _vector(buffer, dtype):
    return carray(pointer(buffer[_DATA]), (_words(buffer[_DIMS], 1)[0],), dtype)


@njit(nogil=True, cache=True)
def _relu(value):
    # Compiles to better code than max().
    return value if value > np.float32(0.0) else np.float32(0.0)


@njit(nogil=True, cache=True)
def _entry(neighbours, weights, row, place):
    """A neighbour and its weight; for none, which is -1, the first with no weight."""
    node = neighbours[row, place]
    return (node, weights[row, place]) if node >= 0 else (np.int32(0), np.float32(0.0))


@njit(nogil=True, cache=True)
def _ask_for_rows(table, rows, begin, end):
    """Asks for rows rows[begin], ..., rows[end - 1] of a matrix, as far as there are such places."""
    width = np.int64(table.shape[1])
    for place in range(begin, min(end, rows.shape[0])):
        first = np.int64(rows[place]) * width
        for column in range(0, width, _LINE):
            ask_for(table, first + column)


@njit(nogil=True, cache=True)
def _on_lines(matrix):
    """Whether every row begins on a cache line."""
    return matrix.shape[1] % _LINE == 0 and matrix.ctypes.data % LINE_BYTES == 0


@njit(nogil=True, cache=True)
def _copy(source, target, on_lines):
    """target[:] = source, past the caches where it may."""
    if on_lines:
        for column in range(0, target.shape[0], _LINE):
            stream(target, column, source, column)
    else:
        for column in range(target.shape[0]):
            target[column] = source[column]


@njit(nogil=True, cache=True)
def weighted_rows(projected, bias, neighbours, weights, begin, out):
    """out[i] = sum over t of weights[j, t] * ReLU(projected[neighbours[j, t]] + bias).

    Here j = begin + i: any range of rows can be made alone.

    Args:
      projected: float32 [n, M], finite; may be a memory map, of which the named rows are
        read, and the first.
      bias: float32 [M].
      neighbours: int32 [S, T] rows of it, -1 for none; weights: float32 [S, T].
      out: float32 [s, M] output.
    """
    nought = np.float32(0.0)
    width, whole = neighbours.shape[1], neighbours.shape[1] // 4 * 4
    listed = neighbours.reshape(neighbours.size)
    for place in range(out.shape[0]):
        row = begin + place
        total = out[place]
        for column in range(total.shape[0]):
            total[column] = nought
        # Four at a time: their cache misses overlap and the sum is read and written once.
        for first in range(0, whole, 4):
            ahead = row * width + first + _AHEAD
            _ask_for_rows(projected, listed, ahead, ahead + 4)
            n0, w0 = _entry(neighbours, weights, row, first)
            n1, w1 = _entry(neighbours, weights, row, first + 1)
            n2, w2 = _entry(neighbours, weights, row, first + 2)
            n3, w3 = _entry(neighbours, weights, row, first + 3)
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
            node, weight = _entry(neighbours, weights, row, rest)
            sent = projected[node]
            for column in range(total.shape[0]):
                total[column] += weight * _relu(sent[column] + bias[column])


@njit(nogil=True, cache=True)
def max_rows(projected, neighbours, weights, out):
    """out[i] = the maximum of the rows of `projected` that have a weight; no entry is below 0."""
    for row in range(out.shape[0]):
        best = out[row]
        for column in range(best.shape[0]):
            best[column] = 0.0
        for rank in range(neighbours.shape[1]):
            node, weight = _entry(neighbours, weights, row, rank)
            if weight > 0.0:
                sent = projected[node]
                for column in range(best.shape[0]):
                    best[column] = max(best[column], sent[column])


@njit(nogil=True, cache=True)
def turned_lists(neighbours, weights, starts, rows, masses):
    """Lists by the node that is named: a counting sort of all entries with a weight.

    Args:
      neighbours: int32 [S, T] below n; weights: float32 [S, T], 0 where masked.
      starts: int32 [n + 1] output; node i is named by rows[starts[i] : starts[i + 1]].
      rows: int32 [S * T] output, in order within a node; masses: float32 [S * T] output.
    """
    starts[:] = 0
    for row in range(neighbours.shape[0]):
        for place in range(neighbours.shape[1]):
            if weights[row, place] != 0.0:
                starts[neighbours[row, place]] += 1
    total = 0
    for node in range(starts.shape[0]):
        total += starts[node]
        starts[node] = total
    # From the end, so that starts[i] comes down from the end of its list to its start.
    for row in range(neighbours.shape[0] - 1, -1, -1):
        for place in range(neighbours.shape[1] - 1, -1, -1):
            if weights[row, place] != 0.0:
                node = neighbours[row, place]
                starts[node] -= 1
                rows[starts[node]] = row
                masses[starts[node]] = weights[row, place]


@njit(nogil=True, cache=True)
def returned_rows(projected, bias, cotangents, starts, rows, masses, begin, out):
    """The derivative of `weighted_rows` towards row begin + i of `projected`, as out[i].

    out[i] = the sum over the rows that name node begin + i of mass * cotangents[row], where
    the ReLU let the node's vector pass.

    Args:
      projected: float32 [n, M]; bias: float32 [M].
      cotangents: float32 [S, M]; starts, rows, masses: of `turned_lists`.
      out: float32 [s, M] output.
    """
    nought = np.float32(0.0)
    on_lines = _on_lines(out)
    total = np.empty(out.shape[1], np.float32)
    for place in range(out.shape[0]):
        for column in range(total.shape[0]):
            total[column] = nought
        first, last = starts[begin + place], starts[begin + place + 1]
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
        own = projected[begin + place]
        for column in range(total.shape[0]):
            total[column] = total[column] if own[column] + bias[column] > nought else nought
        _copy(total, out[place], on_lines)


@njit(nogil=True, cache=True)
def read_rows(table, rows, begin, out):
    """out[i] = table[rows[begin + i]], of row 0 where that is below 0.

    Args:
      table: float32 [n, D]; rows: int32 [S]; out: float32 [s, D] output.
    """
    on_lines = _on_lines(out)
    for place in range(out.shape[0]):
        ahead = begin + place + _AHEAD
        _ask_for_rows(table, rows, ahead, ahead + 1)
        _copy(table[max(rows[begin + place], 0)], out[place], on_lines)


@njit(nogil=True, cache=True)
def _do_part(frame, work, part, parts):
    """Makes rows of the result: the part-th of `parts` like shares."""
    out = _matrix(_buffer(frame, _RETS, 0), np.float32)
    begin, end = out.shape[0] * part // parts, out.shape[0] * (part + 1) // parts
    first = _matrix(_buffer(frame, _ARGS, 0), np.float32)
    if work == _READ:
        read_rows(first, _vector(_buffer(frame, _ARGS, 1), np.int32), begin, out[begin:end])
    elif work == _WEIGHTED:
        weighted_rows(
            first,
            _vector(_buffer(frame, _ARGS, 1), np.float32),
            _matrix(_buffer(frame, _ARGS, 2), np.int32),
            _matrix(_buffer(frame, _ARGS, 3), np.float32),
            begin,
            out[begin:end],
        )
    else:
        returned_rows(
            first,
            _vector(_buffer(frame, _ARGS, 1), np.float32),
            _matrix(_buffer(frame, _ARGS, 2), np.float32),
            _vector(_buffer(frame, _ARGS, 3), np.int32),
            _vector(_buffer(frame, _ARGS, 4), np.int32),
            _vector(_buffer(frame, _ARGS, 5), np.float32),
            begin,
            out[begin:end],
        )


@njit(nogil=True, cache=True)
def _take_parts(job):
    """Does parts of a shared call as long as there are any, and lets go of it."""
    parts = job[_PARTS]
    part = add_to_word(job, _NEXT, 1)
    while part < parts:
        _do_part(_words(job[_FRAME], _FRAME_WORDS), job[_WORK], part, parts)
        add_to_word(job, _DONE, 1)
        part = add_to_word(job, _NEXT, 1)


@njit(nogil=True, cache=True)
def _let_go(job):
    if add_to_word(job, _HOLDERS, -1) == 1:
        free(job.ctypes.data)


@njit(nogil=True, cache=True)
def _shared(frame, work, rows_read):
    """Does the work of a call, with the help of XLA's threads where there is much of it.

    A helper that comes late, even after the call, finds no part left: what it then reads
    is the job's own words, which the last holder frees.
    """
    api = _words(frame[_API], _API_WORDS)
    parts = rows_read // _SMALL
    if parts < 2 or api[0] < _API_WORDS * 8:
        _do_part(frame, work, 0, 1)
        return
    job = _words(allocate(_JOB_WORDS * 8), _JOB_WORDS)
    job[:] = 0
    asking = job[_POOL_CALL:]
    asking[0], asking[2], asking[3] = 32, frame[_CONTEXT], asking[4:].ctypes.data
    threads = 1
    # What comes back is an error, or nothing.
    if call(api[_NUM_THREADS], asking.ctypes.data) == 0:
        threads = asking[4]
    parts = min(parts, _PARTS_A_THREAD * threads)
    job[_HOLDERS], job[_PARTS], job[_WORK], job[_FRAME] = 1, parts, work, frame.ctypes.data
    asking[0], asking[3], asking[4] = 40, task_address(), job.ctypes.data
    for _ in range(min(threads, parts) - 1):
        add_to_word(job, _HOLDERS, 1)
        if call(api[_SCHEDULE], asking.ctypes.data) != 0:
            add_to_word(job, _HOLDERS, -1)
            break
    _take_parts(job)
    while add_to_word(job, _DONE, 0) < parts:
        give_way()
    _let_go(job)


def handlers() -> dict[str, int]:
    """Compiles the C functions: names of custom calls and the addresses to call."""

    @cfunc(_HANDLER, cache=True)
    def task(address):
        job = carray(address, _JOB_WORDS, np.int64)
        _take_parts(job)
        _let_go(job)
        return pointer(0)

    llvmlite.binding.add_symbol(TASK_SYMBOL, task.address)

    @cfunc(_HANDLER, cache=True)
    def weighted(address):
        frame = carray(address, _FRAME_WORDS, np.int64)
        if not _answered_query(frame):
            neighbours = _matrix(_buffer(frame, _ARGS, 2), np.int32)
            _shared(frame, _WEIGHTED, neighbours.size)
        return pointer(0)

    @cfunc(_HANDLER, cache=True)
    def turned(address):
        frame = carray(address, _FRAME_WORDS, np.int64)
        if not _answered_query(frame):
            turned_lists(
                _matrix(_buffer(frame, _ARGS, 0), np.int32),
                _matrix(_buffer(frame, _ARGS, 1), np.float32),
                _vector(_buffer(frame, _RETS, 0), np.int32),
                _vector(_buffer(frame, _RETS, 1), np.int32),
                _vector(_buffer(frame, _RETS, 2), np.float32),
            )
        return pointer(0)

    @cfunc(_HANDLER, cache=True)
    def returned(address):
        frame = carray(address, _FRAME_WORDS, np.int64)
        if not _answered_query(frame):
            _shared(frame, _RETURNED, _vector(_buffer(frame, _ARGS, 4), np.int32).size)
        return pointer(0)

    @cfunc(_HANDLER, cache=True)
    def read(address):
        frame = carray(address, _FRAME_WORDS, np.int64)
        if not _answered_query(frame):
            _shared(frame, _READ, _vector(_buffer(frame, _ARGS, 1), np.int32).size)
        return pointer(0)

    return {
        "pinsage_weighted_rows": weighted.address,
        "pinsage_turned_lists": turned.address,
        "pinsage_returned_rows": returned.address,
        "pinsage_read_rows": read.address,
    }
