"""An order of an epoch that has locality: pictures that are read together come near each other, and yet are mixed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from vitrine.images.augment import Stream, generator, order

MIXED_BYTES = 512 << 20
"""Encoded pictures that are mixed with each other at any time. A set of no more than this is mixed as a whole."""


@runtime_checkable
class Blocked(Protocol):
    """`Packed` pictures of which a block is read at once: row groups of a table.

    `blocks` are the ends of the blocks, as numbers of pictures, ascending; `span` is how many of them are mixed at any
    time. `far`: they come over a network and are not kept. `soon` is told pictures that will be asked for, and may
    begin to read their blocks; it never waits and never raises.
    """

    blocks: Int64[np.ndarray, " b"]
    span: int
    far: bool

    def soon(self, numbers: Iterable[int]) -> None: ...


def blocked(packed: object) -> Blocked | None:
    """What holds the pictures, where it is read in blocks."""
    return packed if isinstance(packed, Blocked) else None


def is_far(packed: object) -> bool:
    """Whether pictures come over a network, and are not kept."""
    return isinstance(packed, Blocked) and packed.far


def span_of(total_bytes: int, num_blocks: int) -> int:
    """How many blocks of a set of so many bytes are mixed at any time: `MIXED_BYTES` of them, at least four."""
    return max(4, MIXED_BYTES * num_blocks // max(total_bytes, 1))


def block_order(
    seed: int, epoch: int, indices: Int64[np.ndarray, " n"], blocks: Int64[np.ndarray, " b"], span: int
) -> Int64[np.ndarray, " n"]:
    """`indices` in the random order of an epoch, in which about `span` blocks are in use at any time, each once.

    The blocks come in random order; each picture of the p-th comes at the time p + span u, with u uniform in [0, 1) for
    each picture. So a block enters when the one before has given 1 / span of its pictures, and is done `span` blocks
    later. With no more than `span` blocks the order is that of `augment.order`. A function of its arguments alone.
    """
    block = np.searchsorted(blocks, indices, side="right")
    present, place = np.unique(block, return_inverse=True)
    if len(present) <= span:
        return order(seed, epoch, indices)
    random = generator(seed, epoch, Stream.ORDER)
    position = random.permutation(len(present))
    time = position[place.reshape(-1)] + span * random.random(len(indices))
    return indices[np.argsort(time, kind="stable")]


def sample_of_blocks(blocks: Int64[np.ndarray, " b"], most: int) -> Int64[np.ndarray, " m"]:
    """About `most` pictures from at least eight blocks, which lie evenly spread: ascending numbers."""
    begins = np.concatenate([[0], blocks[:-1]]).astype(np.int64)
    mean = max(1, int(blocks[-1]) // len(blocks))
    count = min(len(blocks), max(8, most // mean))
    picked = np.arange(count) * len(blocks) // count
    each = max(1, most // count)
    chosen = [np.arange(begins[b], min(int(blocks[b]), int(begins[b]) + each)) for b in picked.tolist()]
    return np.concatenate(chosen).astype(np.int64)
