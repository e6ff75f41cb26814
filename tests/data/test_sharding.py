from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.held import numbers
from tests.data.pictures import class_folder, idx, pixels, save, settings
from tests.data.tars import encoded, png
from vitrine.config.options import AugmentConfig
from vitrine.data import index as index_module
from vitrine.data import loader, scan, sharding, splits, store
from vitrine.data.index import INDEX_FILE
from vitrine.data.sharding import Shape, Written, write_shards
from vitrine.data.sources import Source, open_source
from vitrine.errors import BadData, CannotCreate, DiskError


def write(source: Path, out: Path, shape: Shape | None = None, **options: Any) -> Written:
    asked = settings(source, **options)
    return write_shards(open_source(asked, labelled=False), out, shape or Shape(), asked)


def by_id(source: Source) -> dict[str, tuple[object, str]]:
    return {source.ids[i]: (source.classes_of(i), str(source.given[i])) for i in range(len(source))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folder(tmp_path / "set", {"cat": 7, "dog": 5, "ant": 4})


def test_what_is_written_is_what_was_there(folder: Path, tmp_path: Path) -> None:
    written = write(folder, tmp_path / "out", Shape(shard_bytes=6000))
    assert (written.pictures, written.left_out, written.shrunk) == (16, {}, 0) and written.shards > 2
    files, shards = open_source(settings(folder)), open_source(settings(tmp_path / "out"))
    assert list(shards.ids) == list(files.ids) and by_id(shards) == by_id(files)
    assert all(shards.content(i) == files.content(i) for i in range(16))
    one, other = scan.scan(files, settings()), scan.scan(shards, settings())
    assert one.fingerprint == other.fingerprint and list(one.hashes) == list(other.hashes)
    assert one.sizes.tolist() == other.sizes.tolist() and (one.grey, one.median_size) == (other.grey, other.median_size)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert max(sizes) <= 6000 + sharding.RECORD and all(size % sharding.RECORD == 0 for size in sizes)
    assert sum(sizes) == written.bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_later_look_opens_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, tmp_path / "out")
    monkeypatch.setattr(scan, "_look_at_all", None)
    assert scan.scan(open_source(settings(tmp_path / "out")), settings()).looked == 16


def test_training_on_shards_sees_what_training_on_the_files_would(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "out", Shape(shard_bytes=6000))
    seen = []
    for path, workers in ((folder, 0), (tmp_path / "out", 0), (tmp_path / "out", 1), (tmp_path / "out", 2)):
        source = open_source(settings(path))
        found = scan.scan(source, settings())
        kept = store.store(source, found, channels=3, keep_side=None, budget_bytes=0)
        batches = loader.training(
            kept, source, splits.split(source, found.bad, settings(val_share=0.0, test_share=0.0)).train, size=(8, 8),
            batch_size=5, seed=1, augment=AugmentConfig(crop_min_area=0.3), first_step=2, last_step=9,
            num_workers=workers, on_bad=lambda *_: None,
        )  # fmt: skip
        seen.append([(one.images, one.labels, one.index) for one in batches])
    for other in seen[1:]:
        assert all(torch.equal(x, y) for a, b in zip(seen[0], other, strict=True) for x, y in zip(a, b, strict=True))


def test_other_readers_find_webdataset_layout(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "out")
    names = (tmp_path / "out" / "classnames.txt").read_text().split()
    assert names == ["ant", "cat", "dog"]
    contents: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "out" / "pictures-000000.tar") as opened:
        for member in opened:
            key, _, ending = member.name.partition(".")
            contents.setdefault(key, {})[ending] = opened.extractfile(member).read()  # type: ignore[union-attr]
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)
    files = open_source(settings(folder))
    expected = sorted((files.content(i), files.classes_of(i)[0]) for i in range(16))
    assert sorted((one["png"], names[int(one["cls"])]) for one in contents.values()) == expected
    in_order = [names[int(one["cls"])] for one in contents.values()]
    assert in_order != sorted(in_order), "a stream should meet the classes mixed"
    (tmp_path / "out" / INDEX_FILE).unlink()
    again = open_source(settings(tmp_path / "out"))
    assert sorted((again.content(i), again.classes_of(i)[0]) for i in range(16)) == expected


def test_equal_pictures_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        write(folder, tmp_path / out, Shape(side=8))
        os.utime(folder / "cat" / "1.png")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_parts_are_kept(tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folder(tmp_path / "set" / part, {"cat": 3, "dog": 3}, first_seed=50 * (part == "val"))
    written = write(tmp_path / "set", tmp_path / "out")
    assert written.parts == {"train": 6, "val": 6}
    assert {path.name for path in (tmp_path / "out").glob("*.tar")} == {"train-000000.tar", "val-000000.tar"}
    assert by_id(open_source(settings(tmp_path / "out"))) == by_id(open_source(settings(tmp_path / "set")))
    (tmp_path / "out" / INDEX_FILE).unlink()
    assert sorted(open_source(settings(tmp_path / "out")).given) == ["train"] * 6 + ["val"] * 6


def test_several_classes_a_picture(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "set.csv").write_text("path,labels\n0.png,a\n1.png,a|b\n2.png,\n3.png,c\n")
    write(tmp_path / "set.csv", tmp_path / "out")
    wanted = open_source(settings(tmp_path / "set.csv"))
    for indexed in (True, False):
        if not indexed:
            (tmp_path / "out" / INDEX_FILE).unlink()
        found = open_source(settings(tmp_path / "out"))
        assert found.multi_label and found.class_names == wanted.class_names
        assert sorted(map(tuple, found.labels.tolist())) == sorted(map(tuple, wanted.labels.tolist()))


def test_pictures_that_are_arrays_become_png(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 7), dtype=np.uint8)
    idx(tmp_path / "set", "train", images, np.array([0, 1, 0, 1, 0, 1]))
    write(tmp_path / "set", tmp_path / "out")
    found = open_source(settings(tmp_path / "out"))
    assert all((np.asarray(found.picture(i)) == images[i]).all() for i in range(6))
    assert (
        scan.scan(found, settings()).fingerprint
        == scan.scan(open_source(settings(tmp_path / "set")), settings()).fingerprint
    )


def test_made_smaller(tmp_path: Path) -> None:
    home = tmp_path / "set" / "a"
    save(tmp_path / "set" / "b" / "small.png", 1, (12, 10))
    save(home / "wide.png", 2, (60, 30))
    save(home / "tall.bmp", 3, (20, 61))
    (home / "photo.jpg").write_bytes(encoded(pixels(4, (64, 48)), "JPEG"))
    (home / "web.webp").write_bytes(encoded(pixels(5, (64, 48)), "WEBP"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(6, (64, 48))).save(home / "turned.jpg", exif=exif)
    deep = np.random.default_rng(0).integers(0, 65536, (30, 40), dtype=np.uint16)
    Image.fromarray(deep).save(home / "deep.png")
    Image.fromarray(np.dstack([pixels(7, (40, 30)), np.full((30, 40), 128, np.uint8)])).save(home / "clear.png")
    written = write(tmp_path / "set", tmp_path / "out", Shape(side=20, quality=95))
    files, found = open_source(settings(tmp_path / "set")), open_source(settings(tmp_path / "out"))
    kinds = {found.ids[i]: sharding.sniff(found.content(i)) for i in range(len(found))}
    assert kinds == {
        "a/clear.png": "PNG", "a/deep.png": "PNG", "a/photo.jpg": "JPEG", "a/tall.bmp": "BMP", "a/turned.jpg": "JPEG",
        "a/web.webp": "JPEG", "a/wide.png": "PNG", "b/small.png": "PNG",
    }  # fmt: skip
    assert written.shrunk == 6  # the small one and the tall one, 20 wide, stay as they are
    sizes = {found.ids[i]: found.picture(i).size for i in range(len(found))}
    assert sizes["a/wide.png"] == (40, 20) and sizes["a/turned.jpg"] == (20, 27) and sizes["a/tall.bmp"] == (20, 61)
    for name in ("a/tall.bmp", "b/small.png"):
        i = list(files.ids).index(name)
        assert files.content(i) == found.content(i)
    assert found.picture(list(found.ids).index("a/deep.png")).mode == "L"
    known, looked = scan.scan(found, settings()), found.known
    assert looked is not None and known.sizes.tolist() == [list(sizes[name]) for name in found.ids]
    i = list(found.ids).index("a/photo.jpg")
    assert known.hashes[i] == scan.looked_at(np.asarray(found.picture(i))).hash


def test_damaged_pictures_are_told_once_and_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "1.png").write_bytes(png(1)[:-40])
    (folder / "dog" / "2.png").write_bytes(b"")
    told: list[str] = []
    asked = settings(folder, max_bad_share=0.2)
    written = write_shards(
        open_source(asked), tmp_path / "out", Shape(), asked, on_bad=lambda name, _: told.append(name)
    )
    assert sorted(told) == sorted(written.left_out) == ["cat/1.png", "dog/2.png"] and written.pictures == 14
    assert "empty" in written.left_out["dog/2.png"]
    assert not set(told) & set(open_source(settings(tmp_path / "out")).ids)
    with pytest.raises(BadData, match=r"of 16 pictures cannot be read so far, more than --max-bad-share 0\.05"):
        write(folder, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("there", "link", "set"):
        with pytest.raises(CannotCreate, match="exists already"):
            write(folder, tmp_path / name)


@pytest.mark.parametrize("way", ["flipped", "moved"])
def test_what_is_read_back_wrong_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def spoil(part: Path, *rest: Any) -> None:
        content = bytearray((part / "pictures-000000.tar").read_bytes())
        content[600 if way == "flipped" else 100] ^= 1
        (part / "pictures-000000.tar").write_bytes(content)
        honest(part, *rest)

    honest = sharding._read_back
    monkeypatch.setattr(sharding, "_read_back", spoil)
    with pytest.raises(DiskError if way == "flipped" else BadData):
        write(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_nothing_half(tmp_path: Path, number: int) -> None:
    class_folder(tmp_path / "set", {"cat": 200, "dog": 200})
    code = (
        "import sys, time; from vitrine.data import sharding\n"
        "honest = sharding._piece\n"
        "def slowly(*words): time.sleep(0.02); return honest(*words)\n"
        "sharding._piece = slowly\n"
        "from vitrine.__main__ import main\n"
        f"sys.argv = ['vitrine', 'shards', {str(tmp_path / 'set')!r}, {str(tmp_path / 'out')!r}]\n"
        "sys.exit(main())"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while not list(tmp_path.glob(".out.*.part/*.tar")) and time.monotonic() - began < 60:
        time.sleep(0.01)
    child.send_signal(number)
    assert child.wait(30) == (-9 if number == signal.SIGKILL else 143)
    assert not (tmp_path / "out").exists()
    assert bool(list(tmp_path.glob(".out.*.part"))) == (number == signal.SIGKILL)
    write(tmp_path / "set", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        write(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


# The index


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    write(folder, tmp_path / "out", Shape(shard_bytes=6000))
    return tmp_path / "out"


def test_every_flipped_bit_of_the_index_is_noticed(shards: Path) -> None:
    content = (shards / INDEX_FILE).read_bytes()
    for at in (*range(0, len(content), len(content) // 120), len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 4
        (shards / INDEX_FILE).write_bytes(changed)
        with pytest.raises(BadData, match=r"index\.safetensors: is damaged or no index"):
            open_source(settings(shards))
    for end in (0, 5, 100, len(content) - 1):
        (shards / INDEX_FILE).write_bytes(content[:end])
        with pytest.raises(BadData, match=r"index\.safetensors"):
            open_source(settings(shards))


def test_a_flipped_bit_of_a_picture_is_noticed(shards: Path) -> None:
    source = open_source(settings(shards))
    held = source.packed
    assert isinstance(held, index_module.Tarred)
    path, at = held.files[int(held.file[3])], int(held.offsets[3]) + 9
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    again = open_source(settings(shards))
    with pytest.raises(BadData, match="are not those that were written"):
        again.picture(3)
    again.picture(2)
    told: dict[str, str] = {}
    kept = store.store(again, scan.scan(again, settings()), channels=3, keep_side=None, budget_bytes=0)
    batches = loader.training(
        kept, again, numbers(16), size=(8, 8), batch_size=16, seed=0, augment=AugmentConfig(), first_step=0,
        last_step=2, num_workers=0, on_bad=lambda name, why: told.update({name: why}),
    )  # fmt: skip
    assert [int(one.weights.sum()) for one in batches] == [15, 15]
    assert list(told) == [again.ids[3]] and "not those that were written" in told[again.ids[3]]


@pytest.mark.parametrize("how", ["gone", "longer", "other"])
def test_an_index_of_other_shards_is_refused(shards: Path, how: str) -> None:
    path = shards / "pictures-000001.tar"
    if how == "gone":
        path.unlink()
    elif how == "longer":
        path.write_bytes(path.read_bytes() + bytes(512))
    else:
        content = path.read_bytes()
        path.write_bytes(content[512:] + content[:512])
    with pytest.raises(BadData, match=r"pictures-000001\.tar.*(index|header)"):
        open_source(settings(shards))
    if how == "longer":
        (shards / INDEX_FILE).unlink()
        assert len(open_source(settings(shards))) == 16


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> None:
    """The index with other arrays or facts, and a hash that holds: what a stranger could make."""
    content = path.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:begin])
    facts = json.loads(header.pop("__metadata__")["vitrine_shards"])
    arrays = {
        name: np.frombuffer(
            content[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]],
            index_module.DTYPES[entry["dtype"]],
        ).reshape(entry["shape"]).copy()
        for name, entry in header.items()
    }  # fmt: skip
    change(arrays, facts)
    laid, at = index_module._laid_out(arrays, facts)
    body = b"".join(array.tobytes() for array in arrays.values())
    digest = hashlib.sha256(laid + body).hexdigest().encode()
    path.write_bytes(laid[:at] + digest + laid[at + 64 :] + body)


def test_the_index_is_written_as_it_is_read(shards: Path) -> None:
    before = (shards / INDEX_FILE).read_bytes()
    rewritten(shards / INDEX_FILE, lambda arrays, facts: None)
    assert (shards / INDEX_FILE).read_bytes() == before


def put(name: str, value: Any, at: Any = 0) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    def change(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        arrays[name][at] = value

    return change


def say(name: str, value: Any) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    return lambda arrays, facts: facts.update({name: value})


HOSTILE = {
    "behind the end": put("offsets", 1 << 30),
    "before the first header": put("offsets", 0),
    "overflow": put("offsets", (1 << 63) - 1),
    "negative": put("lengths", -1),
    "longer than the file": put("lengths", 1 << 40),
    "no such file": put("file", 99),
    "file below 0": put("file", -1),
    "no such class": put("labels", 7),
    "class below 0": put("labels", -1),
    "names out of order": put("name_ends", 1 << 40, 3),
    "names too short": lambda arrays, facts: arrays.update(names=arrays["names"][:-1]),
    "no such part": put("parts", 9),
    "no size": put("sizes", 0),
    "fewer labels": lambda arrays, facts: arrays.update(labels=arrays["labels"][:-1]),
    "no pictures": lambda arrays, facts: arrays.update(offsets=arrays["offsets"][:0]),
    "a name twice": say("class_names", ["a", "a", "b"]),
    "names that are none": say("class_names", [1, 2, 3]),
    "a file elsewhere": lambda arrays, facts: facts["files"][0].update(name="../set/cat/0.png"),
    "a field more": lambda arrays, facts: facts["files"][0].update(extra=1),
    "another format": say("format", 99),
    "no fingerprint": say("fingerprint", None),
    "an array less": lambda arrays, facts: arrays.pop("sums"),
    "another picture's place": lambda arrays, facts: arrays["offsets"].__setitem__(
        slice(None), np.roll(arrays["offsets"], 1)
    ),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index_is_refused(shards: Path, change: Any) -> None:
    rewritten(shards / INDEX_FILE, change)
    with pytest.raises(BadData):
        open_source(settings(shards))


def test_overlapping_places_are_refused(shards: Path) -> None:
    def overlap(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        first, second = np.flatnonzero(arrays["file"] == 0)[:2]
        arrays["offsets"][first] = arrays["offsets"][second]

    rewritten(shards / INDEX_FILE, overlap)
    with pytest.raises(BadData, match="on top of each other"):
        open_source(settings(shards))


def test_shards_may_be_moved(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "elsewhere")
    shutil.rmtree(shards)
    assert np.asarray(open_source(settings(tmp_path / "elsewhere")).picture(0)).shape == (10, 12, 3)
