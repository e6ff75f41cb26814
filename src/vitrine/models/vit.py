"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv:2010.11929), equations 1 to 4, top to bottom.

Dimensions: B batch, C channels, H W pixels, P patches, N tokens (prefix included), D embed_dim, h heads,
d head_dim, M mlp_dim, K classes. Parameter names are timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrine.config.architecture import Activation, ModelConfig
from vitrine.errors import UsageError
from vitrine.models import positions
from vitrine.models.heads import AttentionPool, PreLogits, pool
from vitrine.models.init import initialise
from vitrine.models.positions import vectors
from vitrine.models.relative import OfWeights, Place, relative
from vitrine.models.resnet import ResNetStem, check_pictures
from vitrine.models.rotary import rotate, turn

Way = Literal["fused", "written"]
Change = Callable[[Tensor], Tensor]
"""From patch tokens (B, P, D) to as many others."""

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


class PatchEmbed(nn.Module):
    """Cuts a picture into patches and maps each to a token: the `x_p E` of equation 1.

    A convolution whose kernel and stride are the patch size. It is computed as a reshape and one matrix
    product, which is the same sum and faster; the weight keeps the convolution's shape (D, C, p, p). In a
    hybrid the patches are cut from the map of `backbone` (section 3.1).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.stride, self.in_chans = config.patch_size, config.stride, config.in_chans
        hybrid = config.family == "hybrid"
        self.backbone = ResNetStem(config.resnet, config.in_chans, config.weight_init) if hybrid else None
        channels = config.resnet.width if hybrid else config.in_chans
        # CLIP's norm before the blocks makes a bias here needless, and its filter has none.
        self.proj = nn.Conv2d(
            channels, config.embed_dim, config.patch_size, config.patch_size, bias=not config.pre_norm
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """Patch tokens, row by row. Raises `UsageError` for channels or sides that do not fit."""
        check_pictures(images, self.in_chans, self.stride)
        return self.cut(images if self.backbone is None else self.backbone(images))

    def cut(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """The patches of a picture or of a map, each a token."""
        B, C, H, W = x.shape
        p = self.patch_size
        patches = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(B, (H // p) * (W // p), C * p * p)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def attend(
    q: Float[Tensor, "B h N d"],
    k: Float[Tensor, "B h N d"],
    v: Float[Tensor, "B h N d"],
    bias: Float[Tensor, "#B #h N N"] | None = None,
    more: OfWeights | None = None,
    *,
    scale: float,
    way: Way = "fused",
) -> Float[Tensor, "B h N d"]:
    """A v, equation 8 of appendix A, with the weights A of `weigh`; and more(A), where values are relative too.

    `way` says how it is computed, not what: `fused` by torch's kernel, which never forms A, `written` as two
    products and a softmax, which is faster for a few hundred tokens in bfloat16 on a CPU.
    """
    if way == "fused" and more is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    weights = weigh(q, k, bias, scale=scale)
    return weights @ v if more is None else weights @ v + more(weights)


def weigh(
    q: Float[Tensor, "B h Q d"],
    k: Float[Tensor, "B h N d"],
    bias: Float[Tensor, "#B #h Q N"] | None = None,
    *,
    scale: float,
) -> Float[Tensor, "B h Q N"]:
    """A = softmax(q k^T * scale + bias), equations 6 and 7 of appendix A; `bias` is what relative positions add."""
    # One product that scales as it goes: scaling q before is a pass over memory of its own, forward and backward.
    nothing = q.new_zeros(()).expand(q.shape[0] * q.shape[1], q.shape[2], k.shape[2])
    product = torch.baddbmm(nothing, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=0, alpha=scale)
    logits = product.unflatten(0, q.shape[:2])
    return (logits if bias is None else logits + bias).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A) with q, k, v in one product: rows q | k | v, each head by head.

    Positions that act here come with the tokens as their `Place`; a layer with relative positions of its own
    keeps them in `rel_pos`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.width_of_head
        self.scale: float = self.head_dim**-0.5
        self.way: Way = "fused"
        width = self.num_heads * self.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * width, bias=config.qkv_bias)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity() for _ in "qk"
        )
        self.rel_pos = relative(config) if config.pos_at == "layers" else None
        self.proj = nn.Linear(width, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def heads(
        self, x: Float[Tensor, "B N D"], place: Place | None = None
    ) -> tuple[Float[Tensor, "B h N d"], Float[Tensor, "B h N d"], Float[Tensor, "B h N d"]]:
        """Queries, keys and values of every head, queries and keys turned by rotary positions."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if place is not None and place.turn is not None:
            q, k = rotate(q, place.turn), rotate(k, place.turn)
        return q, k, v

    def relative(
        self, q: Float[Tensor, "B h N d"], place: Place | None = None
    ) -> tuple[Float[Tensor, "#B #h N N"] | None, OfWeights | None]:
        """What relative positions, the layer's own or those of all, add to the logits of `q` and to the values."""
        table = self.rel_pos if self.rel_pos is not None or place is None else place.shared
        if table is None:
            return None, None
        if place is None:
            raise UsageError("attention with relative positions needs the place of its tokens.")
        return table(q, place.grid)

    def forward(self, x: Float[Tensor, "B N D"], place: Place | None = None) -> Float[Tensor, "B N D"]:
        """The tokens, each mixed from all."""
        q, k, v = self.heads(x, place)
        mixed = attend(q, k, v, *self.relative(q, place), scale=self.scale, way=self.way)
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


class SwiGlu(nn.Module):
    """fc2(silu(gate) * value), gate | value being the rows of fc1 (arXiv:2002.05202, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, 2 * config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """fc2(silu(gate) * value), with dropout after both."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(F.silu(gate) * value)))


class LayerScale(nn.Module):
    """One learned factor a channel at the end of a branch (arXiv:2103.17239, equation 4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gamma = vectors(config.embed_dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """x * gamma."""
        return x * self.gamma


class Block(nn.Module):
    """One pre-norm encoder block: equations 2 and 3."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config) if config.init_values is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = SwiGlu(config) if config.mlp_layer == "swiglu" else Mlp(config)
        self.ls2 = LayerScale(config) if config.init_values is not None else nn.Identity()

    def forward(self, x: Float[Tensor, "B N D"], place: Place | None = None) -> Float[Tensor, "B N D"]:
        """z' = MSA(LN(z)) + z, then z = MLP(LN(z')) + z'."""
        rate = self.drop_path if self.training else 0.0
        x = add_branch(x, lambda z: self.ls1(self.attn(self.norm1(z), place)), rate)
        return add_branch(x, lambda z: self.ls2(self.mlp(self.norm2(z))), rate)


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

    Takes float pictures (B, C, H, W) of any height and width that are multiples of the stride of its tokens:
    learned positions are resized to the grid, the others computed for it. Gives logits (B, K), or the pooled
    features (B, D) where `num_classes` is 0. The tokens are the class token, the distillation token, the
    registers, then the patches row by row.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        D = config.embed_dim
        self.num_prefix_tokens = config.num_prefix_tokens
        self.patch_embed = PatchEmbed(config)
        self.cls_token = vectors(1, 1, D) if config.class_token else None
        self.dist_token = vectors(1, 1, D) if config.distilled else None
        self.reg_token = vectors(1, config.reg_tokens, D) if config.reg_tokens else None
        self.pos_embed = positions.learned(config)
        self.shared_rel_pos = relative(config) if config.pos_at == "layers_shared" else None
        self.drop = nn.Dropout(config.drop_rate)
        self.norm_pre = nn.LayerNorm(D, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        rates = [config.drop_path_rate * i / max(1, config.depth - 1) for i in range(config.depth)]
        if config.drop_path_over == "constant":
            rates = [config.drop_path_rate] * config.depth
        self.blocks = cast(list[Block], nn.ModuleList(Block(config, rate) for rate in rates))
        mean_first = config.global_pool == "avg_then_norm"
        norm_last = config.final_norm and not mean_first
        self.norm = nn.LayerNorm(D, eps=config.norm_eps) if norm_last else nn.Identity()
        self.attn_pool = AttentionPool(config, ACTIVATIONS[config.act_layer]) if config.global_pool == "map" else None
        self.fc_norm = nn.LayerNorm(D, eps=config.norm_eps) if mean_first else nn.Identity()
        self.pre_logits: PreLogits | nn.Identity = PreLogits(config) if config.representation_size else nn.Identity()
        self.head = nn.Linear(config.num_features, config.num_classes) if config.num_classes else nn.Identity()
        if config.distilled:
            self.head_dist = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        initialise(self)

    def grid(self, images: Float[Tensor, "B C H W"]) -> tuple[int, int]:
        """Rows and columns of patches that `images` are cut into."""
        return images.shape[2] // self.config.stride, images.shape[3] // self.config.stride

    def embed(self, images: Float[Tensor, "B C H W"], change: Change | None = None) -> Float[Tensor, "B N D"]:
        """Equation 1: z_0 = [x_class; x_p^1 E; ...; x_p^P E] + E_pos, without E_pos where each layer adds it.

        `change` is made to the x_p E.
        """
        # Under autocast the product is bfloat16; the residual stream stays in the parameters' own type.
        patches = self.patch_embed(images).to(self.patch_embed.proj.weight.dtype)
        patches = patches if change is None else change(patches)
        named = (token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None)
        z = torch.cat([*(token.expand(len(images), -1, -1) for token in named), patches], dim=1)
        if self.config.pos_at == "input":
            table = positions.table(self.config, self.pos_embed, self.grid(images), z)
            z = z if table is None else z + table
        return self.drop(z)

    def encode(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], change: Change | None = None
    ) -> dict[int, Float[Tensor, "B N D"]]:
        """All tokens after each of `layers`, numbered from 0; those after the last one are not computed."""
        config, grid, z = self.config, self.grid(images), self.norm_pre(self.embed(images, change))
        place = Place(grid=grid, turn=turn(config, grid, z), shared=self.shared_rel_pos)
        tables = None if config.pos_at == "input" else positions.table(config, self.pos_embed, grid, z)
        found = {}
        for number, block in enumerate(self.blocks[: max(layers, default=-1) + 1]):
            if tables is not None:
                z = z + tables[number % len(tables)]  # appendix D.4: at the beginning of each layer
            z = self._through(block, z, place)
            if number in layers:
                found[number] = z
        return found

    def _through(self, block: Block, z: Float[Tensor, "B N D"], place: Place) -> Float[Tensor, "B N D"]:
        """A block; with `grad_checkpointing` training keeps its input alone and computes it again, with the same
        random draws, on the way back (arXiv:1604.06174, section 4)."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, z, place, use_reentrant=False))
        return block(z, place)

    def forward_features(
        self, images: Float[Tensor, "B C H W"], change: Change | None = None
    ) -> Float[Tensor, "B N D"]:
        """All tokens after the last block, through the final norm (unless the mean comes before it).

        `change` is made to the patch tokens as `patch_embed` gives them, before positions are added.
        """
        last = len(self.blocks) - 1
        return self.norm(self.encode(images, [last], change)[last])

    def features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int] = (-1,), *, norm: bool = True
    ) -> list[Float[Tensor, "B D gh gw"]]:
        """The patch tokens after each of `layers` as maps, in the order of `layers`, with gradients; no head.

        Layers count from 0, or from -1 at the end; those after the last one are not computed. With `norm` each
        goes through the final norm, as the last one does on its way to the head. Raises `UsageError` for a
        layer that the model does not have.
        """
        depth = len(self.blocks)
        for layer in layers:
            if not -depth <= layer < depth:
                raise UsageError(f"layer {layer}: the model has {depth} layers, 0 to {depth - 1}.")
        found = self.encode(images, wanted := [layer % depth for layer in layers])
        maps = {
            number: (self.norm(z) if norm else z)[:, self.num_prefix_tokens :].mT.unflatten(2, self.grid(images))
            for number, z in found.items()
        }
        return [maps[number] for number in wanted]

    def pooled(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One vector a picture: the class token, the mean of the patches, or attention over the patches."""
        if self.attn_pool is not None:
            return self.attn_pool(tokens[:, self.num_prefix_tokens :])
        return self.fc_norm(pool(tokens, self.config.global_pool, self.num_prefix_tokens))

    def forward_head(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        """Equation 4, y = LN(z_L^0), and the head; or the same from another pooling.

        With a distillation token the mean of both heads (DeiT, arXiv:2012.12877, section 4).
        """
        return self.answer(self.summary(tokens))

    def summary(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B F"]:
        """All that the head is given: the pooled vector, and the distillation token beside it where there is one."""
        pooled = self.pooled(tokens)
        return torch.cat([pooled, tokens[:, 1]], dim=1) if self.config.distilled else pooled

    def answer(self, summary: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Logits from what `summary` gives: the head with its hidden layer, or the mean of both heads."""
        if not self.config.distilled:
            return self.head(self.pre_logits(summary))
        pooled, distilled = summary.chunk(2, dim=1)
        return (self.head(self.pre_logits(pooled)) + self.head_dist(distilled)) / 2

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.forward_head(self.forward_features(images))


def use_attention(model: nn.Module, way: Way) -> None:
    """Choose how every block of `model` computes attention; the result stays the same. Raises `UsageError`.

    A network without attention is left as it is.
    """
    if way not in get_args(Way):
        raise UsageError(f"attention {way!r}: must be one of {', '.join(get_args(Way))}.")
    for module in model.modules():
        if isinstance(module, Attention):
            module.way = way


def use_checkpointing(model: nn.Module, on: bool) -> None:
    """Choose whether the blocks of `model` are computed again in the backward pass, which saves the memory of what they
    would keep and gives the same gradients. A network without such blocks is left as it is."""
    if isinstance(model, VisionTransformer):
        model.grad_checkpointing = on
