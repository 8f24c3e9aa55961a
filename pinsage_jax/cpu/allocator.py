"""How this process allocates: one heap, of huge pages, that keeps what is freed.

A step on the CPU allocates hundreds of megabytes and frees them at its end.  glibc gives
blocks of that size back to the system, which hands them out again page by page, cleared:
a fifth of a step on citeulike-t.

Only speed depends on it: where there is no glibc everything here does nothing.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

# glibc's mallopt: names of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_HUGE_PAGE = 1 << 21
_HEAP_BYTES = 1 << 33


@functools.cache
def single_heap() -> bool:
    """Has all threads allocate from one heap; to be called before libraries make threads.

    A thread that allocated earlier has a heap of its own, which threads that come later
    share, JAX's among them.  Such a heap is of 64 MiB at most, and what is larger comes
    from the system and goes back to it each time.

    Returns:
      whether it took effect; False without glibc.
    """
    return _set(_ARENA_MAX, 1)


@functools.cache
def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees; to be called before JAX makes threads.

    What the process holds is its largest demand so far from now on.  Where the system
    allows it the heap is of huge pages: a step gathers rows from tables far larger than a
    processor's memory of where pages of 4 KiB lie, and looking pages up was up to two
    fifths of a step.

    Returns:
      whether it took effect; False without glibc.
    """
    # Never mapped, never trimmed.
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26))
    if not (single_heap() and all([_set(name, value) for name, value in wanted])):
        return False
    _ask_for_huge_pages()
    return True


def _set(name: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(name, value))
    except (AttributeError, OSError):
        return False


def _ask_for_huge_pages() -> None:
    """Of the heap that this process will grow into: address space is taken, not memory."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    size = min(memory // 2, _HEAP_BYTES)
    block = libc.malloc(size)
    # None under a limit on address space: pages then stay as they are.
    if block:
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(first, (block + size - first) // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
