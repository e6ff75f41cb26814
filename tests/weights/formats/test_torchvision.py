"""torchvision's state dicts, made by torchvision at random weights, read here; and ours, loaded there strictly."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import made
from tests.models.toys import pictures, randomise
from tests.parity import peers  # noqa: F401  makes torchvision importable where its operators are missing
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData, UsageError
from vitrine.images.preprocess import resized_size
from vitrine.weights.foreign import Raw, Reading
from vitrine.weights.formats.torchvision import FORMAT, preprocessing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer, interpolate_embeddings

CLOSE = 2e-5
SIZE: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96,
    "num_classes": 5,
}  # fmt: skip
HEADS = {"num_heads": 3}


def home(**options: Any) -> VisionTransformer:
    """torchvision's model with every parameter random, in eval mode."""
    torch.manual_seed(0)
    return randomise(VisionTransformer(**{**SIZE, **options}).eval(), 4)


def file_of(model: VisionTransformer, **given: Any) -> Raw:
    return raw(model.state_dict(), given={**HEADS, **given})


def old_names(file: Raw) -> Raw:
    """The same file as version 1 of its MLP spells it."""
    ends = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    tensors = {}
    for name, tensor in file.tensors.items():
        for new, old in ends.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    return raw(tensors, given=file.given)


@pytest.mark.parametrize("options", [{}, {"representation_size": 24}], ids=str)
@torch.no_grad()
def test_a_classifier_equals_torchvision(options: dict[str, Any]) -> None:
    model = home(**options)
    file = file_of(model)
    assert FORMAT.fits(file)
    reading = FORMAT.read(file)
    assert set(reading.used) == set(file.tensors)
    images = pictures(3, 3, 32, 32)
    assert gap(model_of(reading)(images), model(images)) <= CLOSE


@torch.no_grad()
def test_mistake_18_files_of_version_1_say_linear_1_and_linear_2() -> None:
    model = home()
    file = old_names(file_of(model))
    assert any("linear_1" in name for name in file.tensors)
    images = pictures(3, 3, 32, 32)
    assert gap(model_of(FORMAT.read(file))(images), model(images)) <= CLOSE


@pytest.mark.parametrize("side", [48, 16, 64])
@torch.no_grad()
def test_another_size_equals_torchvisions_own_resizing(side: int) -> None:
    """`interpolate_embeddings` resizes with corners aligned, and the state dict is loaded into a model of that size."""
    reading = FORMAT.read(file_of(home()))
    larger = home(image_size=side)
    larger.load_state_dict(interpolate_embeddings(side, 8, home().state_dict()), strict=True)
    images = pictures(2, 3, side, side)
    assert gap(model_of(reading)(images), larger(images)) <= CLOSE
    assert reading.model.pos_align_corners


def test_the_number_of_heads_is_asked_for_where_no_published_size_says_it() -> None:
    file = raw(home().state_dict())
    with pytest.raises(UsageError, match=r"width 48 with 2 blocks is no published size.*--model.num-heads N"):
        FORMAT.read(file)


def test_a_convolutional_stem_is_refused_with_the_reason() -> None:
    stem = [ConvStemConfig(out_channels=48, kernel_size=3, stride=8)]
    file = file_of(home(conv_stem_configs=stem))
    assert FORMAT.fits(file)
    with pytest.raises(UsageError, match="stem of several convolutions"):
        FORMAT.read(file)


def test_a_missing_tensor_is_named() -> None:
    tensors = dict(home().state_dict())
    del tensors["encoder.layers.encoder_layer_1.mlp.3.bias"]
    with pytest.raises(BadData, match=r"missing: encoder.layers.encoder_layer_1.mlp.3.bias"):
        FORMAT.read(raw(tensors, given=HEADS))


def test_no_head_is_read_on_request() -> None:
    reading = FORMAT.read(file_of(home(representation_size=24), num_classes=0))
    assert len(reading.dropped) == 4
    assert (reading.model.num_classes, reading.model.representation_size) == (0, 0)


@pytest.mark.parametrize(
    ("width", "depth", "patch", "side", "resized", "filter_"),
    [(768, 12, 16, 224, 256, "bilinear"), (1024, 24, 16, 224, 242, "bilinear"), (1024, 24, 32, 224, 256, "bilinear"),
     (768, 12, 16, 384, 384, "bicubic"), (1024, 24, 16, 512, 512, "bicubic"), (1280, 32, 14, 518, 518, "bicubic")],
)  # fmt: skip
def test_mistakes_11_and_12_each_published_size_is_prepared_as_torchvision_evaluates_it(
    width: int, depth: int, patch: int, side: int, resized: int, filter_: str
) -> None:
    config = ModelConfig(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=16 if width > 768 else 12
    )
    settings, sentence = preprocessing(config)
    assert resized_size((1000, 600), settings) == (1000 * resized // 600, resized)
    assert (settings.size, settings.interpolation, settings.mean[0]) == ((side, side), filter_, 0.485)
    assert f"{resized} pixels" in sentence


# ---- written here, loaded there ----


@pytest.mark.parametrize("options", [{}, {"representation_size": 24}, {"norm_eps": 1e-3}], ids=str)
@torch.no_grad()
def test_what_is_written_loads_there_strictly_with_our_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = made.bundle(**options)
    config = bundle.model
    assert FORMAT.write is not None
    writing = FORMAT.write(bundle)
    save_file(dict(writing.tensors), tmp_path / "model.safetensors", dict(writing.metadata))
    model = VisionTransformer(
        image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3,
        representation_size=config.representation_size or None,
        norm_layer=partial(torch.nn.LayerNorm, eps=config.norm_eps),
    ).eval()  # fmt: skip
    assert writing.tensors.keys() == model.state_dict().keys()  # it takes the names of version 1 too
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = pictures(3, 3, 16, 16)
    ours = model_of(Reading(model=config, preprocess=bundle.preprocess, tensors=bundle.tensors, used=()))
    assert gap(ours(images), model(images)) <= CLOSE
    assert any("strict=True" in sentence for sentence in writing.said)


def test_round_trip_is_bit_identical() -> None:
    for options in ({}, {"representation_size": 24}):
        bundle = made.bundle(**options)
        assert FORMAT.write is not None
        writing = FORMAT.write(bundle)
        back = FORMAT.read(raw(writing.tensors, given={"num_heads": 2}))
        assert back.tensors.keys() == bundle.tensors.keys()
        assert all(torch.equal(back.tensors[name], tensor) for name, tensor in bundle.tensors.items())


@pytest.mark.parametrize(
    "options",
    [{"act_layer": "gelu_tanh"}, {"global_pool": "norm_then_avg"}, {"in_chans": 1}, {"num_classes": 0},
     {"qkv_bias": False}, {"img_size": (16, 24)}, {"head_dim": 4}, {"reg_tokens": 1}],
    ids=str,
)  # fmt: skip
def test_what_torchvision_cannot_express_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    assert FORMAT.write is not None
    with pytest.raises(UsageError, match=f"model.{name}"):
        FORMAT.write(made.bundle(**options))
