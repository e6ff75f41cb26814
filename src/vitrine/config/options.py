"""Every option of Vitrine, once: its name, type, default, meaning and unit.

The command line, the TOML file of a run and the metadata of a model file are all made from these classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from vitrine.config.architecture import ModelConfig
from vitrine.config.distill import DistillConfig
from vitrine.config.field import MAX_SIDE, check_choices, option, require
from vitrine.config.lora import LoraConfig
from vitrine.config.parallel import ParallelConfig
from vitrine.config.policies import policy
from vitrine.config.saving import SaveConfig

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Device = Literal["auto", "cpu", "cuda", "mps"]

FROM_SCRATCH = "none"
"""What `init` says where a run is to begin from scratch, whatever could be found."""


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
        check_choices(self, "preprocess.")
        require(min(self.size) >= 1, "preprocess.size", self.size, "must be at least 1 x 1")
        most = f"must be at most {MAX_SIDE:,} x {MAX_SIDE:,}"
        require(max(self.size) <= MAX_SIDE, "preprocess.size", self.size, most)
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(all(map(math.isfinite, values)), f"preprocess.{name}", values, "must be finite numbers")
        require(0 < self.crop_pct <= 1, "preprocess.crop_pct", self.crop_pct, "must be in (0, 1]")
        require(len(self.mean) in (1, 3), "preprocess.mean", self.mean, "must have 1 value (grey) or 3 (RGB)")
        require(len(self.std) == len(self.mean), "preprocess.std", self.std, "must be as long as mean")
        require(min(self.std) > 0, "preprocess.std", self.std, "must be above 0")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is random about a training picture. Zero, or False, switches a part off."""

    flip: bool = option(False, "mirror left and right, every second picture", chosen=True)
    crop: Literal["resized", "simple"] = option(
        "resized",
        "resized: of random area and aspect ratio; simple: of crop_min_area of the largest that fits, at a random "
        "place (DeiT-III with 1; big_vision's 384 of 448 pixels with 0.735)",
    )
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
    mix_per: Literal["batch", "picture"] = option("batch", "mixup and cutmix: what has a share of its own")
    policy: str = option(
        "none",
        "operations on the whole picture: none, trivial, three (3-Augment without jitter and flip), augreg-light1 to "
        "augreg-strong2, or timm's as rand-m9-mstd0.5-inc1",
    )
    convention: Literal["own", "torch", "google"] = option(
        "own",
        "own: crops of one draw, each policy as published; torch or google: crops and operations of torchvision and "
        "timm, or of TensorFlow and big_vision",
    )
    erase: float = option(0.0, "share of the pictures of which a box becomes noise (arXiv:1708.04896)")
    repeats: int = option(1, "times that a picture is taken in an epoch, of which there are fewer then (DeiT: 3)")
    mix_off_share: float = option(0.0, "last share of the steps, without mixup, cutmix and policy")

    def __post_init__(self) -> None:
        check_choices(self, "augment.")
        policy(self.policy)
        require(0 < self.crop_min_area <= 1, "augment.crop_min_area", self.crop_min_area, "must be in (0, 1]")
        require(self.crop_max_ratio >= 1, "augment.crop_max_ratio", self.crop_max_ratio, "must be at least 1")
        for name in ("shift", "rotate_deg", "jitter", "mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "must be 0 or more")
        require(0 <= self.zoom < 1, "augment.zoom", self.zoom, "must be in [0, 1)")
        for name in ("erase", "mix_off_share"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "must be in [0, 1]")
        require(1 <= self.repeats <= 100, "augment.repeats", self.repeats, "must be 1 to 100")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "sgd", "muon", "lamb"] = option(
        "adamw",
        "optimiser; sgd has momentum, muon the matrices of the blocks (AdamW has the rest), lamb is DeiT-III's",
        chosen=True,
    )
    lr: float = option(1e-3, "peak learning rate", chosen=True)
    weight_decay: float = option(
        0.05, "decoupled weight decay on matrices (biases, norms, tokens and positions have none)", chosen=True
    )
    momentum: float = option(0.9, "momentum of sgd")
    muon_momentum: float = option(0.95, "momentum of muon")
    beta1: float = option(0.9, "AdamW, LAMB: decay of the first moment")
    beta2: float = option(0.999, "AdamW, LAMB: decay of the second moment")
    eps: float = option(1e-8, "AdamW, LAMB: added to the root of the second moment")
    layer_decay: float = option(
        1.0,
        "learning rate of a layer over that of the next one; layer 0 is what precedes the blocks, the last the head",
    )
    clip_norm: float = option(1.0, "largest global gradient norm; 0 for none")
    schedule: Literal["cosine", "linear", "constant", "rsqrt", "steps"] = option(
        "cosine", "learning rate after the warm-up; rsqrt: 1 over a root; steps: a tenth at each of step_at"
    )
    warmup_steps: int = option(0, "linear warm-up", "steps", chosen=True)
    warmup_lr: float = option(0.0, "learning rate that the warm-up begins from")
    timescale_steps: int = option(10_000, "rsqrt: after the warm-up and three times this the rate is a half", "steps")
    step_at: tuple[float, ...] = option(
        (0.3, 0.6, 0.9), "steps: shares of the run, 0.4 0.6 0.8 in the shortest of BiT's"
    )
    cooldown_steps: int = option(0, "linear way to min_lr at the end of any schedule", "steps")
    min_lr: float = option(0.0, "learning rate at the end of the schedule, and the least of rsqrt and steps")

    def __post_init__(self) -> None:
        check_choices(self, "optim.")
        require(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "warmup_lr", "cooldown_steps", "min_lr", "eps"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "must be 0 or more")
        for name in ("momentum", "muon_momentum", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "must be in [0, 1)")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "must be in (0, 1]; 1 for none")
        require(self.timescale_steps >= 1, "optim.timescale_steps", self.timescale_steps, "must be at least 1")
        require(
            all(a < b for a, b in pairwise((0.0, *self.step_at, 1.0))),
            "optim.step_at", self.step_at, "must be shares of the run, rising, in (0, 1)",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures are and how they are parted."""

    source: str = option(
        "",
        "class folder, train/ and val/ folders, CSV, tar, Parquet, hf://datasets/ORG/NAME, IDX files, or `digits`",
    )
    val_share: float = option(0.2, "share of the pictures kept for validation, at most 5,000 pictures")
    test_share: float = option(0.2, "share kept for the test, where the source has no val/ or test/ of its own")
    split_seed: int = option(0, "seed of the split")
    max_bad_share: float = option(0.05, "share of damaged pictures above which the run stops")
    max_pixels: int = option(50_000_000, "a larger picture is refused before it is decoded", "pixels")
    max_bytes: int = option(64_000_000, "a larger file is refused before it is read", "bytes")
    image_column: str = option("", "Parquet, datasets: the column of pictures, where there are several")
    label_column: str = option("", "Parquet, datasets: the column of classes, where several may be")
    streaming: bool = option(
        False, "hf://datasets: read what is needed when it is needed, and keep nothing on the disk"
    )

    def __post_init__(self) -> None:
        for name in ("val_share", "test_share", "max_bad_share"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "must be in [0, 1)")
        require(
            self.val_share + self.test_share < 1,
            "data.val_share", self.val_share, "must leave something to train on beside data.test_share",
        )  # fmt: skip
        for name in ("max_pixels", "max_bytes"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    task: Literal["classify", "masked_patches"] = option(
        "classify", "what is learnt; masked_patches: the colour of hidden patches, without labels, for --init later"
    )
    arch: str = option("", "named model to build (`vitrine info --models`)")
    init: str = option(
        "", "start from this model: a run, a file, hf://NAME; none: from scratch; for photographs one is looked for"
    )
    recipe: str = option("", "published training to follow (`vitrine info --recipes`); what is given stands above it")
    mode: Literal["full", "head", "attention", "lora"] = option(
        "full",
        "what learns of the model to start from: all, the head, attention layers too, low-rank adapters and head",
    )
    seed: int = option(0, "seed of weights, order and augmentation")
    epochs: int = option(100, "passes over the training pictures", chosen=True)
    batch_size: int = option(128, "pictures a step", chosen=True)
    accumulate: int = option(1, "parts a batch goes through the model in, for less memory and the same gradient")
    multi_label: bool = option(
        False,
        "whether a picture may have several classes, or none; follows from the data: the column labels",
        chosen=True,
    )
    loss: Literal["cross_entropy", "bce", "sigmoid"] = option(
        "cross_entropy",
        "over a softmax, or over a sigmoid for each class: bce their mean over the classes, sigmoid the sum",
        chosen=True,
    )
    target_threshold: float | None = option(
        None, "bce, sigmoid: mixed targets above this become 1, the others 0 (0 in DeiT-III); by default they stay"
    )
    class_weights: Literal["none", "balanced"] = option(
        "none",
        "balanced: what a class adds to the loss is inverse to its number of training pictures, 1 in the mean; "
        "multi-label: yes weighs as much in all as no, a class at most 20 times",
    )
    label_smoothing: float = option(
        0.1, "share of the target spread over all classes; multi-label: between yes and no", chosen=True
    )
    ema_decay: float = option(0.0, "decay of the running average of the weights, a step; 0 for none", chosen=True)
    grad_checkpointing: Literal["auto", "on", "off"] = option(
        "auto", "compute blocks again on the way back, for less memory; auto takes it where a batch would not fit"
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "bf16 is autocast; auto takes it where the hardware gains"
    )
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile; auto takes it for a run that outlasts it")
    device: Device = option("auto", "where to run")
    num_workers: int = option(0, "processes that decode pictures", chosen=True)
    threads: int = option(0, "CPU threads of torch; another number gives other last bits", chosen=True)
    tensorboard: bool = option(False, "event files for TensorBoard beside metrics.jsonl; needs vitrine[board]")
    max_time_s: float = option(0.0, "longest training time; 0 for no limit", "seconds", chosen=True)

    @property
    def begins_from(self) -> str:
        """The model that the run begins from, "" where it begins from scratch, wanted or for want of one."""
        return "" if self.init == FROM_SCRATCH else self.init

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("epochs", "batch_size", "accumulate"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.accumulate <= self.batch_size, "accumulate", self.accumulate, "must be batch_size at most")
        for name in ("label_smoothing", "ema_decay"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        for name in ("num_workers", "threads", "max_time_s", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(
            not self.multi_label or self.loss != "cross_entropy",
            "loss", self.loss, "must be bce or sigmoid where a picture may have several classes (multi_label)",
        )  # fmt: skip
        if self.target_threshold is not None:
            value, least = self.target_threshold, self.label_smoothing
            require(
                self.loss != "cross_entropy", "target_threshold", value, "must be left out: needs loss = bce or sigmoid"
            )
            # Smoothing gives every class something: with less of a threshold all would become 1.
            sound = f"must be from label_smoothing = {least} to below 1"
            require(least <= value < 1, "target_threshold", value, sound)
        if self.task == "masked_patches":
            self._require_what_needs_no_labels()

    def _require_what_needs_no_labels(self) -> None:
        family, (rows, columns) = self.model.family, self.model.grid
        require(family == "vit", "model.family", family, "task = masked_patches hides patches of the picture: vit")
        require(rows * columns > 1, "model.img_size", self.model.img_size, "task = masked_patches needs two patches")
        for name, value in (("loss", "cross_entropy"), ("class_weights", "none")):
            require(getattr(self, name) == value, name, getattr(self, name), "task = masked_patches has no labels")
        require(self.distill.kind == "none", "distill.kind", self.distill.kind, "task = masked_patches has no teacher")
