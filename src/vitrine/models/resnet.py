"""BiT's ResNetV2 (arXiv:1912.11370): the baseline of the ViT paper, and the stem of its hybrids.

Weights are standardised before each convolution (arXiv:1903.10520) and activations normalised in groups, so
that a picture's output does not depend on the rest of the batch. Parameter names are timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.errors import UsageError
from vitrine.models.init import bias_heads, lecun_normal

GROUPS = 32


def check_pictures(images: Float[Tensor, "B C H W"], in_chans: int, stride: int) -> None:
    """Raise `UsageError` for pictures of other channels, or of sides that are no multiples of `stride`."""
    _, C, H, W = images.shape
    if in_chans != C:
        raise UsageError(f"the pictures have {C} channels, the model takes {in_chans}.")
    if H % stride or W % stride or min(H, W) == 0:
        fit = "x".join(str(max(1, round(side / stride)) * stride) for side in (H, W))
        what = f"pictures of {H}x{W} pixels cannot be cut into patches of {stride}"
        raise UsageError(f"{what}: resize them to {fit}.")


def pad(x: Float[Tensor, "B C H W"], kernel: int, stride: int, how: str, value: float = 0.0) -> Tensor:
    """`x` with the border that a convolution or pooling of `kernel` and `stride` asks for.

    `fixed` is (kernel - 1) // 2 on every side. `same` makes the output ceil(side / stride) long and puts the
    odd row below and to the right, as JAX and TensorFlow do: the map lies half a stride elsewhere.
    """
    if how == "fixed":
        above = left = (kernel - 1) // 2
        below, right = above, left
    else:
        H, W = x.shape[-2:]
        high, wide = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (H, W))
        above, left = high // 2, wide // 2
        below, right = high - above, wide - left
    return F.pad(x, (left, right, above, below), value=value) if above or below or left or right else x


class StdConv(nn.Module):
    """A convolution without bias whose filters have mean 0 and deviation 1 (biased, over channels and cells)."""

    def __init__(self, config: ResNetConfig, channels: tuple[int, int], kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, config.padding
        self.eps, self.eps_at = config.conv_eps, config.conv_eps_at
        shape = (channels[1], channels[0], kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.get_default_dtype()))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The convolution of `x` with the standardised filters."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        deviation = variance.sqrt() + self.eps if self.eps_at == "std" else (variance + self.eps).sqrt()
        weight = (self.weight - mean) / deviation
        return F.conv2d(pad(x, self.kernel, self.stride, self.padding), weight, stride=self.stride)


class Root(nn.Module):
    """7 x 7 convolution of stride 2, and a 3 x 3 maximum of stride 2; norm and ReLU between unless `preact`."""

    def __init__(self, config: ResNetConfig, in_chans: int) -> None:
        super().__init__()
        width = 64 * config.width_factor
        self.padding, self.pool_padding = config.padding, config.pool_padding
        self.conv = StdConv(config, (in_chans, width), 7, 2)
        self.norm = nn.Identity() if config.preact else nn.GroupNorm(GROUPS, width, eps=config.norm_eps)
        self.preact = config.preact

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The map, a quarter as high and wide."""
        x = self.conv(images)
        if not self.preact:
            x = self.norm(x).relu()
        if self.pool_padding:
            # BiT has zeros here; JAX's SAME nothing that could be a maximum. After a ReLU both agree.
            x = pad(x, 3, 2, self.padding, 0.0 if self.padding == "fixed" else -float("inf"))
        return F.max_pool2d(x, 3, 2)


class Shortcut(nn.Module):
    """The 1 x 1 convolution beside a unit that changes width or stride; a norm after it unless `preact`."""

    def __init__(self, config: ResNetConfig, channels: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.conv = StdConv(config, channels, 1, stride)
        alone = config.shortcut_norm == "channels"
        groups, eps = (channels[1], 1e-5) if alone else (GROUPS, config.norm_eps)
        self.norm = nn.Identity() if config.preact else nn.GroupNorm(groups, channels[1], eps=eps)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """norm(conv(x))."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride), 1 x 1 convolutions, and a shortcut.

    With `preact` (arXiv:1603.05027) norm and ReLU stand before each convolution and the sum stays bare;
    otherwise after each, and the ReLU of the last comes after the sum.
    """

    def __init__(self, config: ResNetConfig, channels: tuple[int, int], stride: int) -> None:
        super().__init__()
        enter, leave = channels
        inner = leave // 4
        self.preact = config.preact
        widths = (enter, inner, inner) if config.preact else (inner, inner, leave)
        self.conv1 = StdConv(config, (enter, inner), 1)
        self.conv2 = StdConv(config, (inner, inner), 3, stride)
        self.conv3 = StdConv(config, (inner, leave), 1)
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(GROUPS, width, eps=config.norm_eps) for width in widths)
        changes = stride != 1 or enter != leave
        self.downsample = Shortcut(config, channels, stride) if changes else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The map after the unit."""
        if self.preact:
            ready = self.norm1(x).relu()
            shortcut = x if self.downsample is None else self.downsample(ready)
            y = self.conv2(self.norm2(self.conv1(ready)).relu())
            return self.conv3(self.norm3(y).relu()) + shortcut
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        return (self.norm3(self.conv3(y)) + shortcut).relu()


class Stage(nn.Module):
    """Units of one width; the first has the stride."""

    def __init__(self, config: ResNetConfig, number: int, enter: int) -> None:
        super().__init__()
        leave, stride = 256 * config.width_factor * 2**number, 1 if number == 0 else 2
        self.blocks = nn.Sequential(
            *(
                Bottleneck(config, (enter if unit == 0 else leave, leave), stride if unit == 0 else 1)
                for unit in range(config.layers[number])
            )
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The map after the stage."""
        return self.blocks(x)


def stages(config: ResNetConfig) -> nn.Sequential:
    """The stages after the root, each twice as wide as the one before."""
    root = 64 * config.width_factor
    return nn.Sequential(
        *(Stage(config, i, root if i == 0 else root * 4 * 2 ** (i - 1)) for i in range(len(config.layers)))
    )


class ResNetStem(nn.Module):
    """Root and stages: picture to map, `config.stride` times smaller and `config.width` channels deep."""

    def __init__(self, config: ResNetConfig, in_chans: int, weight_init: Literal["jax", "timm"] = "jax") -> None:
        super().__init__()
        self.stem = Root(config, in_chans)
        self.stages = stages(config)
        initialise(self, weight_init)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D gh gw"]:
        """The last map."""
        return self.stages(self.stem(images))


class ResNet(nn.Module):
    """Picture to class scores by convolutions alone (BiT). A plain `nn.Module`; everything stands in `config`.

    Takes float pictures (B, C, H, W) of any height and width that are multiples of `config.stride`. Gives
    logits (B, K), or the mean of the last map (B, D) where `num_classes` is 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        own = config.resnet
        self.stem = Root(own, config.in_chans)
        self.stages = stages(own)
        # Pre-activation leaves the sum of the last unit bare; otherwise its norm and ReLU stand in the unit.
        self.norm = nn.GroupNorm(GROUPS, own.width, eps=own.norm_eps) if own.preact else nn.Identity()
        self.head = nn.Linear(own.width, config.num_classes) if config.num_classes else nn.Identity()
        initialise(self, config.weight_init)
        if not self.stem.conv.weight.is_meta:
            bias_heads(self)

    def ready(self, x: Float[Tensor, "B D gh gw"]) -> Float[Tensor, "B D gh gw"]:
        """The last map as the head averages it: through the final norm and ReLU."""
        return self.norm(x).relu()

    def forward_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D gh gw"]:
        """The last map, normalised. Raises `UsageError` for channels or sides that do not fit."""
        check_pictures(images, self.config.in_chans, self.config.stride)
        return self.ready(self.stages(self.stem(images)))

    def features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int] = (-1,), *, norm: bool = True
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps after each of `layers`, in the order of `layers`, with gradients; no head.

        Layers are stages: they count from 0, or from -1 at the end, and those after the last one are not computed.
        Each stage is twice as wide as the one before and half as high. With `norm` the last one goes through the
        final norm and ReLU, as on its way to the head; the others have none. Raises `UsageError` for a layer that
        the model does not have, and for channels or sides that do not fit.
        """
        check_pictures(images, self.config.in_chans, self.config.stride)
        depth = len(self.stages)
        for layer in layers:
            if not -depth <= layer < depth:
                raise UsageError(f"layer {layer}: the model has {depth} layers, 0 to {depth - 1}.")
        wanted = [layer % depth for layer in layers]
        x, found = self.stem(images), {}
        for number in range(max(wanted, default=-1) + 1):
            x = self.stages[number](x)
            found[number] = self.ready(x) if norm and number == depth - 1 else x
        return [found[number] for number in wanted]

    def forward_head(self, x: Float[Tensor, "B D gh gw"]) -> Float[Tensor, "B K"]:
        """The head on the mean of the last map."""
        return self.answer(self.summary(x))

    def summary(self, x: Float[Tensor, "B D gh gw"]) -> Float[Tensor, "B D"]:
        """All that the head is given: the mean of the last map."""
        return x.mean(dim=(2, 3))

    def answer(self, summary: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Logits from what `summary` gives."""
        return self.head(summary)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.forward_head(self.forward_features(images))


@torch.no_grad()
def initialise(network: ResNetStem | ResNet, scheme: Literal["jax", "timm"]) -> None:
    """Fill every parameter of `network`.

    jax (google-research/vision_transformer, `models_resnet.py`; flax's defaults): filters LeCun-normal, norms one
    and zero, but the last norm of a unit zero where no pre-activation is, so that it begins as its shortcut; the
    head zero, as BiT's is for fine-tuning. timm (`resnetv2.py`): filters normal with the variance 2 / fan_out, all
    norms one and zero, head normal with deviation 0.01. The size of a filter matters to its learning rate alone,
    since it is standardised.
    """
    if next(network.parameters()).is_meta:
        return  # a frame to be filled from a file: torch would import its compiler to draw nothing
    for module in network.modules():
        if isinstance(module, StdConv):
            if scheme == "jax":
                lecun_normal(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01 if scheme == "timm" else 0.0)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Bottleneck) and scheme == "jax" and not module.preact:
            nn.init.zeros_(module.norm3.weight)
