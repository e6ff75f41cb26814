"""Image towers of CLIP: files of its names and shapes, against a literal forward pass and transformers' own CLIP."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.toys import pictures, randomise
from tests.parity import peers  # noqa: F401  makes transformers importable beside a torchvision without operators
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import UsageError
from vitrine.weights.bundle import build
from vitrine.weights.foreign import Raw
from vitrine.weights.formats import refused
from vitrine.weights.formats.clip import FORMAT, OPENAI
from vitrine.weights.opening import open_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

CLOSE = 2e-5
D, DEPTH, P, GRID, HIDDEN, OUT, HEADS = 48, 2, 8, 4, 96, 20, 3


def tensors(**more: tuple[int, ...]) -> dict[str, Tensor]:
    """A CLIP model's tensors: the tower under visual., and a text tower of one block."""
    block = {
        "ln_1.weight": (D,), "ln_1.bias": (D,), "attn.in_proj_weight": (3 * D, D), "attn.in_proj_bias": (3 * D,),
        "attn.out_proj.weight": (D, D), "attn.out_proj.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,),
        "mlp.c_fc.weight": (HIDDEN, D), "mlp.c_fc.bias": (HIDDEN,), "mlp.c_proj.weight": (D, HIDDEN),
        "mlp.c_proj.bias": (D,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (D,), "visual.positional_embedding": (GRID**2 + 1, D), "visual.proj": (D, OUT),
        "visual.conv1.weight": (D, 3, P, P), "visual.ln_pre.weight": (D,), "visual.ln_pre.bias": (D,),
        "visual.ln_post.weight": (D,), "visual.ln_post.bias": (D,), "positional_embedding": (7, D),
        "text_projection": (D, OUT), "logit_scale": (), "token_embedding.weight": (11, D), "ln_final.weight": (D,),
        "ln_final.bias": (D,), **{f"transformer.resblocks.0.{name}": shape for name, shape in block.items()},
        **{f"visual.transformer.resblocks.{i}.{name}": shape for i in range(DEPTH) for name, shape in block.items()},
        **more,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.15
        + (1.0 if ".ln_" in name and name.endswith("weight") else 0)
        for name, shape in shapes.items()
    }


def literal(t: Mapping[str, Tensor], images: Tensor, act: str) -> Tensor:
    """CLIP's image tower, written out: clip/model.py, with torch's own multi-head attention."""
    t = {name.removeprefix("visual."): tensor for name, tensor in t.items() if name.startswith("visual.")}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), t[name + ".weight"], t[name + ".bias"], 1e-5)

    x = F.conv2d(images, t["conv1.weight"], stride=P).flatten(2).transpose(1, 2)
    x = torch.cat([t["class_embedding"].expand(len(x), 1, D), x], dim=1) + t["positional_embedding"]
    x = norm(x, "ln_pre")
    for i in range(DEPTH):
        at = f"transformer.resblocks.{i}."
        y = norm(x, at + "ln_1").transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            y, y, y, D, HEADS, t[at + "attn.in_proj_weight"], t[at + "attn.in_proj_bias"], None, None, False, 0.0,
            t[at + "attn.out_proj.weight"], t[at + "attn.out_proj.bias"], training=False, need_weights=False,
        )  # fmt: skip
        x = x + y.transpose(0, 1)
        y = F.linear(norm(x, at + "ln_2"), t[at + "mlp.c_fc.weight"], t[at + "mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y) if act == "quick_gelu" else F.gelu(y)
        x = x + F.linear(y, t[at + "mlp.c_proj.weight"], t[at + "mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ t["proj"]


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_a_tower_equals_the_literal_forward_pass(act: str) -> None:
    file = raw(tensors(), given={"num_heads": HEADS, "act_layer": act})
    assert FORMAT.fits(file)
    reading = FORMAT.read(file)
    images = pictures(3, 3, GRID * P, GRID * P)
    assert gap(model_of(reading)(images), literal(file.tensors, images, act)) <= CLOSE
    assert set(reading.fresh) == {"head.bias"}
    assert set(reading.dropped) == {name for name in file.tensors if not name.startswith("visual.")}
    other = FORMAT.read(replace(file, given={**file.given, "act_layer": "gelu" if act != "gelu" else "quick_gelu"}))
    assert gap(model_of(other)(images), literal(file.tensors, images, act)) > 1e-3


THEIRS = {
    r"visual\.class_embedding": "embeddings.class_embedding",
    r"visual\.positional_embedding": "embeddings.position_embedding.weight",
    r"visual\.conv1\.": "embeddings.patch_embedding.",
    r"visual\.ln_pre\.": "pre_layrnorm.",
    r"visual\.ln_post\.": "post_layernorm.",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_(\d)\.": r"encoder.layers.\1.layer_norm\2.",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.": r"encoder.layers.\1.self_attn.out_proj.",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.": r"encoder.layers.\1.mlp.fc1.",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.": r"encoder.layers.\1.mlp.fc2.",
}


def from_transformers(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of transformers' CLIP under OpenAI's names."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    found = {"visual.proj": state["visual_projection.weight"].t().contiguous()}
    for name in tensors():
        for ours, theirs in THEIRS.items():
            if re.match(ours, name):
                found[name] = state[re.sub("^" + ours, theirs, name)]
    for i in range(DEPTH):
        for part in ("weight", "bias"):
            qkv = [state[f"encoder.layers.{i}.self_attn.{x}_proj.{part}"] for x in "qkv"]
            found[f"visual.transformer.resblocks.{i}.attn.in_proj_{part}"] = torch.cat(qkv)
    return found


@torch.no_grad()
def test_a_tower_equals_transformers_clip() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CLIPVisionConfig(
            hidden_size=D, intermediate_size=HIDDEN, projection_dim=OUT, num_hidden_layers=DEPTH, patch_size=P,
            num_attention_heads=HEADS, image_size=GRID * P, attn_implementation="eager",
        )  # fmt: skip
        model = randomise(CLIPVisionModelWithProjection(config).eval(), 5)
    reading = FORMAT.read(raw(from_transformers(model), given={"num_heads": HEADS, "act_layer": "quick_gelu"}))
    images = pictures(3, 3, GRID * P, GRID * P)
    assert gap(model_of(reading)(images), model(images).image_embeds) <= CLOSE


def openai(**given: Any) -> Raw:
    """As OpenAI's archives hold it: half precision for matrices, and three numbers that describe the model."""
    found = {name: t.half() if t.dim() > 1 else t for name, t in tensors().items()}
    return raw({**found, **{name: torch.tensor(32) for name in OPENAI}}, given=given)


@torch.no_grad()
def test_openais_own_are_float16_with_quick_gelu(tmp_path: Path) -> None:
    torch.save(openai().tensors, tmp_path / "clip.pt")
    found = open_model(tmp_path / "clip.pt", given={"num_heads": HEADS})
    assert (found.format, found.bundle.model.act_layer) == ("clip", "quick_gelu")
    assert "weights: stored as float16, computed in float32" in found.said
    images = pictures(3, 3, GRID * P, GRID * P)
    full = {name: tensor.float() for name, tensor in openai().tensors.items()}
    assert gap(build(found.bundle)(images), literal(full, images, "quick_gelu")) <= CLOSE


def test_activation_and_heads_come_from_open_clips_config_or_are_asked_for() -> None:
    file = raw(tensors())
    with pytest.raises(UsageError, match=r"quick_gelu for OpenAI's weights.*--model.act-layer"):
        FORMAT.read(file)
    with pytest.raises(UsageError, match=r"--model.num-heads N"):
        FORMAT.read(replace(file, given={"act_layer": "gelu"}))
    tower = {"image_size": 32, "layers": DEPTH, "width": D, "patch_size": P, "head_width": 16}
    for quick in (True, False):
        config = {"model_cfg": {"vision_cfg": tower, "quick_gelu": quick}, "preprocess_cfg": {"mean": [0.5] * 3}}
        reading = FORMAT.read(replace(file, config=config))
        assert (reading.model.num_heads, reading.model.act_layer) == (3, "quick_gelu" if quick else "gelu")
        assert reading.preprocess.mean == (0.5, 0.5, 0.5)


def test_mistake_11_clip_has_constants_of_its_own() -> None:
    reading = FORMAT.read(openai(num_heads=HEADS))
    settings = reading.preprocess
    assert settings.mean == (0.48145466, 0.4578275, 0.40821073)
    assert settings.std == (0.26862954, 0.26130258, 0.27577711)
    assert settings.interpolation == "bicubic"
    assert (settings.resize, settings.crop_pct, settings.size) == ("shorter", 1.0, (32, 32))


def test_mistake_10_clip_has_torchs_epsilon() -> None:
    assert FORMAT.read(openai(num_heads=HEADS)).model.norm_eps == 1e-5


@torch.no_grad()
def test_without_its_projection_the_tower_gives_features() -> None:
    file = raw(tensors(), given={"num_heads": HEADS, "act_layer": "gelu", "num_classes": 0})
    reading = FORMAT.read(file)
    assert "visual.proj" in reading.dropped
    assert not reading.fresh
    images = pictures(3, 3, 32, 32)
    features = model_of(reading)(images)
    assert gap(features @ file.tensors["visual.proj"], literal(file.tensors, images, "gelu")) <= CLOSE


@torch.no_grad()
def test_layer_scale_multiplies_each_branch() -> None:
    """ls_1 and ls_2 of open_clip: the same as weights of the last layer of each branch, multiplied beforehand."""
    scales = {f"visual.transformer.resblocks.{i}.ls_{n}.gamma": (D,) for i in range(DEPTH) for n in (1, 2)}
    found = tensors(**scales)
    reading = FORMAT.read(raw(found, given={"num_heads": HEADS, "act_layer": "gelu"}))
    assert reading.model.init_values is not None
    folded = {name: tensor for name, tensor in found.items() if ".ls_" not in name}
    for i in range(DEPTH):
        at = f"visual.transformer.resblocks.{i}."
        for n, layer in ((1, "attn.out_proj."), (2, "mlp.c_proj.")):
            gamma = found[f"{at}ls_{n}.gamma"]
            folded[at + layer + "weight"] = folded[at + layer + "weight"] * gamma[:, None]
            folded[at + layer + "bias"] = folded[at + layer + "bias"] * gamma
    images = pictures(2, 3, 32, 32)
    assert gap(model_of(reading)(images), literal(folded, images, "gelu")) <= CLOSE


@pytest.mark.parametrize(
    ("extra", "config", "words"),
    [
        ("visual.attn_pool.query", {}, "CoCa"),
        ("", {"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}, "pool_type 'avg'"),
        ("", {"model_cfg": {"vision_cfg": {"width": D}}, "preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode"),
    ],
)
def test_towers_of_another_kind_are_refused_by_name(extra: str, config: dict[str, Any], words: str) -> None:
    found = tensors(**({extra: (D,)} if extra else {}))
    with pytest.raises(UsageError, match=words):
        FORMAT.read(raw(found, config=config, given={"num_heads": HEADS, "act_layer": "gelu"}))


def test_timm_towers_and_transformers_clip_are_refused_with_the_file_to_take() -> None:
    trunk = raw({"visual.trunk.patch_embed.proj.weight": torch.ones(1)})
    assert refused.OPEN_CLIP_TRUNK.fits(trunk)
    with pytest.raises(UsageError, match="Take the tower that timm"):
        refused.OPEN_CLIP_TRUNK.read(trunk)
    theirs = raw({"vision_model.embeddings.class_embedding": torch.ones(1)})
    assert refused.TRANSFORMERS_CLIP.fits(theirs)
    with pytest.raises(UsageError, match="OpenAI's and open_clip's layouts"):
        refused.TRANSFORMERS_CLIP.read(theirs)
