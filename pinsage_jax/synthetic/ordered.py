"""Computes the parts of a stream in threads and yields them in order."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")


def in_order(function: Callable[[_Part], _Made], parts: Iterable[_Part]) -> Iterator[_Made]:
    """Yields function(part) of every part in order, computed in as many threads as cores.

    No more parts are computed ahead than there are threads.
    """
    threads = max(len(os.sched_getaffinity(0)), 1)
    waiting: collections.deque[concurrent.futures.Future[_Made]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(function, part))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
