"""Public weight files on the command line: read, told, exported, and started from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import made
from vitrine.__main__ import main
from vitrine.predict.classifier import load
from vitrine.weights.opening import open_model

Told = pytest.CaptureFixture[str]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A state dict under timm's names: no heads, no class names, no preprocessing."""
    path = tmp_path / "vit.pth.safetensors"
    save_file(dict(made.bundle().tensors), path)
    return path


def answer(capsys: Told) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def test_a_fact_that_is_missing_is_asked_for_by_name(bare: Path, tmp_path: Path, capsys: Told) -> None:
    assert main(["predict", str(bare), str(made.photo(tmp_path / "p.png"))]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "--model.num-heads N" in told.err and told.err.count("\n") == 1


def test_what_the_user_says_is_used_by_every_verb(bare: Path, tmp_path: Path, capsys: Told) -> None:
    photo = made.photo(tmp_path / "p.png")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    said = ["--model.num-heads", "2", "--labels", str(tmp_path / "names.txt"), "--preprocess.mean", "0.1", "0.2", "0.3"]
    assert main(["predict", str(bare), str(photo), "--json", *said]) == 0
    told = capsys.readouterr()
    first = json.loads(told.out)["results"][0]["predictions"][0]
    assert first["label"] == ("ant", "bee", "cat")[first["index"]]
    assert told.err.startswith("read as: timm") and "class names: from" in told.err
    model = load(bare, model__num_heads=2, preprocess__mean=(0.1, 0.2, 0.3))
    assert model.preprocess.mean == (0.1, 0.2, 0.3)
    assert model.predict(photo)[0].probability == pytest.approx(first["probability"])
    assert main(["explain", str(bare), str(photo), "--out", str(tmp_path / "a.png"), *said]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    capsys.readouterr()
    data = made.photos(tmp_path / "data", {"ant": 3, "bee": 3, "cat": 3})
    assert main(["evaluate", str(bare), str(data), "--json", *said]) == 0
    assert answer(capsys)["top1"]["n"] == 9


def test_info_says_what_a_file_is(bare: Path, capsys: Told) -> None:
    assert main(["info", str(bare), "--model.num-heads", "2"]) == 0
    told = capsys.readouterr().out
    for words in ("timm", "tensors used, 0 dropped", "3 classes: 0, 1, 2", "note: preprocessing", "embed_dim"):
        assert words in told
    assert told.count("note: class names") == 1
    assert main(["info", str(bare), "--model.num-heads", "2", "--json"]) == 0
    found = answer(capsys)
    assert found["format"] == "timm" and len(found["used"]) == len(made.bundle().tensors)
    assert found["dropped"] == {} and found["model"]["num_heads"] == 2


def test_export_prints_the_proof(bare: Path, tmp_path: Path, capsys: Told) -> None:
    out = tmp_path / "hf"
    assert main(["export", str(bare), "--to", "hf", "--out", str(out), "--model.num-heads", "2"]) == 0
    told = capsys.readouterr().out
    assert "tensors used, 0 dropped" in told and f"{out}: hf;" in told
    assert "max |difference| of logits: 0.00e+00 over 4 random pictures" in told
    assert json.loads((out / "config.json").read_text())["num_attention_heads"] == 2
    assert main(["export", str(out), "--to", "timm", "--out", str(tmp_path / "t"), "--json"]) == 0
    found = answer(capsys)  # nothing is to be told any more: the folder says it all
    assert found["source"]["format"] == "hf" and found["max_difference"] == 0.0


def test_export_as_json(bare: Path, tmp_path: Path, capsys: Told) -> None:
    words = ["export", str(bare), "--to", "vitrine", "--out", str(tmp_path / "m"), "--model.num-heads", "2", "--json"]
    assert main(words) == 0
    found = answer(capsys)
    assert found["max_difference"] == 0.0 and found["num_pictures"] == 4 and found["source"]["format"] == "timm"
    assert open_model(tmp_path / "m").format == "vitrine"


def test_another_size_is_said_and_used(bare: Path, tmp_path: Path, capsys: Told) -> None:
    words = ["predict", str(bare), str(made.photo(tmp_path / "p.png")), "--model.num-heads", "2"]
    assert main([*words, "--model.img-size", "32"]) == 0
    assert "4x4 to 8x8" in capsys.readouterr().err
    model = load(bare, model__num_heads=2, model__img_size=32)
    assert model.preprocess.size == (32, 32) and model.model.config.grid == (8, 8)


def test_training_starts_from_a_public_file(bare: Path, tmp_path: Path, capsys: Told) -> None:
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--init", str(bare), "--epochs", "1", "--device", "cpu"]
    more = ["--threads", "1", "--batch-size", "128", "--model.num-heads", "2", "--model.img-size", "8", "--json"]
    assert main([*words, *more]) == 0
    told = capsys.readouterr()
    assert "--init: timm" in told.err and "positions: resized in 2-D" in told.err and "head: fresh" in told.err
    assert open_model(tmp_path / "run").bundle.model.grid == (2, 2)


def test_a_wrong_option_of_a_file_names_the_nearest(bare: Path) -> None:
    with pytest.raises(Exception, match="Did you mean 'labels'"):
        load(bare, lables="x")


def test_the_same_tensors_in_an_archive(tmp_path: Path, capsys: Told) -> None:
    np.savez(tmp_path / "vit.npz", **{name: t.numpy() for name, t in made.bundle().tensors.items()})
    torch.save(dict(made.bundle().tensors), tmp_path / "vit.pth")
    for name in ("vit.npz", "vit.pth"):
        assert main(["info", str(tmp_path / name), "--model.num-heads", "2", "--json"]) == 0
        assert answer(capsys)["format"] == "timm"


def test_training_names_the_way_for_a_file_that_needs_a_word_more(bare: Path, tmp_path: Path, capsys: Told) -> None:
    tensors = dict(made.bundle().tensors)
    torch.save({"model": tensors}, tmp_path / "deit_or_timm.pth")
    file, between, out = str(tmp_path / "deit_or_timm.pth"), str(tmp_path / "m"), str(tmp_path / "run")
    assert main(["train", "digits", "--out", out, "--init", file, "--model.num-heads", "2"]) == 2
    told = capsys.readouterr().err
    assert told.endswith(f"`vitrine export {file} --to vitrine --out FILE` takes it; start from FILE.\n")
    words = ["--to", "vitrine", "--out", between, "--format", "deit", "--model.num-heads", "2"]
    assert main(["export", file, *words]) == 0
    words = ["--epochs", "1", "--batch-size", "256", "--threads", "1", "--model.img-size", "8", "--device", "cpu"]
    assert main(["train", "digits", "--out", out, "--init", between, *words]) == 0


def test_another_architecture_is_refused_before_anything_is_measured_or_written(
    bare: Path, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vitrine.train.run"], "best_threads", lambda *_: pytest.fail("measured"))
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--init", str(bare), "--model.num-heads", "2"]
    assert main([*words, "--model.embed-dim", "32"]) == 78
    assert "embed_dim = 32 (it has 16)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_head_is_told_once_for_all_pictures(bare: Path, tmp_path: Path, capsys: Told) -> None:
    photo = str(made.photo(tmp_path / "p.png"))
    words = ["predict", str(bare), photo, photo, "--model.num-heads", "2", "--model.num-classes", "0"]
    assert main(words) == 2
    assert capsys.readouterr().err.count("has no head") == 1
