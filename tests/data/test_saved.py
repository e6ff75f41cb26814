from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.pictures import settings
from tests.data.tables import png
from vitrine.data import scan
from vitrine.data.packed import Packed
from vitrine.data.sources import open_source
from vitrine.errors import BadData, Unavailable

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def made(count: int, first: int = 0, **labels: Any) -> Any:
    """A data set as a program that uses the library holds it."""
    seeds = range(first, first + count)
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a", "never"])}
    columns = {"label": [seed % 2 for seed in seeds], **labels}
    rows = {"image": [{"bytes": png(seed), "path": None} for seed in seeds], **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_a_set_that_was_saved(tmp_path: Path) -> None:
    made(9).save_to_disk(tmp_path / "set", num_shards=2)
    source = open_source(settings(tmp_path / "set"))
    assert source.class_names == ("b", "a") and source.labels.tolist() == [k % 2 for k in range(9)]
    assert source.ids[2] == "row 2" and set(source.given) == {""} and source.name == "set"
    packed = source.packed
    assert isinstance(packed, Packed) and packed.total_bytes() >= sum(len(png(k)) for k in range(9))
    for i in (8, 0, 5):
        assert packed.read(i) == png(i) and packed.size(i) == len(png(i)) and packed.read(i, 8, 4) == png(i)[8:12]
    assert not scan.scan(source, settings()).bad
    assert pickle.loads(pickle.dumps(packed)).read(3) == png(3)


def test_rows_chosen_and_put_in_order_are_those_that_are_read(tmp_path: Path) -> None:
    made(9).select([7, 2, 4]).save_to_disk(tmp_path / "set")
    source = open_source(settings(tmp_path / "set"))
    assert source.packed is not None and [source.packed.read(i) for i in range(3)] == [png(7), png(2), png(4)]
    assert source.labels.tolist() == [1, 0, 0]


def test_splits_are_parts(tmp_path: Path) -> None:
    splits = {"train": made(6), "validation": made(4, 6), "test": made(3, 10, label=[-1, -1, -1]), "extra": made(2, 13)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    source = open_source(settings(tmp_path / "set"))
    assert source.given.tolist() == ["train"] * 6 + ["val"] * 4
    assert source.ids[6] == "validation/0" and source.packed is not None and source.packed.read(7) == png(7)
    assert source.notes == (
        "Splits left out, as they are no part: extra.",
        "Left out, as they have no class: 3 of the test part.",
    )


def test_what_is_damaged(tmp_path: Path) -> None:
    seeds = [{"bytes": png(0), "path": None}, None, {"bytes": b"x", "path": None}]
    rows = {"image": seeds * 10, "label": [0, 1, 1] * 10}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "set")
    found = scan.scan(open_source(settings(tmp_path / "set")), settings(max_bad_share=0.9))
    assert len(found.bad) == 20 and found.bad[1] == "the cell holds no picture; a path alone is not followed"
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(BadData, match="`datasets` cannot load it"):
        open_source(settings(tmp_path / "set"))
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(BadData, match="`datasets` cannot load it"):
        open_source(settings(tmp_path / "set"))


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(4).save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unavailable, match=r"Install it: pip install 'vitrine\[data\]'"):
        open_source(settings(tmp_path / "set"))
