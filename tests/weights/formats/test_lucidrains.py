"""Files in the older layout of lucidrains' vit-pytorch, against a literal forward pass; the newer ones refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.toys import pictures
from tests.weights.formats import home
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import BadData, UsageError
from vitrine.weights.formats import refused
from vitrine.weights.formats.lucidrains import FORMAT

CLOSE = 2e-5
D, DEPTH, P, GRID, HIDDEN, CLASSES, HEADS, WIDE = 24, 2, 4, 3, 40, 5, 3, 16
GIVEN = {"num_heads": HEADS, "act_layer": "gelu"}


def tensors(channels: int = 3, *, mlp: bool = True, hidden_head: int = 0) -> dict[str, Tensor]:
    """A model's tensors: heads of 16, so that they are wider together than a token; no bias on q, k, v."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embedding": (1, GRID**2 + 1, D), "cls_token": (1, 1, D),
        "to_patch_embedding.1.weight": (D, P * P * channels), "to_patch_embedding.1.bias": (D,),
    }  # fmt: skip
    for i in range(DEPTH):
        at = f"transformer.layers.{i}." + ("0." if mlp else "")
        shapes |= {
            at + "norm.weight": (D,), at + "norm.bias": (D,), at + "fn.to_qkv.weight": (3 * HEADS * WIDE, D),
            at + "fn.to_out.0.weight": (D, HEADS * WIDE), at + "fn.to_out.0.bias": (D,),
        }  # fmt: skip
        at = f"transformer.layers.{i}.1."
        if mlp:
            shapes |= {
                at + "norm.weight": (D,), at + "norm.bias": (D,), at + "fn.net.0.weight": (HIDDEN, D),
                at + "fn.net.0.bias": (HIDDEN,), at + "fn.net.3.weight": (D, HIDDEN), at + "fn.net.3.bias": (D,),
            }  # fmt: skip
    shapes |= {"mlp_head.0.weight": (D,), "mlp_head.0.bias": (D,)}
    if hidden_head:
        shapes |= {"mlp_head.1.weight": (hidden_head, D), "mlp_head.1.bias": (hidden_head,)}
    last = "mlp_head.4." if hidden_head else "mlp_head.1."
    shapes |= {last + "weight": (CLASSES, hidden_head or D), last + "bias": (CLASSES,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def literal(t: Mapping[str, Tensor], images: Tensor, act: Any) -> Tensor:
    """The model written out, pixel by pixel of a patch: rows, columns, then channels."""
    B, _, H, W = images.shape
    patches = [
        images[:, :, y : y + P, x : x + P].permute(0, 2, 3, 1).reshape(B, -1)
        for y in range(0, H, P)
        for x in range(0, W, P)
    ]
    x = F.linear(torch.stack(patches, 1), t["to_patch_embedding.1.weight"], t["to_patch_embedding.1.bias"])
    x = torch.cat([t["cls_token"].expand(B, 1, D), x], dim=1) + t["pos_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), t[name + "weight"], t[name + "bias"], 1e-5)

    mlp = "transformer.layers.0.0.norm.weight" in t
    for i in range(DEPTH):
        at = f"transformer.layers.{i}." + ("0." if mlp else "")
        q, k, v = (norm(x, at + "norm.") @ t[at + "fn.to_qkv.weight"].T).chunk(3, dim=-1)
        mixed = []
        for h in range(HEADS):
            part = slice(h * WIDE, (h + 1) * WIDE)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) * WIDE**-0.5).softmax(-1)
            mixed.append(weights @ v[..., part])
        x = x + F.linear(torch.cat(mixed, -1), t[at + "fn.to_out.0.weight"], t[at + "fn.to_out.0.bias"])
        if mlp:
            at = f"transformer.layers.{i}.1."
            y = act(F.linear(norm(x, at + "norm."), t[at + "fn.net.0.weight"], t[at + "fn.net.0.bias"]))
            x = x + F.linear(y, t[at + "fn.net.3.weight"], t[at + "fn.net.3.bias"])
    y = F.linear(norm(x[:, 0], "mlp_head.0."), t["mlp_head.1.weight"], t["mlp_head.1.bias"])
    return F.linear(F.gelu(y), t["mlp_head.4.weight"], t["mlp_head.4.bias"]) if "mlp_head.4.weight" in t else y


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hidden_head", [0, 12])
@pytest.mark.parametrize("act", ["gelu", "relu"])
@torch.no_grad()
def test_a_classifier_equals_the_literal_forward_pass(channels: int, hidden_head: int, act: str) -> None:
    file = raw(tensors(channels, hidden_head=hidden_head), given={**GIVEN, "act_layer": act})
    assert FORMAT.fits(file)
    reading = FORMAT.read(file)
    assert set(reading.used) == set(file.tensors)
    images = pictures(3, channels, GRID * P, GRID * P)
    wanted = literal(file.tensors, images, F.gelu if act == "gelu" else F.relu)
    assert gap(model_of(reading)(images), wanted) <= CLOSE
    assert (reading.model.in_chans, reading.model.patch_size, reading.model.head_dim) == (channels, P, WIDE)


@torch.no_grad()
def test_mistake_10_epsilon_is_torchs() -> None:
    found = home.faint(tensors(), "cls_token", "pos_embedding", "to_patch_embedding")
    images = pictures(3, 3, GRID * P, GRID * P)
    right = literal(found, images, F.gelu)
    assert gap(model_of(FORMAT.read(raw(found, given=GIVEN)))(images), right) <= CLOSE
    assert gap(model_of(FORMAT.read(raw(found, given={**GIVEN, "norm_eps": 1e-6})))(images), right) > 1e-3


@torch.no_grad()
def test_attention_alone_gets_an_mlp_that_adds_zero() -> None:
    file = raw(tensors(mlp=False), given={"num_heads": HEADS})
    assert FORMAT.fits(file)
    reading = FORMAT.read(file)
    images = pictures(3, 3, GRID * P, GRID * P)
    assert gap(model_of(reading)(images), literal(file.tensors, images, F.gelu)) <= CLOSE
    assert len(reading.fresh) == 6 * DEPTH
    assert reading.model.mlp_dim == 1


def test_heads_and_activation_are_asked_for_together_by_name() -> None:
    with pytest.raises(UsageError, match=r"--model.num-heads N \(N divides 48.*--model.act-layer gelu"):
        FORMAT.read(raw(tensors()))
    with pytest.raises(UsageError, match=r"Give it: --model.act-layer gelu"):
        FORMAT.read(raw(tensors(), given={"num_heads": HEADS}))
    with pytest.raises(UsageError, match="num_heads = 5 does not divide 48"):
        FORMAT.read(raw(tensors(), given={**GIVEN, "num_heads": 5}))


def test_what_the_file_does_not_hold_is_said() -> None:
    said = " ".join(FORMAT.read(raw(tensors(), given=GIVEN)).said)
    assert "mean and deviation are not in the file" in said
    assert "the class token is assumed" in said


def test_a_missing_tensor_and_an_odd_patch_are_named() -> None:
    found = tensors()
    del found["transformer.layers.1.1.fn.net.3.bias"]
    with pytest.raises(BadData, match=r"missing: transformer.layers.1.1.fn.net.3.bias"):
        FORMAT.read(raw(found, given=GIVEN))
    odd = {**tensors(), "to_patch_embedding.1.weight": torch.ones(D, 50)}
    with pytest.raises(UsageError, match="50 inputs, which are no square patch"):
        FORMAT.read(raw(odd, given=GIVEN))


def now() -> dict[str, Tensor]:
    """The first tensors of the layout of today: a norm, the patch filter, a norm."""
    return {
        "pos_embedding": torch.ones(10, D), "cls_token": torch.ones(1, D),
        "to_patch_embedding.1.weight": torch.ones(48),
        "to_patch_embedding.2.weight": torch.ones(D, 48), "to_patch_embedding.3.weight": torch.ones(D),
        "transformer.layers.0.0.norm.weight": torch.ones(D), "transformer.layers.0.0.to_qkv.weight": torch.ones(144, D),
    }  # fmt: skip


def simple() -> dict[str, Tensor]:
    return {
        "to_patch_embedding.1.weight": torch.ones(D, 48), "linear_head.1.weight": torch.ones(5, D),
        "transformer.layers.0.0.to_qkv.weight": torch.ones(144, D),
    }  # fmt: skip


def torch_encoder() -> dict[str, Tensor]:
    with torch.device("cpu"):
        encoder = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False
        )
    return {f"transformer.{name}": tensor for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("found", "format", "words"),
    [
        (now(), refused.LUCIDRAINS, "A plain ViT has no norm of the pixels of a patch"),
        (simple(), refused.SIMPLE_VIT, "the file holds neither them nor the size"),
        (torch_encoder(), refused.TORCH_ENCODER, "norms stand after each branch"),
    ],
)
def test_what_cannot_be_converted_exactly_is_refused_with_the_reason(found: Any, format: Any, words: str) -> None:
    file = raw(found)
    fitting = [each.name for each in refused.FORMATS if each.fits(file)]
    assert fitting == [format.name]
    assert not FORMAT.fits(file)
    with pytest.raises(UsageError, match=words):
        format.read(replace(file, path="model.pt"))
