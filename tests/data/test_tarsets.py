from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.pictures import class_folder, settings
from tests.data.tars import classes, packed_folder, png, samples, tar
from vitrine.config.options import AugmentConfig
from vitrine.data import loader, scan, store
from vitrine.data.sources import Source, open_source
from vitrine.errors import BadData


def opened(path: Path, labelled: bool = True) -> Source:
    return open_source(settings(path), labelled=labelled)


def told(source: Source) -> list[tuple[str, str, str]]:
    """Id, class and part of each picture."""
    return [(source.ids[i], "|".join(source.classes_of(i)), str(source.given[i])) for i in range(len(source))]


# Class folders inside


@pytest.mark.parametrize("around", ["", "./", "pictures/", "./a/b/", "/home/me/"])
def test_a_tar_of_class_folders_is_the_folder(tmp_path: Path, around: str) -> None:
    class_folder(tmp_path / "set", {"cat": 3, "dog": 2})
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / "cat" / ".hidden.png").write_bytes(png(1))
    path = packed_folder(tmp_path / "set", tmp_path / "set.tar", around)
    folder, packed = opened(tmp_path / "set"), opened(path)
    assert told(packed) == told(folder) and packed.class_names == folder.class_names
    assert packed.ignored == folder.ignored == 1 and packed.notes == ()
    one, other = scan.scan(folder, settings()), scan.scan(packed, settings())
    assert one.fingerprint == other.fingerprint and one.sizes.tolist() == other.sizes.tolist()


def test_parts_in_a_tar(tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folder(tmp_path / "set" / part, {"cat": 2, "dog": 2})
    (tmp_path / "set" / "extra" / "x").mkdir(parents=True)
    (tmp_path / "set" / "extra" / "x" / "1.png").write_bytes(png(1))
    for around in ("", "set/"):
        packed = opened(packed_folder(tmp_path / "set", tmp_path / "set.tar", around))
        assert told(packed) == told(opened(tmp_path / "set"))
        assert packed.ignored == 1 and "lie in no class folder" in packed.notes[0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = opened(tar(tmp_path / "x.tar", {"train/1.png": png(1), "plane/1.png": png(2)}))
    assert found.class_names == ("plane", "train") and set(found.given) == {""}


def test_what_a_careful_reader_passes_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name, content in (
            classes(2) | {"../up/1.png": png(7), "a/../../b/9.png": png(7), "loose.png": png(8)}
        ).items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            made.addfile(about, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "a/link.png"), (tarfile.LNKTYPE, "a/hard.png")):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            made.addfile(about)
        about = tarfile.TarInfo("a/1.png")  # as `tar r` would add it
        about.size = len(png(99))
        made.addfile(about, io.BytesIO(png(99)))
    found = opened(tmp_path / "x.tar")
    assert sorted(found.ids) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert found.content(list(found.ids).index("a/1.png")) == png(99)
    said = " ".join(found.notes)
    for words in ("2 links", "2 members passed over whose names lead out", "1 members replaced by a later one",
                  "1 pictures passed over that lie in no class folder"):  # fmt: skip
        assert words in said, said


def test_pictures_without_an_extension_are_known_by_their_beginning(tmp_path: Path) -> None:
    found = opened(tar(tmp_path / "x.tar", {"a/1": png(1), "b/1": png(2), "b/2": b"text", "b/3": b""}))
    assert list(found.ids) == ["a/1", "b/1"] and found.ignored == 2


@pytest.mark.parametrize("contents", [{}, {"1.png": png(1)}, {"a/x.txt": b"no"}], ids=["empty", "flat", "other files"])
def test_nothing_to_learn_from(tmp_path: Path, contents: dict[str, bytes]) -> None:
    with pytest.raises(BadData, match=r"x\.tar: holds no pictures that can be learnt from\. Put the pictures"):
        opened(tar(tmp_path / "x.tar", contents))


def test_one_class_is_refused_and_will_do_without_labels(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a/1.png": png(1), "a/2.png": png(2)})
    with pytest.raises(BadData, match="all pictures are of one class, 'a'"):
        opened(path)
    assert opened(path, labelled=False).class_names == ("a",)
    flat = tar(tmp_path / "flat.tar", {"1.png": png(1), "2.png": png(2)})
    assert told(opened(flat, labelled=False)) == [("1.png", "", ""), ("2.png", "", "")]


def test_a_tar_by_its_content(tmp_path: Path) -> None:
    assert len(opened(tar(tmp_path / "archive", classes()))) == 6


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_compressed_is_refused(tmp_path: Path, name: str) -> None:
    plain = tar(tmp_path / "plain", classes())
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(BadData, match=r"is compressed, and pictures are read at random places.*gunzip"):
        opened(tmp_path / name)


def test_a_folder_of_compressed_tars_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(BadData, match="is compressed"):
        opened(tmp_path)


def test_a_damaged_picture_in_a_tar_is_a_damaged_picture(tmp_path: Path) -> None:
    contents = classes(4) | {"a/1.png": png(1)[:-30], "b/2.png": b""}
    source = opened(tar(tmp_path / "x.tar", contents))
    found = scan.scan(source, settings(max_bad_share=0.3))
    assert {source.ids[i] for i in found.bad} == {"a/1.png", "b/2.png"}
    assert found.bad[list(source.ids).index("b/2.png")] == "the file is empty. Replace it or take it out"


# WebDataset's layout


def test_one_tar_of_samples(tmp_path: Path) -> None:
    found = opened(tar(tmp_path / "x.tar", samples(4) | {"000009.txt": b"a caption alone"}))
    assert told(found) == [(f"{i:06d}.png", str(i % 2), "") for i in range(4)]
    assert found.ignored == 1
    assert [found.content(i) for i in range(4)] == [png(i) for i in range(4)]


def test_shards_with_parts_and_names(tmp_path: Path) -> None:
    tar(tmp_path / "set-train-0000.tar", samples(4))
    tar(tmp_path / "set-train-0001.tar", samples(2, first=4))
    tar(tmp_path / "set-validation-0000.tar", samples(2, first=6))
    (tmp_path / "classnames.txt").write_text("cat\nKäse\n", encoding="utf-8")
    found = opened(tmp_path)
    assert [part for _, _, part in told(found)] == ["train"] * 6 + ["val"] * 2
    assert found.ids[4] == "set-train-0001/000004.png" and found.classes_of(5) == ("Käse",)
    assert found.class_names == ("cat", "Käse")
    (tmp_path / "classnames.txt").write_text("cat\n")
    with pytest.raises(BadData, match=r"class number 1, and classnames\.txt has 1 names"):
        opened(tmp_path)


def test_shards_in_part_folders(tmp_path: Path) -> None:
    tar(tmp_path / "train" / "0.tar", samples(4))
    tar(tmp_path / "test" / "0.tar", samples(2))
    assert sorted(part for _, _, part in told(opened(tmp_path))) == ["test"] * 2 + ["train"] * 4


def test_some_parts_named_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", samples(2))
    tar(tmp_path / "more.tar", samples(2))
    with pytest.raises(BadData, match=r"more\.tar does not"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("json_of", "names"),
    [
        (lambda i: {"label": i % 2}, ("0", "1")),
        (lambda i: {"label": "ab"[i % 2], "width": 3}, ("a", "b")),
        (lambda i: {"cls": i % 2}, ("0", "1")),
    ],
    ids=["number", "name", "cls"],
)
def test_labels_in_json(tmp_path: Path, json_of: object, names: tuple[str, ...]) -> None:
    made = {}
    for i in range(4):
        made |= {f"{i}.json": json.dumps(json_of(i)).encode(), f"{i}.png": png(i)}  # type: ignore[operator]
    found = opened(tar(tmp_path / "x.tar", made))
    assert found.class_names == names and found.labels.tolist() == [0, 1, 0, 1]


def test_several_labels_in_json(tmp_path: Path) -> None:
    made = {}
    for i, labels in enumerate((["a"], ["a", "b"], [], ["c"])):
        made |= {f"{i}.png": png(i), f"{i}.json": json.dumps({"labels": labels}).encode()}
    found = opened(tar(tmp_path / "x.tar", made))
    assert found.multi_label and found.labels.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    made["4.png"], made["4.cls"] = png(4), b"1"
    with pytest.raises(BadData, match="some pictures have one label"):
        opened(tar(tmp_path / "x.tar", made))


def test_json_that_names_no_class_leaves_the_class_folders(tmp_path: Path) -> None:
    beside = {f"{name}/{i}.json": b'{"camera": "x"}' for name in "ab" for i in range(3)}
    found = opened(tar(tmp_path / "x.tar", classes() | beside))
    assert found.class_names == ("a", "b") and found.ignored == 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"x.png": png(1)}, r"x\.png has no label beside it"),
        ({"000001.jpg": png(1)}, "second picture of one sample"),
        ({"x.png": png(1), "x.cls": b""}, "the .cls says ''"),
        ({"x.png": png(1), "x.cls": b"\x00\x01"}, "the .cls says"),
        ({"x.png": png(1), "x.json": b"{"}, "not valid JSON"),
        ({"x.png": png(1), "x.json": b"[" * 100_000}, "not valid JSON"),
        ({"x.png": png(1), "x.json": b'{"label": true}'}, "no label beside it"),
        ({"x.png": png(1), "x.cls": b"1" * (1 << 21)}, "a label of 2,097,152 bytes"),
    ],
)
def test_samples_that_cannot_be_are_refused(tmp_path: Path, more: dict[str, bytes], said: str) -> None:
    with pytest.raises(BadData, match=said):
        opened(tar(tmp_path / "x.tar", samples() | more))


def test_a_folder_of_pictures_beside_a_tar_stays_one(tmp_path: Path) -> None:
    tar(tmp_path / "backup.tar", classes())
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    assert told(opened(tmp_path, labelled=False)) == [("0.png", "", ""), ("1.png", "", "")]
    class_folder(tmp_path, {"cat": 2, "dog": 2})
    assert opened(tmp_path).class_names == ("cat", "dog")


def test_the_same_batches_for_any_number_of_workers(tmp_path: Path) -> None:
    for i in range(3):
        tar(tmp_path / f"{i}.tar", samples(5, first=5 * i))
    source = opened(tmp_path)
    kept = store.store(source, scan.scan(source, settings()), channels=3, keep_side=None, budget_bytes=0)
    seen = []
    for workers in (0, 1, 2):
        batches = loader.training(
            kept, source, np.arange(15), size=(8, 8), batch_size=4, seed=1, augment=AugmentConfig(crop_min_area=0.3),
            first_step=1, last_step=8, num_workers=workers, on_bad=lambda *_: None,
        )  # fmt: skip
        seen.append([(one.images, one.index, one.draws) for one in batches])
    for other in seen[1:]:
        assert all(torch.equal(x, y) for a, b in zip(seen[0], other, strict=True) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
