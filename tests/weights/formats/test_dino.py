"""DINOv2's and DINOv3's backbones: files with their keys, against their forward passes written out and timm's."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.toys import pictures
from tests.parity.peers import timm
from tests.weights.formats import home
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import BadData, UsageError
from vitrine.weights.foreign import IMAGENET_MEAN
from vitrine.weights.formats import deit, dinov2, dinov3
from vitrine.weights.formats import timm as timm_format

CLOSE = 2e-5
GIVEN = {"num_heads": 3}
SIDES = ((32, 32), (48, 48), (24, 56), (40, 24))


def peer_of(name: str, state: dict[str, Tensor], folder: Any, **args: Any) -> torch.nn.Module:
    """timm's model of the family, which loads the original file by its own rules, strictly."""
    torch.save(state, folder / "file.pth")
    overlay = {"file": str(folder / "file.pth"), "num_classes": 0, "custom_load": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **args)
    return model.eval()


# DINOv2


def state2(registers: int = 0, *, gated: bool = False, chunks: int = 0) -> dict[str, Tensor]:
    """A toy file of DINOv2."""
    shapes = {**home.vit_shapes(), "mask_token": (1, 48)}
    shapes |= {f"blocks.{i}.ls{j}.gamma": (48,) for i in range(2) for j in (1, 2)}
    if registers:
        shapes["register_tokens"] = (1, registers, 48)
    if gated:
        shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
        for i in range(2):
            at = f"blocks.{i}.mlp."
            shapes |= {
                f"{at}w12.weight": (112, 48),
                f"{at}w12.bias": (112,),
                f"{at}w3.weight": (48, 56),
                f"{at}w3.bias": (48,),
            }
    state = home.fill(shapes)
    if chunks:
        state = {
            re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // chunks}.{m[1]}", n): t for n, t in state.items()
        }
    return state


def features2(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """dinov2/models/vision_transformer.py: `x_norm_clstoken`, at evaluation."""
    grid = images.shape[2] // 8, images.shape[3] // 8
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), home.cut(state, "patch_embed.proj", images)], dim=1)
    registers = state.get("register_tokens")
    how = {"size": grid, "antialias": True} if registers is not None else {
        "scale_factor": tuple((side + 0.1) / 4 for side in grid)}  # fmt: skip
    x = x + home.resized(state["pos_embed"], 1, grid, **how)
    if registers is not None:
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for i in range(2):
        at = f"blocks.{i}."
        q, k, v = home.linear(state, f"{at}attn.qkv", home.norm(state, f"{at}norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + state[f"{at}ls1.gamma"] * home.linear(state, f"{at}attn.proj", home.heads(q, k, v, 3))
        y = home.norm(state, f"{at}norm2", x, 1e-6)
        if f"{at}mlp.w12.weight" in state:
            first, second = home.linear(state, f"{at}mlp.w12", y).chunk(2, dim=-1)
            y = home.linear(state, f"{at}mlp.w3", home.silu(first) * second)
        else:
            y = home.linear(state, f"{at}mlp.fc2", home.gelu(home.linear(state, f"{at}mlp.fc1", y)))
        x = x + state[f"{at}ls2.gamma"] * y
    return home.norm(state, "norm", x, 1e-6)[:, 0]


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_features_are_dinov2s(registers: int, gated: bool) -> None:
    state = state2(registers, gated=gated)
    source = raw(state, given=GIVEN)
    assert dinov2.fits(source)
    assert not any(module.fits(source) for module in (timm_format, deit, dinov3))
    model = model_of(dinov2.read(source))
    for height, width in SIDES:
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), features2(state, images)) <= CLOSE


def test_the_two_ways_to_resize_positions_are_two_results() -> None:
    plain = dinov2.read(raw(state2(), given=GIVEN)).model
    registers = dinov2.read(raw(state2(4), given=GIVEN)).model
    assert (plain.pos_offset, plain.pos_antialias) == (0.1, False)
    assert (registers.pos_offset, registers.pos_antialias) == (0.0, True)


@pytest.mark.parametrize(
    ("name", "registers", "gated"),
    [
        ("vit_small_patch14_dinov2", 0, False),
        ("vit_small_patch14_reg4_dinov2", 4, False),
        ("vit_giant_patch14_dinov2", 0, True),
    ],
)
def test_timms_dinov2_agrees(name: str, registers: int, gated: bool, tmp_path: Any) -> None:
    state = state2(registers, gated=gated)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    peer = peer_of(name, state, tmp_path, **size, mlp_ratio=112.5 / 48 if gated else 2.0)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert gap(model_of(dinov2.read(raw(state, given=GIVEN)))(images), peer(images)) <= CLOSE


def test_training_files_count_their_blocks_in_chunks() -> None:
    plain, chunked = state2(), state2(chunks=1)
    assert "blocks.1.1.norm1.weight" in chunked
    extra = {"dino_head.mlp.0.weight": torch.ones(3, 48)}
    within = {f"backbone.{name}": tensor for name, tensor in chunked.items()} | extra
    for source in (raw(chunked, given=GIVEN), raw(within, given=GIVEN)):
        assert dinov2.fits(source)
        reading = dinov2.read(source)
        for name, tensor in dinov2.read(raw(plain, given=GIVEN)).tensors.items():
            assert torch.equal(reading.tensors[name], tensor)
    assert set(reading.dropped) == {"backbone.mask_token", "dino_head.mlp.0.weight"}
    assert "backbone.blocks.1.1.norm1.weight" in reading.used


def test_mistake_03_and_04_registers_have_no_positions_and_the_class_token_has_one() -> None:
    reading = dinov2.read(raw(state2(4), given=GIVEN))
    assert reading.tensors["pos_embed"].shape == (1, 17, 48)
    assert not reading.model.no_embed_class
    # With seven registers 17 rows would be 3 x 3 patches too, had the registers rows of their own.
    assert dinov2.read(raw(state2(7), given=GIVEN)).model.grid == (4, 4)


def test_mistake_11_dinov2_has_imagenets_constants() -> None:
    preprocess = dinov2.read(raw(state2(), given=GIVEN)).preprocess
    assert (preprocess.mean, preprocess.size, preprocess.crop_pct) == (IMAGENET_MEAN, (224, 224), 0.875)


def test_heads_of_dinov2_are_those_of_its_sizes_or_asked_for() -> None:
    with pytest.raises(UsageError, match=r"--model\.num-heads"):
        dinov2.read(raw(state2()))
    with torch.device("meta"):
        shapes = {**home.vit_shapes(1536, 64, 40, 14, 1370), "mask_token": (1, 1536)}
        giant = {name: torch.empty(shape) for name, shape in shapes.items()}
    model = dinov2.read(raw(giant)).model
    assert (model.num_heads, model.img_size) == (24, 518)


# DINOv3


def state3(*, gated: bool = False, bias: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A toy file of DINOv3."""
    shapes = {**home.vit_shapes(), "mask_token": (1, 48), "storage_tokens": (1, 4, 48)}
    del shapes["pos_embed"]
    shapes |= {f"blocks.{i}.ls{j}.gamma": (48,) for i in range(2) for j in (1, 2)}
    if gated:
        shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
        for i in range(2):
            for name, shape in (("w1", (56, 48)), ("w2", (56, 48)), ("w3", (48, 56))):
                shapes |= {f"blocks.{i}.mlp.{name}.weight": shape, f"blocks.{i}.mlp.{name}.bias": shape[:1]}
    state = home.fill(shapes)
    state["rope_embed.periods"] = (100.0 ** (torch.arange(4) / 4)).to(dtype)
    for i in range(2):
        mask = torch.ones(144)
        mask[48:96] = 0
        state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        if not bias:
            del state[f"blocks.{i}.attn.qkv.bias"], state[f"blocks.{i}.attn.qkv.bias_mask"]
    return state


def features3(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """dinov3/models/vision_transformer.py and layers/: `x_norm_clstoken`, at evaluation."""
    rows, columns = images.shape[2] // 8, images.shape[3] // 8
    prefix = [state["cls_token"], state["storage_tokens"]]
    tokens = [token.expand(len(images), -1, -1) for token in prefix]
    x = torch.cat([*tokens, home.cut(state, "patch_embed.proj", images)], dim=1)
    angles = [
        [2 * math.pi * (2 * (place + 0.5) / side - 1) / float(period) for place, side in ((y, rows), (x_, columns))
         for period in state["rope_embed.periods"]] * 2
        for y in range(rows) for x_ in range(columns)
    ]  # fmt: skip
    turned = torch.tensor(angles)

    def turn(z: Tensor) -> Tensor:
        patches = z[:, 5:]
        half = torch.cat([-patches[..., 8:], patches[..., :8]], dim=-1)
        return torch.cat([z[:, :5], patches * turned.cos() + half * turned.sin()], dim=1)

    for i in range(2):
        at = f"blocks.{i}."
        y = home.norm(state, f"{at}norm1", x, 1e-5)
        y = y @ state[f"{at}attn.qkv.weight"].t()
        if f"{at}attn.qkv.bias" in state:
            y = y + state[f"{at}attn.qkv.bias"] * state[f"{at}attn.qkv.bias_mask"]
        q, k, v = y.chunk(3, dim=-1)
        x = x + state[f"{at}ls1.gamma"] * home.linear(state, f"{at}attn.proj", home.heads(q, k, v, 3, turn))
        y = home.norm(state, f"{at}norm2", x, 1e-5)
        if f"{at}mlp.w1.weight" in state:
            y = home.silu(home.linear(state, f"{at}mlp.w1", y)) * home.linear(state, f"{at}mlp.w2", y)
            y = home.linear(state, f"{at}mlp.w3", y)
        else:
            y = home.linear(state, f"{at}mlp.fc2", home.gelu(home.linear(state, f"{at}mlp.fc1", y)))
        x = x + state[f"{at}ls2.gamma"] * y
    return home.norm(state, "norm", x, 1e-5)[:, 0]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_features_are_dinov3s(gated: bool, bias: bool) -> None:
    state = state3(gated=gated, bias=bias)
    source = raw(state)
    assert dinov3.fits(source)
    assert not any(module.fits(source) for module in (timm_format, deit, dinov2))
    reading = dinov3.read(source)
    assert (reading.model.num_heads, reading.model.norm_eps) == (3, 1e-5)
    model = model_of(reading)
    for height, width in SIDES:
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), features3(state, images)) <= CLOSE


@pytest.mark.parametrize(
    ("name", "gated"), [("vit_base_patch16_dinov3_qkvb", False), ("vit_small_plus_patch16_dinov3_qkvb", True)]
)
def test_timms_dinov3_agrees(name: str, gated: bool, tmp_path: Any) -> None:
    state = state3(gated=gated)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": "token"}
    peer = peer_of(name, state, tmp_path, **size, mlp_ratio=56.5 / 48 if gated else 2.0)
    model = model_of(dinov3.read(raw(state)))
    for height, width in ((32, 32), (48, 48), (24, 56)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), peer(images)) <= CLOSE


def test_the_bias_of_keys_is_zero_and_an_unfilled_mask_is_refused() -> None:
    state = state3()
    bias = dinov3.read(raw(state)).tensors["blocks.0.attn.qkv.bias"]
    assert not bias[48:96].any()
    assert torch.equal(bias[:48], state["blocks.0.attn.qkv.bias"][:48])
    with pytest.raises(BadData, match="bias_mask"):
        dinov3.read(raw({**state, "blocks.0.attn.qkv.bias_mask": torch.full((144,), math.nan)}))


def test_periods_are_checked_against_the_base() -> None:
    exact, rounded = dinov3.read(raw(state3())), dinov3.read(raw(state3(dtype=torch.bfloat16)))
    assert exact.model.rope_theta == rounded.model.rope_theta == 100.0
    assert not any("rounded" in sentence for sentence in exact.said)
    assert any("rounded" in sentence for sentence in rounded.said)
    other = {**state3(), "rope_embed.periods": 50.0 ** (torch.arange(4) / 4)}
    assert dinov3.read(raw(other)).model.rope_theta == pytest.approx(50.0)
    with pytest.raises(UsageError, match=r"rope_embed\.periods"):
        dinov3.read(raw({**state3(), "rope_embed.periods": torch.tensor([1.0, 2.0, 3.0, 4.0])}))
    for odd in (torch.tensor(3.0), torch.zeros(0), torch.tensor([1.0, -2.0]), torch.full((4,), math.nan)):
        with pytest.raises(BadData, match="periods"):
            dinov3.read(raw({**state3(), "rope_embed.periods": odd}))


def test_norms_of_training_are_dropped_and_one_of_the_function_is_refused() -> None:
    norm = {"weight": torch.ones(48), "bias": torch.zeros(48)}
    local = {**state3(), **{f"local_cls_norm.{part}": tensor for part, tensor in norm.items()}}
    dropped = dinov3.read(raw(local)).dropped
    assert set(dropped) == {"mask_token", "rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias"}
    with pytest.raises(UsageError, match="cls_norm"):
        dinov3.read(raw({**state3(), **{f"cls_norm.{part}": tensor for part, tensor in norm.items()}}))


def test_mistake_11_satellite_models_have_constants_of_their_own() -> None:
    reading = dinov3.read(raw(state3()))
    assert reading.preprocess.mean == IMAGENET_MEAN
    assert any("--preprocess.mean 0.43 0.411 0.296" in sentence for sentence in reading.said)
    named = dinov3.read(
        type(raw({}))(path="dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", kind="torch", tensors=state3())
    )
    assert named.preprocess.mean == (0.430, 0.411, 0.296)
    assert (named.preprocess.resize, named.preprocess.size) == ("squash", (256, 256))
