from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from tests.data.pictures import settings
from tests.data.tables import bytes_of, png, table
from tests.made import trained
from tests.weights.stand_in_hub import Hub
from vitrine.config.options import AugmentConfig
from vitrine.data import hub_set, loader, scan, store
from vitrine.data.blocks import is_far
from vitrine.data.parted import of_hub
from vitrine.data.sources import Source, open_source
from vitrine.errors import BadData, NotFound, Stopped, Unavailable, UsageError, VitrineError
from vitrine.weights import container
from vitrine.weights import hub as weights_hub

SET = "hf://datasets/o/set"


def pictures(train: int = 24, test: int = 9, shards: int = 2) -> dict[str, bytes]:
    """A set as `push_to_hub` lays it out."""
    each = train // shards
    files = {
        f"data/train-{k:05d}-of-{shards:05d}.parquet": bytes_of(table(each, first=k * each)) for k in range(shards)
    }
    return {"README.md": b"# A set", **files, "data/test-00000-of-00001.parquet": bytes_of(table(test, first=train))}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No waiting between tries; what would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://datasets/o/set", ("o/set", None, None)),
        ("hf-hub:datasets/o/set@v1", ("o/set", "v1", None)),
        ("hf://datasets/o/set@refs%2Fpr%2F1:plain_text", ("o/set", "refs/pr/1", "plain_text")),
        ("hf://datasets/o/set:en", ("o/set", None, "en")),
    ],
)
def test_ids(name: str, parts: Any) -> None:
    assert hub_set.parse(name) == hub_set.Name(*parts)


@pytest.mark.parametrize("name", ["hf://datasets/set", "hf://datasets/o/../set", "hf://datasets/o/set/x.parquet"])
def test_what_is_no_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no hub id of a data set"):
        open_source(settings(name))


def test_a_model_is_no_set_and_a_set_no_model() -> None:
    with pytest.raises(UsageError, match="names a model of the hub, where a data set is needed"):
        open_source(settings("hf://o/model"))
    with pytest.raises(UsageError, match="names a data set of the hub, where a model is needed"):
        weights_hub.fetch(SET)


def test_a_set_is_fetched_once_and_its_commit_said(there: Hub) -> None:
    commit = there.add("datasets/o/set", {**pictures(), "extra.bin": b"x" * 1000, "data/notes.txt": b"?"})
    source = open_source(settings(SET))
    assert len(source) == 33 and source.class_names == ("b", "a") and source.name == "o/set"
    assert {part: int((source.given == part).sum()) for part in ("train", "test")} == {"train": 24, "test": 9}
    assert source.again == f"{SET}@{commit}"
    assert source.notes == (f"hub: o/set at revision {commit}; {SET}@{commit} names it for ever",)
    assert source.packed is not None and not is_far(source.packed)
    assert source.packed.read(source.ids.index("data/train-00001-of-00002.parquet:3")) == png(15)
    fetched = [line for line in there.asked if line.startswith("GET /datasets")]
    assert len(fetched) == 4 and not any("extra" in line or "notes" in line for line in fetched)  # and the card
    there.asked.clear()
    assert len(open_source(settings(SET))) == 33
    assert not any(line.startswith("GET /datasets") for line in there.asked), there.asked


def test_offline_the_cache_serves_or_it_says_so_at_once(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = there.add("datasets/o/set", pictures())
    before = open_source(settings(SET))
    there.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    after = open_source(settings(SET))
    assert after.notes[0] == "hub: HF_HUB_OFFLINE is set; the copy in the cache is used" and after.again == before.again
    assert len(open_source(settings(f"{SET}@{commit}"))) == 33
    assert scan.scan(after, settings()).fingerprint == scan.scan(before, settings()).fingerprint
    began = time.monotonic()
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set, and the cache has no copy of it"):
        open_source(settings("hf://datasets/o/other"))
    with pytest.raises(Unavailable, match="a streamed set is not in the cache"):
        open_source(settings(SET, streaming=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"cannot be reached, and the cache has no copy"):
            open_source(settings("hf://datasets/o/other"))
    assert time.monotonic() - began < 2.5  # two of these need no time, the third at most a second
    assert there.asked == []


def test_a_part_of_a_set_in_the_cache_is_not_taken_for_all(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add("datasets/o/set", pictures())
    open_source(settings(SET))
    (gone,) = Path(constants.HF_HUB_CACHE).glob("datasets--o--set/snapshots/*/data/train-00001-of-00002.parquet")
    gone.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadData, match=r"train-00001-of-00002\.parquet is missing"):
        open_source(settings(SET))


def test_what_is_not_there_or_not_for_all(there: Hub) -> None:
    there.add("datasets/o/csv", {"data.csv": b"a,b"})
    there.add("datasets/o/gated", pictures(), gated=True)
    there.add("datasets/o/set", pictures())
    with pytest.raises(NotFound, match="the hub has no such data set, or it is private"):
        open_source(settings("hf://datasets/o/none"))
    with pytest.raises(NotFound, match="o/set has no revision v9"):
        open_source(settings(f"{SET}@v9"))
    with pytest.raises(NotFound, match=r"has no Parquet files, and the hub has made none"):
        open_source(settings("hf://datasets/o/csv"))
    with pytest.raises(NotFound, match="there is no configuration en"):
        open_source(settings(f"{SET}:en"))
    with pytest.raises(Unavailable, match="accepted the terms"):
        open_source(settings("hf://datasets/o/gated"))


def test_what_the_hub_converted_is_taken_where_a_set_has_no_parquet(there: Hub) -> None:
    there.add("datasets/o/set", {"script.py": b"import os; os.abort()", "pictures.zip": b"?"})
    made = {
        "default/train/0000.parquet": bytes_of(table(8)),
        "default/test/0000.parquet": bytes_of(table(4, first=8)),
        "other/partial-train/0000.parquet": bytes_of(table(4, first=12)),
    }
    commit = there.push("datasets/o/set", made, branch="refs/convert/parquet")
    source = open_source(settings(SET))
    assert len(source) == 12 and set(source.given) == {"train", "test"} and source.again == f"{SET}@{commit}"
    assert len(open_source(settings(source.again))) == 12
    assert "The hub has made Parquet of the first files alone: partial-train." in open_source(
        settings(f"{SET}:other")
    ).notes  # fmt: skip
    assert not any("script" in line for line in there.asked)


CARD = [
    {"config_name": "small", "data_files": [{"split": "train", "path": "s/*"}, {"split": "unsupervised", "path": "u/*"},
                                            {"split": "validation", "path": ["v/0.parquet", "v/1.parquet"]}]},
    {"config_name": "big", "data_files": "b/**/*.parquet"},
    {"config_name": "folder", "data_dir": "f"},
    {"config_name": "text", "data_files": "*.txt"},
]  # fmt: skip
FILES = ["s/a.parquet", "u/a.parquet", "v/0.parquet", "v/1.parquet", "v/2.parquet", "b/train/x.parquet",
         "b/test/x.parquet", "f/train-0.parquet", "f/test-0.parquet", "x.txt"]  # fmt: skip


def test_configurations_of_a_card() -> None:
    small = of_hub("n", FILES, "small", CARD)
    assert small.files == (("s/a.parquet", "train"), ("v/0.parquet", "val"), ("v/1.parquet", "val"))
    assert small.notes == (
        "Files left out, as their names are of no part (train, validation, test): u/a.parquet.",
    )  # fmt: skip
    assert dict(of_hub("n", FILES, "big", CARD).files) == {"b/test/x.parquet": "test", "b/train/x.parquet": "train"}
    assert dict(of_hub("n", FILES, "folder", CARD).files) == {"f/test-0.parquet": "test", "f/train-0.parquet": "train"}
    with pytest.raises(UsageError, match=r"several configurations: small, big, folder\. Choose one: n:small"):
        of_hub("n", FILES, None, CARD)
    with pytest.raises(NotFound, match=r"no configuration bigg\. Did you mean 'big'\?"):
        of_hub("n", FILES, "bigg", CARD)
    usual = [*CARD[1:], {**CARD[0], "default": True}]
    assert of_hub("n", FILES, None, usual) == small
    for odd in (None, 3, "x", [3], [{"config_name": 1}], [{"config_name": "a", "data_files": {"x": 1}}]):
        assert of_hub("n", FILES[:1], None, odd).files == (("s/a.parquet", ""),)
    with pytest.raises(BadData, match="none of its splits is a part that is known: x, y"):
        splits = [{"split": name, "path": "s/*"} for name in "xy"]
        of_hub("n", FILES, None, [{"config_name": "a", "data_files": splits}])


def test_a_card_is_read(there: Hub) -> None:
    card = "---\nconfigs:\n- config_name: c\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Title\n"
    there.add("datasets/o/set", {**pictures(), "README.md": card.encode()})
    assert len(open_source(settings(f"{SET}:c"))) == 24
    there.add("datasets/o/odd", {**pictures(), "README.md": b"---\nconfigs: [\n---\n"})
    assert len(open_source(settings("hf://datasets/o/odd"))) == 33


def batches(source: Source, first: int, last: int, workers: int = 0) -> list[loader.Batch]:
    found = scan.scan(source, settings())
    kept = store.store(source, found, channels=3, keep_side=None, budget_bytes=10**9)
    train = np.flatnonzero(source.given == "train")
    return list(
        loader.training(
            kept, source, train, size=(10, 12), batch_size=4, seed=3, num_workers=workers, augment=AugmentConfig(),
            first_step=first, last_step=last, on_bad=lambda name, why: pytest.fail(f"{name}: {why}"),
        )
    )  # fmt: skip


def test_streamed_it_gives_what_it_gives_fetched_and_keeps_nothing(there: Hub) -> None:
    there.add("datasets/o/set", pictures())
    far = open_source(settings(SET, streaming=True))
    assert is_far(far.packed)
    kept = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()}
    assert not any(name.endswith(".parquet") for name in kept)
    near = open_source(settings(SET))
    assert far.again == near.again and list(far.ids) == list(near.ids)
    assert far.labels.tolist() == near.labels.tolist()
    assert scan.scan(far, settings()).fingerprint == scan.scan(near, settings()).fingerprint
    ours, theirs = batches(far, 0, 12), batches(near, 0, 12)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.index, other.index)
    for workers in (0, 2):  # and from the middle
        for one, other in zip(batches(far, 7, 12, workers), theirs[7:], strict=True):
            assert torch.equal(one.images, other.images)


def test_no_more_is_asked_for_than_row_groups(there: Hub) -> None:
    there.add("datasets/o/set", pictures(train=200, test=200, shards=1))
    source = open_source(settings(SET, streaming=True))
    assert source.packed is not None
    opened, whole = sum(there.sent), source.packed.total_bytes()
    there.sent.clear()
    assert source.packed.read(0) and source.packed.read(3) and source.packed.read(2)
    assert len(there.sent) == 1 and 0 < there.sent[0] < 1.2 * whole / 100
    assert opened < 2.5 * 65_536 + whole  # the ends of two files, and their classes


def test_a_network_that_fails_is_tried_again(there: Hub, fast: list[float]) -> None:
    there.add("datasets/o/set", pictures())
    source = open_source(settings(SET, streaming=True))
    assert source.packed is not None
    there.refused[:] = [503, 500, 502]
    assert source.ids[0].startswith("data/test") and source.packed.read(0) == png(24)
    assert there.refused == [] and len(fast) >= 3


def test_a_network_that_stays_away_ends_the_run_and_damages_no_picture(
    there: Hub, fast: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add("datasets/o/set", pictures())
    source = open_source(settings(SET, streaming=True))
    there.refused[:] = [503] * 200
    with pytest.raises(Unavailable, match=r"data/t.*\.parquet: the hub did not give it .* Try again later"):
        batches(source, 0, 3)
    assert 200 - len(there.refused) >= 3
    there.refused.clear()
    assert len(batches(source, 0, 3)) == 3
    # What is gone is not asked for again and again.
    source = open_source(settings(SET, streaming=True))
    there.refused[:] = [404, 404]
    with pytest.raises(Unavailable, match="the hub has no such data set"):
        source.picture(0)
    assert there.refused == [404]


def test_what_is_no_parquet_is_bad_data_from_afar_too(there: Hub) -> None:
    there.add("datasets/o/set", {"data.parquet": b"PAR1" + b"?" * 500 + b"PAR1"})
    for streaming in (False, True):
        with pytest.raises(BadData, match=r"data\.parquet: cannot be read as Parquet"):
            open_source(settings(SET, streaming=streaming))


def test_a_set_larger_than_the_disk_is_streamed(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add("datasets/o/set", pictures())

    class Usage:
        free = 1_000

    monkeypatch.setattr(hub_set.shutil, "disk_usage", lambda path: Usage)
    source = open_source(settings(SET))
    assert is_far(source.packed)
    assert "are more than the disk has room for, so the set is streamed" in source.notes[-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_goes_on_with_the_commit_it_began_with(there: Hub, tmp_path: Path, streaming: bool) -> None:
    commit = there.add("datasets/o/set", pictures(train=80, test=20))
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "data__streaming": streaming}
    model = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4}
    trained(tmp_path / "whole", SET, **options, model=model)
    assert f'source = "{SET}@{commit}"' in (tmp_path / "whole" / "config.toml").read_text()
    from vitrine.train import course

    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: Any, **__: Any) -> None:
            raise Stopped("now")

        patch.setattr(course, "fit", stop)
        patch.setattr(course.report, "write", lambda *_: None)
        with pytest.raises(Stopped):
            trained(tmp_path / "cut", SET, **options, model=model)
    there.push("datasets/o/set", pictures(train=40, test=10))
    with pytest.raises(VitrineError):
        trained(tmp_path / "cut", "hf://datasets/o/other", **options, model=model)
    trained(tmp_path / "cut", SET, **options, model=model)
    one, other = (container.read(tmp_path / name / "model.safetensors")[0] for name in ("whole", "cut"))
    assert one and all(torch.equal(one[name], other[name]) for name in one)


def test_nobody_is_asked_unless_the_hub_is_named(tmp_path: Path) -> None:
    """P14: a local set is opened without a socket, and without the library for the hub."""
    from tests.data.tables import write

    path = write(tmp_path / "x.parquet", table(12))
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise AssertionError('a socket')\n"
        "socket.socket.connect = no; socket.create_connection = no; socket.getaddrinfo = no\n"
        "from vitrine.config.options import DataConfig\n"
        "from vitrine.data.sources import open_source\n"
        f"print(len(open_source(DataConfig(source={str(path)!r}))), 'huggingface_hub' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ}, timeout=120
    )
    assert done.stdout.strip() == "12 False", done.stderr
