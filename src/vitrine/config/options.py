"""Every option of Vitrine, once: its name, type, default, meaning and unit.

The command line, the TOML file of a run and the metadata of a model file are all made from these classes.
Names of the model's options are timm's, which most public ViT code uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrine.errors import BadConfig, nearest

Pooling = Literal["token", "norm_then_avg", "avg_then_norm"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]
Positions = Literal["learn", "sincos2d", "none"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Device = Literal["auto", "cpu", "cuda", "mps"]


def option(default: Any, help: str, unit: str = "", *, chosen: bool = False) -> Any:
    """A dataclass field that carries its meaning and unit; `chosen`: training picks it unless it is given."""
    return field(default=default, metadata={"help": help, "unit": unit, "chosen": chosen})


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise BadConfig(f"{name} = {value!r}: {wanted}.")


def _check_choices(options: Any, where: str = "") -> None:
    """Refuse a value that is none of its option's choices."""
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            remedy = f"must be one of {', '.join(map(str, get_args(hint)))}"
            raise BadConfig(f"{where}{name} = {value!r}: {remedy}.{nearest(str(value), get_args(hint))}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a Vision Transformer (arXiv:2010.11929, Table 1 and section 3.1)."""

    img_size: int | tuple[int, int] = option(
        224, "picture side, or height and width, that the positions are laid out for", "pixels", chosen=True
    )
    patch_size: int = option(16, "side of a patch", "pixels", chosen=True)
    in_chans: int = option(3, "channels of a picture: 1 grey, 3 RGB", chosen=True)
    num_classes: int = option(1000, "classes the head tells apart; 0 for no head", chosen=True)
    embed_dim: int = option(768, "width of a token", chosen=True)
    depth: int = option(12, "Transformer blocks", chosen=True)
    num_heads: int = option(12, "attention heads in a block", chosen=True)
    head_dim: int | None = option(None, "width of a head; by default embed_dim / num_heads")
    mlp_ratio: float = option(4.0, "hidden width of the MLP over embed_dim", chosen=True)
    qkv_bias: bool = option(True, "whether queries, keys and values have a bias")
    act_layer: Activation = option("gelu", "activation of the MLP; gelu is exact, gelu_tanh the approximation of JAX")
    norm_eps: float = option(1e-6, "epsilon of LayerNorm")
    class_token: bool = option(True, "whether a class token stands before the patches", chosen=True)
    global_pool: Pooling = option(
        "token", "token: the class token after the norm; norm_then_avg, avg_then_norm: mean of the patches", chosen=True
    )
    pos_embed: Positions = option("learn", "learn: one learned vector a position; sincos2d: fixed; none")
    no_embed_class: bool = option(False, "give positions to patches only, not to the class token")
    pos_interpolation: Literal["bicubic", "bilinear"] = option("bicubic", "how positions are resized to another grid")
    pos_antialias: bool = option(True, "smooth before shrinking positions (timm does, transformers and DeiT do not)")
    pos_align_corners: bool = option(False, "resize positions with corners aligned (torchvision and JAX do)")
    drop_rate: float = option(0.0, "dropout after every dense layer but q, k, v, and after the positions")
    drop_path_rate: float = option(
        0.0, "share of samples whose branch is skipped in the last block, rising linearly from 0"
    )
    representation_size: int = option(0, "width of the pre-training head's hidden layer; 0 for none")
    representation_act: Literal["tanh", "gelu"] = option(
        "tanh", "activation of that hidden layer; tanh in the released code"
    )
    weight_init: Literal["jax", "timm"] = option("jax", "initialisation: the paper's own code, or timm's")

    def __post_init__(self) -> None:
        _check_choices(self, "model.")
        for name in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        for name in ("num_classes", "representation_size"):
            _require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be 0 or more")
        for name in ("drop_rate", "drop_path_rate"):
            _require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "must be in [0, 1)")
        for name in ("mlp_ratio", "norm_eps"):
            _require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "must be above 0")
        _require(self.head_dim is None or self.head_dim >= 1, "model.head_dim", self.head_dim, "must be at least 1")
        _require(
            self.head_dim is not None or self.embed_dim % self.num_heads == 0,
            "model.num_heads", self.num_heads, f"must divide embed_dim = {self.embed_dim}, or head_dim be given",
        )  # fmt: skip
        _require(
            self.class_token or self.global_pool != "token",
            "model.global_pool", self.global_pool, "needs class_token; choose norm_then_avg or avg_then_norm",
        )  # fmt: skip
        _require(
            self.pos_embed != "sincos2d" or self.embed_dim % 4 == 0,
            "model.embed_dim", self.embed_dim, "must be a multiple of 4 for sincos2d positions",
        )  # fmt: skip
        for side in self.size:
            _require(
                side >= self.patch_size and side % self.patch_size == 0,
                "model.img_size", self.img_size, f"must be a multiple of patch_size = {self.patch_size}",
            )  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """N, class token included."""
        return self.grid[0] * self.grid[1] + int(self.class_token)

    @property
    def width_of_head(self) -> int:
        """d, the width of one attention head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.embed_dim * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture becomes the tensor a model was trained for; it travels in the model file."""

    size: tuple[int, int] = option((224, 224), "height and width of what the model is given", "pixels", chosen=True)
    resize: Literal["shorter", "squash"] = option(
        "shorter", "shorter: keep the aspect ratio and crop the centre; squash: stretch", chosen=True
    )
    crop_pct: float = option(0.9, "side of the crop over the side resized to, for resize = shorter", chosen=True)
    interpolation: Interpolation = option("bicubic", "Pillow's filter", chosen=True)
    mean: tuple[float, ...] = option(
        (0.5, 0.5, 0.5), "subtracted after scaling to [0, 1]; its length is the number of channels", chosen=True
    )
    std: tuple[float, ...] = option((0.5, 0.5, 0.5), "divided by after the mean", chosen=True)

    def __post_init__(self) -> None:
        _check_choices(self, "preprocess.")
        _require(min(self.size) >= 1, "preprocess.size", self.size, "must be at least 1 x 1")
        _require(0 < self.crop_pct <= 1, "preprocess.crop_pct", self.crop_pct, "must be in (0, 1]")
        _require(len(self.mean) in (1, 3), "preprocess.mean", self.mean, "must have 1 value (grey) or 3 (RGB)")
        _require(len(self.std) == len(self.mean), "preprocess.std", self.std, "must be as long as mean")
        _require(min(self.std) > 0, "preprocess.std", self.std, "must be above 0")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is random about a training picture. Zero, or False, switches a part off."""

    flip: bool = option(False, "mirror left and right, every second picture", chosen=True)
    crop_min_area: float = option(
        1.0, "random resized crop: least share of the picture's area; 1 for none", chosen=True
    )
    crop_max_ratio: float = option(4 / 3, "random resized crop: widest aspect ratio, and tallest 1 over it")
    shift: float = option(0.0, "largest shift, as a share of the side", chosen=True)
    rotate_deg: float = option(0.0, "largest rotation either way", "degrees", chosen=True)
    zoom: float = option(0.0, "largest relative change of scale either way", chosen=True)
    jitter: float = option(0.0, "largest relative change of brightness, contrast and saturation", chosen=True)
    mixup: float = option(0.0, "alpha of mixup's Beta distribution (arXiv:1710.09412)", chosen=True)
    cutmix: float = option(
        0.0,
        "alpha of CutMix's Beta distribution (arXiv:1905.04899); with mixup, one of the two each batch",
        chosen=True,
    )

    def __post_init__(self) -> None:
        _require(0 < self.crop_min_area <= 1, "augment.crop_min_area", self.crop_min_area, "must be in (0, 1]")
        _require(self.crop_max_ratio >= 1, "augment.crop_max_ratio", self.crop_max_ratio, "must be at least 1")
        for name in ("shift", "rotate_deg", "jitter", "mixup", "cutmix"):
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "must be 0 or more")
        _require(0 <= self.zoom < 1, "augment.zoom", self.zoom, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "sgd"] = option("adamw", "optimiser; sgd has momentum")
    lr: float = option(1e-3, "peak learning rate", chosen=True)
    weight_decay: float = option(
        0.05, "decoupled weight decay on matrices (biases, norms, tokens and positions have none)", chosen=True
    )
    momentum: float = option(0.9, "momentum of sgd")
    beta1: float = option(0.9, "AdamW: decay of the first moment")
    beta2: float = option(0.999, "AdamW: decay of the second moment")
    clip_norm: float = option(1.0, "largest global gradient norm; 0 for none")
    schedule: Literal["cosine", "linear", "constant"] = option("cosine", "learning rate after the warm-up")
    warmup_steps: int = option(0, "linear warm-up", "steps", chosen=True)
    min_lr: float = option(0.0, "learning rate at the end of the schedule")

    def __post_init__(self) -> None:
        _check_choices(self, "optim.")
        _require(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "min_lr"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "must be 0 or more")
        for name in ("momentum", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures are and how they are parted."""

    source: str = option("", "class folder, train/ and val/ folders, CSV, folder of IDX files, or a built-in name")
    val_share: float = option(0.2, "share of the pictures kept for validation, at most 5,000 pictures")
    test_share: float = option(0.2, "share kept for the test, where the source has no val/ or test/ of its own")
    split_seed: int = option(0, "seed of the split")
    max_bad_share: float = option(0.05, "share of damaged pictures above which the run stops")
    max_pixels: int = option(50_000_000, "a larger picture is refused before it is decoded", "pixels")
    max_bytes: int = option(64_000_000, "a larger file is refused before it is read", "bytes")

    def __post_init__(self) -> None:
        for name in ("val_share", "test_share", "max_bad_share"):
            _require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "must be in [0, 1)")
        _require(
            self.val_share + self.test_share < 1,
            "data.val_share", self.val_share, "must leave something to train on beside data.test_share",
        )  # fmt: skip
        for name in ("max_pixels", "max_bytes"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    arch: str = option("", "named model to build (`vitrine info --models`)")
    init: str = option("", "start from this model: a run folder or a bundle")
    seed: int = option(0, "seed of weights, order and augmentation")
    epochs: int = option(100, "passes over the training pictures", chosen=True)
    batch_size: int = option(128, "pictures a step", chosen=True)
    label_smoothing: float = option(0.1, "share of the target spread over all classes")
    ema_decay: float = option(0.0, "decay of the running average of the weights, a step; 0 for none", chosen=True)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "bf16 is autocast; auto takes it where the hardware gains"
    )
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile; auto takes it for a run that outlasts it")
    device: Device = option("auto", "where to run")
    num_workers: int = option(0, "processes that decode pictures", chosen=True)
    threads: int = option(0, "CPU threads of torch; another number gives other last bits", chosen=True)
    max_time_s: float = option(0.0, "longest training time; 0 for no limit", "seconds", chosen=True)

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("label_smoothing", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        for name in ("num_workers", "threads", "max_time_s", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
