"""mmpretrain's checkpoints: files with its keys against its forward pass written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.toys import pictures
from tests.weights.formats import home
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import BadData
from vitrine.weights.formats import deit
from vitrine.weights.formats import timm as timm_format
from vitrine.weights.formats.mmpretrain import fits, read

GIVEN = {"num_heads": 3}

KINDS = ("plain", "hidden", "pre_norm", "scaled", "gated", "mean", "distilled")


def state_of(kind: str = "plain", D: int = 48, M: int = 96, depth: int = 2) -> dict[str, Tensor]:
    """A toy file: `backbone.` and `head.` of a checkpoint's entry `state_dict`."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D), "pos_embed": (1, 18 if kind == "distilled" else 17, D),
        "patch_embed.projection.weight": (D, 3, 8, 8), "patch_embed.projection.bias": (D,),
        "ln1.weight": (D,), "ln1.bias": (D,),
    }  # fmt: skip
    for i in range(depth):
        at = f"layers.{i}."
        shapes |= {
            f"{at}ln1.weight": (D,), f"{at}ln1.bias": (D,), f"{at}ln2.weight": (D,), f"{at}ln2.bias": (D,),
            f"{at}attn.qkv.weight": (3 * D, D), f"{at}attn.qkv.bias": (3 * D,),
            f"{at}attn.proj.weight": (D, D), f"{at}attn.proj.bias": (D,),
        }  # fmt: skip
        if kind == "gated":
            shapes |= {f"{at}ffn.w12.weight": (112, D), f"{at}ffn.w12.bias": (112,)}
            shapes |= {f"{at}ffn.w3.weight": (D, 56), f"{at}ffn.w3.bias": (D,)}
        else:
            shapes |= {f"{at}ffn.layers.0.0.weight": (M, D), f"{at}ffn.layers.0.0.bias": (M,)}
            shapes |= {f"{at}ffn.layers.1.weight": (D, M), f"{at}ffn.layers.1.bias": (D,)}
        if kind == "scaled":
            shapes |= {f"{at}attn.gamma1.weight": (D,), f"{at}ffn.gamma2.weight": (D,)}
    if kind == "pre_norm":
        del shapes["patch_embed.projection.bias"]
        shapes |= {"pre_norm.weight": (D,), "pre_norm.bias": (D,)}
    if kind == "mean":
        del shapes["ln1.weight"], shapes["ln1.bias"]
        shapes |= {"ln2.weight": (D,), "ln2.bias": (D,)}
    if kind == "distilled":
        shapes["dist_token"] = (1, 1, D)
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    width = 40 if kind == "hidden" else D
    if kind == "mean":
        shapes |= {"head.fc.weight": (5, D), "head.fc.bias": (5,)}
    else:
        shapes |= {"head.layers.head.weight": (5, width), "head.layers.head.bias": (5,)}
    if kind == "hidden":
        shapes |= {"head.layers.pre_logits.weight": (40, D), "head.layers.pre_logits.bias": (40,)}
    if kind == "distilled":
        shapes |= {"head.layers.head_dist.weight": (5, D), "head.layers.head_dist.bias": (5,)}
    return home.fill(shapes)


def mmpretrain(checkpoint: dict[str, Tensor], images: Tensor) -> Tensor:
    """models/backbones/vision_transformer.py and models/heads/vision_transformer_head.py."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in checkpoint.items()}
    bias = {"patch_embed.projection.bias": torch.zeros(48)}
    x = home.cut({**bias, **state}, "patch_embed.projection", images)
    grid = images.shape[2] // 8, images.shape[3] // 8
    tokens = [state[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token") if name in state]
    x = torch.cat([*tokens, x], dim=1) + home.resized(state["pos_embed"], len(tokens), grid)
    if "pre_norm.weight" in state:
        x = home.norm(state, "pre_norm", x, 1e-6)
    one = torch.ones(48)
    for i in range(2):
        at = f"layers.{i}."
        q, k, v = home.linear(state, f"{at}attn.qkv", home.norm(state, f"{at}ln1", x, 1e-6)).chunk(3, dim=-1)
        y = home.linear(state, f"{at}attn.proj", home.heads(q, k, v, 3))
        x = x + y * state.get(f"{at}attn.gamma1.weight", one)
        y = home.norm(state, f"{at}ln2", x, 1e-6)
        if f"{at}ffn.w12.weight" in state:
            first, second = home.linear(state, f"{at}ffn.w12", y).chunk(2, dim=-1)
            y = home.linear(state, f"{at}ffn.w3", home.silu(first) * second)
        else:
            y = home.linear(state, f"{at}ffn.layers.1", home.gelu(home.linear(state, f"{at}ffn.layers.0.0", y)))
        x = x + y * state.get(f"{at}ffn.gamma2.weight", one)
    if "ln2.weight" in state:  # out_type "avg_featmap"
        return home.linear(state, "head.fc", home.norm(state, "ln2", x[:, 1:].mean(1), 1e-6))
    x = home.norm(state, "ln1", x, 1e-6)
    feature = x[:, 0]
    if "head.layers.pre_logits.weight" in state:
        feature = torch.tanh(home.linear(state, "head.layers.pre_logits", feature))
    logits = home.linear(state, "head.layers.head", feature)
    return (logits + home.linear(state, "head.layers.head_dist", x[:, 1])) / 2 if "dist_token" in state else logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_mmpretrains(kind: str) -> None:
    state = state_of(kind)
    source = raw(state, wrapper="state_dict", given=GIVEN)
    assert fits(source)
    assert not any(module.fits(source) for module in (timm_format, deit))
    model = model_of(read(source))
    for height, width in ((32, 32), (48, 48), (24, 40)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), mmpretrain(state, images)) <= 2e-5


def test_mistake_10_epsilon_is_1e_6() -> None:
    state = home.faint(state_of(), "_token", "pos_embed", "patch_embed")
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        right = mmpretrain(state, images)
        assert gap(model_of(read(raw(state, given=GIVEN)))(images), right) <= 2e-5
        assert gap(model_of(read(raw(state, given={**GIVEN, "norm_eps": 1e-5})))(images), right) > 1e-3


def test_mistake_17_small_is_768_wide_with_8_layers_of_8_heads() -> None:
    """Everybody else's ViT-S is 384 wide with 12 layers of 6 heads; its 768 elsewhere has 12 heads."""
    with torch.device("meta"):
        small = {name: torch.empty_like(tensor) for name, tensor in state_of(D=768, M=2304, depth=8).items()}
        base = {name: torch.empty_like(tensor) for name, tensor in state_of(D=768, M=3072, depth=12).items()}
    model = read(raw(small)).model
    assert (model.num_heads, model.depth, model.mlp_dim) == (8, 8, 2304)
    assert read(raw(base)).model.num_heads == 12


def test_mistake_11_what_the_file_does_not_say_is_said() -> None:
    reading = read(raw(state_of(), given=GIVEN))
    assert reading.preprocess.mean == (0.5, 0.5, 0.5)
    assert any("which the file does not say" in sentence for sentence in reading.said)


def test_the_pipelines_constants_are_dropped_and_another_backbones_refused() -> None:
    state = state_of()
    reading = read(raw({**state, "data_preprocessor.mean": torch.zeros(3, 1, 1)}, given=GIVEN))
    assert set(reading.dropped) == {"data_preprocessor.mean"}
    assert set(reading.used) == set(state)
    with pytest.raises(BadData, match=r"backbone\.layers\.0\.attn\.relative"):
        read(raw({**state, "backbone.layers.0.attn.relative": torch.zeros(3)}, given=GIVEN))
    # Both norms, one before the mean and one after it, are no model of ours.
    both = {**state_of("mean"), "backbone.ln1.weight": torch.ones(48), "backbone.ln1.bias": torch.zeros(48)}
    with pytest.raises(BadData, match=r"unexpected: backbone\.ln1"):
        read(raw(both, given=GIVEN))
