"""The options of a network: the Vision Transformer, the ResNet it is compared with, and the hybrid of both.

Names are timm's, which most public ViT code uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitrine.config.field import MAX_SIDE, MAX_WIDTH, check_choices, option, require

Family = Literal["vit", "hybrid", "resnet"]
Pooling = Literal["token", "norm_then_avg", "avg_then_norm", "map"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]
Positions = Literal[
    "none", "learn", "sincos1d", "learn2d", "sincos2d", "sincos2d_mae", "rel1d", "rel_shaw", "rel_bias2d", "rope2d"
]
PositionsAt = Literal["input", "layers", "layers_shared"]

ADDED: frozenset[Positions] = frozenset({"learn", "sincos1d", "learn2d", "sincos2d", "sincos2d_mae"})
"""Kinds of positions that are added to the tokens; the others act inside the attention."""

FIXED: frozenset[Positions] = frozenset({"sincos1d", "sincos2d", "sincos2d_mae", "rope2d"})
"""Kinds of positions without parameters."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of version 2 with weight standardisation and group normalisation (BiT, arXiv:1912.11370).

    It is the baseline of the ViT paper, and with `preact` off the stem of its hybrids.
    """

    layers: tuple[int, ...] = option((3, 4, 6, 3), "bottleneck units of each stage; none at all for the bare root")
    width_factor: int = option(1, "multiplies every width; 1 begins with 64 channels")
    preact: bool = option(True, "norm and activation before each convolution (BiT), or after it (the hybrids' stem)")
    padding: Literal["same", "fixed"] = option(
        "fixed", "fixed: symmetric, as BiT; same: as in JAX, more below and to the right"
    )
    conv_eps: float = option(1e-10, "epsilon of the weight standardisation")
    conv_eps_at: Literal["std", "var"] = option("var", "where it is added: to the deviation, or to the variance")
    norm_eps: float = option(1e-5, "epsilon of the group norms, which have 32 groups")
    pool_padding: bool = option(True, "a border around the root's maximum; without it the map begins a cell shorter")
    shortcut_norm: Literal["groups", "channels"] = option(
        "groups", "the hybrids' norm beside a unit: as the others, or each channel alone with epsilon 1e-5"
    )

    def __post_init__(self) -> None:
        check_choices(self, "model.resnet.")
        require(all(n >= 1 for n in self.layers), "model.resnet.layers", self.layers, "must be at least 1 each")
        require(len(self.layers) <= 4, "model.resnet.layers", self.layers, "must be 4 stages at most")
        require(
            self.pool_padding or len(self.layers) >= 2,
            "model.resnet.pool_padding", self.pool_padding, "needs two stages, after which the map has its size again",
        )  # fmt: skip
        require(self.width_factor >= 1, "model.resnet.width_factor", self.width_factor, "must be at least 1")
        for name in ("conv_eps", "norm_eps"):
            require(getattr(self, name) > 0, f"model.resnet.{name}", getattr(self, name), "must be above 0")

    @property
    def stride(self) -> int:
        """Pixels of the picture from one cell of the last map to the next: 4 by the root, twice that a stage."""
        return 4 * 2 ** max(0, len(self.layers) - 1)

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return 64 * self.width_factor * (4 * 2 ** (len(self.layers) - 1) if self.layers else 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a network (arXiv:2010.11929, Table 1 and section 3.1).

    `family` vit cuts the picture itself into patches, hybrid the map of a ResNet (section 3.1, "Hybrid
    Architecture"), and resnet is that ResNet alone: it takes from these options what concerns the picture and
    the classes, and its own from `resnet`.
    """

    family: Family = option("vit", "vit; hybrid: a ViT on the map of a ResNet; resnet: the ResNet alone")
    resnet: ResNetConfig = field(default_factory=ResNetConfig)
    img_size: int | tuple[int, int] = option(
        224, "picture side, or height and width, that the positions are laid out for", "pixels", chosen=True
    )
    patch_size: int = option(16, "side of a patch, of the picture or of the ResNet's map", "pixels", chosen=True)
    in_chans: int = option(3, "channels of a picture: 1 grey, 3 RGB", chosen=True)
    num_classes: int = option(1000, "classes the head tells apart; 0 for no head", chosen=True)
    embed_dim: int = option(768, "width of a token", chosen=True)
    depth: int = option(12, "Transformer blocks", chosen=True)
    num_heads: int = option(12, "attention heads in a block", chosen=True)
    head_dim: int | None = option(None, "width of a head; by default embed_dim / num_heads")
    mlp_ratio: float = option(4.0, "hidden width of the MLP over embed_dim", chosen=True)
    mlp_layer: Literal["mlp", "swiglu"] = option("mlp", "mlp; swiglu: SiLU of one half times the other (DINOv2 g)")
    qkv_bias: bool = option(True, "whether queries, keys and values have a bias")
    qk_norm: bool = option(False, "LayerNorm on the queries and keys of each head (arXiv:2302.05442)")
    init_values: float | None = option(None, "LayerScale's first value (arXiv:2103.17239); by default there is none")
    act_layer: Activation = option("gelu", "activation of the MLP; gelu is exact, gelu_tanh the approximation of JAX")
    norm_eps: float = option(1e-6, "epsilon of LayerNorm")
    pre_norm: bool = option(False, "LayerNorm before the first block, and a patch filter without bias (CLIP)")
    final_norm: bool = option(True, "LayerNorm after the last block")
    class_token: bool = option(True, "whether a class token stands before the patches", chosen=True)
    distilled: bool = option(False, "a distillation token after the class token, with a head of its own (DeiT)")
    reg_tokens: int = option(0, "register tokens before the patches (arXiv:2309.16588)")
    global_pool: Pooling = option(
        "token",
        "token: the class token after the norm; norm_then_avg, avg_then_norm: mean of the patches; map: attention",
        chosen=True,
    )
    pos_embed: Positions = option(
        "learn",
        "learn: one learned vector a position; sincos1d, learn2d, sincos2d, sincos2d_mae: other vectors; rel1d, "
        "rel_shaw, rel_bias2d: relative; rope2d: rotary; none",
    )
    pos_at: PositionsAt = option(
        "input", "where they are added: to the input, before each layer its own, or one for all (appendix D.4)"
    )
    pos_clip: int = option(8, "rel_shaw: offsets beyond this many tokens share a vector")
    rope_theta: float = option(100.0, "rope2d: base of the periods")
    no_embed_class: bool = option(False, "give positions to patches only, not to the class token")
    pos_interpolation: Literal["bicubic", "bilinear"] = option("bicubic", "how positions are resized to another grid")
    pos_antialias: bool = option(True, "smooth before shrinking positions (timm does, transformers and DeiT do not)")
    pos_align_corners: bool = option(False, "resize positions with corners aligned (torchvision and JAX do)")
    pos_offset: float = option(0.0, "added to the sides of the new grid when positions are resized (0.1 in DINOv2)")
    drop_rate: float = option(0.0, "dropout after every dense layer but q, k, v, and after the positions")
    drop_path_rate: float = option(0.0, "share of samples whose branch is skipped in the last block")
    drop_path_over: Literal["linear", "constant"] = option(
        "linear", "that share over the blocks: rising linearly from 0, or the same in all (DeiT-III)"
    )
    representation_size: int = option(0, "width of the pre-training head's hidden layer; 0 for none")
    representation_act: Literal["tanh", "gelu"] = option(
        "tanh", "activation of that hidden layer; tanh in the released code"
    )
    weight_init: Literal["jax", "timm"] = option(
        "jax", "initialisation: the paper's own code, or timm's; what fine-tuning does of the head too", chosen=True
    )
    head_bias: float = option(
        0.0, "first bias of the head; big_vision has -10 for 21k classes, -6.9 for 1k, by sigmoid"
    )

    def __post_init__(self) -> None:
        check_choices(self, "model.")
        for name in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "pos_clip"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        for name in ("num_classes", "representation_size", "reg_tokens", "pos_offset"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be 0 or more")
        for name in ("in_chans", "embed_dim", "head_dim", "num_classes", "representation_size", "reg_tokens"):
            few = (getattr(self, name) or 0) <= MAX_WIDTH
            require(few, f"model.{name}", getattr(self, name), f"must be at most {MAX_WIDTH:,}")
        for name in ("drop_rate", "drop_path_rate"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "must be in [0, 1)")
        for name in ("mlp_ratio", "norm_eps", "rope_theta"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "must be above 0")
        require(self.head_dim is None or self.head_dim >= 1, "model.head_dim", self.head_dim, "must be at least 1")
        require(
            self.head_dim is not None or self.embed_dim % self.num_heads == 0,
            "model.num_heads", self.num_heads, f"must divide embed_dim = {self.embed_dim}, or head_dim be given",
        )  # fmt: skip
        if self.family == "resnet":
            self._require_resnet_that_fits()
        self._require_tokens_that_fit()
        self._require_positions_that_fit()
        of = f"patch_size = {self.patch_size}" if self.family == "vit" else f"{self.stride}, the stride of the map"
        for side in self.size:
            fits = side >= self.stride and side % self.stride == 0
            require(fits, "model.img_size", self.img_size, f"must be a multiple of {of}")
            require(side <= MAX_SIDE, "model.img_size", self.img_size, f"must be at most {MAX_SIDE:,}")

    def _require_resnet_that_fits(self) -> None:
        require(len(self.resnet.layers) >= 1, "model.resnet.layers", self.resnet.layers, "must be a stage at least")
        for name in ("drop_rate", "drop_path_rate", "representation_size", "distilled", "reg_tokens"):
            require(not getattr(self, name), f"model.{name}", getattr(self, name), "a ResNet has none")

    def _require_tokens_that_fit(self) -> None:
        require(
            self.class_token or self.global_pool != "token",
            "model.global_pool", self.global_pool, "needs class_token; choose norm_then_avg, avg_then_norm or map",
        )  # fmt: skip
        require(
            not self.distilled or (self.class_token and self.global_pool == "token" and not self.representation_size),
            "model.distilled", self.distilled, "needs a class token, global_pool = token, no representation_size",
        )  # fmt: skip
        require(
            self.final_norm or self.global_pool != "avg_then_norm",
            "model.final_norm", self.final_norm, "avg_then_norm has its norm after the mean",
        )  # fmt: skip

    def _require_positions_that_fit(self) -> None:
        D, kind = self.embed_dim, self.pos_embed
        parts = {"sincos2d": 4, "sincos2d_mae": 4, "sincos1d": 2, "learn2d": 2}.get(kind, 1)
        require(D % parts == 0, "model.embed_dim", D, f"must be a multiple of {parts} for {kind} positions")
        require(
            kind != "rope2d" or self.width_of_head % 4 == 0,
            "model.head_dim", self.width_of_head, "must be a multiple of 4 for rope2d positions",
        )  # fmt: skip
        inside = kind not in ADDED and kind != "none"
        require(
            not inside or self.pos_at != "input",
            "model.pos_at", self.pos_at, f"{kind} positions act inside the attention: layers"
            f"{'' if kind in FIXED else ' or layers_shared'}",
        )  # fmt: skip
        require(kind != "none" or self.pos_at == "input", "model.pos_at", self.pos_at, "there are no positions: input")
        require(
            kind not in FIXED or self.pos_at != "layers_shared",
            "model.pos_at", self.pos_at, f"{kind} positions have no parameters to share: layers",
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def stride(self) -> int:
        """Pixels of the picture from one token to the next; of a ResNet, from one cell of its map to the next."""
        if self.family == "resnet":
            return self.resnet.stride
        return self.patch_size * (self.resnet.stride if self.family == "hybrid" else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.stride, self.size[1] // self.stride

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.class_token) + int(self.distilled) + self.reg_tokens

    @property
    def num_tokens(self) -> int:
        """N, the prefix included."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    @property
    def width_of_head(self) -> int:
        """d, the width of one attention head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP; of each half for swiglu."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def num_features(self) -> int:
        """Width of the pooled features that the head receives."""
        return self.resnet.width if self.family == "resnet" else self.representation_size or self.embed_dim
