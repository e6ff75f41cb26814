"""What a careful eye would notice about a data set before training on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitrine.data.scan import Scan
from vitrine.data.sources import Source
from vitrine.data.splits import Parts, without

IMBALANCE = 3.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings. Names of pictures are their ids.

    `parts` counts pictures by part. `most` and `least` are the most and least frequent class with their
    counts. `damaged` pairs a picture with the reason. `leaks` are pairs (picture, part, picture, part) of one
    content in two parts; `conflicts` are (picture, class, picture, class) of one content under two classes.
    `missing` names the classes that a part lacks. Where a picture may have several classes, `a_picture` is their mean
    number, `without` how many pictures have none, `everywhere` the classes that all have, and the names in `conflicts`
    are joined by a bar.
    """

    name: str
    pictures: int
    classes: int
    parts: dict[str, int]
    most: tuple[str, int]
    least: tuple[str, int]
    damaged: tuple[tuple[str, str], ...]
    leaks: tuple[tuple[str, str, str, str], ...]
    conflicts: tuple[tuple[str, str, str, str], ...]
    missing: dict[str, tuple[str, ...]]
    ignored: int
    notes: tuple[str, ...]
    complete: bool
    looked: int
    a_picture: float | None = None
    without: int = 0
    everywhere: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The findings as sentences, the plain facts first, and a line for every damaged picture."""
        return [*_facts(self), *_warnings(self), *self.notes]


def report(source: Source, scan: Scan, parts: Parts) -> Report:
    """What there is to know about `source`, once it is scanned and parted."""
    by_part = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    readable = without(np.arange(len(source)), np.array(list(scan.bad), np.int64))
    counted = zip(source.class_names, source.counts(readable).tolist(), strict=True)
    counts = {name: count for name, count in counted if count}
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    missing = {
        part: tuple(sorted(name for k, name in enumerate(source.class_names) if name in counts and not there[k]))
        for part, members in by_part.items()
        if len(members) and (there := source.counts(members).tolist())
    }
    several = source.labels[readable].sum(axis=1) if source.multi_label else np.ones(len(readable))
    return Report(
        name=source.name,
        pictures=len(source),
        classes=len(counts),
        parts={part: len(members) for part, members in by_part.items()},
        most=ranked[0],
        least=ranked[-1],
        damaged=tuple((source.ids[i], why) for i, why in sorted(scan.bad.items())),
        leaks=tuple(_leaks(source, scan, by_part)),
        conflicts=tuple(_conflicts(source, scan)),
        missing={part: names for part, names in missing.items() if names},
        ignored=source.ignored,
        notes=(*source.notes, *parts.notes),
        complete=scan.complete,
        looked=scan.looked,
        a_picture=float(several.mean()) if source.multi_label else None,
        without=int((several == 0).sum()),
        everywhere=tuple(name for name, count in counts.items() if count == len(readable)),
    )


def _leaks(source: Source, scan: Scan, by_part: dict[str, np.ndarray]) -> Iterator[tuple[str, str, str, str]]:
    """For each content in several parts, its first picture with the first one of every other part."""
    names = list(by_part)
    part_of = np.full(len(source), -1)
    for number, members in enumerate(by_part.values()):
        part_of[members] = number
    for group in scan.hashes.twins(np.concatenate(list(by_part.values())).astype(np.int64), part_of):
        first, *others = zip(group.tolist(), part_of[group].tolist(), strict=True)
        told = {first[1]}
        for other, part in others:
            if part not in told:
                told.add(part)
                yield source.ids[first[0]], names[first[1]], source.ids[other], names[part]


def _conflicts(source: Source, scan: Scan) -> Iterator[tuple[str, str, str, str]]:
    """For each content under several classes, its first picture with the first one of every other class."""
    labels = source.labels
    kinds = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1) if source.multi_label else labels
    for group in scan.hashes.twins(np.arange(len(source)), kinds.astype(np.int64)):
        names = {int(i): "|".join(source.classes_of(int(i))) or "no class" for i in group}
        first = int(group[0])
        told = {names[first]}
        for other, name in names.items():
            if name not in told:
                told.add(name)
                yield source.ids[first], names[first], source.ids[other], name


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _facts(found: Report) -> Iterator[str]:
    yield f"{found.name}: {_count(found.pictures, 'picture')} in {_count(found.classes, 'class', 'classes')}."
    shares = (f"{count:,} for {part}" for part, count in found.parts.items() if count)
    yield f"Parts: {', '.join(shares).replace('for train', 'for training', 1)}."
    if found.a_picture is not None:
        none = _count(found.without, "picture")
        yield f"Several classes a picture: {found.a_picture:.2g} in the mean; {none} with none."
    if found.ignored:
        yield f"{_count(found.ignored, 'file')} left out: not one of the picture formats that are read."
    if found.looked < found.pictures:
        yield (
            f"Looked at {found.looked:,} of {found.pictures:,} pictures: damage, copies and leaks are told of these; "
            "`vitrine shards` makes an index that knows them all."
        )
    if not found.complete:
        yield "The files are so large together that only headers were read; damage may show up later."


def _warnings(found: Report) -> Iterator[str]:
    if found.damaged:
        yield f"{_count(len(found.damaged), 'damaged picture')} left out:"
        yield from (f"  {name}: {why}" for name, why in found.damaged)
    if found.most[1] > IMBALANCE * found.least[1]:
        yield (
            f"The classes are uneven: {found.most[0]} has {_count(found.most[1], 'picture')}, "
            f"{found.least[0]} only {found.least[1]:,}. Look at the accuracy of each class too."
        )
    for name in found.everywhere:
        yield f"Every picture is of the class {name}: there is nothing to learn about it. Add pictures without it."
    if found.leaks:
        first = "; ".join(f"{a} ({p}) and {b} ({q})" for a, p, b, q in found.leaks[:3])
        yield (
            f"{_count(len(found.leaks), 'picture stands', 'pictures stand')} in two parts, so the figures "
            f"will be too good: {first}{_more(found.leaks, 3)}. Remove one of each pair."
        )
    if found.conflicts:
        first = "; ".join(f"{a} ({p}) and {b} ({q})" for a, p, b, q in found.conflicts[:3])
        yield (
            f"{_count(len(found.conflicts), 'picture stands', 'pictures stand')} under two classes: "
            f"{first}{_more(found.conflicts, 3)}. Remove the wrong one."
        )
    for part, names in found.missing.items():
        yield (
            f"The {part} part has no picture of {_count(len(names), 'class', 'classes')}: "
            f"{', '.join(names[:5])}{_more(names, 5)}."
        )


def _more(things: tuple[object, ...], shown: int) -> str:
    return f" and {len(things) - shown:,} more" if len(things) > shown else ""
