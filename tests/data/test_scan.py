from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import class_folder, in_memory, pixels, save, settings
from vitrine.data import scan as scan_module
from vitrine.data.ahead import by_threads
from vitrine.data.scan import scan
from vitrine.data.sources import open_source
from vitrine.errors import BadData


def test_threads_keeps_order_and_raises_in_turn() -> None:
    assert list(by_threads(lambda x: x * x, range(100), depth=7)) == [x * x for x in range(100)]

    def fail(x: int) -> int:
        if x == 3:
            raise KeyError(x)
        return x

    taken = by_threads(fail, range(10))
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(taken)


def test_sizes_and_hashes(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 1, (30, 20))
    save(tmp_path / "a" / "2.bmp", 1, (30, 20))
    save(tmp_path / "b" / "1.png", 2, (10, 20))
    save(tmp_path / "b" / "2.png", 3, (20, 40))
    source = open_source(settings(tmp_path))
    calls: list[tuple[int, int]] = []
    found = scan(source, settings(), lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.sizes.tolist() == [[30, 20], [30, 20], [10, 20], [20, 40]]
    assert found.median_size == (25, 20)
    assert found.hashes[0] == found.hashes[1] and len(set(found.hashes)) == 3
    assert found.bad == {} and found.complete and not found.grey


def test_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 1, "b": 1})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(5, (40, 20))).save(tmp_path / "a" / "turned.jpg", exif=exif)
    source = open_source(settings(tmp_path))
    assert scan(source, settings()).sizes[source.ids.index("a/turned.jpg")].tolist() == [20, 40]


def test_grey(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 1, channels=1)
    Image.fromarray(np.repeat(pixels(2, channels=1)[..., None], 3, -1)).save(tmp_path / "a" / "2.png")
    save(tmp_path / "b" / "1.png", 3, channels=1)
    source = open_source(settings(tmp_path))
    assert scan(source, settings()).grey
    almost = np.repeat(pixels(2, channels=1)[..., None], 3, -1)
    almost[-1, -1, 0] ^= 1
    Image.fromarray(almost).save(tmp_path / "b" / "2.png")
    assert not scan(open_source(settings(tmp_path)), settings()).grey


def damage(folder: Path, count: int) -> None:
    for i in range(count):
        file = folder / "a" / f"{i}.png"
        file.write_bytes(file.read_bytes()[:-40])


def test_damaged_are_found_and_limited(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 6, "b": 4})
    damage(tmp_path, 2)
    source = open_source(settings(tmp_path))
    found = scan(source, settings(max_bad_share=0.2))
    assert set(found.bad) == {0, 1}
    assert found.hashes[0] == b"" and found.sizes[0].tolist() == [0, 0]
    assert "\n" not in found.bad[0] and "a/0.png" not in found.bad[0]
    with pytest.raises(BadData, match=r"2 of 10 pictures cannot be read.*0\.19.*a/0\.png \(.*a/1\.png \("):
        scan(source, settings(max_bad_share=0.19))


def test_missing_files_are_damaged(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    (tmp_path / "set.csv").write_text("path,label\n1.png,x\ngone.png,y\n")
    found = scan(open_source(settings(tmp_path / "set.csv")), settings(max_bad_share=0.5))
    assert "no such file" in found.bad[1] and str(tmp_path) not in found.bad[1]


@pytest.mark.parametrize("limit", [10**9, 1], ids=["decoded", "headers"])
def test_a_name_with_a_nul_is_a_damaged_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "2.png", 2)
    (tmp_path / "set.csv").write_text("path,label\n1.png,x\n2.png,y\na\0b.png,y\n")
    monkeypatch.setattr(scan_module, "DECODE_LIMIT_BYTES", limit)
    found = scan(open_source(settings(tmp_path / "set.csv")), settings(max_bad_share=0.5))
    assert list(found.bad) == [2] and found.bad[2] and "\0" not in found.bad[2]


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("path,label\n1.png,x\ngone.png,y\n")
    with pytest.raises(BadData, match="2 of 2"):
        scan(open_source(settings(tmp_path / "set.csv")), settings(max_bad_share=0.99))


def test_fingerprint_follows_names_classes_and_contents(tmp_path: Path) -> None:
    def of(folder: str) -> str:
        return scan(open_source(settings(tmp_path / folder)), settings()).fingerprint

    for name in ("one", "same", "pixel", "label", "name"):
        class_folder(tmp_path / name, {"a": 2, "b": 2})
    save(tmp_path / "pixel" / "b" / "1.png", 99)
    (tmp_path / "label" / "b").rename(tmp_path / "label" / "c")
    (tmp_path / "name" / "b" / "1.png").rename(tmp_path / "name" / "b" / "9.png")
    assert of("one") == of("same")
    assert len({of(name) for name in ("one", "pixel", "label", "name")}) == 4


def test_arrays() -> None:
    source = in_memory([3, 3], side=5)
    assert source.arrays is not None
    source.arrays[4] = source.arrays[1]
    found = scan(source, settings())
    assert found.grey and found.hashes[4] == found.hashes[1] and len(set(found.hashes)) == 5
    assert found.median_size == (5, 5)


def test_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folder(tmp_path, {"a": 4, "b": 4})
    cut = save(tmp_path / "a" / "cut.jpg", 60, (60, 60))
    cut.write_bytes(cut.read_bytes()[:-500])  # the end is gone: the header does not tell
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    (tmp_path / "a" / "2.png").write_text("<html>sorry</html>")
    save(tmp_path / "a" / "large.png", 50, (200, 100))
    save(tmp_path / "b" / "copy.png", 4)  # the same as b/0.png
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(pixels(5, (40, 20))).save(tmp_path / "a" / "turned.jpg", exif=exif)
    source = open_source(settings(tmp_path))
    monkeypatch.setattr(scan_module, "DECODE_LIMIT_BYTES", 1000)
    found = scan(source, settings(max_bad_share=0.5, max_pixels=10_000))
    number = {name: i for i, name in enumerate(source.ids)}
    assert not found.complete
    assert {source.ids[i] for i in found.bad} == {"a/1.png", "a/2.png", "a/large.png"}
    assert "HTML" in found.bad[number["a/2.png"]]
    assert found.hashes[number["b/copy.png"]] == found.hashes[number["b/0.png"]]
    assert found.sizes[number["a/turned.jpg"]].tolist() == [20, 40]
    assert found.sizes[number["b/0.png"]].tolist() == [12, 10]
