"""Ours, written for timm, loaded there strictly; hybrids and BiT both ways; and a published model in timm's layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import made
from tests.models.toys import SIZE, pictures, randomise
from tests.parity.peers import timm, timm_vit
from tests.weights.formats.readings import bundle_of, gap, model_of, raw, round_trip
from tests.weights.formats.timm_home import HALF, config_json, toy_of_timm
from vitrine.config.models import named
from vitrine.config.options import PreprocessConfig
from vitrine.errors import UsageError
from vitrine.weights.bundle import Bundle, build
from vitrine.weights.formats.timm import FORMAT, fits, ratio, read, write
from vitrine.weights.formats.timm_names import PUBLISHED, name_for

CLOSE = 2e-5
DATA = Path(__file__).parents[4] / "shared" / "data"


def in_timm(bundle: Bundle, folder: Path) -> torch.nn.Module:
    """The model that timm makes of our folder, with its own strict loading."""
    writing = write(bundle)
    folder.mkdir(exist_ok=True)
    save_file(dict(writing.tensors), folder / "model.safetensors", metadata=dict(writing.metadata))
    for name, content in writing.files.items():
        (folder / name).write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


OURS: dict[str, dict[str, Any]] = {
    "token": {},
    "avg_then_norm": {"global_pool": "avg_then_norm"},
    "norm_then_avg": {"global_pool": "norm_then_avg", "class_token": False},
    "map": {"global_pool": "map"},
    "registers": {"reg_tokens": 4, "init_values": 0.1},
    "registers alone": {"reg_tokens": 4, "class_token": False, "global_pool": "avg_then_norm"},
    "registers, patches placed": {"reg_tokens": 2, "no_embed_class": True},
    "distilled": {"distilled": True},
    "swiglu": {"mlp_layer": "swiglu", "mlp_ratio": 56 / 48},
    "clip": {"pre_norm": True, "norm_eps": 1e-5, "act_layer": "quick_gelu"},
    "tanh": {"act_layer": "gelu_tanh", "qk_norm": True, "qkv_bias": False},
    "grey and wide": {"in_chans": 1, "img_size": (16, 40)},
    "no head": {"num_classes": 0, "pos_embed": "none"},
    "no norm": {"final_norm": False},
    "relative": {"pos_embed": "rel_bias2d", "pos_at": "layers"},
    "relative, shared": {"pos_embed": "rel_bias2d", "pos_at": "layers_shared", "class_token": False,
                         "global_pool": "norm_then_avg"},
}  # fmt: skip


@pytest.mark.parametrize("variant", OURS)
def test_ours_loads_in_timm_strictly_with_our_logits_and_comes_back_bit_identical(variant: str, tmp_path: Path) -> None:
    ours = made.bundle(**{**SIZE, **OURS[variant]})
    peer = in_timm(ours, tmp_path / "folder")
    images = pictures(2, ours.model.in_chans, *ours.model.size)
    with torch.no_grad():
        assert gap(build(ours)(images), peer(images)) <= CLOSE
    back = round_trip(FORMAT, ours)
    free = {"no_embed_class", "init_values"} if not ours.model.class_token or ours.model.init_values else set()
    for name, value in vars(ours.model).items():
        if name not in free:
            assert getattr(back.model, name) == value, name
    assert (back.preprocess, back.class_names) == (ours.preprocess, ours.class_names or None)


@pytest.mark.parametrize("kind", ["sincos1d", "sincos2d", "sincos2d_mae", "learn2d"])
@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2}, {"distilled": True}])
def test_other_positions_are_written_out_as_a_table(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    ours = made.bundle(**{**SIZE, "pos_embed": kind, **more})
    peer = in_timm(ours, tmp_path)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert gap(build(ours)(images), peer(images)) <= CLOSE
    assert any(f"{kind} written out" in sentence for sentence in write(ours).said)


def test_what_timm_says_of_our_folder(tmp_path: Path) -> None:
    """Its data configuration is our preprocessing, and its names are ours."""
    peer = in_timm(made.bundle(**SIZE, class_names=tuple("vwxyz")), tmp_path)
    data = timm.data.resolve_model_data_config(peer)
    assert data["input_size"] == (3, 32, 32)
    assert (tuple(data["mean"]), data["crop_pct"], data["interpolation"]) == ((0.5, 0.5, 0.5), 0.9, "bicubic")
    assert peer.pretrained_cfg["label_names"] == list("vwxyz")


@pytest.mark.parametrize(("resize", "crop", "mode"), [("squash", 1.0, "squash"), ("shorter", 0.875, "center")])
def test_mistake_11_and_12_our_preprocessing_is_written_and_comes_back(
    resize: Any, crop: float, mode: str, tmp_path: Path
) -> None:
    ours = made.bundle(**SIZE)
    settings = PreprocessConfig(
        size=(32, 32), resize=resize, crop_pct=crop, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )  # fmt: skip
    ours = replace(ours, preprocess=settings)
    assert round_trip(FORMAT, ours).preprocess == settings
    data = timm.data.resolve_model_data_config(in_timm(ours, tmp_path))
    assert (data["crop_mode"], data["crop_pct"], data["interpolation"]) == (mode, crop, "bilinear")
    assert (tuple(data["mean"]), tuple(data["std"])) == (settings.mean, settings.std)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm_eps": 1e-12}, "norm_eps"),
        ({"representation_size": 8}, "representation_size"),
        ({"head_dim": 8}, "head_dim"),
        ({"pos_embed": "sincos2d", "pos_at": "layers"}, "pos_embed"),
        ({"pos_embed": "rope2d", "pos_at": "layers"}, "pos_embed"),
        ({"distilled": True, "norm_eps": 1e-5}, "distilled"),
        ({"distilled": True, "reg_tokens": 1}, "reg_tokens"),
        ({"mlp_layer": "swiglu", "global_pool": "map"}, "mlp_layer"),
    ],
)
def test_an_option_that_timm_lacks_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.{named}"):
        write(made.bundle(**{**SIZE, **options}))


def test_a_published_size_has_timms_name() -> None:
    for name in PUBLISHED:
        assert timm.is_model(name)
        assert name_for(named(name)) == name


@pytest.mark.parametrize(("hidden", "width"), [(4096, 1536), (8192, 1664), (6144, 1408), (56, 48), (1, 3), (7, 300)])
def test_the_ratio_gives_the_hidden_width_back(hidden: int, width: int) -> None:
    assert int(width * ratio(hidden, width)) == hidden


def small_resnet(preact: bool, layers: tuple[int, ...]) -> torch.nn.Module:
    """timm's ResNetV2 as its BiT and the stems of its hybrids are built, with fewer units."""
    conv = partial(timm.layers.StdConv2d if preact else timm.layers.StdConv2dSame, eps=1e-8)
    rest = {"stem_type": "fixed"} if preact else {"stem_type": "same", "preact": False, "global_pool": ""}
    return timm.models.ResNetV2(layers=layers, num_classes=5 if preact else 0, conv_layer=conv, **rest)


def test_a_small_hybrid_is_read() -> None:
    embed = partial(timm.models.vision_transformer_hybrid.HybridEmbed, backbone=small_resnet(False, (1, 2)))
    size = {**SIZE, "img_size": 64, "patch_size": 2, "embed_layer": embed, "dynamic_img_size": True}
    peer = randomise(timm_vit(**size))
    reading = read(raw(peer.state_dict(), given={"num_heads": 3}))
    assert (reading.model.resnet.layers, reading.model.stride) == ((1, 2), 16)
    for height, width in ((64, 64), (96, 96), (64, 96)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model_of(reading)(images), peer(images)) <= 1e-4


def test_a_small_bit_is_read() -> None:
    peer = randomise(small_resnet(True, (1, 1, 1))).eval()
    source = raw(peer.state_dict())
    assert fits(source)
    model = model_of(read(source))
    for height, width in ((64, 64), (48, 96)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), peer(images)) <= 1e-4


@pytest.mark.parametrize(
    ("name", "side"),
    [("vit_tiny_r_s16_p8_224", 64), pytest.param("vit_small_r26_s32_224", 64, marks=pytest.mark.slow)],
)
def test_hybrids_both_ways(name: str, side: int, tmp_path: Path) -> None:
    peer = randomise(toy_of_timm(name, img_size=side, patch_size=None, dynamic_img_size=True))
    config = config_json({"img_size": side, "patch_size": None})
    reading = read(raw(peer.state_dict(), config={**config, "architecture": name}))
    assert reading.model.family == "hybrid"
    back = in_timm(bundle_of(reading), tmp_path)
    model = model_of(reading)
    for height, width in ((side, side), (side, 2 * side)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), peer(images)) <= 1e-4
    with torch.no_grad():
        assert gap(back(images[..., :side]), peer(images[..., :side])) == 0
    round_trip(FORMAT, bundle_of(reading))


@pytest.mark.slow
def test_bit_both_ways(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = randomise(timm.create_model("resnetv2_50x1_bit", num_classes=5).eval())
    pretrained = {"input_size": [3, 96, 96], "mean": HALF, "std": HALF, "crop_pct": 1.0, "interpolation": "bilinear"}
    source = raw(peer.state_dict(), config={"architecture": "resnetv2_50x1_bit", "pretrained_cfg": pretrained})
    assert fits(source)
    reading = read(source)
    model = model_of(reading)
    for height, width in ((96, 96), (64, 128)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), peer(images)) <= 1e-4
    with torch.no_grad():
        assert gap(in_timm(bundle_of(reading), tmp_path)(images), peer(images)) == 0
    assert (reading.preprocess.size, reading.preprocess.interpolation) == ((96, 96), "bilinear")
    round_trip(FORMAT, bundle_of(reading))


# The real model under timm's names


def cifar10(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first pictures of CIFAR-10's test set as the published model takes them, and their labels."""
    mosaics = [
        np.asarray(Image.open(DATA / "cifar10" / f"test_{i:02d}.webp").convert("RGB")) for i in range(-(-count // 1000))
    ]
    tiles = [m.reshape(-1, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3) for m in mosaics]
    pixels = torch.from_numpy(np.concatenate(tiles)[:count]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    labels = np.frombuffer((DATA / "cifar10" / "test_labels.bin").read_bytes(), np.uint8)[:count].astype(np.int64)
    return (pixels - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels)


def published(kind: str, **given: Any) -> Any:
    file = DATA / "weights" / "derived_timm_layout" / f"vit_cifar10_p4_d64_l4_h8.{kind}"
    if kind == "safetensors":
        return read(raw(load_file(file), "safetensors", given=given))
    return read(raw({name: torch.from_numpy(array) for name, array in np.load(file).items()}, "npz", given=given))


@pytest.mark.skipif(not DATA.exists(), reason="no real weights here")
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_published_model_has_its_reference_logits(kind: str) -> None:
    with pytest.raises(UsageError, match=r"--model\.num-heads"):
        published(kind)
    model = model_of(published(kind, num_heads=8, norm_eps=1e-5))
    reference = np.load(DATA / "weights" / "derived_timm_layout" / "vit_cifar10_reference_logits.npz")
    images, labels = cifar10(64)
    assert torch.equal(labels, torch.from_numpy(reference["labels"]))
    with torch.no_grad():
        assert gap(model(images), torch.from_numpy(reference["logits"]).float()) <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="no real weights here")
def test_a_published_model_has_its_accuracy() -> None:
    model = model_of(published("npz", num_heads=8, norm_eps=1e-5))
    images, labels = cifar10(10_000)
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    assert right == 7782
