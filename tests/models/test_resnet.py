"""The ResNet of BiT and of the hybrids against slow, literal sums, and as a network of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.toys import pictures, randomise
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.models import STEM
from vitrine.errors import BadConfig, UsageError
from vitrine.models.init import TRUNCATED_STD, zero_head
from vitrine.models.networks import first_filter, network
from vitrine.models.resnet import Bottleneck, ResNet, ResNetStem, Root, StdConv, pad
from vitrine.models.vit import VisionTransformer, use_attention

JEONSWORLD: dict[str, Any] = {
    "preact": False, "padding": "fixed", "conv_eps": 1e-5, "norm_eps": 1e-6, "pool_padding": False,
    "shortcut_norm": "channels",
}  # fmt: skip


def own(**options: Any) -> ResNetConfig:
    return ResNetConfig(**{"layers": (1, 2), **options})


def config(**options: Any) -> ModelConfig:
    return ModelConfig(**{"family": "resnet", "resnet": own(), "img_size": 32, "num_classes": 5, **options})


def toy(seed: int = 0, **options: Any) -> ResNet:
    torch.manual_seed(seed)
    model = network(config(**options))
    assert isinstance(model, ResNet)
    return randomise(model, seed).eval()


def slow_convolution(x: np.ndarray, kernel: np.ndarray, stride: int, same: bool, eps: float, at: str) -> np.ndarray:
    """A standardised convolution of one picture (H, W, C) with `kernel` (h, w, C, D), one output at a time."""
    h, w, C, D = kernel.shape
    filters = np.empty_like(kernel)
    for d in range(D):
        numbers = [kernel[i, j, c, d] for i in range(h) for j in range(w) for c in range(C)]
        mean = sum(numbers) / len(numbers)
        variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
        filters[..., d] = (kernel[..., d] - mean) / (variance**0.5 + eps if at == "std" else (variance + eps) ** 0.5)
    sides, before = [], []
    for side in x.shape[:2]:
        out = -(-side // stride) if same else (side + 2 * ((h - 1) // 2) - h) // stride + 1
        sides.append(out)
        before.append(max(0, (out - 1) * stride + h - side) // 2 if same else (h - 1) // 2)
    y = np.zeros((*sides, D))
    for row in range(sides[0]):
        for column in range(sides[1]):
            for i in range(h):
                for j in range(w):
                    r, c = row * stride + i - before[0], column * stride + j - before[1]
                    if 0 <= r < x.shape[0] and 0 <= c < x.shape[1]:
                        y[row, column] += x[r, c] @ filters[i, j]
    return y


def slow_norm(x: np.ndarray, groups: int, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """GroupNorm of one map (H, W, C)."""
    parts = [(part - part.mean()) / np.sqrt(part.var() + eps) for part in np.split(x, groups, axis=-1)]
    return np.concatenate(parts, axis=-1) * scale + bias


def slow_maximum(x: np.ndarray) -> np.ndarray:
    """max_pool of 3 x 3 and stride 2 with SAME padding, over what is inside the map."""
    out = [-(-side // 2) for side in x.shape[:2]]
    before = [max(0, (o - 1) * 2 + 3 - side) // 2 for o, side in zip(out, x.shape[:2], strict=True)]
    y = np.empty((*out, x.shape[2]))
    for row in range(out[0]):
        for column in range(out[1]):
            top, left = row * 2 - before[0], column * 2 - before[1]
            y[row, column] = x[max(0, top) : top + 3, max(0, left) : left + 3].max(axis=(0, 1))
    return y


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "wanted"),
    [(224, 7, 2, (2, 3)), (56, 3, 2, (0, 1)), (112, 3, 2, (0, 1)), (55, 3, 2, (1, 1)), (56, 3, 1, (1, 1))],
)
def test_mistake_8_same_pads_more_below_and_to_the_right(
    side: int, kernel: int, stride: int, wanted: tuple[int, int]
) -> None:
    x = torch.ones(1, 1, side, side)
    rows = pad(x, kernel, stride, "same").sum(dim=(0, 1, 3)) > 0
    assert (int(rows.int().argmax()), int(rows.flip(0).int().argmax())) == wanted
    half = (kernel - 1) // 2
    assert pad(x, kernel, stride, "fixed").shape[-2:] == (side + 2 * half, side + 2 * half)


@pytest.mark.parametrize("padding", ["same", "fixed"])
@pytest.mark.parametrize(("at", "eps"), [("std", 1e-2), ("var", 1e-2), ("std", 1e-5), ("var", 1e-10)])
@pytest.mark.parametrize(
    ("kernel", "stride", "sides"), [(7, 2, (12, 8)), (3, 2, (7, 10)), (3, 1, (5, 4)), (1, 2, (6, 4))]
)
@torch.no_grad()
def test_convolution_is_the_literal_one(
    padding: Any, at: Any, eps: float, kernel: int, stride: int, sides: tuple[int, int]
) -> None:
    conv = StdConv(own(padding=padding, conv_eps_at=at, conv_eps=eps), (3, 4), kernel, stride).double()
    conv.weight.copy_(0.05 * pictures(4, 3, kernel, kernel, seed=2, dtype=torch.float64) + 0.02)
    x = pictures(1, 3, *sides, dtype=torch.float64)
    literal = slow_convolution(
        x[0].permute(1, 2, 0).numpy(), conv.weight.permute(2, 3, 1, 0).numpy(), stride, padding == "same", eps, at
    )
    np.testing.assert_allclose(conv(x)[0].permute(1, 2, 0).numpy(), literal, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_stem_of_a_hybrid_is_googles_sum_by_sum() -> None:
    """models_resnet.py, conv_root to block2: SAME, deviation + 1e-5, groups with epsilon 1e-6, ReLU after the sum."""
    stem = randomise(ResNetStem(own(layers=(1, 1), **STEM), 3).double())
    x = pictures(1, 3, 16, 24, dtype=torch.float64)
    state = {name: value.numpy() for name, value in stem.state_dict().items()}

    def convolved(y: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        return slow_convolution(y, kernel, stride, True, 1e-5, "std")

    def normed(y: np.ndarray, name: str) -> np.ndarray:
        return slow_norm(y, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    y = slow_maximum(normed(convolved(x[0].permute(1, 2, 0).numpy(), "stem.conv", 2), "stem.norm").clip(0))
    for stage, stride in ((0, 1), (1, 2)):
        at = f"stages.{stage}.blocks.0."
        beside = normed(convolved(y, f"{at}downsample.conv", stride), f"{at}downsample.norm")
        z = normed(convolved(y, f"{at}conv1"), f"{at}norm1").clip(0)
        z = normed(convolved(z, f"{at}conv2", stride), f"{at}norm2").clip(0)
        y = (normed(convolved(z, f"{at}conv3"), f"{at}norm3") + beside).clip(0)
    found = stem(x)[0].permute(1, 2, 0).numpy()
    assert found.std() > 0.1
    np.testing.assert_allclose(found, y, rtol=0, atol=1e-9)
    shifted = ResNetStem(own(layers=(1, 1), **{**STEM, "padding": "fixed"}), 3).double()
    shifted.load_state_dict(stem.state_dict())
    assert (shifted(x) - stem(x)).abs().max() > 0.1


@torch.no_grad()
def test_mistake_7_and_8_numerics_of_jeonsworlds_hybrids() -> None:
    """modeling_resnet.py: symmetric padding, no border around the maximum, a group a channel beside the unit."""
    stem = randomise(ResNetStem(own(layers=(1, 1), **JEONSWORLD), 3))
    for parameter in stem.stem.norm.parameters():
        parameter *= 1e-2  # a map so faint that the epsilons of the norms after it show
    x = pictures(2, 3, 64, 32)
    state = stem.state_dict()

    def convolved(y: Tensor, name: str, stride: int = 1) -> Tensor:
        w = state[f"{name}.weight"]
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(y, (w - m) / torch.sqrt(v + 1e-5), stride=stride, padding=w.shape[-1] // 2)

    def normed(y: Tensor, name: str, groups: int = 32, eps: float = 1e-6) -> Tensor:
        return F.group_norm(y, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    y = F.max_pool2d(normed(convolved(x, "stem.conv", 2), "stem.norm").relu(), 3, 2)
    assert y.shape[-2:] == (15, 7)
    for stage, stride in ((0, 1), (1, 2)):
        at = f"stages.{stage}.blocks.0."
        beside = convolved(y, f"{at}downsample.conv", stride)
        beside = normed(beside, f"{at}downsample.norm", beside.shape[1], 1e-5)
        z = normed(convolved(y, f"{at}conv1"), f"{at}norm1").relu()
        z = normed(convolved(z, f"{at}conv2", stride), f"{at}norm2").relu()
        y = (normed(convolved(z, f"{at}conv3"), f"{at}norm3") + beside).relu()
    torch.testing.assert_close(stem(x), y, rtol=0, atol=1e-5)
    assert y.shape[-2:] == (8, 4)


@torch.no_grad()
def test_mistake_8_the_maximum_has_zeros_around_it_in_bit_and_nothing_in_jax() -> None:
    root = Root(own(), 3)
    root.conv.weight.copy_(-pictures(64, 3, 7, 7).abs())
    x = pictures(1, 3, 16, 16).abs()
    mapped = root.conv(x)
    expected = F.max_pool2d(nn.ConstantPad2d(1, 0.0)(mapped), 3, 2)
    torch.testing.assert_close(root(x), expected, rtol=0, atol=0)
    bare = F.max_pool2d(mapped, 3, 2, padding=1)
    assert (expected - bare).abs().max() > 0.1, "a border of zeros must show where everything is below zero"
    jax = Root(own(padding="same"), 3)
    jax.load_state_dict(root.state_dict())
    mapped = jax.conv(x)
    torch.testing.assert_close(jax(x), F.max_pool2d(F.pad(mapped, (0, 1, 0, 1), value=-torch.inf), 3, 2))


@pytest.mark.parametrize("preact", [True, False])
@torch.no_grad()
def test_a_batch_is_its_pictures_one_by_one(preact: bool) -> None:
    model = toy(resnet=own(preact=preact)).double()
    images = pictures(3, 3, 32, 48, dtype=torch.float64)
    together = model(images)
    assert together.shape == (3, 5)
    assert together.std() > 0.01
    for i in range(3):
        torch.testing.assert_close(model(images[i : i + 1])[0], together[i], rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_head_sees_the_mean_of_the_normalised_map() -> None:
    model, images = toy(), pictures(2, 3, 32, 32)
    last = model.features(images, [-1])[0]
    assert last.shape == (2, 512, 4, 4)
    assert last.min() == 0
    torch.testing.assert_close(model.forward_features(images), last)
    torch.testing.assert_close(model(images), last.mean((2, 3)) @ model.head.weight.t() + model.head.bias)
    assert torch.equal(toy(num_classes=0)(images), toy(num_classes=0).forward_features(images).mean((2, 3)))


def test_features_are_the_stages_with_gradients() -> None:
    model = toy(resnet=own(layers=(1, 1, 2)))
    images = pictures(2, 3, 32, 64).requires_grad_()
    last, first = model.features(images, [2, 0], norm=False)
    assert (first.shape, last.shape) == ((2, 256, 8, 16), (2, 1024, 2, 4))
    assert last.min() < 0
    torch.testing.assert_close(model.ready(last), model.features(images)[0])
    torch.testing.assert_close(first, model.features(images, [0])[0])
    last.square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    for layer in (3, -4):
        with pytest.raises(UsageError, match=f"layer {layer}: the model has 3 layers, 0 to 2"):
            model.features(images, [layer])


@pytest.mark.parametrize("family", ["resnet", "hybrid"])
def test_pictures_that_do_not_fit_are_refused_alike(family: Any) -> None:
    options: dict[str, Any] = {"family": family, "embed_dim": 48, "depth": 1, "num_heads": 3, "patch_size": 1}
    model = network(config(**options))
    with pytest.raises(UsageError, match="the pictures have 1 channels, the model takes 3"):
        model(pictures(1, 1, 32, 32))
    with pytest.raises(UsageError, match=r"32x30 pixels cannot be cut into patches of 8: resize them to 32x32"):
        model(pictures(1, 3, 32, 30))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"resnet": own(layers=())}, r"model\.resnet\.layers = \(\): must be a stage"),
        ({"drop_rate": 0.1}, r"model\.drop_rate = 0\.1: a ResNet has none"),
        ({"representation_size": 8}, r"model\.representation_size = 8: a ResNet has none"),
        ({"distilled": True}, r"model\.distilled = True: a ResNet has none"),
        ({"img_size": 36}, r"model\.img_size = 36: must be a multiple of 8"),
    ],
)
def test_options_that_a_resnet_does_not_have_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadConfig, match=why):
        config(**options)


def test_a_root_without_border_needs_two_stages() -> None:
    with pytest.raises(BadConfig, match="pool_padding"):
        ResNetConfig(layers=(1,), pool_padding=False)


def test_beginning_as_google_does() -> None:
    torch.manual_seed(0)
    model = toy_without_noise(config(resnet=own(**STEM)))
    for module in model.modules():
        if isinstance(module, StdConv):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
            assert module.weight.abs().max() <= 2 * fan_in**-0.5 / TRUNCATED_STD + 1e-6
        if isinstance(module, Bottleneck):
            assert not module.norm3.weight.any()
            assert bool((module.norm2.weight == 1).all())
    assert not model.head.weight.any()
    bit = toy_without_noise(config())
    assert all(bool((m.weight == 1).all()) for m in bit.modules() if isinstance(m, nn.GroupNorm))


def test_beginning_as_timm_does() -> None:
    torch.manual_seed(0)
    model = toy_without_noise(config(weight_init="timm", num_classes=100))
    for module in model.modules():
        if isinstance(module, StdConv):
            fan_out = module.weight.shape[0] * module.kernel**2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    zero_head(model)
    assert not model.head.weight.any()


@pytest.mark.parametrize("scheme", ["jax", "timm"])
def test_the_stem_of_a_hybrid_begins_by_the_same_scheme(scheme: Any) -> None:
    torch.manual_seed(0)
    model = network(
        config(
            family="hybrid", resnet=own(**STEM), embed_dim=48, depth=1, num_heads=3, patch_size=1, weight_init=scheme
        )
    )
    assert isinstance(model, VisionTransformer)
    assert model.patch_embed.backbone is not None
    root = model.patch_embed.backbone.stem.conv.weight
    wanted = (3 * 49) ** -0.5 if scheme == "jax" else (2 / (64 * 49)) ** 0.5
    assert root.std().item() == pytest.approx(wanted, rel=0.05)
    assert model.get_parameter(first_filter(model.config)) is root


def test_a_network_without_attention_is_left_as_it_is() -> None:
    model, images = toy(), pictures(1, 3, 32, 32)
    before = model(images)
    use_attention(model, "written")
    assert torch.equal(model(images), before)


def toy_without_noise(config: ModelConfig) -> ResNet:
    model = network(config)
    assert isinstance(model, ResNet)
    return model


def test_eight_pictures_are_learnt_by_heart() -> None:
    model = toy_without_noise(config(resnet=own(layers=(1,)), num_classes=8)).train()
    torch.manual_seed(0)
    images, labels = pictures(8, 3, 16, 16), torch.arange(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
