"""Blocks computed again in the backward pass: the same losses and gradients, with less kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.made import small
from vitrine.config.architecture import ResNetConfig
from vitrine.models.cost import num_kept
from vitrine.models.resnet import ResNet
from vitrine.models.vit import VisionTransformer, use_attention, use_checkpointing

NOISY: dict[str, Any] = {"depth": 3, "drop_rate": 0.2, "drop_path_rate": 0.3, "weight_init": "timm"}


def gradients(on: bool, dtype: torch.dtype | None, **options: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients, and the next random number, which tells whether the same draws were made."""
    torch.manual_seed(0)
    model = VisionTransformer(small(**{**NOISY, **options})).train()
    use_attention(model, "written")
    use_checkpointing(model, on)
    images = torch.randn(6, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        loss = model(images).float().square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, torch.rand(3)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pos_embed": "rope2d", "pos_at": "layers"},
        {"pos_embed": "rel_bias2d", "pos_at": "layers_shared", "drop_path_rate": 0.0},
    ],
    ids=["plain", "rotary", "shared relative positions"],
)
def test_gradients_are_those_of_the_plain_way(dtype: torch.dtype | None, options: dict[str, Any]) -> None:
    loss, found, drawn = gradients(True, dtype, **options)
    wanted_loss, wanted, wanted_drawn = gradients(False, dtype, **options)
    assert torch.equal(loss, wanted_loss) and torch.equal(drawn, wanted_drawn)
    assert found.keys() == wanted.keys() and len(found) > 30
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0 or name.endswith("bias"), name
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)


def test_blocks_are_run_twice_in_training_and_once_without_gradients() -> None:
    model = VisionTransformer(small(depth=2, weight_init="timm"))
    use_checkpointing(model, True)
    runs: list[int] = []
    for number, block in enumerate(model.blocks):
        block.norm1.register_forward_hook(lambda *_, number=number: runs.append(number))
    images = torch.randn(2, 3, 16, 16)
    model.train()(images).sum().backward()
    assert sorted(runs) == [0, 0, 1, 1]
    runs.clear()
    with torch.no_grad():
        model(images)
    model.eval()(images)
    assert runs == [0, 1, 0, 1]


def test_less_is_kept() -> None:
    def kept(on: bool) -> int:
        model = VisionTransformer(small(depth=6, weight_init="timm")).train()
        use_checkpointing(model, on)
        own = {p.data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(torch.randn(4, 3, 16, 16)).sum()
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(True) < kept(False) / 4


def test_the_cost_counts_the_inputs_of_the_blocks_and_one_block() -> None:
    config = small(depth=5)
    N, D, h = config.num_tokens, config.embed_dim, config.num_heads
    block = N * (34 * D + 5 * h * N)
    assert num_kept(config) == 5 * block
    assert num_kept(config, checkpointing=True) == 5 * N * D + block
    assert num_kept(config, fused=True) == 5 * N * 34 * D
    shaw = small(depth=5, pos_embed="rel_shaw", pos_at="layers")
    assert num_kept(shaw, fused=True) == num_kept(shaw)  # its values are relative, so the weights are formed


def test_a_resnet_is_left_as_it_is() -> None:
    model = ResNet(small(family="resnet", resnet=ResNetConfig(layers=(1, 1)), img_size=64))
    use_checkpointing(model, True)
    assert not hasattr(model, "grad_checkpointing")
