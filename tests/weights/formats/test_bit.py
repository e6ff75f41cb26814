"""BiT's .npz, made here from its names and shapes, against a literal forward pass of its own numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.toys import pictures
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.errors import BadData, UsageError
from vitrine.models.networks import Network, network
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import Raw, numbered
from vitrine.weights.formats.bit import FORMAT

UNITS = (1, 2)
ALL_STAGES = (1, 1, 1, 1)


def file(
    num_classes: int = 7, width: int = 1, channels: int = 3, number: str = "", units: tuple[int, ...] = UNITS
) -> dict[str, Tensor]:
    """Names and shapes of bit_pytorch/models.py, `load_from`; `number` as some files have it."""
    generator = torch.Generator().manual_seed(0)
    conv = f"standardized_conv2d{number}/kernel"
    tensors: dict[str, Tensor] = {}

    def fill(name: str, *shape: int) -> None:
        tensors[f"resnet/{name}"] = 0.1 * torch.randn(shape, generator=generator) + 0.05

    fill(f"root_block/{conv}", 7, 7, channels, 64 * width)
    enter = 64 * width
    for block, count in enumerate(units, 1):
        leave = 128 * width * 2**block
        inner = leave // 4
        for unit in range(1, count + 1):
            at = f"block{block}/unit{unit:02d}"
            for part, h, into, out in (("a", 1, enter, inner), ("b", 3, inner, inner), ("c", 1, inner, leave)):
                fill(f"{at}/{part}/{conv}", h, h, into, out)
                fill(f"{at}/{part}/group_norm/gamma", into)
                fill(f"{at}/{part}/group_norm/beta", into)
            if unit == 1:
                fill(f"{at}/a/proj/{conv}", 1, 1, enter, leave)
            enter = leave
    fill("group_norm/gamma", enter)
    fill("group_norm/beta", enter)
    if num_classes:
        fill("head/conv2d/kernel", 1, 1, enter, num_classes)
        fill("head/conv2d/bias", num_classes)
    return tensors


def literal(found: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward pass of bit_pytorch/models.py, written out."""

    def conv(y: Tensor, name: str, stride: int = 1) -> Tensor:
        w = found[f"resnet/{name}/standardized_conv2d/kernel"].permute(3, 2, 0, 1)
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(y, (w - m) / torch.sqrt(v + 1e-10), stride=stride, padding=w.shape[-1] // 2)

    def ready(y: Tensor, name: str) -> Tensor:
        gamma, beta = found[f"resnet/{name}group_norm/gamma"], found[f"resnet/{name}group_norm/beta"]
        return F.group_norm(y, 32, gamma, beta, 1e-5).relu()

    y = F.max_pool2d(F.pad(conv(x, "root_block", 2), (1, 1, 1, 1)), 3, 2)
    for block, units in enumerate(UNITS, 1):
        for unit in range(1, units + 1):
            at, stride = f"block{block}/unit{unit:02d}", 2 if block > 1 and unit == 1 else 1
            first = ready(y, f"{at}/a/")
            beside = conv(first, f"{at}/a/proj", stride) if unit == 1 else y
            z = conv(ready(conv(first, f"{at}/a"), f"{at}/b/"), f"{at}/b", stride)
            y = conv(ready(z, f"{at}/c/"), f"{at}/c") + beside
    pooled = ready(y, "").mean((2, 3))
    kernel = found["resnet/head/conv2d/kernel"]
    return pooled @ kernel[0, 0] + found["resnet/head/conv2d/bias"]


def raw(tensors: dict[str, Tensor], **given: Any) -> Raw:
    return Raw(path="BiT-M-R50x1.npz", kind="npz", tensors=tensors, given=given)


def built(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Network:
    with torch.device("meta"):
        model = network(config).eval()
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    return model


@pytest.mark.parametrize("number", ["", "_17"])
@torch.no_grad()
def test_logits_are_those_of_its_home(number: str) -> None:
    tensors = file(number=number)
    reading = FORMAT.read(raw(tensors, img_size=64))
    assert reading.model.resnet == ResNetConfig(layers=UNITS)
    assert reading.used == tuple(sorted(tensors))
    model = built(reading.model, reading.tensors)
    for sides in ((64, 64), (32, 96)):
        images = pictures(2, 3, *sides)
        expected = literal(file(), images)
        assert expected.std() > 0.05
        torch.testing.assert_close(model(images), expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_mistake_7_the_epsilon_stands_under_the_root_and_counts_for_narrow_filters() -> None:
    """Std + 1e-5, var + 1e-5, var + 1e-8 and var + 1e-10 all exist."""
    tensors = {name: 1e-4 * t if t.ndim == 4 and "head" not in name else t for name, t in file().items()}
    reading = FORMAT.read(raw(tensors, img_size=32))
    images = pictures(2, 3, 32, 32)
    expected = literal(tensors, images)
    for changes, close in (({}, True), ({"conv_eps": 1e-8}, False), ({"conv_eps": 1e-5, "conv_eps_at": "std"}, False)):
        config = replace(reading.model, resnet=replace(reading.model.resnet, **changes))
        model = built(config, reading.tensors)
        assert bool((model(images) - expected).abs().max() < 2e-5) is close, changes


def test_preprocessing_and_conventions_come_along() -> None:
    reading = FORMAT.read(raw(file()))
    assert (reading.preprocess.size, reading.preprocess.resize) == ((480, 480), "squash")
    assert (reading.preprocess.mean, reading.preprocess.interpolation) == ((0.5,) * 3, "bilinear")
    assert any("480 pixels, assumed" in sentence for sentence in reading.said)
    assert any("variance + 1e-10" in sentence for sentence in reading.said)
    assert reading.class_names is None
    given = FORMAT.read(raw(file(), img_size=(96, 128)))
    assert given.model.size == given.preprocess.size == (96, 128)
    assert FORMAT.read(raw(file(num_classes=21_843, units=(1,)))).model.size == (224, 224)


def test_a_file_without_a_head_and_a_grey_and_a_wide_one() -> None:
    assert FORMAT.read(raw(file(num_classes=0))).model.num_classes == 0
    assert FORMAT.read(raw(file(channels=1))).preprocess.channels == 1
    assert FORMAT.read(raw(file(width=3, units=(1,)))).model.resnet.width_factor == 3


@pytest.mark.parametrize("name", ["resnet/group_norm/beta", "resnet/block2/unit01/a/proj/standardized_conv2d/kernel"])
def test_a_missing_tensor_is_named(name: str) -> None:
    tensors = file()
    del tensors[name]
    with pytest.raises(BadData, match=f"missing: {name}"):
        FORMAT.read(raw(tensors))


def test_a_strange_tensor_and_one_of_another_shape_are_named() -> None:
    with pytest.raises(BadData, match="unexpected: resnet/momentum"):
        FORMAT.read(raw({**file(), "resnet/momentum": torch.ones(1)}))
    name = "resnet/block1/unit01/b/standardized_conv2d/kernel"
    with pytest.raises(BadData, match=f"of the wrong shape: {name}"):
        FORMAT.read(raw({**file(), name: torch.ones(3, 3, 64)}))
    twice = {**file(), "resnet/root_block/standardized_conv2d_3/kernel": torch.ones(7, 7, 3, 64)}
    with pytest.raises(BadData, match="are one tensor"):
        FORMAT.read(raw(twice))


def bundle(**changes: Any) -> Bundle:
    reading = FORMAT.read(raw(file(units=ALL_STAGES), img_size=64))
    names = numbered(reading.model.num_classes)
    whole = Bundle(model=reading.model, preprocess=reading.preprocess, class_names=names, tensors=dict(reading.tensors))
    return replace(whole, **changes)


def test_reading_and_writing_change_no_bit() -> None:
    assert FORMAT.write is not None
    writing = FORMAT.write(bundle())
    home = file(units=ALL_STAGES)
    assert writing.kind == "npz"
    assert writing.tensors.keys() == home.keys()
    assert all(torch.equal(writing.tensors[name], home[name]) for name in home)
    assert not any(sentence.startswith("warning") for sentence in writing.said)


def test_what_readers_do_otherwise_is_said() -> None:
    assert FORMAT.write is not None
    model = bundle().model
    other = bundle(model=replace(model, resnet=replace(model.resnet, conv_eps=1e-8)))
    other = replace(other, preprocess=replace(other.preprocess, mean=(0.4,) * 3))
    said = " ".join(FORMAT.write(other).said)
    assert "conv_eps is 1e-08, and readers of the file take 1e-10" in said
    assert "this model wants resize squash, mean (0.4, 0.4, 0.4)" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"padding": "same"}, r"model\.resnet\.padding = 'same'"),
        ({"preact": False}, r"model\.resnet\.preact = False"),
        ({"layers": (1, 1)}, r"model\.resnet\.layers = \(1, 1\)"),
    ],
)
def test_what_the_format_cannot_express_is_refused(changes: dict[str, Any], why: str) -> None:
    assert FORMAT.write is not None
    whole = bundle()
    with pytest.raises(UsageError, match=why):
        FORMAT.write(replace(whole, model=replace(whole.model, resnet=replace(whole.model.resnet, **changes))))
    with pytest.raises(UsageError, match=r"model\.family = 'vit'"):
        FORMAT.write(replace(whole, model=replace(whole.model, family="vit", img_size=64)))


def test_only_its_own_files_are_taken() -> None:
    assert FORMAT.fits(raw(file()))
    assert FORMAT.fits(raw(file(number="_2")))
    assert not FORMAT.fits(Raw(path="x", kind="torch", tensors=file()))
    assert not FORMAT.fits(raw({"conv_root/kernel": torch.ones(1)}))
