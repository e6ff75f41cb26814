"""Threads that work ahead of their consumer, in order: decoding frees Python's lock, so they gain."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def num_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(function: Callable[[T], R], items: Iterable[T], depth: int = 64) -> Generator[R]:
    """`function` of each item, in the order of the items, with up to `depth` of them under way or waiting.

    An error of `function` is raised when its turn comes; what has not begun by then is dropped.
    """
    pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
