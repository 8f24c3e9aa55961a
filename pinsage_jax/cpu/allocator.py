"""Settings of glibc's allocator for a process that runs compiled steps on CPUs.

A step allocates hundreds of megabytes and frees them at its end.  By default glibc returns
blocks of that size to the system, which clears them page by page when it hands them out
again: a fifth of a step on citeulike-t.

These are settings of the whole process, so only programs make them (main.py, benchmarks),
never the library.  They change its speed alone, and without glibc they do nothing.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_HUGE_PAGE = 1 << 21
_MOST_HUGE_BYTES = 1 << 33


def configure(*, keep_freed: bool) -> bool:
    """Configures the allocator for a program, before libraries start threads.

    Args:
      keep_freed: also `keep_freed_memory`, for programs that run many steps.

    Returns:
      whether they took effect; False without glibc.
    """
    return keep_freed_memory() if keep_freed else single_heap()


@functools.cache
def single_heap() -> bool:
    """Makes all threads allocate from one heap; call it before libraries start threads.

    Otherwise threads have heaps of their own, of at most 64 MiB, and what does not fit in one
    comes from the system and returns to it each time.

    Returns:
      whether it took effect; False without glibc.
    """
    return _set(_ARENA_MAX, 1)


@functools.cache
def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees; call it before JAX starts threads.

    From then on the process holds as much as its largest demand so far.  Where the system
    allows it, the heap consists of huge pages: a step gathers rows from tables that are far
    larger than a processor's table of 4 KiB pages covers, and address translation took up to
    two fifths of a step.

    Returns:
      whether it took effect; False without glibc.
    """
    # Large blocks come from the heap as well, and the heap never shrinks.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26))
    if not (single_heap() and all([_set(name, value) for name, value in settings])):
        return False
    _advise_huge_pages()
    return True


def _set(name: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(name, value))
    except (AttributeError, OSError):
        return False


def _advise_huge_pages() -> None:
    """Asks for huge pages where the heap will grow; this takes address space, not memory."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    size = min(memory // 2, _MOST_HUGE_BYTES)
    block = libc.malloc(size)
    # None where address space is limited: pages then stay as they are.
    if block:
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(first, (block + size - first) // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
