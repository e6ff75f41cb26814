from __future__ import annotations

import json
import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.pictures import class_folder, settings
from tests.data.tables import STRUCT, features, png, table, write
from vitrine.config.options import AugmentConfig
from vitrine.data import blocks, checks, huggingface, loader, parquet, scan, splits, store
from vitrine.data.held import Held
from vitrine.data.parquet import Groups
from vitrine.data.sources import open_source
from vitrine.errors import BadData, DiskError, NotFound, Unavailable


def test_a_file_as_hugging_face_writes_it(tmp_path: Path) -> None:
    source = open_source(settings(write(tmp_path / "set.parquet", table(11, names=("zebra", "ape")))))
    assert source.class_names == ("zebra", "ape")  # in the order of their numbers
    assert source.labels.tolist() == [k % 2 for k in range(11)]
    assert source.ids[0] == "set.parquet:0" and source.ids[-1] == "set.parquet:10" and len(source.ids) == 11
    assert set(source.given) == {""} and source.name == "set.parquet" and source.notes == ()
    packed = source.packed
    assert isinstance(packed, Groups) and packed.blocks.tolist() == [4, 8, 11]
    for i in (0, 10, 3, 7):
        assert packed.read(i) == png(i) and packed.size(i) == len(png(i))
        assert packed.read(i, 8, 4) == png(i)[8:12] and packed.read(i, len(png(i)) - 3) == png(i)[-3:]
    assert packed.read(0, 10**6) == b"" and packed.total_bytes() > 0.9 * sum(len(png(i)) for i in range(11))
    found = scan.scan(source, settings())
    assert found.complete and not found.bad and found.median_size == (12, 10)
    assert splits.split(source, found.bad, settings()).train.size


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_and_labels_without_names(tmp_path: Path, kind: pa.DataType) -> None:
    made = pa.table({"jpg": pa.array([png(k) for k in range(6)], kind), "label": pa.array([7, 2, 7, 2, 30, 7])})
    source = open_source(settings(write(tmp_path / "x.parquet", made)))
    assert source.class_names == ("2", "7", "30") and source.labels.tolist() == [1, 0, 1, 0, 2, 1]
    assert source.picture(5).size == (12, 10)


@pytest.mark.parametrize("coded", [False, True])
def test_labels_that_are_names(tmp_path: Path, coded: bool) -> None:
    words = pa.array(["item10", "item2", None, "item10"])
    made = table(4).drop_columns("label").append_column("animal", words.dictionary_encode() if coded else words)
    source = open_source(settings(write(tmp_path / "x.parquet", made)))
    assert source.class_names == ("item2", "item10") and source.labels.tolist() == [1, 0, 1]
    assert source.ids[2] == "x.parquet:3" and source.notes == ("Left out, as they have no class: 1.",)
    assert source.packed is not None and source.packed.read(2) == png(3)


def test_names_are_found_in_every_file_and_number_alike(tmp_path: Path) -> None:
    for k, words in enumerate((["b", "a"], ["c", "a"])):
        made = table(2, first=2 * k).drop_columns("label").append_column("label", pa.array(words))
        write(tmp_path / f"{k}.parquet", made)
    source = open_source(settings(tmp_path))
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("called", [True, False])
def test_lists_are_several_classes_a_picture(tmp_path: Path, called: bool) -> None:
    lists: list[Any] = [[0, 2], [], None, [2]] if called else [["x", "z"], [], None, ["z"]]
    made = table(4).drop_columns("label").append_column("labels", pa.array(lists))
    told = features(image="Image", labels=[["x", "y", "z"]]) if called else None
    source = open_source(settings(write(tmp_path / "x.parquet", made.replace_schema_metadata(told))))
    assert source.multi_label and source.class_names == ("x", "z")
    assert source.labels.tolist() == [[1, 1], [0, 0], [0, 1]] and source.labels.dtype == np.uint8
    assert source.ids[2] == "x.parquet:3"


def test_which_column_is_asked_where_several_may_be(tmp_path: Path) -> None:
    made = table(6).append_column("coarse_label", pa.array([0, 0, 0, 1, 1, 1])).rename_columns(
        ["image", "fine_label", "coarse_label"]
    )  # fmt: skip
    told = features(image="Image", fine_label=["b", "a"], coarse_label=["low", "high"])
    path = write(tmp_path / "x.parquet", made.replace_schema_metadata(told))
    with pytest.raises(BadData, match=r"several columns may be the classes: fine_label, coarse_label\. Choose one by "
                       r"data\.label_column"):  # fmt: skip
        open_source(settings(path))
    assert open_source(settings(path, label_column="coarse_label")).class_names == ("low", "high")
    assert open_source(settings(path, label_column="fine_label")).labels.tolist() == [0, 1, 0, 1, 0, 1]
    with pytest.raises(NotFound, match=r"data\.label_column = 'fine': there is no such column"):
        open_source(settings(path, label_column="fine"))
    with pytest.raises(BadData, match="classes are whole numbers, text"):
        open_source(settings(path, label_column="image"))
    with pytest.raises(BadData, match="pictures are bytes, or"):
        open_source(settings(path, image_column="fine_label"))


def test_which_column_holds_the_pictures(tmp_path: Path) -> None:
    masks = pa.array([{"bytes": png(k + 50), "path": ""} for k in range(4)], STRUCT)
    path = write(tmp_path / "two.parquet", table(4, left=masks).rename_columns(["right", "label", "left"]))
    with pytest.raises(BadData, match=r"several columns hold pictures: right, left\. Choose one by data\.image_column"):
        open_source(settings(path))
    source = open_source(settings(path, image_column="left"))
    assert source.packed is not None and source.packed.read(1) == png(51)
    path = write(tmp_path / "mask.parquet", table(4, mask=masks))
    packed = open_source(settings(path)).packed  # one is called image
    assert packed is not None and packed.read(1) == png(1)
    with pytest.raises(BadData, match=r"no column holds pictures.*columns found: url \(string\), label \(int64\)"):
        open_source(settings(write(tmp_path / "none.parquet", pa.table({"url": ["x", "y"], "label": [0, 1]}))))


def test_a_label_column_is_not_guessed_from_many(tmp_path: Path) -> None:
    made = table(4, id=[1, 2, 3, 4], author=["a"] * 4).drop_columns("label")
    path = write(tmp_path / "x.parquet", made)
    with pytest.raises(BadData, match=r"no column is known to hold the classes; columns found: .*id \(int64\)"):
        open_source(settings(path))
    source = open_source(settings(path), labelled=False)
    assert len(source) == 4 and source.class_names == ("",)


def test_parts_are_found_in_names_and_folders(tmp_path: Path) -> None:
    layouts = {
        "top": ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"),
        "data": ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/dev-00000", "data/test-00000"),
        "folders": ("train/0000", "train/0001", "valid/0000", "test/0000"),
    }
    for name, files in layouts.items():
        for k, file in enumerate(files):
            write(tmp_path / name / f"{file}.parquet", table(3, first=3 * k))
        source = open_source(settings(tmp_path / name))
        by_part = {part: int((source.given == part).sum()) for part in ("train", "val", "test")}
        assert by_part == {"train": 6, "val": 3, "test": 3}, name
        assert source.packed is not None and source.picture(4).size == (12, 10)
        assert source.packed.read(source.ids.index(f"{files[1]}.parquet:2")) == png(5)


def test_files_of_no_part_are_told_and_a_missing_one_refused(tmp_path: Path) -> None:
    for k, file in enumerate(("train", "test", "notes")):
        write(tmp_path / "a" / f"{file}.parquet", table(3, first=3 * k))
    source = open_source(settings(tmp_path / "a"))
    assert len(source) == 6
    assert source.notes == ("Files left out, as their names are of no part (train, validation, test): notes.parquet.",)
    for k in (0, 2):
        write(tmp_path / "b" / f"train-0000{k}-of-00003.parquet", table(3, first=k))
    with pytest.raises(BadData, match=r"train-00001-of-00003\.parquet is missing"):
        open_source(settings(tmp_path / "b"))
    one = open_source(settings(write(tmp_path / "test-00000-of-00001.parquet", table(4))))
    assert set(one.given) == {""}  # one part alone is none


def test_a_part_without_classes_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table(6))
    write(tmp_path / "val.parquet", table(4, first=6))
    write(tmp_path / "test.parquet", table(5, first=10, label=pa.array([-1] * 5)))
    source = open_source(settings(tmp_path))
    assert set(source.given) == {"train", "val"} and len(source) == 10
    assert source.notes == ("Left out, as they have no class: 5 of the test part.",)
    assert all(source.packed.read(i) == png(int(i)) for i in range(10))  # type: ignore[union-attr]
    assert isinstance(source.packed, Groups) and source.packed.blocks[-1] == 10
    with pytest.raises(BadData, match="no picture has a class in the column label"):
        open_source(settings(write(tmp_path / "none" / "x.parquet", table(3, label=pa.array([-1, None, -1])))))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([0, 1, 2, 0]), r"x\.parquet:2: column label has 2, where the classes are 0 to 1"),
        (pa.array([0, -2, 1, 0]), r"x\.parquet:1: column label has -2"),
        (pa.array(["a", "", "b", "a"]), r"x\.parquet:1: column label has an empty name"),
        (pa.array([[0], [1, None], [0], [1]]), r"x\.parquet:1: column label has a class that is not given"),
        (pa.array([0, 1, 2**64 - 1, 1], pa.uint64()), r"cannot be read as classes"),
    ],
)
def test_a_cell_that_is_no_class_is_named(tmp_path: Path, column: pa.Array, said: str) -> None:
    with pytest.raises(BadData, match=said):
        open_source(settings(write(tmp_path / "x.parquet", table(4, label=column))))


def test_damaged_cells_are_damaged_pictures(tmp_path: Path) -> None:
    cells: list[Any] = [{"bytes": png(k), "path": None} for k in range(40)]
    cells[3], cells[5], cells[6], cells[9] = (
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": b""},
        {"bytes": b"x"},
    )
    source = open_source(settings(write(tmp_path / "x.parquet", table(40, image=pa.array(cells, STRUCT)))))
    found = scan.scan(source, settings(max_bad_share=0.2))
    assert list(found.bad) == [3, 5, 6, 9]
    assert found.bad[5] == "the cell holds no picture; a path alone is not followed"
    report = checks.report(source, found, splits.split(source, found.bad, settings()))
    assert report.damaged[0] == ("x.parquet:3", "the cell holds no picture; a path alone is not followed")


def test_a_cell_above_the_limit_is_refused(tmp_path: Path) -> None:
    source = open_source(settings(write(tmp_path / "x.parquet", table(4))))
    with pytest.raises(BadData, match=r"x\.parquet:0: the file has [\d,]+ bytes, more than the limit of 99"):
        source.within(settings(max_bytes=99)).picture(0)


def test_a_damaged_row_group_costs_its_pictures_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", table(40), compression="snappy")
    source = open_source(settings(path))
    assert isinstance(source.packed, Groups)
    chunk = source.packed.metas[0].row_group(2).column(0)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 40] = bytes(40)
    path.write_bytes(data)
    found = scan.scan(source, settings(max_bad_share=0.5))
    assert list(found.bad) == [8, 9, 10, 11]
    assert "cannot be read as Parquet" in found.bad[8]


@pytest.mark.parametrize("keep", [0, 3, 4, 100, -100, -9, -4, -1])
def test_a_file_cut_off_or_changed_is_refused(tmp_path: Path, keep: int) -> None:
    data = write(tmp_path / "x.parquet", table(12)).read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:keep])
    with pytest.raises(BadData, match=r"x\.parquet: cannot be read as Parquet"):
        open_source(settings(tmp_path / "x.parquet"))


def test_flipped_bits_end_in_an_error_of_ours_or_in_pictures(tmp_path: Path) -> None:
    """Most flips go unnoticed by Parquet itself, whose pages need no checksum; none ends the process."""
    data = write(tmp_path / "x.parquet", table(12)).read_bytes()
    rng = np.random.default_rng(0)
    footer = len(data) - 900
    refused = 0
    for place in [*rng.integers(0, len(data), 60).tolist(), *rng.integers(footer, len(data), 60).tolist()]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "x.parquet").write_bytes(changed)
        try:
            source = open_source(settings(tmp_path / "x.parquet"))
            scan.scan(source, settings(max_bad_share=0.99))
        except (BadData, NotFound):
            refused += 1
    assert refused > 10


def test_a_row_group_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", table(8))
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1_000)
    with pytest.raises(BadData, match=r"x\.parquet: row group 0 has .*row_group_size=100"):
        open_source(settings(path))
    # A dictionary: the file states the bytes of one picture, and holds it ten thousand times.
    same = [{"bytes": png(0) * 50, "path": ""}] * 10_000
    path = write(tmp_path / "bomb.parquet", table(10_000, image=pa.array(same, STRUCT)), rows=10_000)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1_000_000)
    packed = open_source(settings(path)).packed
    assert packed is not None and packed.total_bytes() < 200_000
    with pytest.raises(BadData, match=r"bomb\.parquet:0: row group 0 has 1,\d+,\d+ bytes"):
        packed.read(0)


def test_a_file_that_is_not_there_or_not_for_us(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such path"):
        open_source(settings(tmp_path / "none.parquet"))
    source = open_source(settings(write(tmp_path / "x.parquet", table(4))))
    (tmp_path / "x.parquet").unlink()
    with pytest.raises((NotFound, DiskError), match="no such file"):
        source.picture(0)


def test_columns_must_be_those_of_the_first_file(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", table(3))
    write(tmp_path / "train-1.parquet", table(3).rename_columns(["image", "other"]))
    with pytest.raises(BadData, match=r"train-1\.parquet: has no column label"):
        open_source(settings(tmp_path))
    with pytest.raises(BadData, match="holds no rows"):
        open_source(settings(write(tmp_path / "none" / "x.parquet", table(0))))


def test_metadata_that_is_not_sound_counts_for_nothing(tmp_path: Path) -> None:
    for told in (b"{", b"[]", b'{"info": 3}', json.dumps({"info": {"features": {"label": {"names": [1]}}}}).encode()):
        made = table(4).replace_schema_metadata({b"huggingface": told})
        assert open_source(settings(write(tmp_path / "x.parquet", made))).class_names == ("0", "1")


def test_it_opens_again_in_another_process(tmp_path: Path) -> None:
    packed = open_source(settings(write(tmp_path / "x.parquet", table(6)))).packed
    assert packed is not None and packed.read(1) == png(1)
    other = pickle.loads(pickle.dumps(packed))
    assert [other.read(i) for i in range(6)] == [png(i) for i in range(6)] and len(other) == 6


def test_a_row_group_is_read_once_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = open_source(settings(write(tmp_path / "x.parquet", table(40)))).packed
    assert packed is not None
    calls: list[int] = []
    unpacked = parquet._unpacked
    monkeypatch.setattr(parquet, "_unpacked", lambda *given: (calls.append(given[2]), unpacked(*given))[1])
    seen: list[bool] = []
    threads = [
        threading.Thread(target=lambda: seen.extend(packed.read(i) == png(i) for i in range(40))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == list(range(10)) and len(seen) == 240 and all(seen)


class Block:
    nbytes = 10


def test_what_is_held_is_bounded_and_the_last_asked_for_stays() -> None:
    held: Held[Block] = Held(35)
    read: list[int] = []

    def get(number: int) -> None:
        held.get(number, lambda: (read.append(number), Block())[1])

    for number in (0, 1, 2, 0, 3, 0, 1):
        get(number)
    assert read == [0, 1, 2, 3, 1]
    assert [number in held for number in range(4)] == [True, True, False, True]


def test_an_error_is_kept_only_where_the_data_is_bad() -> None:
    held: Held[Block] = Held(35)
    tries: list[int] = []

    def fail(kind: type[Exception]) -> Block:
        tries.append(1)
        raise kind("no")

    for kind, count in ((BadData, 1), (Unavailable, 3)):
        tries.clear()
        for _ in range(3):
            with pytest.raises(kind, match="no"):
                held.get(count, lambda kind=kind: fail(kind))  # type: ignore[misc]
        assert len(tries) == count
    assert held.get(3, Block).nbytes == 10


def test_folders_of_pictures_are_no_such_sets(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "pictures", {"train": 1, "dog": 1})
    write(tmp_path / "pictures" / "dog" / "x.parquet", table(1))
    assert not huggingface.is_set(str(folder)) and not huggingface.is_set("digits")
    assert open_source(settings(folder)).paths is not None
    (tmp_path / "pictures" / ".hidden.parquet").write_bytes(b"")
    assert not huggingface.is_set(str(folder))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = write(tmp_path / "x.parquet", table(4))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(Unavailable, match=r"needs the package pyarrow\. Install it: pip install 'vitrine\[data\]'"):
        open_source(settings(path))


def test_streaming_is_of_no_account_here(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", table(4))
    assert open_source(settings(path, streaming=True)).notes == (huggingface.ON_THIS_DISK,)


def test_batches_are_the_same_for_any_workers_and_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIXED_BYTES", 1)  # four row groups at a time
    source = open_source(settings(write(tmp_path / "x.parquet", table(50))))
    assert isinstance(source.packed, Groups) and source.packed.span == 4
    kept = store.store(source, scan.scan(source, settings()), channels=3, keep_side=None, budget_bytes=0)
    made = partial(
        loader.training, kept, source, np.arange(50), size=(8, 8), batch_size=4, seed=3, augment=AugmentConfig(),
        last_step=20, on_bad=lambda name, why: pytest.fail(f"{name}: {why}"),
    )  # fmt: skip
    whole = list(made(first_step=0, num_workers=0))
    assert len({int(i) for batch in whole[:12] for i in batch.index}) == 48
    ranked = blocks.block_order(3, 0, np.arange(50), source.packed.blocks, 4)
    assert torch.cat([batch.index for batch in whole[:12]]).tolist() == ranked[:48].tolist()
    for workers, first in ((1, 0), (2, 7), (0, 13)):
        for one, other in zip(made(first_step=first, num_workers=workers), whole[first:], strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.index, other.index)
            assert torch.equal(one.labels, other.labels)


def test_a_row_group_is_read_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIXED_BYTES", 1)  # four row groups at a time, and as few are held as may be
    monkeypatch.setattr(parquet, "MIXED_BYTES", 1)
    packed = open_source(settings(write(tmp_path / "x.parquet", table(200), rows=5))).packed
    assert isinstance(packed, Groups) and packed.span == 4
    calls: list[int] = []
    unpacked = parquet._unpacked
    monkeypatch.setattr(parquet, "_unpacked", lambda *given: (calls.append(given[2]), unpacked(*given))[1])
    for i in blocks.block_order(0, 0, np.arange(200), packed.blocks, packed.span).tolist():
        assert packed.read(i) == png(i)
    assert sorted(calls) == list(range(40))
    assert packed._held._bytes <= packed._held.limit
    assert sum(group in packed._held for group in range(40)) < 20
