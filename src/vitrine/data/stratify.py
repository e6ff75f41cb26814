"""A part drawn from pictures of several classes each, in which every class has near its share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8


def stratified(labels: UInt8[np.ndarray, "n K"], count: int, seed: int) -> Int64[np.ndarray, " _"]:
    """Places, ascending, of about `count` of the n pictures, with each class in near the same share as in all.

    Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011,
    algorithm 1) for two parts: the class with the fewest pictures left goes first, each of its pictures to the part
    that still wants most of the class, then most pictures, then by a draw. Pictures of no class come last and fill
    the parts. A class keeps a picture outside the drawn part. The same seed gives the same places.
    """
    n = len(labels)
    if not 0 < count < n:
        return np.zeros(0, np.int64)
    sizes = labels.sum(axis=0, dtype=np.int64)
    random = np.random.default_rng(seed % 2**32)
    order, tosses = random.permutation(n), random.integers(0, 2, n)
    shares = np.array([1 - count / n, count / n])  # of the part that stays, of the part that is drawn
    wanted, room = shares[:, None] * sizes, shares * n
    rest, drawn = np.ones(n, bool), np.zeros(n, bool)
    left = sizes.copy()
    while left.any():
        k = int(np.where(left > 0, left, n + 1).argmin())
        for i in order[(rest & (labels[:, k] > 0))[order]]:
            part = _most((wanted[:, k], room), int(tosses[i]))
            rest[i], drawn[i] = False, part == 1
            wanted[part] -= labels[i]
            room[part] -= 1
            left -= labels[i]
    for i in order[rest[order]]:
        part = _most((room,), int(tosses[i]))
        drawn[i] = part == 1
        room[part] -= 1
    return np.flatnonzero(_with_all_kept(labels, drawn))


def _most(wishes: tuple[np.ndarray, ...], toss: int) -> int:
    """The part with most of the first wish; among equals of the next one; then as the toss says."""
    for wish in wishes:
        if abs(wish[0] - wish[1]) > 1e-9:
            return int(wish.argmax())
    return toss


def _with_all_kept(rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """`drawn` without the first picture of each class that would have none outside of it."""
    kept = drawn.copy()
    for k in np.flatnonzero(rows.any(axis=0)):
        if not rows[~kept, k].any():
            kept[np.flatnonzero(rows[:, k] > 0)[0]] = False
    return kept


def shuffled(labels: Int64[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " {count}"]:
    """Places of `count` of these labels, ascending, in the share that each class has of all, drawn by chance.

    The places are those that scikit-learn's `train_test_split(test_size=count, random_state=seed, stratify=labels)`
    gives, whose import alone takes longer than a large set needs to begin.
    """
    rng = np.random.RandomState(seed)
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = _shares(sizes, len(labels) - count, rng)
    taken = _shares(sizes - kept, count, rng)
    of_class = np.split(np.argsort(classes.reshape(-1), kind="stable"), np.cumsum(sizes)[:-1])
    drawn = []
    for places, first, number in zip(of_class, kept, taken, strict=True):
        drawn.append(places[rng.permutation(len(places))[first : first + number]])
    return np.sort(np.concatenate(drawn))


def _shares(sizes: Int64[np.ndarray, " K"], count: int, rng: np.random.RandomState) -> Int64[np.ndarray, " K"]:
    """`count` shared out in proportion to `sizes`: rounded down, then one more for the largest remainders, by lot where
    they are equal."""
    exact = sizes / sizes.sum() * count
    whole = np.floor(exact)
    left, remainder = int(count - whole.sum()), exact - whole
    for value in np.unique(remainder)[::-1]:
        if left <= 0:
            break
        equal = np.flatnonzero(remainder == value)
        more = rng.choice(equal, size=min(len(equal), left), replace=False)
        whole[more] += 1
        left -= len(more)
    return whole.astype(np.int64)
