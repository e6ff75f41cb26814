"""The attention that is shown is the attention that was used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.toys import pictures, toy
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import UsageError
from vitrine.explain.attention import grid_of, maps, weights
from vitrine.models.vit import VisionTransformer

DTYPES = {torch.float32: 4e-6, torch.float64: 1e-12}


VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"qk_norm": True, "distilled": True, "reg_tokens": 2, "mlp_layer": "swiglu", "init_values": 0.1},
    {"pos_embed": "learn2d", "pos_at": "layers"},
    {"pos_embed": "sincos1d", "pos_at": "layers"},
    {"pos_embed": "rel1d", "pos_at": "layers"},
    {"pos_embed": "rel1d", "pos_at": "layers_shared"},
    {"pos_embed": "rel_shaw", "pos_at": "layers", "pos_clip": 3},
    {"pos_embed": "rel_shaw", "pos_at": "layers_shared", "no_embed_class": True},
    {"pos_embed": "rel_bias2d", "pos_at": "layers"},
    {"pos_embed": "rel_bias2d", "pos_at": "layers_shared"},
    {"pos_embed": "rope2d", "pos_at": "layers", "reg_tokens": 2},
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", [(32, 32), (24, 40)])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: " ".join(map(str, o.values())) or "plain")
def test_rows_sum_to_one_and_weights_times_values_is_what_attention_computed(
    options: dict[str, Any], sides: tuple[int, int], dtype: torch.dtype
) -> None:
    model, tolerance = toy(**options).to(dtype), DTYPES[dtype]
    images = pictures(2, 3, *sides, dtype=dtype)
    received, computed = [], []
    hooks = [
        block.attn.register_forward_hook(lambda _, x, y: (received.append(x), computed.append(y), None)[-1])
        for block in model.blocks
    ]
    N = model.num_prefix_tokens + sides[0] * sides[1] // 64
    found = maps(model, images)
    for hook in hooks:
        hook.remove()
    assert list(found) == [0, 1]
    for number, block in enumerate(model.blocks):
        assert found[number].dtype == dtype
        torch.testing.assert_close(found[number].sum(-1), torch.ones(2, 3, N, dtype=dtype), rtol=0, atol=tolerance)
        q, _, v = block.attn.heads(*received[number])
        _, more = block.attn.relative(q, received[number][1])
        assert (more is not None) is (options.get("pos_embed") == "rel_shaw")
        mixed = found[number] @ v + (0 if more is None else more(found[number]))
        again = block.attn.proj(mixed.transpose(1, 2).flatten(2))
        torch.testing.assert_close(again, computed[number], rtol=0, atol=tolerance)


def test_softmax_of_the_scaled_products_element_by_element() -> None:
    attention = toy().double().blocks[0].attn
    x = pictures(1, 4, 48, dtype=torch.float64)
    found = weights(attention, x).detach()
    q, k = (part.detach() for part in attention.heads(x)[:2])
    for head, i, j in [(0, 0, 0), (1, 2, 3), (2, 3, 1)]:
        exponents = [float(torch.dot(q[0, head, i], k[0, head, other])) / 4 for other in range(4)]  # d = 16
        total = sum(torch.tensor(exponents, dtype=torch.float64).exp().tolist())
        expected = torch.tensor(exponents[j], dtype=torch.float64).exp().item() / total
        assert found[0, head, i, j].item() == pytest.approx(expected, abs=1e-14)


def test_chosen_layers_come_by_their_number_and_agree_with_all() -> None:
    model, images = toy(depth=4), pictures(1, 3, 32, 32)
    every, some = maps(model, images), maps(model, images, [-1, 1, 3])
    assert list(some) == [1, 3]
    assert all(torch.equal(some[layer], every[layer]) for layer in some)
    assert maps(model, images, []) == {}


@pytest.mark.parametrize("layer", [2, -3, 99])
def test_a_layer_that_is_not_there_is_refused_with_the_range(layer: int) -> None:
    with pytest.raises(UsageError, match=rf"layer {layer}: .* 0 to 1, or -2 to -1"):
        maps(toy(), pictures(1, 3, 32, 32), [0, layer])


def state(model: VisionTransformer) -> tuple[list[bool], int]:
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    return [module.training for module in model.modules()], hooks


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = toy(drop_rate=0.5, drop_path_rate=0.5).train()
    model.blocks[1].eval()
    before = state(model)
    first = maps(model, pictures(2, 3, 32, 32))
    assert state(model) == before
    assert torch.equal(first[1], maps(model, pictures(2, 3, 32, 32))[1])  # no dropout: evaluation mode
    assert not first[1].requires_grad
    for wrong in (pictures(1, 3, 33, 32), pictures(1, 4, 32, 32)):
        with pytest.raises(UsageError):
            maps(model, wrong)
        assert state(model) == before


def test_an_error_within_a_block_removes_the_hooks_too() -> None:
    model = toy()
    before = state(model)
    model.blocks[1].mlp.fc1.weight.data = torch.zeros(1, 1)
    with pytest.raises(RuntimeError):
        maps(model, pictures(1, 3, 32, 32))
    assert state(model) == before


def test_low_precision_models_and_autocast_give_float32() -> None:
    images = pictures(1, 3, 32, 32)
    exact = maps(toy(), images)[1]
    with torch.autocast("cpu", torch.bfloat16):
        cast = maps(toy(), images)[1]
    low = maps(toy().bfloat16(), images.bfloat16())[1]
    for found in (cast, low):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 3, 17), rtol=0, atol=1e-6)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.05)


def test_the_grid_is_that_of_the_pictures() -> None:
    model, images = toy(), pictures(1, 3, 24, 40)
    assert grid_of(model, images) == (3, 5)
    assert maps(model, images)[0].shape == (1, 3, 16, 16)
    hybrid = toy(family="hybrid", patch_size=1, img_size=32, resnet=ResNetConfig(layers=(1,)))
    assert grid_of(hybrid, images) == (6, 10)
    assert maps(hybrid, images)[0].shape == (1, 3, 61, 61)
