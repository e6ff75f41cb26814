from __future__ import annotations

import gzip
import math
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.data.pictures import class_folder, idx, in_memory, pixels, save, settings
from vitrine.data.listing import natural_key
from vitrine.data.sources import Source, open_source
from vitrine.errors import BadData, DiskError, NotFound, UsageError, VitrineError


def refuse(path: Path | str, *words: str, kind: type[VitrineError] = BadData) -> None:
    """Opening must fail with one line that has all the words in it."""
    with pytest.raises(kind) as caught:
        open_source(settings(path))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_natural_order() -> None:
    names = ["class10", "class2", "Class1", "b", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "b", "Class1", "class2", "class10"]


def test_class_folder(tmp_path: Path) -> None:
    class_folder(tmp_path, {"item10": 2, "item2": 3})
    save(tmp_path / "item2" / "deep" / "er" / "X.JPG", 90)
    save(tmp_path / "item2" / "plain.png", 91).rename(tmp_path / "item2" / "no_extension")
    (tmp_path / "item2" / "LICENSE").write_text("free")
    (tmp_path / "item2" / "photo.heic").write_bytes(b"x")
    (tmp_path / "item2" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    source = open_source(settings(tmp_path))
    assert source.class_names == ("item2", "item10")
    assert source.ids == (
        "item2/0.png",
        "item2/1.png",
        "item2/2.png",
        "item2/deep/er/X.JPG",
        "item2/no_extension",
        "item10/0.png",
        "item10/1.png",
    )
    assert source.labels.tolist() == [0] * 5 + [1] * 2
    assert set(source.given) == {""} and len(source) == 7
    assert source.ignored == 3  # LICENSE, photo.heic, readme.txt
    assert np.array_equal(np.asarray(source.picture(4)), pixels(91))
    assert np.array_equal(np.asarray(source.picture(5)), pixels(0))


def test_links_are_followed_once(tmp_path: Path) -> None:
    home = class_folder(tmp_path / "home", {"a": 2, "b": 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(home / "a", target_is_directory=True)
    (tmp_path / "set" / "b").symlink_to(home / "b", target_is_directory=True)
    (home / "b" / "round").symlink_to(home / "b", target_is_directory=True)
    assert len(open_source(settings(tmp_path / "set"))) == 4


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (["train", "val"], {"train", "val"}),
        (["Train", "validation", "test"], {"train", "val", "test"}),
        (["train", "valid"], {"train", "val"}),
        (["test"], {"test"}),
    ],
)
def test_parts(tmp_path: Path, folders: list[str], wanted: set[str]) -> None:
    for k, name in enumerate(folders):
        class_folder(tmp_path / name, {"cat": 2, "dog": 3}, first_seed=10 * k)
    source = open_source(settings(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert set(source.given) == wanted
    assert source.ids[0] == f"{folders[0]}/cat/0.png"
    assert len(source) == 5 * len(folders)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    class_folder(tmp_path, {"train": 2, "bus": 2, "test": 2})
    assert open_source(settings(tmp_path)).class_names == ("bus", "test", "train")


def test_folder_beside_parts_is_counted(tmp_path: Path) -> None:
    for name in ("train", "test"):
        class_folder(tmp_path / name, {"a": 1, "b": 1})
    class_folder(tmp_path, {"extra": 3})
    assert open_source(settings(tmp_path)).ignored == 3


def test_a_part_may_lack_a_class(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", {"a": 2, "b": 2})
    class_folder(tmp_path / "val", {"a": 2, "b": 0})
    assert len(open_source(settings(tmp_path))) == 6


def test_part_errors(tmp_path: Path) -> None:
    class_folder(tmp_path / "twice" / "train", {"a": 1, "b": 1})
    class_folder(tmp_path / "twice" / "val", {"a": 1, "b": 1})
    class_folder(tmp_path / "twice" / "valid", {"a": 1, "b": 1})
    refuse(tmp_path / "twice", "val/ and valid/", "Keep one")
    class_folder(tmp_path / "flat" / "train", {"a": 1, "b": 1})
    save(tmp_path / "flat" / "test" / "1.png", 1)
    refuse(tmp_path / "flat", "test", "1 pictures but no class folders")


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty", "nothing")
    save(tmp_path / "flat" / "1.png", 1)
    refuse(tmp_path / "flat", "1 pictures but no class folders", "CSV")
    class_folder(tmp_path / "one", {"cat": 2})
    refuse(tmp_path / "one", "one class, 'cat'")
    class_folder(tmp_path / "bare", {"cat": 2, "dog": 2, "eel": 0})
    refuse(tmp_path / "bare", "bare/eel: no pictures", "remove the folder")
    class_folder(tmp_path / "heic", {"cat": 2, "dog": 0})
    (tmp_path / "heic" / "dog" / "1.HEIC").write_bytes(b"x")
    refuse(tmp_path / "heic", "heic/dog", "1 .heic")
    class_folder(tmp_path / "nested" / "inner", {"cat": 2, "dog": 2})
    refuse(tmp_path / "nested", "Did you mean", "nested/inner")


def test_path_errors(tmp_path: Path) -> None:
    refuse("digit", "no such path or built-in", "Did you mean 'digits'?", "class folder", kind=NotFound)
    refuse(tmp_path / "nowhere", "nowhere", kind=NotFound)
    refuse("", "data.source is empty", kind=UsageError)
    refuse("x" * 5000, "cannot be read", kind=DiskError)
    (tmp_path / "set.zip").write_bytes(b"PK")
    refuse(tmp_path / "set.zip", "Unpack it first")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom rights bind")
def test_folder_without_rights(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").chmod(0)
    try:
        refuse(tmp_path, "cannot be read", kind=DiskError)
    finally:
        (tmp_path / "b").chmod(0o755)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_table(tmp_path: Path, delimiter: str) -> None:
    save(tmp_path / "pics" / "a, b.png", 1)
    save(tmp_path / "pics" / "c.png", 2)
    lines = [
        ["Label", "note", "Path", "split"],
        ["dog", "x", '"pics/a, b.png"', "train"],
        ["cat", "", "pics\\c.png", "Validation"],
        [],
        ["cat", "", "gone.png", "test"],
    ]
    table = tmp_path / "set.csv"
    table.write_text("\r\n".join(delimiter.join(line) for line in lines), encoding="utf-8-sig")
    source = open_source(settings(table))
    assert source.class_names == ("cat", "dog")
    assert source.ids == ("pics/a, b.png", "pics/c.png", "gone.png")
    assert source.labels.tolist() == [1, 0, 0]
    assert source.given.tolist() == ["train", "val", "test"]
    assert np.array_equal(np.asarray(source.picture(1)), pixels(2))
    with pytest.raises(VitrineError):
        source.picture(2)


def test_table_without_split(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("path,label\na.png,x\nb.png,y\n")
    assert open_source(settings(tmp_path / "set.csv")).given.tolist() == ["", ""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.png,x\n", ["no column path;", "file, label"]),
        ("image;class\n", ["no column path and label;", "image, class"]),
        ("", ["no column path and label", "none"]),
        ("path,label\n", ["lists no pictures"]),
        ("path,label\na.png,x\nb.png,\n", ["line 3", "label is empty"]),
        ("path,label\na.png,x\nb.png\n", ["line 3", "label is empty"]),
        ("path,label,split\na.png,x,dev\n", ["line 2", "'dev'", "train, val, test"]),
        ("path,label,split\na.png,x,\n", ["line 2", "split is empty"]),
        ("path,label\na.png,x\nb.png,x\n", ["one class, 'x'"]),
        ("path,label\n" + "a" * 200_000 + ",x\n", ["line 2", "not valid CSV"]),
    ],
)
def test_table_errors(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "set.csv").write_text(text)
    refuse(tmp_path / "set.csv", *words)


def test_table_not_text(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    refuse(tmp_path / "set.csv", "not UTF-8")


def digits3() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    return images, np.array([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(tmp_path: Path, zipped: bool) -> None:
    images, labels = digits3()
    idx(tmp_path, "train", images, labels, zipped)
    idx(tmp_path, "t10k", images[:2], labels[:2], zipped)
    source = open_source(settings(tmp_path))
    assert source.arrays is not None
    assert source.class_names == ("0", "1", "2")
    assert source.given.tolist() == ["train"] * 6 + ["test"] * 2
    assert source.ids[0] == "train/0" and source.ids[-1] == "test/1"
    assert np.array_equal(source.arrays[:6, :, :, 0], images)
    assert np.array_equal(np.asarray(source.picture(6)), images[0])
    (tmp_path / "labels.txt").write_text("T-shirt\nTrouser\nPullover\n")
    assert open_source(settings(tmp_path)).class_names == ("T-shirt", "Trouser", "Pullover")


def test_idx_numbers_without_pictures_are_no_classes(tmp_path: Path) -> None:
    images, _ = digits3()
    idx(tmp_path, "train", images, np.array([1, 1, 5, 5, 9, 9]))
    source = open_source(settings(tmp_path))
    assert source.class_names == ("1", "5", "9") and source.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_idx_errors(tmp_path: Path) -> None:
    images, labels = digits3()
    idx(tmp_path, "train", images, labels)
    good = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    plain = gzip.decompress(good)

    def put(data: bytes) -> None:
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)

    put(good[:-20])
    refuse(tmp_path, "train-images", "cut off")
    put(b"not gzip at all")
    refuse(tmp_path, "cut off or not gzip")
    put(gzip.compress(plain[:-1]))
    refuse(tmp_path, "promises 210 bytes (6 x 5 x 7)", "there are 209")
    put(gzip.compress(plain + b"x"))
    refuse(tmp_path, "there are more")
    put(gzip.compress(b"\0\0\x08\x01" + plain[4:]))
    refuse(tmp_path, "0x00000801", "not 0x00000803")
    put(gzip.compress(plain[:3]))
    refuse(tmp_path, "not an IDX file")
    idx(tmp_path, "train", images, labels[:5])
    refuse(tmp_path, "5 labels for 6 pictures")
    idx(tmp_path, "train", images, labels)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    refuse(tmp_path, "2 names", "class number 2")
    (tmp_path / "labels.txt").write_text("a\na\nb\n")
    refuse(tmp_path, "one name twice")
    (tmp_path / "labels.txt").unlink()
    idx(tmp_path, "t10k", images[:, :4], labels)
    refuse(tmp_path, "different size")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    refuse(tmp_path, "no train-labels-idx1-ubyte")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 2**30), (2**32 - 1,) * 3])
def test_an_idx_header_that_promises_too_much_asks_for_no_memory(
    tmp_path: Path, zipped: bool, shape: tuple[int, ...]
) -> None:
    images, labels = digits3()
    idx(tmp_path, "train", images, labels, zipped)
    body = struct.pack(">4I", 0x803, *shape) + images.tobytes()
    if zipped:
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(body))
    else:
        (tmp_path / "train-images-idx3-ubyte").write_bytes(body)
    tracemalloc.start()
    refuse(tmp_path, f"promises {math.prod(shape):,} bytes", "there are 210")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_digits() -> None:
    source = open_source(settings("digits"))
    assert source.arrays is not None and source.arrays.shape == (1797, 8, 8, 1)
    assert source.class_names == tuple("0123456789") and source.ids[17] == "digits/17"
    # 0 to 16 is taken to 0 to 255 without loss.
    assert np.array_equal(np.round(source.arrays[..., 0] / 255 * 16), load_digits().images)
    assert source.arrays.max() == 255
    assert source.picture(3).mode == "L"


def test_classes_of_a_model(tmp_path: Path) -> None:
    class_folder(tmp_path, {"cat": 1, "dog": 2})
    source = open_source(settings(tmp_path), ("eel", "dog", "cat"))
    assert source.class_names == ("eel", "dog", "cat")
    assert source.labels.tolist() == [2, 1, 1]
    with pytest.raises(BadData, match=r"does not know 1 of 2 classes: cat\. Did you mean 'cats'"):
        open_source(settings(tmp_path), ("cats", "dog"))
    class_folder(tmp_path / "one", {"dog": 1})
    assert len(open_source(settings(tmp_path / "one"), ("cat", "dog"))) == 1


def test_source_has_paths_or_arrays() -> None:
    made = in_memory([1, 1])
    with pytest.raises(UsageError):
        Source(name="x", class_names=made.class_names, labels=made.labels, ids=made.ids, given=made.given)


def test_limits_hold(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(BadData):
        open_source(settings(tmp_path, max_pixels=100)).picture(0)
