"""Adapter folders: opened with their base by every verb, refused where they are not what they must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made import MICRO, MODEL, photo, photos, told_to_nobody, trained
from vitrine.__main__ import main
from vitrine.errors import BadData, NotFound
from vitrine.weights import adapter
from vitrine.weights.bundle import Bundle, open_bundle
from vitrine.weights.opening import open_model

TUNED = {name: value for name, value in MICRO.items() if name != "model"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three classes, and one of adapters on it: larger pictures of two other classes."""
    folder = tmp_path_factory.mktemp("adapters")
    photos(folder / "old", {"a": 20, "b": 20, "c": 20}, size=(16, 16))
    photos(folder / "new", {"d": 20, "e": 20}, size=(24, 24))
    trained(folder / "base", str(folder / "old"), epochs=1, batch_size=16, model={**MODEL, "depth": 2})
    options = {**TUNED, "init": str(folder / "base"), "mode": "lora", "epochs": 2, "batch_size": 8}
    told_to_nobody(str(folder / "new"), folder / "run", **options, model={"img_size": 24}, lora={"rank": 2})
    return folder


def same(first: Bundle, second: Bundle) -> bool:
    return first.tensors.keys() == second.tensors.keys() and all(
        torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items()
    )


def test_the_folder_is_the_merged_model(runs: Path) -> None:
    merged, found = open_bundle(runs / "run"), open_model(runs / "run/adapter")
    assert same(merged, found.bundle)
    assert found.bundle.model == merged.model and found.bundle.preprocess == merged.preprocess
    assert found.bundle.class_names == ("d", "e") and found.bundle.model.img_size == 24
    assert found.format == "peft" and found.bundle.provenance.init.endswith(f" on {(runs / 'base').resolve()}")
    by_file = open_model(runs / "run/adapter/adapter_model.safetensors")
    assert same(by_file.bundle, merged)
    larger = open_model(runs / "run/adapter", given={"img_size": 32}).bundle
    assert larger.model.img_size == 32 and larger.preprocess.size == (32, 32)


def test_every_verb_takes_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, folder = str(photo(tmp_path / "p.png")), str(runs / "run/adapter")
    answers = []
    for model in (folder, str(runs / "run")):
        assert main(["predict", model, picture, "--json", "--device", "cpu"]) == 0
        answers.append(json.loads(capsys.readouterr().out.splitlines()[0]))
    strip = [{name: value for name, value in answer.items() if name in ("top", "predictions")} for answer in answers]
    assert strip[0] == strip[1]
    assert main(["info", folder]) == 0
    assert "a low-rank adapter in peft's layout on" in capsys.readouterr().out
    assert main(["export", folder, "--to", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert main(["export", str(runs / "run"), "--to", "vitrine", "--out", str(tmp_path / "ours")]) == 0
    assert main(["evaluate", folder, str(runs / "new"), "--part", "all", "--device", "cpu"]) == 0


def test_training_goes_on_from_it_and_adapters_stand_on_one_another(runs: Path, tmp_path: Path) -> None:
    options = {**TUNED, "init": str(runs / "run/adapter"), "mode": "lora", "epochs": 1, "batch_size": 8}
    outcome = told_to_nobody(str(runs / "new"), tmp_path / "r", **options)
    assert same(open_model(tmp_path / "r/adapter").bundle, outcome.bundle)


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "run/adapter", tmp_path / "adapter"))


def changed(folder: Path, **facts: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda f: changed(f, base_model_name_or_path=None), NotFound, "it names no base. Write where the base is"),
        (lambda f: changed(f, base_model_name_or_path="org/gone"), NotFound, "its base 'org/gone' is not there"),
        (lambda f: changed(f, base_model_name_or_path=str(f)), BadData, "stands on more than 8 adapters, or on itself"),
        (lambda f: changed(f, peft_type="IA3"), BadData, "peft_type = 'IA3': only plain LoRA"),
        (lambda f: changed(f, use_dora=True), BadData, "use_dora = True: only plain LoRA"),
        (lambda f: changed(f, rank_pattern={}), BadData, r"attn\.qkv are not of the rank"),
        (lambda f: changed(f, lora_alpha="x", alpha_pattern={}), BadData, "must be numbers above 0: 'x'"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), BadData, "is no JSON object"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), NotFound, "there is no adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{"), BadData, "safetensors"),
    ],
)
def test_what_is_no_adapter_is_refused(
    copy: Path, change: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    change(copy)
    with pytest.raises(error, match=said):
        open_model(copy)


def test_layers_that_the_base_lacks_are_named(runs: Path, copy: Path, tmp_path: Path) -> None:
    read = adapter.read(copy)
    odd = {"encoder.0.attn.qkv": next(iter(read.factors.values()))}
    adapter.save(
        adapter.Adapter(base=str(runs / "base"), factors=odd, model=read.model, preprocess=read.preprocess,
                        class_names=read.class_names),
        tmp_path / "odd", rank=2, alpha=16.0, dropout=0.0,
    )  # fmt: skip
    with pytest.raises(BadData, match=r"the base has no encoder\.0\.attn\.qkv: layers must have timm's names"):
        open_model(tmp_path / "odd")


def test_a_slice_has_its_own_rows_and_columns() -> None:
    b = torch.arange(1.0, 9.0).reshape(4, 2)  # two slices of width 2, rank 2
    wide = adapter.spread(b, (0, 2), 3)
    assert wide.tolist() == [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]]
    assert adapter.spread(b, (0,), 1) is b
