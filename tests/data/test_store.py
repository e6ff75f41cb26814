from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import class_folder, in_memory, pixels, save, settings
from vitrine.data.scan import scan
from vitrine.data.sources import Source, open_source
from vitrine.data.store import Store, store
from vitrine.errors import BadData


def keep(source: Source, **options: object) -> Store:
    wanted = {"channels": 3, "keep_side": None, "budget_bytes": 10**8} | options
    return store(source, scan(source, settings(max_bad_share=0.5)), **wanted)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    for k, name in enumerate(["a", "b"]):
        for i in range(4):
            save(tmp_path / name / f"{i}.png", 4 * k + i, (40 + 7 * i, 30 + 9 * k), channels=3 if i else 1)
    return open_source(settings(tmp_path))


def test_pixels_are_those_of_the_file(photos: Source) -> None:
    kept = keep(photos)
    assert kept.in_memory and not kept.uniform()
    assert np.array_equal(kept.pixels(5), pixels(5, (47, 39)))
    assert kept.pixels(0).shape == (30, 40, 3)
    assert np.array_equal(kept.pixels(0)[..., 1], pixels(0, (40, 30), channels=1))
    assert keep(photos, channels=1).pixels(5).shape == (39, 47, 1)


def test_shrinking_keeps_the_aspect_ratio(photos: Source) -> None:
    kept = keep(photos, keep_side=20)
    for i in range(len(photos)):
        width, height = photos.picture(i).size
        shape = kept.pixels(i).shape
        assert min(shape[:2]) == 20
        assert abs(shape[1] / shape[0] - width / height) < 0.05
    assert keep(photos, keep_side=500).pixels(5).shape == (39, 47, 3)


@pytest.mark.parametrize("side", [None, 20])
def test_the_same_in_memory_or_not(photos: Source, side: int | None) -> None:
    kept, decoded = keep(photos, keep_side=side), keep(photos, keep_side=side, budget_bytes=1000)
    assert kept.in_memory and not decoded.in_memory
    for i in range(len(photos)):
        assert np.array_equal(kept.pixels(i), decoded.pixels(i))


def test_budget_is_what_is_kept(photos: Source) -> None:
    needed = sum(keep(photos, keep_side=20).pixels(i).size for i in range(len(photos)))
    assert keep(photos, keep_side=20, budget_bytes=needed).in_memory
    assert not keep(photos, keep_side=20, budget_bytes=needed - 1).in_memory


def test_damaged(photos: Source, tmp_path: Path) -> None:
    (tmp_path / "a" / "1.png").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    kept = keep(photos, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (7, 7)
    with pytest.raises(BadData):
        kept.pixels(1)
    assert np.array_equal(kept.pixels(2), pixels(2, (54, 30)))


def test_damaged_after_the_scan(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 3, "b": 3})
    source = open_source(settings(tmp_path))
    found = scan(source, settings())
    (tmp_path / "a" / "1.png").write_bytes(b"")
    save(tmp_path / "b" / "0.png", 9, (5, 5))
    kept = store(source, found, channels=3, keep_side=None, budget_bytes=10**8)
    with pytest.raises(BadData):
        kept.pixels(1)
    assert np.array_equal(kept.pixels(2), pixels(2))
    assert np.array_equal(kept.pixels(3), pixels(9, (5, 5)))
    assert kept.uniform()
    assert np.array_equal(kept.gather(np.array([4, 0])), np.stack([pixels(4), pixels(0)]))


def test_arrays_are_taken_as_they_are() -> None:
    source = in_memory([3, 3], side=5)
    kept = keep(source, channels=1, budget_bytes=0)
    assert source.arrays is not None and kept.buffer is not None
    assert kept.in_memory and np.shares_memory(kept.buffer, source.arrays)
    assert np.array_equal(kept.gather(np.array([5, 2])), source.arrays[[5, 2]])
    coloured = keep(source, channels=3)
    assert np.array_equal(coloured.pixels(4), np.repeat(source.arrays[4], 3, -1))
    assert keep(source, channels=1, keep_side=3).pixels(0).shape == (3, 3, 1)
