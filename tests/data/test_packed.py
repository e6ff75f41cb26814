from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.held import Held, held, numbers
from tests.data.pictures import class_folder, in_memory, save, settings
from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.data import checks, loader, scan, splits, store
from vitrine.data.packed import Digests, Known, Names, Packed
from vitrine.data.sources import Source, open_source
from vitrine.errors import BadData, UsageError


def test_names_are_those_given() -> None:
    words = ["", "cat/1.jpg", "Käse/ö.png", "", "x" * 300, "\udcff.png"]
    names = Names.of(words)
    assert list(names) == words and [names[i] for i in range(len(words))] == words
    assert names[-1] == words[-1] and names[1:3] == tuple(words[1:3]) and len(names) == len(words)
    assert names.index("Käse/ö.png") == 2 and "nowhere" not in names
    with pytest.raises(IndexError, match="name 6 of 6"):
        names[6]
    assert list(Names.of([])) == []


def test_digests_find_twins_and_only_those() -> None:
    a, b = bytes(range(32)), bytes(range(8)) + bytes(24)  # they share their first eight bytes
    found = Digests.of([a, b, b"", a, b, b"", bytes([9]) * 32])
    assert found[2] == b"" and found[3] == a and found[1:3] == (b, b"")
    each = numbers(7)
    assert [group.tolist() for group in found.twins(each, each)] == [[0, 3], [1, 4]]
    assert [group.tolist() for group in found.twins(np.array([4, 1, 0]), each)] == [[4, 1]]
    assert [group.tolist() for group in found.twins(each, np.array([0, 0, 0, 0, 1, 1, 0]))] == [[1, 4]]
    assert found.twins(numbers(0), each) == [] == found.twins(np.array([0]), each)


def test_a_source_holds_its_pictures_in_one_way(tmp_path: Path) -> None:
    source = open_source(settings(class_folder(tmp_path, {"a": 1, "b": 1})))
    assert isinstance(Held(()), Packed)
    with pytest.raises(UsageError, match="give one of them"):
        Source(
            name="two", class_names=("a", "b"), labels=source.labels, ids=source.ids, given=source.given,
            paths=source.paths, packed=Held((b"", b"")),
        )  # fmt: skip


@pytest.fixture(params=["decoded", "headers"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(scan, "DECODE_LIMIT_BYTES", 1000 if request.param == "headers" else 10**9)
    return str(request.param)


def test_packed_pictures_are_seen_as_files_are(tmp_path: Path, limit: str) -> None:
    class_folder(tmp_path, {"a": 6, "b": 5})
    save(tmp_path / "b" / "9.png", 3)  # the same as a/3.png
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "a" / "text.png").write_text("<html>sorry</html>")
    save(tmp_path / "a" / "wide.png", 50, (200, 100))
    files = open_source(settings(tmp_path))
    asked = settings(max_bad_share=0.5, max_pixels=10_000)
    one, other = scan.scan(files, asked), scan.scan(held(files), asked)
    assert one.complete == other.complete == (limit == "decoded")
    assert one.bad == other.bad and len(one.bad) == 3
    assert one.fingerprint == other.fingerprint and list(one.hashes) == list(other.hashes)
    assert one.sizes.tolist() == other.sizes.tolist() and one.median_size == other.median_size
    of = [checks.report(s, f, splits.split(s, f.bad, asked)) for s, f in ((files, one), (held(files), other))]
    assert of[0] == of[1] and of[0].conflicts


@pytest.mark.parametrize("budget", [0, 10**9], ids=["as needed", "in memory"])
def test_packed_pictures_train_as_files_do(tmp_path: Path, budget: int) -> None:
    files = open_source(settings(class_folder(tmp_path, {"a": 9, "b": 8})))
    seen = []
    for source in (files, held(files)):
        found = scan.scan(source, settings())
        kept = store.store(source, found, channels=3, keep_side=9, budget_bytes=budget)
        assert kept.in_memory == bool(budget)
        for workers in (0, 1, 2):
            batches = loader.training(
                kept, source, numbers(17), size=(8, 8), batch_size=4, seed=3, augment=AugmentConfig(crop_min_area=0.5),
                first_step=2, last_step=7, num_workers=workers, on_bad=_never,
            )  # fmt: skip
            seen.append([(b.images, b.labels, b.index) for b in batches])
    for other in seen[1:]:
        assert all(torch.equal(x, y) for a, b in zip(seen[0], other, strict=True) for x, y in zip(a, b, strict=True))


def _never(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


def test_packed_pictures_are_judged_as_files_are(tmp_path: Path) -> None:
    files = open_source(settings(class_folder(tmp_path, {"a": 3, "b": 2})))
    shape = PreprocessConfig(size=(8, 8))
    of = [
        list(loader.evaluation(source, numbers(5), shape, settings(), batch_size=2, on_bad=_never))
        for source in (files, held(files))
    ]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(*of, strict=True))


def test_limits_hold_before_a_packed_picture_is_read(tmp_path: Path) -> None:
    files = open_source(settings(class_folder(tmp_path, {"a": 1, "b": 1})))
    source = held(files)
    with pytest.raises(BadData, match=r"a/0\.png: the file has [\d,]+ bytes, more than the limit of 10"):
        source.within(settings(max_bytes=10)).picture(0)
    with pytest.raises(BadData, match=r"a/0\.png: 12 x 10 pixels"):
        source.within(settings(max_pixels=100)).picture(0)


def known(source: Source, **changes: object) -> Source:
    found = scan.scan(source, settings())
    facts = {"sizes": found.sizes, "grey": found.grey, "hashes": found.hashes, "fingerprint": found.fingerprint}
    changed = Known(**(facts | changes))  # type: ignore[arg-type]
    return Source(
        name=source.name, class_names=source.class_names, labels=source.labels, ids=source.ids, given=source.given,
        packed=Held((b"never opened",) * len(source)), known=changed,
    )  # fmt: skip


def test_what_is_known_is_not_looked_for(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 3, "b": 2})
    save(tmp_path / "b" / "wide.png", 50, (40, 30))
    files = open_source(settings(tmp_path))
    one, other = scan.scan(files, settings()), scan.scan(known(files), settings())
    assert (one.bad, one.grey, one.median_size, one.fingerprint) == (
        other.bad, other.grey, other.median_size, other.fingerprint,
    )  # fmt: skip
    assert other.complete and other.looked == len(files)
    small = scan.scan(known(files), settings(max_pixels=1000, max_bad_share=0.2))
    assert list(small.bad) == [files.ids.index("b/wide.png")] and "40 x 30 pixels" in next(iter(small.bad.values()))
    assert small.sizes[5].tolist() == [0, 0] and small.median_size == (12, 10)
    with pytest.raises(BadData, match="Make the index anew"):
        known(files, sizes=np.zeros((2, 2), np.int64))


def test_of_very_many_pictures_an_even_sample_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folder(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "a" / "1.png").write_bytes(b"")
    monkeypatch.setattr(scan, "LARGE", 30)
    monkeypatch.setattr(scan, "SAMPLE", 8)
    monkeypatch.setattr(store, "LARGE", 30)
    source = open_source(settings(tmp_path))
    calls: list[tuple[int, int]] = []
    found = scan.scan(source, settings(max_bad_share=0.2), lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8, 8) and found.looked == 8
    assert np.flatnonzero(found.hashes.table.any(axis=1)).tolist() == [5, 10, 15, 20, 25, 30, 35]
    assert list(found.bad) == [0]  # the other damaged one was not looked at
    assert found.median_size == (12, 10)
    parts = splits.split(source, found.bad, settings())
    lines = checks.report(source, found, parts).lines()
    assert sum(line.startswith("Looked at 8 of 40 pictures") for line in lines) == 1
    kept = store.store(source, found, channels=3, keep_side=None, budget_bytes=10**9)
    assert not kept.in_memory
    told: list[str] = []
    batches: Callable[..., object] = partial(
        loader.training, kept, source, parts.train, size=(8, 8), batch_size=8, seed=0, augment=AugmentConfig(),
        num_workers=0, on_bad=lambda name, reason: told.append(name),
    )  # fmt: skip
    assert sum(1 for _ in batches(first_step=0, last_step=6)) == 6  # type: ignore[call-overload]
    assert told == (["a/1.png"] if 1 in parts.train else [])
    with pytest.raises(BadData, match="1 of 8 pictures cannot be read"):
        scan.scan(source, settings(max_bad_share=0.1))


def test_arrays_are_looked_at_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "LARGE", 3)
    monkeypatch.setattr(store, "LARGE", 3)
    source = in_memory([4, 4])
    found = scan.scan(source, settings())
    assert found.looked == 8
    assert store.store(source, found, channels=3, keep_side=None, budget_bytes=10**6).in_memory
