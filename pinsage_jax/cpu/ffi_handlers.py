"""C functions that XLA calls on CPUs: each has its work done in parts, by XLA's threads.

XLA's foreign function interface hands a call frame to a C function: the addresses and
shapes of operands and results in structures of its stable binary interface (major
version 0; `xla/ffi/api/c_api.h` beside jaxlib), read here as 64-bit words.  What is to be
done is known here by the address of a C function alone, work(operands, part, parts); those
of this package are in pooling_kernels.py.

A call asks XLA's thread pool for help: whoever is free takes the next part, the caller
first, and nobody waits for help that has not come.  What a part writes does not depend on
who writes it.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from numba import carray, types

from pinsage_jax.cpu import intrinsics
from pinsage_jax.cpu.kernel_cache import cfunc, njit

# Places of 64-bit words in XLA's structures.
_FRAME_WORDS, _EXTENSION, _API, _CONTEXT = 15, 1, 2, 3
_NUM_ARGS, _ARGS, _NUM_RETS, _RETS = 7, 9, 12, 14
_BUFFER_WORDS, _DATA, _RANK, _DIMS = 6, 3, 4, 5
_FUNCTIONS, _SCHEDULE, _NUM_THREADS, _API_WORDS = 6, 17, 18, 19
# Places of the thread pool's functions, to schedule a task and to count threads, among all.
POOL_FUNCTIONS = [_SCHEDULE - _FUNCTIONS, _NUM_THREADS - _FUNCTIONS]
_METADATA_EXTENSION = 1
_HANDLER = types.voidptr(types.voidptr)
# Words of a call in parts: who holds it, the next part, parts that are done, all parts, the
# work's address; arguments for the thread pool; then OPERAND_WORDS of each operand and result.
_HOLDERS, _NEXT, _DONE, _PARTS, _WORK, _POOL_CALL, _OPERANDS = 0, 1, 2, 3, 4, 5, 11
# Of each operand of a work: address, rows, columns (1 for a vector).
OPERAND_WORDS = 3
_tables: list[np.ndarray] = []


@njit(nogil=True, cache=True)
def _words(address, count):
    return carray(intrinsics.pointer(address), count, np.int64)


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
def _list_operands(frame, first_word, count, operands):
    """Writes address, rows and columns of `count` operands or results."""
    buffers = _words(frame[first_word], count)
    for place in range(count):
        buffer = _words(buffers[place], _BUFFER_WORDS)
        dims = _words(buffer[_DIMS], buffer[_RANK])
        operands[OPERAND_WORDS * place] = buffer[_DATA]
        operands[OPERAND_WORDS * place + 1] = dims[0]
        operands[OPERAND_WORDS * place + 2] = dims[1] if buffer[_RANK] > 1 else 1


@njit(nogil=True, cache=True)
def _run_chunks(job):
    """Does parts of a call as long as there are any, and lets go of it."""
    operands, parts = job.ctypes.data + 8 * _OPERANDS, job[_PARTS]
    part = intrinsics.add_to_word(job, _NEXT, 1)
    while part < parts:
        intrinsics.call_work(job[_WORK], operands, part, parts)
        intrinsics.add_to_word(job, _DONE, 1)
        part = intrinsics.add_to_word(job, _NEXT, 1)


@njit(nogil=True, cache=True)
def _release(job):
    """The last holder of a call frees its words."""
    if intrinsics.add_to_word(job, _HOLDERS, -1) == 1:
        intrinsics.free(job.ctypes.data)


@njit(nogil=True, cache=True)
def _ask_for_help(frame, job):
    """Has as many threads of XLA take parts as it has, but for this one.

    A thread that comes late, even after the call, finds no part left: what it then reads is
    the job's own words.
    """
    api, asking = _words(frame[_API], _API_WORDS), job[_POOL_CALL:_OPERANDS]
    if api[0] < 8 * _API_WORDS:
        return
    # What comes back from XLA is an error, or nothing.
    asking[0], asking[1], asking[2], asking[3] = 32, 0, frame[_CONTEXT], asking[4:].ctypes.data
    if intrinsics.call(api[_NUM_THREADS], asking.ctypes.data) != 0:
        return
    threads = asking[4]
    asking[0], asking[3], asking[4] = 40, _words(intrinsics.table_address(), 1)[0], job.ctypes.data
    for _ in range(min(threads, job[_PARTS]) - 1):
        intrinsics.add_to_word(job, _HOLDERS, 1)
        if intrinsics.call(api[_SCHEDULE], asking.ctypes.data) != 0:
            intrinsics.add_to_word(job, _HOLDERS, -1)
            return


@njit(nogil=True, cache=True)
def _answer(frame, work):
    """Does a call; the first operand of XLA's, int32 [1], is the number of its parts."""
    if _answered_query(frame):
        return
    given, made = frame[_NUM_ARGS], frame[_NUM_RETS]
    size = _OPERANDS + OPERAND_WORDS * (given + made)
    job = _words(intrinsics.malloc(8 * size), size)
    job[_HOLDERS], job[_NEXT], job[_DONE] = 1, 0, 0
    _list_operands(frame, _ARGS, given, job[_OPERANDS:])
    _list_operands(frame, _RETS, made, job[_OPERANDS + OPERAND_WORDS * given :])
    parts = carray(intrinsics.pointer(job[_OPERANDS]), 1, np.int32)[0]
    job[_PARTS], job[_WORK] = parts, _words(intrinsics.table_address(), work + 2)[1 + work]
    if parts > 1:
        _ask_for_help(frame, job)
    _run_chunks(job)
    while intrinsics.add_to_word(job, _DONE, 0) < parts:
        intrinsics.sched_yield()
    _release(job)


def handlers(tasks: dict[str, int]) -> dict[str, int]:
    """C functions for XLA, compiled or from the cache; to be called once a process.

    Args:
      works: names, and addresses of C functions int64(int64, int64, int64).  They are called
        with the address of the operands and results, OPERAND_WORDS words each, the number
        of a part and the number of parts.

    Returns:
      Addresses to call, by name.
    """

    @cfunc(_HANDLER)
    def worker_entry(address):
        job = carray(address, _OPERANDS, np.int64)
        _run_chunks(job)
        _release(job)
        return intrinsics.pointer(0)

    # Compiled code finds addresses there, so that it can be cached; kept for good.
    _tables.append(np.array([worker_entry.address, *tasks.values()], np.int64))
    llvmlite.binding.add_symbol(intrinsics.TABLE_SYMBOL, _tables[-1].ctypes.data)

    def handler(work: int) -> int:
        @cfunc(_HANDLER)
        def answer(address):
            _answer(carray(address, _FRAME_WORDS, np.int64), work)
            return intrinsics.pointer(0)

        return answer.address

    return {name: handler(work) for work, name in enumerate(tasks)}
