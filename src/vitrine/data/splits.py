"""Which pictures are for training, validation and test: as given, or drawn class by class."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.config.options import DataConfig
from vitrine.data.blocks import blocked
from vitrine.data.sources import Source
from vitrine.data.stratify import shuffled, stratified
from vitrine.errors import BadData

Indices = Int64[np.ndarray, " _"]
Labels = Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n K"]

MAX_VALIDATION = 5_000
"""Enough to choose by (a standard error of at most 0.7 points); the rest is better trained on."""

MIN_VALIDATION, MIN_VALIDATION_A_CLASS = 20, 2
MIN_TEST, MIN_TEST_A_CLASS = 10, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Numbers of the pictures in each part, ascending, or none. `notes` are sentences for the user."""

    train: Indices
    validation: Indices
    test: Indices
    notes: tuple[str, ...] = ()


def split(source: Source, bad: Collection[int], settings: DataConfig) -> Parts:
    """The parts of `source` without the pictures in `bad`; the same settings give the same parts.

    Given parts are kept: test/ is the test part, or val/ where there is no test/; validation is then drawn
    from train/ (`val_share` of it) unless all three are given. Otherwise validation and test are drawn from
    all pictures, class by class, or by iterative stratification where a picture may have several classes. A part
    that would be too small to say anything is left out, with a note.
    Raises `BadData` where a class has no picture to train on.
    """
    labels = source.labels
    good = without(np.arange(len(source)), np.fromiter(bad, np.int64, len(bad)))
    given = {part: good[source.given[good] == part] for part in ("train", "val", "test")}
    _check_given(source, given)
    notes: list[str] = []
    if not (len(given["val"]) or len(given["test"])):
        rest, test = _drawn(source, good, math.ceil(len(good) * settings.test_share), settings.split_seed)
        test, note = _large_enough(test, settings.test_share, "test", _least(good, labels, MIN_TEST, MIN_TEST_A_CLASS))
        rest, count = (good if note else rest), _num_validation(len(good), settings)
        notes += note
    elif len(given["val"]) and len(given["test"]):
        _check_train(source, given["train"])
        return Parts(train=given["train"], validation=given["val"], test=given["test"])
    else:
        rest, test = given["train"], given["test"] if len(given["test"]) else given["val"]
        count = _num_validation(len(rest), settings)
        if len(given["val"]):
            notes.append("The given val part serves as test, as there is no test part; validation comes from train.")
    train, validation = _drawn(source, rest, count, settings.split_seed)
    least = _least(rest, labels, MIN_VALIDATION, MIN_VALIDATION_A_CLASS)
    validation, note = _large_enough(validation, settings.val_share, "val", least)
    train = rest if note else train
    _check_train(source, train)
    return Parts(train=train, validation=validation, test=test, notes=(*notes, *note))


def _num_validation(num: int, settings: DataConfig) -> int:
    """Pictures to draw for validation."""
    return min(MAX_VALIDATION, math.ceil(num * settings.val_share))


def _least(indices: Indices, labels: Labels, least: int, a_class: int) -> int:
    """The size below which a part drawn from `indices` is not worth having."""
    found = labels[indices]
    return max(least, a_class * (int(found.any(axis=0).sum()) if found.ndim == 2 else len(np.unique(found))))


def _large_enough(part: Indices, share: float, name: str, least: int) -> tuple[Indices, list[str]]:
    """`part` and no note, or an empty part and the note that says why."""
    if len(part) >= least:
        return part, []
    long, instead = {
        "val": ("validation", "the last average of the weights is kept instead of the best"),
        "test": ("test", "how well the model does on new pictures is not measured"),
    }[name]
    why = f"{len(part)} pictures would be too few, {least} are needed" if share else f"data.{name}_share is 0"
    return part[:0], [f"There is no {long} part: {why}; {instead}."]


def without(indices: Indices, left_out: Indices) -> Indices:
    """Those of `indices` that are not in `left_out`, in their order."""
    keep = np.ones(max(indices.max(initial=-1), left_out.max(initial=-1)) + 1, bool)
    keep[left_out] = False
    return indices[keep[indices]]


def _drawn(source: Source, indices: Indices, count: int, seed: int) -> tuple[Indices, Indices]:
    """`_draw`, from twice as many pictures of evenly spread blocks where each block comes over a network: a part drawn
    from all of them would have all of them come each time that it is looked at."""
    packed = blocked(source.packed)
    if packed is None or not packed.far:
        return _draw(indices, source.labels, count, seed)
    block = np.searchsorted(packed.blocks, indices, side="right")
    present, sizes = np.unique(block, return_counts=True)
    wanted = min(len(present), math.ceil(2 * count * len(present) / max(1, int(sizes.sum()))))
    near = np.isin(block, present[np.arange(wanted) * len(present) // max(wanted, 1)])
    _, drawn = _draw(indices[near], source.labels, count, seed)
    return without(indices, drawn), drawn


def _draw(indices: Indices, labels: Labels, count: int, seed: int) -> tuple[Indices, Indices]:
    """`indices` without about `count` of them, and these, in equal share of every class.

    A class of one picture stays whole, and every class keeps one.
    """
    if labels.ndim == 2:
        drawn = indices[stratified(labels[indices], count, seed)]
        if not labels[drawn].any():
            return indices, indices[:0]  # where nothing has a class, nothing can be measured
        return without(indices, drawn), drawn
    classes, place, sizes = np.unique(labels[indices], return_inverse=True, return_counts=True)
    several = indices[sizes[place] > 1]
    num_classes = int((sizes > 1).sum())
    count = min(count, len(several) - num_classes)
    if count < max(num_classes, 1):
        return indices, indices[:0]
    drawn = several[shuffled(labels[several], count, seed % 2**32)]
    emptied = np.setdiff1d(classes, labels[without(indices, drawn)])
    back = [drawn[labels[drawn] == k][0] for k in emptied]
    drawn = np.setdiff1d(drawn, back).astype(np.int64)
    return without(indices, drawn), drawn


def _check_given(source: Source, given: dict[str, Indices]) -> None:
    """Where pictures may have no class, those of a given part do not all have none: nothing could be measured."""
    for part, members in given.items():
        if source.multi_label and len(members) and not source.labels[members].any():
            raise BadData(f"{source.name}: no picture of its {part} part has a class. Add some, or leave the part out.")


def _check_train(source: Source, train: Indices) -> None:
    """Every class that has pictures has one to train on."""
    if not len(train):
        raise BadData(f"{source.name}: there are no pictures to train on. Add pictures to the train part.")
    every = source.counts(np.arange(len(source)))
    missing = [source.class_names[k] for k in np.flatnonzero((every > 0) & (source.counts(train) == 0))]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BadData(
            f"{source.name}: no readable picture to train on in {len(missing)} of its classes: {shown}. "
            "Add pictures to the train part or remove the class."
        )
