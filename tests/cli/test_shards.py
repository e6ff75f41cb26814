from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.pictures import class_folder
from tests.data.tars import png
from vitrine.__main__ import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folder(tmp_path / "set", {"cat": 12, "dog": 12})


def test_shards_are_written_and_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cat" / "3.png").write_bytes(png(1)[:-30])
    assert main(["shards", str(folder), str(tmp_path / "out"), "--side", "6"]) == 0
    said = capsys.readouterr()
    assert (
        "23 pictures in 1 shards" in said.out and "made smaller: 23" in said.out and "left out: 1 damaged" in said.out
    )
    assert said.err.count("cat/3.png") == 1 and f"vitrine train {tmp_path / 'out'}" in said.out


def test_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", str(folder), str(tmp_path / "out"), "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["out"], found["pictures"], found["shards"], found["left_out"]) == (str(tmp_path / "out"), 24, 1, {})
    assert said.err == ""


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--side", "0"], 2, "--side 0: must be from 1"),
        (["--quality", "96"], 2, "--quality 96: must be from 1 to 95"),
        (["--shard-mb", "0"], 2, "--shard-mb 0"),
        (["--max-bad-share", "2"], 78, "max_bad_share"),
    ],
)
def test_bad_options_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    assert main(["shards", str(folder), str(tmp_path / "out"), *words]) == code
    said = capsys.readouterr()
    assert what in said.err and said.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_place_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", str(folder), str(folder)]) == 73
    assert "exists already" in capsys.readouterr().err
    assert main(["shards", str(folder / "nowhere"), str(folder / "out")]) == 66


def test_a_run_on_shards_a_stop_and_its_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", str(folder), str(tmp_path / "out"), "-q"]) == 0
    options = ["--arch", "vit-micro/2", "--epochs", "2", "--device", "cpu", "--init", "none", "--threads", "1"]
    assert main(["train", str(tmp_path / "out"), "--out", str(tmp_path / "run"), "-q", *options]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), str(folder), "--json"]) == 0
    said = capsys.readouterr()
    assert "the very set" not in said.err, "the folder is known as the data of the run on its shards"
    assert json.loads(said.out)["part"] in ("test", "all")
