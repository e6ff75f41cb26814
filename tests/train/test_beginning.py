"""A run on photographs begins from a public model where one can be had, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import made
from tests.made import told_to_nobody
from tests.weights.stand_in_hub import Hub
from vitrine.config.options import Config
from vitrine.config.text import from_dict, read_toml
from vitrine.train.beginning import worth_looking
from vitrine.train.course import Outcome
from vitrine.train.run import train
from vitrine.train.watch import Watch
from vitrine.weights.bundle import open_bundle
from vitrine.weights.exporting import export
from vitrine.weights.starts import ON_CPU

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "threads": 1, "epochs": 1, "batch_size": 16, "optim": {"lr": 1e-9},
}  # fmt: skip


class Heard(Watch):
    """What is said, kept."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made.photos(tmp_path / "data", {"a": 20, "b": 20}, size=(60, 60))


def offer(hub: Hub, tmp_path: Path) -> str:
    """The first model of the list, on the hub: a micro one; gives its commit."""
    export(made.bundle(), "timm", tmp_path / "timm")
    files = {path.name: path.read_bytes() for path in (tmp_path / "timm").iterdir()}
    return hub.add(ON_CPU[0].removeprefix("hf://"), files)


def run(data: Path, out: Path, **options: Any) -> tuple[Outcome, list[str]]:
    heard, threads = Heard(), torch.get_num_threads()
    try:
        return train(data, out, watch=heard, **{**QUICK, **options}), heard.said
    finally:
        torch.set_num_threads(threads)


def test_photographs_begin_from_the_model_that_the_hub_has(there: Hub, data: Path, tmp_path: Path) -> None:
    pinned = f"{ON_CPU[0]}@{offer(there, tmp_path)}"
    outcome, said = run(data, tmp_path / "r")
    (line,) = [sentence for sentence in said if sentence.startswith("start: ")]
    assert line.startswith(f"start: {pinned}, fetched from the hub") and "--init none" in line
    assert from_dict(Config, read_toml(tmp_path / "r" / "config.toml")).init == pinned
    assert outcome.bundle.provenance.init == pinned
    begun, ended = made.bundle(), open_bundle(tmp_path / "r" / "last.safetensors")
    assert ended.class_names == ("a", "b") and ended.model.embed_dim == begun.model.embed_dim
    for name, tensor in begun.tensors.items():
        if not name.startswith("head"):
            torch.testing.assert_close(ended.tensors[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["", "none"])
def test_from_scratch_where_nothing_can_be_had_or_nothing_is_wanted(
    there: Hub, data: Path, tmp_path: Path, init: str
) -> None:
    if init:
        offer(there, tmp_path)
    outcome, said = run(data, tmp_path / "r", model=made.MODEL if init else {}, **({"init": init} if init else {}))
    assert outcome.bundle.provenance.init == ""
    assert any("are few for a ViT from scratch" in sentence for sentence in said)
    about = [sentence for sentence in said if sentence.startswith("start: ")]
    if init:
        assert not about and not there.asked
    else:
        assert len(about) == 1 and about[0].startswith("start: from scratch, as ") and "no such model" in about[0]


def test_a_model_that_cannot_be_opened_is_said_and_done_without(there: Hub, data: Path, tmp_path: Path) -> None:
    there.add(ON_CPU[0].removeprefix("hf://"), {"model.safetensors": b"damaged"})
    outcome, said = run(data, tmp_path / "r")
    assert outcome.bundle.provenance.init == ""
    assert any(sentence.startswith(f"start: from scratch, as {ON_CPU[0]} could not be opened") for sentence in said)


def test_a_stopped_run_goes_on_from_its_model(there: Hub, data: Path, tmp_path: Path) -> None:
    """The same command, which names no model, goes on with the one found when it began."""
    offer(there, tmp_path)
    run(data, tmp_path / "whole", epochs=2)
    out = tmp_path / "stopped"
    out.mkdir()
    (out / "config.toml").write_bytes((tmp_path / "whole" / "config.toml").read_bytes())
    outcome = told_to_nobody(str(data), out, **{**QUICK, "epochs": 2})
    whole = open_bundle(tmp_path / "whole" / "model.safetensors")
    assert outcome.bundle.provenance.init == whole.provenance.init
    for name, tensor in whole.tensors.items():
        assert torch.equal(outcome.bundle.tensors[name], tensor)


@pytest.mark.parametrize(
    ("given", "facts", "worth"),
    [
        ({}, {}, True),
        ({"epochs": 3, "optim": {"lr": 1.0}}, {}, True),
        ({"init": "x"}, {}, False),
        ({"init": "none"}, {}, False),
        ({"arch": "vit-s/16"}, {}, False),
        ({"model": {"depth": 3}}, {}, False),
        ({"recipe": "deit"}, {}, False),
        ({"recipe": "finetune"}, {}, True),
        ({"recipe": "finetune", "model": {"img_size": 384}}, {"num_train": 2_000_000}, True),
        ({"recipe": "finetune", "init": "x"}, {}, False),
        ({"mode": "head"}, {}, True),
        ({"mode": "lora", "model": {"img_size": 384}}, {}, True),
        ({"mode": "lora"}, {"grey": True}, False),
        ({"task": "masked_patches"}, {}, False),
        ({"distill": {"kind": "hard"}}, {}, False),
        ({}, {"photographs": False}, False),
        ({}, {"grey": True}, False),
        ({}, {"num_train": 2_000_000}, False),
    ],
)
def test_when_a_model_is_looked_for(given: dict[str, Any], facts: dict[str, Any], worth: bool) -> None:
    assert worth_looking(given, **{"photographs": True, "grey": False, "num_train": 500, **facts}) is worth
