"""A config.json that says another model than the tensors are, and a format that the file is not of: refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests import made
from vitrine.errors import BadData, VitrineError
from vitrine.weights.foreign import Raw, Writing
from vitrine.weights.formats.registry import format_named, readable
from vitrine.weights.opening import open_model
from vitrine.weights.saving import save


def folder(name: str) -> Writing:
    write = format_named(name).write
    assert write is not None
    return write(made.bundle(class_names=("ape", "bee", "cat")))


def changed(name: str, **facts: Any) -> Raw:
    """A folder as `name` writes it, with other facts in its config.json."""
    wrote = folder(name)
    config = {**wrote.files["config.json"], **facts}
    return Raw(path="file", kind="safetensors", tensors=wrote.tensors, config=config)


@pytest.mark.parametrize(
    ("fact", "value", "held"),
    [("hidden_size", 32, 16), ("num_hidden_layers", 2, 1), ("num_channels", 1, 3), ("intermediate_size", 8, 32),
     ("patch_size", 8, 4)],
)  # fmt: skip
def test_transformers(fact: str, value: int, held: int) -> None:
    read = format_named("hf").read
    said = rf"^file: config.json says {fact} = {value}, and the tensors have {held}\. Take both from one place\."
    with pytest.raises(BadData, match=said):
        read(changed("hf", **{fact: value}))
    assert read(changed("hf", **{fact: None})).model.depth == 1


def test_names_of_another_number_of_classes_are_left_out_and_it_is_said() -> None:
    reading = format_named("hf").read(changed("hf", id2label={"0": "ape"}))
    assert reading.class_names is None
    assert "class names: config.json has 1 for 3 classes, so they are left out" in reading.said


def test_heads_that_cannot_be_come_with_the_remedy() -> None:
    with pytest.raises(VitrineError, match=r"5 attention heads do not divide .*--model\.num-heads N"):
        format_named("hf").read(changed("hf", num_attention_heads=5))


def test_a_number_of_classes_that_is_given_must_be_that_of_the_head(tmp_path: Any) -> None:
    save(folder("hf"), tmp_path / "m")
    with pytest.raises(BadData, match=r"head\.weight"):
        open_model(tmp_path / "m", given={"num_classes": 7})
    assert open_model(tmp_path / "m", given={"num_classes": 0}).bundle.model.num_classes == 0


@pytest.mark.parametrize(
    ("fact", "value", "held"), [("embed_dim", 32, 16), ("depth", 2, 1), ("patch_size", 8, 4), ("in_chans", 1, 3)]
)
def test_timm(fact: str, value: int, held: int) -> None:
    args = {**folder("timm").files["config.json"]["model_args"], fact: value}
    with pytest.raises(BadData, match=rf"^file: config.json says {fact} = {value}, and the tensors have {held}\."):
        format_named("timm").read(changed("timm", model_args=args))


def test_timms_number_of_classes() -> None:
    with pytest.raises(BadData, match=r"config\.json says num_classes = 7, and the tensors have 3"):
        format_named("timm").read(changed("timm", num_classes=7))
    raw = replace(changed("timm", num_classes=7), given={"num_classes": 0})
    assert format_named("timm").read(raw).model.num_classes == 0


def test_pooling_that_is_given_is_not_told_otherwise() -> None:
    raw = replace(changed("timm"), config={}, given={"num_heads": 2, "global_pool": "norm_then_avg"})
    assert not any(sentence.startswith("pooling") for sentence in format_named("timm").read(raw).said)


@pytest.mark.parametrize("wrote", ["hf", "timm", "torchvision"])
@pytest.mark.parametrize("asked", readable())
def test_any_format_may_be_asked_of_any_file(tmp_path: Any, wrote: str, asked: str) -> None:
    save(folder(wrote), tmp_path / "m")
    try:
        open_model(tmp_path / "m", format=asked, given={"num_heads": 2})
    except VitrineError as error:
        assert str(error).startswith(str(tmp_path / "m")) and len(str(error)) < 900
