"""jeonsworld/ViT-pytorch's `.bin`: files with its keys against `models/modeling.py` written out, hybrid too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.toys import pictures
from tests.weights.formats import home
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import BadData, UsageError
from vitrine.weights.formats import timm as timm_format
from vitrine.weights.formats.jeonsworld import EMBED, ENCODER, STEM, fits, read

GIVEN = {"num_heads": 3}
UNITS = (1, 1, 1)


def state_of(*, hybrid: bool = False) -> dict[str, Tensor]:
    """A toy file."""
    D, M = 48, 96
    shapes: dict[str, tuple[int, ...]] = {
        f"{EMBED}cls_token": (1, 1, D), f"{EMBED}position_embeddings": (1, 17, D),
        f"{EMBED}patch_embeddings.weight": (D, 1024, 1, 1) if hybrid else (D, 3, 8, 8),
        f"{EMBED}patch_embeddings.bias": (D,),
        f"{ENCODER}encoder_norm.weight": (D,), f"{ENCODER}encoder_norm.bias": (D,),
        "head.weight": (5, D), "head.bias": (5,),
    }  # fmt: skip
    for i in range(2):
        at = f"{ENCODER}layer.{i}."
        for name in ("query", "key", "value", "out"):
            shapes |= {f"{at}attn.{name}.weight": (D, D), f"{at}attn.{name}.bias": (D,)}
        for name in ("attention_norm", "ffn_norm"):
            shapes |= {f"{at}{name}.weight": (D,), f"{at}{name}.bias": (D,)}
        shapes |= {f"{at}ffn.fc1.weight": (M, D), f"{at}ffn.fc1.bias": (M,)}
        shapes |= {f"{at}ffn.fc2.weight": (D, M), f"{at}ffn.fc2.bias": (D,)}
    return home.fill({**shapes, **(stem_shapes() if hybrid else {})})


def stem_shapes() -> dict[str, tuple[int, ...]]:
    """Its ResNetV2 with one unit a block."""
    shapes: dict[str, tuple[int, ...]] = {
        "root.conv.weight": (64, 3, 7, 7), "root.gn.weight": (64,), "root.gn.bias": (64,)
    }  # fmt: skip
    for b, (enter, middle) in enumerate(((64, 64), (256, 128), (512, 256)), 1):
        at, leave = f"body.block{b}.unit1.", 4 * middle
        convs = (("conv1", middle, enter, 1), ("conv2", middle, middle, 3), ("conv3", leave, middle, 1))
        for name, out, inner, k in (*convs, ("downsample", leave, enter, 1)):
            shapes[f"{at}{name}.weight"] = (out, inner, k, k)
        for name, width in (("gn1", middle), ("gn2", middle), ("gn3", leave), ("gn_proj", leave)):
            shapes |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
    return {f"{STEM}{name}": shape for name, shape in shapes.items()}


def std_conv(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """`StdConv2d`: variance + 1e-5 under the root, biased."""
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((weight - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    return F.conv2d(x, (weight - mean) / torch.sqrt(variance + 1e-5), stride=stride, padding=padding)


def group_norm(x: Tensor, state: dict[str, Tensor], name: str, groups: int, eps: float) -> Tensor:
    parts = x.unflatten(1, (groups, -1)).flatten(2)
    mean = parts.mean(-1, keepdim=True)
    variance = ((parts - mean) ** 2).mean(-1, keepdim=True)
    flat = ((parts - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    return flat * state[f"{STEM}{name}.weight"][:, None, None] + state[f"{STEM}{name}.bias"][:, None, None]


def stem(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """models/modeling_resnet.py."""
    x = std_conv(images, state[f"{STEM}root.conv.weight"], 2, 3)
    x = F.max_pool2d(group_norm(x, state, "root.gn", 32, 1e-6).relu(), 3, 2, padding=0)
    for b in (1, 2, 3):
        at, stride = f"body.block{b}.unit1.", 1 if b == 1 else 2
        weight = {name: state[f"{STEM}{at}{name}.weight"] for name in ("conv1", "conv2", "conv3", "downsample")}
        # One group a channel, at the epsilon that torch's GroupNorm has by itself.
        short = std_conv(x, weight["downsample"], stride)
        short = group_norm(short, state, f"{at}gn_proj", short.shape[1], 1e-5)
        y = group_norm(std_conv(x, weight["conv1"]), state, f"{at}gn1", 32, 1e-6).relu()
        y = group_norm(std_conv(y, weight["conv2"], stride, 1), state, f"{at}gn2", 32, 1e-6).relu()
        x = (short + group_norm(std_conv(y, weight["conv3"]), state, f"{at}gn3", 32, 1e-6)).relu()
    return x


def jeonsworld(state: dict[str, Tensor], images: Tensor, table: Tensor | None = None) -> Tensor:
    """models/modeling.py, with the position `table` if it is not the file's own."""
    if f"{STEM}root.conv.weight" in state:
        images = stem(state, images)
    x = home.cut(state, f"{EMBED}patch_embeddings", images)
    x = torch.cat([state[f"{EMBED}cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + (state[f"{EMBED}position_embeddings"] if table is None else table)
    for i in range(2):
        at = f"{ENCODER}layer.{i}."
        y = home.norm(state, f"{at}attention_norm", x, 1e-6)
        q, k, v = (home.linear(state, f"{at}attn.{name}", y) for name in ("query", "key", "value"))
        x = home.linear(state, f"{at}attn.out", home.heads(q, k, v, 3)) + x
        y = home.gelu(home.linear(state, f"{at}ffn.fc1", home.norm(state, f"{at}ffn_norm", x, 1e-6)))
        x = home.linear(state, f"{at}ffn.fc2", y) + x
    return home.linear(state, "head", home.norm(state, f"{ENCODER}encoder_norm", x, 1e-6)[:, 0])


def zoomed(table: Tensor, side: int) -> Tensor:
    """`scipy.ndimage.zoom(grid, order=1)`: linear between the old places, the first and the last kept."""
    old = round((table.shape[1] - 1) ** 0.5)
    grid = table[0, 1:].reshape(old, old, -1).double()
    places = np.linspace(0, old - 1, side)
    matrix = torch.tensor([[max(0.0, 1 - abs(place - j)) for j in range(old)] for place in places], dtype=torch.float64)
    new = torch.einsum("ai,bj,ijd->abd", matrix, matrix, grid)
    return torch.cat([table[:, :1], new.reshape(1, side * side, -1).float()], dim=1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_logits_are_jeonsworlds(prefix: str) -> None:
    state = state_of()
    source = raw({f"{prefix}{name}": tensor for name, tensor in state.items()}, given=GIVEN)
    assert fits(source)
    assert not timm_format.fits(source)
    model = model_of(read(source))
    for side in (32, 48, 24):
        images = pictures(2, 3, side, side)
        table = zoomed(state[f"{EMBED}position_embeddings"], side // 8)
        with torch.no_grad():
            assert gap(model(images), jeonsworld(state, images, table)) <= 2e-5


def test_logits_of_the_hybrid_are_jeonsworlds() -> None:
    state = state_of(hybrid=True)
    reading = read(raw(state, given=GIVEN))
    assert (reading.model.family, reading.model.img_size) == ("hybrid", 64)
    model = model_of(reading)
    images = pictures(2, 3, 64, 64)
    with torch.no_grad():
        assert gap(model(images), jeonsworld(state, images)) <= 1e-4


def test_mistake_10_epsilon_is_1e_6() -> None:
    state = home.faint(state_of(), EMBED)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        right = jeonsworld(state, images)
        assert gap(model_of(read(raw(state, given=GIVEN)))(images), right) <= 2e-5
        assert gap(model_of(read(raw(state, given={**GIVEN, "norm_eps": 1e-5})))(images), right) > 1e-3


def test_mistake_11_and_12_half_constants_and_a_squash() -> None:
    preprocess = read(raw(state_of(), given=GIVEN)).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (preprocess.resize, preprocess.size) == ("squash", (32, 32))


def test_mistake_19_query_key_and_value_stand_in_this_order() -> None:
    state = state_of()
    fused = read(raw(state, given=GIVEN)).tensors["blocks.1.attn.qkv.weight"]
    for rows, name in zip(fused.chunk(3), ("query", "key", "value"), strict=True):
        assert torch.equal(rows, state[f"{ENCODER}layer.1.attn.{name}.weight"])


def test_a_missing_tensor_and_a_missing_fact_are_named() -> None:
    state = state_of()
    with pytest.raises(UsageError, match=r"--model\.num-heads"):
        read(raw(state))
    del state[f"{ENCODER}layer.1.attn.key.bias"]
    with pytest.raises(BadData, match=r"layer\.1\.attn\.key\.bias"):
        read(raw(state, given=GIVEN))
