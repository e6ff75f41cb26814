from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.weights.strangers import tensors
from vitrine.errors import BadData, CannotCreate
from vitrine.weights import saving
from vitrine.weights.foreign import Writing
from vitrine.weights.reading import read_raw


def writing(kind: str, **options: Any) -> Writing:
    return Writing(kind=kind, tensors=tensors(), **options)  # type: ignore[arg-type]


def test_npz_holds_what_was_given_and_is_the_same_each_time(tmp_path: Path) -> None:
    saving.save(writing("npz"), tmp_path / "a.npz")
    backwards = Writing(kind="npz", tensors=dict(reversed(tensors().items())))
    saving.save(backwards, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file.files) == sorted(tensors())
        assert np.array_equal(file["w"], tensors()["w"].numpy())
    found = read_raw(tmp_path / "a.npz").tensors
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_a_folder_holds_what_was_given_and_is_the_same_each_time(tmp_path: Path) -> None:
    files = {"config.json": {"a": [1, "é"]}, "preprocessor_config.json": {}}
    made = writing("safetensors", files=files, metadata={"format": "pt"})
    for name in ("a", "deep/er/b"):
        saving.save(made, tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "deep/er/b" / path.name).read_bytes()
    found = load_file(tmp_path / "a/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())
    raw = read_raw(tmp_path / "a")
    assert (raw.config, raw.metadata) == ({"a": [1, "é"]}, {"format": "pt"})


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str, there: str) -> None:
    out = tmp_path / "out"
    {"file": out.touch, "folder": out.mkdir, "link": lambda: out.symlink_to("nowhere")}[there]()
    with pytest.raises(CannotCreate, match="something stands there already"):
        saving.save(writing(kind), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Writing(kind=kind, tensors={**tensors(), "z": torch.ones(2, dtype=torch.bfloat16).to_sparse()})  # type: ignore[arg-type]
    with pytest.raises(Exception):  # noqa: B017 - what matters is what is left
        saving.save(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="no space left on the disk"):
        saving.save(writing(kind), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"../config.json": {}}, "no name for a JSON file"),
        ({"a/b.json": {}}, "no name for a JSON file"),
        ({"run.py": {}}, "no name for a JSON file"),
        ({"config.json": {"loss": float("nan")}}, "is not JSON"),
        ({"config.json": {"x": torch.ones(1)}}, "is not JSON"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(BadData, match=said):
        saving.save(writing("safetensors", files=files), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_types_that_cannot_be(tmp_path: Path) -> None:
    made = {"z": torch.ones(2, dtype=torch.complex64)}
    with pytest.raises(BadData, match=r"z is of type torch\.complex64"):
        saving.save(Writing(kind="safetensors", tensors=made), tmp_path / "out")
    with pytest.raises(BadData, match=r"z is of type torch\.float8_e4m3fn"):
        saving.save(Writing(kind="npz", tensors={"z": torch.ones(2).to(torch.float8_e4m3fn)}), tmp_path / "out")


def test_json_is_written_for_people(tmp_path: Path) -> None:
    saving.save(writing("safetensors", files={"config.json": {"b": 1, "a": 2}}), tmp_path / "out")
    text = (tmp_path / "out/config.json").read_text()
    assert json.loads(text) == {"b": 1, "a": 2}
    assert text.startswith('{\n  "b"')
