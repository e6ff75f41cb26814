"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv:2010.11929), equations 1 to 4, top to bottom.

Dimensions: B batch, C channels, H W pixels, P patches, N tokens (prefix included), D embed_dim, h heads,
d head_dim, M mlp_dim, K classes. Parameter names are timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.options import Activation, ModelConfig
from vitrine.errors import UsageError
from vitrine.models import positions
from vitrine.models.heads import PreLogits, pool
from vitrine.models.init import initialise

Way = Literal["fused", "written"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


class PatchEmbed(nn.Module):
    """Cuts a picture into patches and maps each to a token: the `x_p E` of equation 1.

    A convolution whose kernel and stride are the patch size. It is computed as a reshape and one matrix
    product, which is the same sum and faster; the weight keeps the convolution's shape (D, C, p, p).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """Patch tokens, row by row. Raises `UsageError` for channels or sides that do not fit."""
        B, C, H, W = images.shape
        p = self.patch_size
        if self.proj.in_channels != C:
            raise UsageError(f"the pictures have {C} channels, the model takes {self.proj.in_channels}.")
        if H % p or W % p or min(H, W) == 0:
            fit = f"{max(1, round(H / p)) * p}x{max(1, round(W / p)) * p}"
            raise UsageError(f"pictures of {H}x{W} pixels cannot be cut into patches of {p}: resize them to {fit}.")
        patches = images.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(B, (H // p) * (W // p), C * p * p)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def attend(
    q: Float[Tensor, "B h N d"],
    k: Float[Tensor, "B h N d"],
    v: Float[Tensor, "B h N d"],
    bias: Float[Tensor, "#B #h N N"] | None = None,
    *,
    scale: float,
    way: Way = "fused",
) -> Float[Tensor, "B h N d"]:
    """softmax(q k^T * scale + bias) v, equations 6 to 8 of appendix A.

    `way` says how it is computed, not what: `fused` by torch's kernel, `written` as two products and a
    softmax, which is faster for a few hundred tokens in bfloat16 on a CPU.
    """
    if way == "fused":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    logits = (q * scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention (appendix A) with q, k, v in one product: rows q | k | v, each head by head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.width_of_head
        self.scale: float = self.head_dim**-0.5
        self.way: Way = "fused"
        width = self.num_heads * self.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def heads(
        self, x: Float[Tensor, "B N D"]
    ) -> tuple[Float[Tensor, "B h N d"], Float[Tensor, "B h N d"], Float[Tensor, "B h N d"]]:
        """Queries, keys and values of every head."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The tokens, each mixed from all."""
        q, k, v = self.heads(x)
        mixed = attend(q, k, v, scale=self.scale, way=self.way)
        return self.drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.act = ACTIVATIONS[config.act_layer]
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """fc2(act(fc1(x))), with dropout after both."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """One pre-norm encoder block: equations 2 and 3."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """z' = MSA(LN(z)) + z, then z = MLP(LN(z')) + z'."""
        rate = self.drop_path if self.training else 0.0
        x = add_branch(x, lambda z: self.attn(self.norm1(z)), rate)
        return add_branch(x, lambda z: self.mlp(self.norm2(z)), rate)


def add_branch(x: Float[Tensor, "B N D"], branch: Callable[[Tensor], Tensor], rate: float) -> Float[Tensor, "B N D"]:
    """x + branch(x), with stochastic depth (arXiv:1603.09382) of `rate` over the samples of the batch.

    The branch is computed for a random B * (1 - rate) samples only and scaled so that its expectation
    stays: skipped samples cost nothing, where a mask would pay for all.
    """
    if rate == 0.0:
        return x + branch(x)
    B = x.shape[0]
    kept = max(1, round(B * (1.0 - rate)))
    rows = torch.randperm(B, device=x.device)[:kept]
    return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=B / kept)


class VisionTransformer(nn.Module):
    """Picture to class scores. A plain `nn.Module`; everything about it stands in `config`.

    Takes float pictures (B, C, H, W) of any height and width that are multiples of the patch size:
    learned positions are resized to the grid, sin-cos ones computed for it. Gives logits (B, K), or the
    pooled features (B, D) where `num_classes` is 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, dtype = config.embed_dim, torch.get_default_dtype()
        self.num_prefix_tokens = int(config.class_token)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D, dtype=dtype)) if config.class_token else None
        slots = positions.num_slots(config)
        self.pos_embed = nn.Parameter(torch.empty(1, slots, D, dtype=dtype)) if slots else None
        self.drop = nn.Dropout(config.drop_rate)
        rates = [config.drop_path_rate * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = cast(list[Block], nn.ModuleList(Block(config, rate) for rate in rates))
        mean_first = config.global_pool == "avg_then_norm"
        self.norm = nn.Identity() if mean_first else nn.LayerNorm(D, eps=config.norm_eps)
        self.fc_norm = nn.LayerNorm(D, eps=config.norm_eps) if mean_first else nn.Identity()
        self.pre_logits: PreLogits | nn.Identity = PreLogits(config) if config.representation_size else nn.Identity()
        width = config.representation_size or D
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        initialise(self)

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Equation 1: z_0 = [x_class; x_p^1 E; ...; x_p^P E] + E_pos."""
        p = self.config.patch_size
        # Under autocast the product is bfloat16; the residual stream stays in the parameters' own type.
        x = self.patch_embed(images).to(self.patch_embed.proj.weight.dtype)
        table = positions.table(self.config, self.pos_embed, (images.shape[2] // p, images.shape[3] // p), x)
        if self.cls_token is None:
            return self.drop(x if table is None else x + table)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        if table is None:
            return self.drop(torch.cat([token, x], dim=1))
        if table.shape[1] == x.shape[1]:  # positions for the patches alone
            return self.drop(torch.cat([token, x + table], dim=1))
        return self.drop(torch.cat([token, x], dim=1) + table)

    def forward_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """All tokens after the last block, through the final norm (unless the mean comes before it)."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        """Equation 4, y = LN(z_L^0), and the head; or the same from the mean of the patches."""
        pooled = self.fc_norm(pool(tokens, self.config.global_pool, self.num_prefix_tokens))
        return self.head(self.pre_logits(pooled))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.forward_head(self.forward_features(images))


def use_attention(model: VisionTransformer, way: Way) -> None:
    """Choose how every block of `model` computes attention; the result stays the same. Raises `UsageError`."""
    if way not in get_args(Way):
        raise UsageError(f"attention {way!r}: must be one of {', '.join(get_args(Way))}.")
    for block in model.blocks:
        block.attn.way = way
