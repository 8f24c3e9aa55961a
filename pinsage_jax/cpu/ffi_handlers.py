"""The C function that XLA calls on CPUs: it runs a task in chunks, on XLA's threads.

XLA's foreign function interface hands a call frame to a C function, a handler: addresses and
shapes of operands and results, and attributes (ffi_structs.py).  One handler serves all tasks.
Two attributes of the call, both int64, say which task and in how many chunks:

  chunks  int64, number of chunks
  task    int64, number of the task, from `add_task`

A task is a C function task(operands, chunk, chunks), known by its address.  It returns
SUCCEEDED; anything else makes the call fail, with an error in Python.

The calling thread takes the next chunk that nobody has taken until there are none left, and
so does every thread of XLA's pool that becomes free meanwhile; the caller does not wait for
threads that never came.  What a chunk writes does not depend on the thread that runs it.
"""

from __future__ import annotations

from typing import NamedTuple

import llvmlite.binding
import numpy as np
from numba import carray, types

from pinsage_jax.cpu import intrinsics
from pinsage_jax.cpu.ffi_structs import (
    API,
    API_VERSION,
    ARGS,
    ATTRS,
    BUFFER,
    CALL_FRAME,
    ERROR_CREATE,
    ERROR_DESTROY,
    EXTENSION,
    INTERNAL,
    METADATA,
    METADATA_EXTENSION,
    METADATA_TYPE,
    NUM_THREADS,
    RESOURCE_EXHAUSTED,
    RETS,
    SCALAR,
    SCHEDULE,
    WORD_BYTES,
)
from pinsage_jax.cpu.kernel_cache import cfunc, njit

TASK = types.int64(types.int64, types.int64, types.int64)
# What a task returns.  Success is not 0, which Numba returns for a function that raised.
SUCCEEDED, FAILED = 1, 2


class _Operand(NamedTuple):
    """Words that describe an operand or a result to a task; 1 column for a vector."""

    data: int = 0
    rows: int = 1
    columns: int = 2
    words: int = 3


class _State(NamedTuple):
    """Words of a call that its threads share; `operands` is where those begin."""

    # Threads that may still use these words.
    references: int = 0
    next_chunk: int = 1
    finished_chunks: int = 2
    failed_chunks: int = 3
    chunks: int = 4
    task: int = 5
    operands: int = 6


class _Table(NamedTuple):
    """Words of the table of addresses: the worker's entry, then so many of every task."""

    worker_entry: int = 0
    tasks: int = 1
    # Of one task: its function, and texts of errors.
    function: int = 0
    failed: int = 1
    no_memory: int = 2
    task_words: int = 3


OPERAND = _Operand()
_STATE, _TABLE = _State(), _Table()
_HANDLER = types.voidptr(types.voidptr)
_MOST_TASKS = 64
# Attributes are in the order of their names.
_CHUNKS_ATTRIBUTE, _TASK_ATTRIBUTE = 0, 1

# Compiled code finds addresses here, so that it can be kept on disk.
_addresses = np.zeros(_TABLE.tasks + _MOST_TASKS * _TABLE.task_words, np.int64)
# Texts that the table points to.
_texts: list[np.ndarray] = []


@njit(nogil=True, cache=True)
def _words(address, count):
    return carray(intrinsics.pointer(address), count, np.int64)


@njit(nogil=True, cache=True)
def _answer_version_query(frame):
    """Whether XLA only asks for the version that the handler was made for; answers that."""
    if frame[CALL_FRAME.extension_start] == 0:
        return False
    extension = _words(frame[CALL_FRAME.extension_start], METADATA_EXTENSION.metadata + 1)
    # Enumerations have half a word.
    if extension[EXTENSION.type] & 0xFFFFFFFF == METADATA_TYPE:
        place = METADATA.api_version + API_VERSION.major_version
        metadata = _words(extension[METADATA_EXTENSION.metadata], place + 1)
        # XLA's own version: its structures were compared with those that are read here.
        place_of_own = API.api_version + API_VERSION.major_version
        metadata[place] = _words(frame[CALL_FRAME.api], place_of_own + 1)[place_of_own]
    return True


@njit(nogil=True, cache=True)
def _attribute(frame, number):
    """An int64 attribute of the call."""
    scalars = _words(frame[CALL_FRAME.attrs + ATTRS.attrs], number + 1)
    scalar = _words(scalars[number], SCALAR.value + 1)
    return _words(scalar[SCALAR.value], 1)[0]


@njit(nogil=True, cache=True)
def _describe(buffers_address, count, operands):
    """Describes `count` buffers, operands or results of a call, to a task."""
    buffers = _words(buffers_address, count)
    for number in range(count):
        buffer = _words(buffers[number], BUFFER.dims + 1)
        rank = buffer[BUFFER.rank]
        dims = _words(buffer[BUFFER.dims], rank)
        operand = operands[OPERAND.words * number :]
        operand[OPERAND.data] = buffer[BUFFER.data]
        operand[OPERAND.rows] = dims[0] if rank > 0 else 1
        operand[OPERAND.columns] = dims[1] if rank > 1 else 1


@njit(nogil=True, cache=True)
def _api_function(frame, place):
    """The address of one of XLA's functions; 0 where this XLA has it not."""
    api = _words(frame[CALL_FRAME.api], 1)
    if api[API.struct_size] < WORD_BYTES * (place + 1):
        return 0
    return _words(frame[CALL_FRAME.api], place + 1)[place]


@njit(nogil=True, cache=True)
def _create_error(frame, code, message):
    """An error of XLA, by its address, from the address of a text."""
    args_address = intrinsics.stack_words()
    args = _words(args_address, ERROR_CREATE.errc + 1)
    args[ERROR_CREATE.struct_size] = ERROR_CREATE.size_in_bytes
    args[ERROR_CREATE.extension_start] = 0
    args[ERROR_CREATE.message] = message
    args[ERROR_CREATE.errc] = code
    return intrinsics.call(_api_function(frame, API.XLA_FFI_Error_Create), args_address)


@njit(nogil=True, cache=True)
def _succeeds(frame, place, args_address):
    """Calls one of XLA's functions; an error that it returns is dropped."""
    function = _api_function(frame, place)
    if function == 0:
        return False
    error = intrinsics.call(function, args_address)
    if error == 0:
        return True
    destroy_address = intrinsics.stack_words()
    destroy = _words(destroy_address, ERROR_DESTROY.error + 1)
    destroy[ERROR_DESTROY.struct_size] = ERROR_DESTROY.size_in_bytes
    destroy[ERROR_DESTROY.extension_start] = 0
    destroy[ERROR_DESTROY.error] = error
    intrinsics.call(_api_function(frame, API.XLA_FFI_Error_Destroy), destroy_address)
    return False


@njit(nogil=True, cache=True)
def _num_threads(frame):
    """Threads of XLA's pool; 0 without one."""
    args_address, result_address = intrinsics.stack_words(), intrinsics.stack_words()
    args, result = _words(args_address, NUM_THREADS.num_threads + 1), _words(result_address, 1)
    args[NUM_THREADS.struct_size] = NUM_THREADS.size_in_bytes
    args[NUM_THREADS.extension_start] = 0
    args[NUM_THREADS.ctx] = frame[CALL_FRAME.ctx]
    args[NUM_THREADS.num_threads] = result_address
    found = _succeeds(frame, API.XLA_FFI_ThreadPool_NumThreads, args_address)
    return result[0] if found else 0


@njit(nogil=True, cache=True)
def _schedule_workers(frame, state, count):
    """Has `count` threads of XLA's pool call the worker's entry with the call's state.

    A thread may come when the call is over: it finds no chunk left, in memory that is the
    state's own and that the last of them frees.
    """
    args_address = intrinsics.stack_words()
    args = _words(args_address, SCHEDULE.data + 1)
    args[SCHEDULE.struct_size] = SCHEDULE.size_in_bytes
    args[SCHEDULE.extension_start] = 0
    args[SCHEDULE.ctx] = frame[CALL_FRAME.ctx]
    args[SCHEDULE.task] = _words(intrinsics.table_address(), 1)[_TABLE.worker_entry]
    args[SCHEDULE.data] = state.ctypes.data
    for _ in range(count):
        intrinsics.add_to_word(state, _STATE.references, 1)
        if not _succeeds(frame, API.XLA_FFI_ThreadPool_Schedule, args_address):
            intrinsics.add_to_word(state, _STATE.references, -1)
            return


@njit(nogil=True, cache=True)
def _run_chunks(state):
    """Runs chunks that no thread has taken, until there are none left."""
    operands = state.ctypes.data + WORD_BYTES * _STATE.operands
    chunks = state[_STATE.chunks]
    chunk = intrinsics.add_to_word(state, _STATE.next_chunk, 1)
    while chunk < chunks:
        # Once a chunk has failed the others are of no use.
        if intrinsics.add_to_word(state, _STATE.failed_chunks, 0) == 0:
            status = intrinsics.call_task(state[_STATE.task], operands, chunk, chunks)
            if status != SUCCEEDED:
                intrinsics.add_to_word(state, _STATE.failed_chunks, 1)
        intrinsics.add_to_word(state, _STATE.finished_chunks, 1)
        chunk = intrinsics.add_to_word(state, _STATE.next_chunk, 1)


@njit(nogil=True, cache=True)
def _release(state):
    """Frees the state of a call for its last user."""
    if intrinsics.add_to_word(state, _STATE.references, -1) == 1:
        intrinsics.free(state.ctypes.data)


@njit(nogil=True, cache=True)
def _handle(frame):
    """Runs the task of a call; returns the address of an error, or 0."""
    if _answer_version_query(frame):
        return 0
    num_args, num_rets = frame[CALL_FRAME.args + ARGS.size], frame[CALL_FRAME.rets + RETS.size]
    chunks = _attribute(frame, _CHUNKS_ATTRIBUTE)
    place = _TABLE.tasks + _TABLE.task_words * _attribute(frame, _TASK_ATTRIBUTE)
    task = _words(intrinsics.table_address(), place + _TABLE.task_words)[place:]
    size = _STATE.operands + OPERAND.words * (num_args + num_rets)
    address = intrinsics.malloc(WORD_BYTES * size)
    if address == 0:
        return _create_error(frame, RESOURCE_EXHAUSTED, task[_TABLE.no_memory])
    state = _words(address, size)
    state[_STATE.references], state[_STATE.next_chunk] = 1, 0
    state[_STATE.finished_chunks], state[_STATE.failed_chunks] = 0, 0
    state[_STATE.chunks], state[_STATE.task] = chunks, task[_TABLE.function]
    operands = state[_STATE.operands :]
    _describe(frame[CALL_FRAME.args + ARGS.args], num_args, operands)
    results = operands[OPERAND.words * num_args :]
    _describe(frame[CALL_FRAME.rets + RETS.rets], num_rets, results)
    if chunks > 1:
        _schedule_workers(frame, state, min(_num_threads(frame), chunks) - 1)
    _run_chunks(state)
    # Chunks that other threads have taken write to memory of this call.
    while intrinsics.add_to_word(state, _STATE.finished_chunks, 0) < chunks:
        intrinsics.sched_yield()
    failed = intrinsics.add_to_word(state, _STATE.failed_chunks, 0) > 0
    _release(state)
    return _create_error(frame, INTERNAL, task[_TABLE.failed]) if failed else 0


def compile_handler() -> int:
    """The address of the handler, compiled or from the cache; called once in a process."""

    @cfunc(_HANDLER)
    def worker_entry(address):
        state = carray(address, _STATE.operands, np.int64)
        _run_chunks(state)
        _release(state)
        return intrinsics.pointer(0)

    # Known by name before anything that reads it is linked.
    llvmlite.binding.add_symbol(intrinsics.TABLE_SYMBOL, _addresses.ctypes.data)
    _addresses[_TABLE.worker_entry] = worker_entry.address

    @cfunc(_HANDLER)
    def handler(address):
        frame = carray(address, CALL_FRAME.attrs + ATTRS.attrs + 1, np.int64)
        return intrinsics.pointer(_handle(frame))

    return handler.address


def add_task(name: str, function: int) -> int:
    """Makes a task known to the handler.

    Args:
      name: for error messages.
      function: address of a C function TASK.

    Returns:
      its number.
    """
    number = len(_texts) // 2
    assert number < _MOST_TASKS, "the table of addresses is full"
    texts = (
        f"the compiled CPU kernel {name} failed: memory ran out, or an index was out of range",
        f"the compiled CPU kernel {name} did not start: memory ran out",
    )
    place = _TABLE.tasks + number * _TABLE.task_words
    _texts.extend(np.frombuffer(text.encode() + b"\0", np.uint8) for text in texts)
    failed, no_memory = (text.ctypes.data for text in _texts[-2:])
    _addresses[place : place + _TABLE.task_words] = function, failed, no_memory
    return number
