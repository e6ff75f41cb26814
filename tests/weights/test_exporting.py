"""What is written gives the source's logits, or nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import made
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import BadData, CannotCreate, UsageError
from vitrine.weights import bundle as bundles
from vitrine.weights import exporting
from vitrine.weights.exporting import export, targets
from vitrine.weights.formats.registry import format_named
from vitrine.weights.opening import open_model

# A model that each format can hold with every number.
HOME: dict[str, dict[str, Any]] = {
    "google": {"act_layer": "gelu_tanh", "pos_interpolation": "bilinear", "pos_align_corners": True},
    "hf": {"norm_eps": 1e-12},
    "timm": {},
    "torchvision": {"pos_align_corners": True},
    "vitrine": {"qk_norm": True, "reg_tokens": 2},
    "bit": {
        "family": "resnet", "resnet": ResNetConfig(layers=(1, 1, 1, 1)), "img_size": 32, "class_token": False,
        "global_pool": "norm_then_avg",
    },
}  # fmt: skip


def test_every_writer_is_tried_here() -> None:
    assert {*HOME, "transformers"} == set(targets())


@pytest.mark.parametrize("name", HOME)
def test_what_is_written_gives_the_same_logits_and_every_bit_comes_back(name: str, tmp_path: Path) -> None:
    source = made.bundle(**HOME[name])
    found = export(source, name, tmp_path / "out")
    assert found.max_difference <= 1e-6 and found.agreement == 1.0 and found.spread > 0
    given = {"num_heads": 2} if name == "torchvision" else {}
    back = open_model(tmp_path / "out", given=given)
    assert back.format == name
    assert back.bundle.tensors.keys() == source.tensors.keys()
    assert all(torch.equal(back.bundle.tensors[key], tensor) for key, tensor in source.tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_transformers_is_another_name_for_hf(tmp_path: Path) -> None:
    assert export(made.bundle(), "transformers", tmp_path / "out").format == "hf"


def spoilt(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """From here on the head's bias is written wrong."""
    right = format_named("hf")
    assert right.write is not None
    write: Callable[..., Any] = right.write

    def wrong(bundle: bundles.Bundle) -> Any:
        writing = write(bundle)
        return replace(writing, tensors={**writing.tensors, "classifier.bias": writing.tensors["classifier.bias"] + by})

    monkeypatch.setattr(exporting, "format_named", lambda name: replace(right, write=wrong))


def test_a_difference_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, 0.5)
    with pytest.raises(BadData, match=r"gives other logits, by up to 0\.5: nothing is left.*--accept-difference 0\.55"):
        export(made.bundle(), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_is_accepted_is_written_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, 0.5)
    found = export(made.bundle(), "hf", tmp_path / "out", accept=0.6)
    assert found.max_difference == pytest.approx(0.5, abs=1e-5)
    assert (tmp_path / "out" / "config.json").is_file()


def test_weights_that_are_no_numbers_are_not_called_equal(tmp_path: Path) -> None:
    source = made.bundle()
    source = replace(source, tensors={**source.tensors, "head.bias": torch.full((3,), torch.nan)})
    with pytest.raises(BadData, match="gives other logits, by up to nan"):
        export(source, "timm", tmp_path / "out")


def test_exact_gelu_is_no_secret_in_googles_format(tmp_path: Path) -> None:
    source = made.bundle(pos_interpolation="bilinear", pos_align_corners=True)
    loud = {name: tensor * 3 if "mlp" in name else tensor for name, tensor in source.tensors.items()}
    with pytest.raises(
        BadData, match=r"nothing is left of it\. Known: the model has exact GELU, .*; [^:]*\. --accept-difference"
    ):
        export(replace(source, tensors=loud), "google", tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("goggle", {}, r"--to goggle: cannot be written\. Did you mean 'google'"),
        ("deit", {}, r"--to deit: cannot be written"),
        ("google", {"qk_norm": True}, "^--to google: model.qk_norm"),
        ("hf", {"reg_tokens": 2}, "^--to hf: model.reg_tokens"),
        ("torchvision", {"init_values": 0.1}, "^--to torchvision: model.init_values"),
        ("timm", {"head_dim": 5}, "^--to timm: model.head_dim"),
        ("bit", {}, "^--to bit: model.family"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(
    to: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        export(made.bundle(**options), to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CannotCreate, match="something stands there already"):
        export(made.bundle(), "timm", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate, match="there is no folder"):
        export(made.bundle(), "timm", tmp_path / "none" / "out")


@pytest.mark.parametrize("accept", [-1.0, float("nan")])
def test_an_accepted_difference_is_a_number_from_0(tmp_path: Path, accept: float) -> None:
    with pytest.raises(UsageError, match=r"--accept-difference .*: must be 0 or more"):
        export(made.bundle(), "timm", tmp_path / "out", accept=accept)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody can write")
@pytest.mark.parametrize("to", ["hf", "google", "vitrine"])
def test_a_place_that_takes_no_file_is_named_as_it_was_given(to: str) -> None:
    with pytest.raises(CannotCreate, match=r"^/proc/out: "):
        export(made.bundle(act_layer="gelu_tanh"), to, Path("/proc/out"))


def test_what_a_kill_left_is_swept_away_by_the_next_export(tmp_path: Path) -> None:
    for name in (".out.4194304.part", "..out.4194304.part.4194304.folder"):  # above the largest process number
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    export(made.bundle(), "timm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
