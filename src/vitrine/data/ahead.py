"""Threads or processes that work ahead of their consumer, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
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
    with ThreadPoolExecutor(num_threads(), "decode") as pool:
        yield from _in_order(pool, function, items, depth)


def processes_share_memory() -> bool:
    """Whether a new process sees what this one holds in memory: one that is forked does, without a copy."""
    return multiprocessing.get_context().get_start_method() == "fork"


def by_processes(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Generator[R, None, None]:
    """`function` of each item, in the order of the items, by processes that live as long as the generator.

    Results travel through pipes, not through shared memory, which a container may have too little of. The
    processes heed neither the interrupt key nor SIGTERM, SIGUSR1 and SIGUSR2, which a whole group of processes may be
    sent: what is under way is then for this process to save. They end when the generator does, or this process,
    however it ends. Where they are not forked (macOS, Windows, Python 3.14 and later), each gets a copy of `function`
    and of all it holds. Raises `Unavailable` if one of them is killed.
    """
    told, tell = multiprocessing.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, initializer=_begin, initargs=(function, told))
    try:
        with warnings.catch_warnings():
            # Python warns of any fork beside threads; the processes only decode, and wait for none of ours.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            pool.submit(os.getpid)
        yield from _in_order(pool, _do_task, items, depth=2 * num_workers)
    except BrokenProcessPool as error:
        raise Unavailable(
            "A process that decodes pictures was killed, most likely for want of memory. Lower num_workers."
        ) from error
    finally:
        # The pool of a killed process ends the others by SIGTERM, and waits for them: without this word for ever.
        tell.send_bytes(b"end")
        pool.shutdown(cancel_futures=True)
        tell.close()
        told.close()


def _in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Generator[R, None, None]:
    """Results in the order of the items. When it ends, early or not, nothing that it began is under way."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def _first(waiting: deque[Future[R]]) -> R:
    """The next result. It is taken off the list once it is there, so that an interrupt cannot lose sight of it."""
    result = waiting[0].result()
    waiting.popleft()
    return result


def _do_task(item: Any) -> Any:
    return _task[0](item)


def _begin(function: Callable[[Any], Any], told: Connection) -> None:
    """Set up a process: its task, one thread, and no ear for signals that are meant for its parent."""
    import torch

    _task[:] = [function]
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_when_told, args=(told,), daemon=True).start()


def _end_when_told(told: Connection) -> None:
    """End this process when its parent says so or is gone. The word stays in the pipe for the other processes."""
    parent = multiprocessing.parent_process()
    wait_for_any([told] if parent is None else [told, parent.sentinel])
    os._exit(1)
