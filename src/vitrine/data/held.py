"""Blocks read once and held for those who ask again: bounded in bytes, for threads, and a fork begins with none."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar, runtime_checkable

from vitrine.errors import BadData


@runtime_checkable
class Sized(Protocol):
    """Whatever knows how many bytes of memory it takes."""

    @property
    def nbytes(self) -> int: ...


B = TypeVar("B", bound=Sized)


class Held(Generic[B]):
    """Blocks by number, of which those last asked for stay while all together have no more than `limit` bytes.

    Several threads that ask for one block wait for one reading of it. A block that is damaged (`BadData`) stays so; any
    other error is raised to those who wait, and the next one who asks tries again.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.begin()

    def begin(self) -> None:
        """Hold nothing: what a fork has of its parent may be locked by a thread that it has not."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Future[B]] = OrderedDict()
        self._bytes = 0

    def get(self, number: int, read: Callable[[], B]) -> B:
        """Block `number`, by `read` where it is not held."""
        if self._process != os.getpid():
            self.begin()
        with self._lock:
            there = self._blocks.get(number)
            if there is None:
                mine: Future[B] = Future()
                self._blocks[number] = mine
            else:
                self._blocks.move_to_end(number)
        if there is not None:
            return there.result()
        try:
            block = read()
        except BaseException as error:
            with self._lock:
                if not isinstance(error, BadData):
                    self._blocks.pop(number, None)
            mine.set_exception(error)
            raise
        mine.set_result(block)
        with self._lock:
            self._bytes += block.nbytes
            self._drop(number)
        return block

    def _drop(self, kept: int) -> None:
        """Let go of those not asked for longest, never of the one just read."""
        for number in list(self._blocks):
            if self._bytes <= self.limit:
                return
            block = self._blocks[number]
            if number != kept and block.done() and block.exception() is None:
                del self._blocks[number]
                self._bytes -= block.result().nbytes

    def __contains__(self, number: int) -> bool:
        return self._process == os.getpid() and number in self._blocks
