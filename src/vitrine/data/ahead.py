"""Threads or processes that work ahead of their consumer, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vitrine.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

# What this process makes, where it is one of those that `by_processes` started.
_task: list[Callable[[Any], Any]] = []


def num_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by_threads(function: Callable[[T], R], items: Iterable[T], depth: int = 64) -> Generator[R, None, None]:
    """`function` of each item, in the order of the items, with up to `depth` of them under way or waiting.

    Decoding frees Python's lock, so threads gain. An error of `function` is raised when its turn comes; what has
    not begun by then is dropped.
    """
    yield from _in_order(ThreadPoolExecutor(num_threads(), "decode"), function, items, depth)


def by_processes(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Generator[R, None, None]:
    """`function` of each item, in the order of the items, by processes that live as long as the generator.

    Results travel through pipes, not through shared memory, which a container may have too little of. The
    processes do not hear the interrupt key, and end when this process does, however it ends. Raises
    `Unavailable` if one of them is killed.
    """
    pool = ProcessPoolExecutor(num_workers, initializer=_begin, initargs=(function,))
    with warnings.catch_warnings():
        # Python warns of any fork beside threads; the processes only decode, and wait for none of ours.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        pool.submit(os.getpid)
    try:
        yield from _in_order(pool, _do_task, items, depth=2 * num_workers)
    except BrokenProcessPool as error:
        raise Unavailable(
            "A process that decodes pictures was killed, most likely for want of memory. Lower num_workers."
        ) from error


def _in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Generator[R, None, None]:
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


def _do_task(item: Any) -> Any:
    return _task[0](item)


def _begin(function: Callable[[Any], Any]) -> None:
    """Set up a process: its task, one thread, and no signals but those that end it."""
    import torch

    _task[:] = [function]
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
