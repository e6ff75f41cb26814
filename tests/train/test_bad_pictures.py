"""Bad pictures neither stop nor bend a run: promise P8, in folders and in tar files, seen before training or within."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pictures import class_folder, pixels
from tests.data.tars import encoded, packed_folder
from tests.made import MICRO
from vitrine.data import scan, store
from vitrine.errors import BadData
from vitrine.train.course import Outcome
from vitrine.train.run import train
from vitrine.train.watch import Watch

PICTURES = 400
BAD = {
    "class0/empty.jpg": "the file is empty",
    "class1/cut.jpg": "damaged or cut off",
    "class2/page.jpg": "this is an HTML page, not a picture",
    "class3/bomb.png": "more pixels than the limit of 50,000,000",
}
READABLE = ("class0/cmyk.jpg", "class1/deep.png")


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in 100 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def spoilt(folder: Path) -> Path:
    """400 pictures in four classes, 1 % of them bad, and two of a rare kind that can be read."""
    class_folder(folder, {f"class{k}": PICTURES // 4 for k in range(4)})
    made = {
        "class0/empty.jpg": b"",
        "class1/cut.jpg": encoded(pixels(1, (80, 80)), "JPEG")[:-900],
        "class2/page.jpg": b"<!doctype html><html>404 not found</html>",
        "class3/bomb.png": bomb(),
        "class0/cmyk.jpg": encoded_as(Image.fromarray(pixels(2)).convert("CMYK"), folder),
        "class1/deep.png": encoded(np.random.default_rng(0).integers(0, 65536, (10, 12), dtype=np.uint16), "PNG"),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return folder


def encoded_as(picture: Image.Image, folder: Path) -> bytes:
    """A JPEG of a picture as it is."""
    picture.save(folder / "made.jpg")
    content = (folder / "made.jpg").read_bytes()
    (folder / "made.jpg").unlink()
    return content


@pytest.fixture(params=["folder", "tar"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = spoilt(tmp_path / "set")
    return folder if request.param == "folder" else packed_folder(folder, tmp_path / "set.tar")


def run(source: Path, out: Path, **options: Any) -> Outcome:
    threads = torch.get_num_threads()
    wanted = {**MICRO, "batch_size": 32, "preprocess": {"size": (8, 8)}, "epochs": 2, "init": "none", **options}
    try:
        return train(source, out, watch=Watch(), **wanted)
    finally:
        torch.set_num_threads(threads)


def lines_about(name: str, said: str) -> list[str]:
    return [line for line in said.splitlines() if f"{name}:" in line]


def test_a_run_completes_and_names_each_bad_picture_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(data, tmp_path / "run")
    said = capsys.readouterr().err
    assert outcome.bundle.finished and outcome.bundle.provenance.epoch >= 1
    for name, why in BAD.items():
        assert len(lines_about(name, said)) == 1 and why in lines_about(name, said)[0], said
    assert not any(lines_about(name, said) for name in READABLE)
    assert outcome.test is not None and outcome.bundle.provenance.train_pictures + outcome.test.top1.n > 300


def test_what_only_training_meets_is_named_once_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scan, store):
        monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(scan, "SAMPLE", 5)
    for workers in (0, 2):
        outcome = run(data, tmp_path / f"run{workers}", data={"test_share": 0.0}, num_workers=workers)
        said = capsys.readouterr().err
        assert outcome.bundle.finished and "Looked at 5 of 406 pictures" in said
        for name, why in BAD.items():
            assert len(lines_about(name, said)) == 1 and why in lines_about(name, said)[0], said


def test_above_the_limit_the_run_ends_with_a_clear_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadData, match=r"4 of 406 pictures cannot be read, more than data\.max_bad_share = 0\.005"):
        run(data, tmp_path / "run", data={"max_bad_share": 0.005})
    for module in (scan, store):
        monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(scan, "SAMPLE", 5)
    with pytest.raises(BadData, match=r"3 damaged pictures, more than data\.max_bad_share allows"):
        run(data, tmp_path / "run", data={"max_bad_share": 0.005, "test_share": 0.0})
