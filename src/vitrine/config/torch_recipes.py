"""Recipes of PyTorch code: DeiT, DeiT-III, torchvision's ViT, and BEiT's fine-tuning with a rate for each layer.

github.com/facebookresearch/deit (`main.py`, `README_deit.md`, `README_revenge.md`, `augment.py`; arXiv:2012.12877,
2204.07118), github.com/pytorch/vision (`references/classification/README.md`, pull request 5085),
github.com/microsoft/unilm (`beit/get_started_for_image_classification.md`; arXiv:2106.08254).
"""

from __future__ import annotations

from typing import Any

from vitrine.config.paper_recipes import IMAGENET, IMAGENET_21K
from vitrine.config.recipe import Case, Expected, Length, Recipe
from vitrine.config.text import Nested, merge

EVALUATION: Nested = {
    "resize": "shorter", "crop_pct": 0.875, "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
RESIZED_CROP: Nested = {"flip": True, "crop_min_area": 0.08, "convention": "torch", "mix_per": "batch"}
RAND = "rand-m9-mstd0.5-inc1"

EPOCHWISE = (
    "The learning rate moves with every step and the cosine begins where the warm-up ends; timm's moves with every "
    "pass, and its cosine began with the run: at most 1.6 % of the peak apart after 5 passes of 300."
)
AVERAGED = (
    "The running average of the weights (0.99996) is what is judged and kept here, and its decay grows with "
    "(1 + t) / (10 + t) at the start; their figures are of the weights themselves: --ema-decay 0."
)
SKIPPED = "Stochastic depth skips a branch for an exact share of the batch; timm's tosses for each picture."
HALF = "They train in 16 bits with a scaled loss; here it is bfloat16 where the hardware gains, or float32."
BILINEAR = "Training crops are resized bilinearly with antialiasing here, there bicubically."
NO_JITTER = "Its colour jitter of 0.3 does nothing: timm leaves it out beside RandAugment."
DROPPED = "The last batch of a pass is dropped where it is incomplete, as there."


def _recipe(**more: Any) -> Recipe:
    """A recipe of DeiT's line; `options` are laid over what all share."""
    shared: Nested = {
        "loss": "cross_entropy", "label_smoothing": 0.1, "ema_decay": 0.0,
        "model": {"weight_init": "timm", "drop_rate": 0.0, "drop_path_over": "linear"},
        "preprocess": EVALUATION, "augment": RESIZED_CROP,
        "optim": {
            "name": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip_norm": 0.0, "schedule": "cosine",
            "warmup_lr": 1e-6, "min_lr": 1e-5,
        },
    }  # fmt: skip
    options = merge(shared, more.pop("options"))
    said = more.pop("deviations", ())
    whole: dict[str, Any] = {
        "stage": "pre-train", "pictures": IMAGENET, "batch_size": 1024, "rate": "root",
        "deviations": (*said, EPOCHWISE, SKIPPED, BILINEAR, HALF, DROPPED), **more,
    }  # fmt: skip
    return Recipe(options=options, **whole)


def _expects(values: dict[str, float], source: str) -> tuple[Expected, ...]:
    return tuple(Expected(what=what, value=value, source=source) for what, value in values.items())


DEIT_AUGMENT: Nested = {"policy": RAND, "jitter": 0.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25, "repeats": 3}
DEIT_RULE = "The learning rate is 5e-4 x batch / 512."
DEIT = (
    _recipe(
        name="deit", title="DeiT: ImageNet in 300 passes without a teacher", arch="vit-b/16", rate="linear",
        source="arXiv:2012.12877, table 9; facebookresearch/deit, main.py", length=Length(epochs=300, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "optim": {"lr": 1e-3, "weight_decay": 0.05}, "augment": DEIT_AUGMENT,
            "model": {"drop_path_rate": 0.1},
        },
        expects=_expects({"B/16": 81.8, "S/16": 79.9, "Ti/16": 72.2}, "facebookresearch/deit, README_deit.md"),
        deviations=(AVERAGED, NO_JITTER, "Without a teacher: deit-distilled has one."),
    ),
    _recipe(
        name="deit-distilled", title="DeiT with a distillation token and a teacher (--distill.teacher MODEL)",
        arch="deit_base_distilled_patch16_224", rate="linear",
        source="arXiv:2012.12877, section 5.2 and table 9; facebookresearch/deit, main.py",
        length=Length(epochs=300, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "optim": {"lr": 1e-3, "weight_decay": 0.05}, "augment": DEIT_AUGMENT,
            "model": {"drop_path_rate": 0.1}, "distill": {"kind": "hard", "alpha": 0.5},
        },
        expects=_expects({"B/16": 83.4, "S/16": 81.2, "Ti/16": 74.5}, "facebookresearch/deit, README_deit.md"),
        deviations=(
            "Their teacher is a RegNetY-16GF (82.9 %), which is no model of Vitrine's: name any other.",
            AVERAGED, NO_JITTER,
        ),
    ),
    _recipe(
        name="deit-384", title="DeiT at 384 px, after 224", stage="fine-tune", rate="linear", batch_size=512,
        source="facebookresearch/deit, README_deit.md", length=Length(epochs=30, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "optim": {"lr": 5e-6, "min_lr": 5e-6, "weight_decay": 1e-8}, "augment": DEIT_AUGMENT,
            "model": {"drop_path_rate": 0.1, "img_size": 384}, "preprocess": {"crop_pct": 1.0},
        },
        expects=_expects({"B/16 at 384 px": 82.9}, "facebookresearch/deit, README_deit.md"),
        deviations=(AVERAGED, NO_JITTER),
    ),
)  # fmt: skip

REVENGE = "arXiv:2204.07118; facebookresearch/deit, README_revenge.md"
LAMB: Nested = {"name": "lamb", "clip_norm": 1.0}
LAMB_CLIPS = "apex's FusedLAMB clips the whole gradient to norm 1 inside; here optim.clip_norm does."
THREE: Nested = {"policy": "three", "jitter": 0.3, "cutmix": 1.0, "erase": 0.0}
LAYER_SCALE: Nested = {"init_values": 1e-4, "no_embed_class": True, "drop_path_over": "constant"}
ONE_K = {"S/16": 81.4, "B/16": 83.8, "L/16": 84.9, "H/14": 85.2}
TWENTY_ONE_K = {"S/16": 83.1, "B/16": 85.7, "L/16": 87.0, "H/14": 87.2}
SIZES = {"s": "S/16", "b": "B/16", "l": "L/16", "h": "H/14"}
ARCH = {
    "s": "deit3_small_patch16_224", "b": "deit3_base_patch16_224", "l": "deit3_large_patch16_224",
    "h": "deit3_huge_patch14_224",
}  # fmt: skip
HYPHENS = "--bce-loss and --repeated-aug are run together in the S command of the README; they are meant as two."
UNEVEN = (
    "The command's 160 or 128 px are no multiple of 14, and the last pixels are in no patch there; here the pictures "
    "have 154 or 126 px."
)
AT_224 = "These figures are at 224 px, for B, L and H after deit3-finetune."


def _deit3(letter: str, side: int, lr: float, drop_path: float) -> Recipe:
    """DeiT-III on ImageNet."""
    return _recipe(
        name=f"deit3-{letter}", title=f"DeiT-III on ImageNet, {SIZES[letter]} at {side} px", source=REVENGE,
        arch=ARCH[letter], batch_size=2048, length=Length(epochs=800, warmup_epochs=5),
        options={
            "loss": "bce", "target_threshold": 0.0, "label_smoothing": 0.0, "ema_decay": 0.99996,
            "model": {**LAYER_SCALE, "img_size": side, "drop_path_rate": drop_path},
            "optim": {**LAMB, "lr": lr, "weight_decay": 0.05},
            "augment": {**THREE, "mixup": 0.8, "repeats": 3}, "preprocess": {"crop_pct": 1.0},
        },
        expects=_expects({f"{SIZES[letter]} at 224 px": ONE_K[SIZES[letter]]}, "README_revenge.md"),
        deviations=(
            AVERAGED, LAMB_CLIPS, HYPHENS if letter == "s" else AT_224, *((UNEVEN,) if letter == "h" else ())
        ),
    )  # fmt: skip


def _deit3_21k(letter: str, side: int, epochs: int, drop_path: float) -> Recipe:
    """DeiT-III on ImageNet-21k."""
    return _recipe(
        name=f"deit3-21k-{letter}", title=f"DeiT-III on ImageNet-21k, {SIZES[letter]} at {side} px", source=REVENGE,
        arch=ARCH[letter], batch_size=2048, pictures=IMAGENET_21K, length=Length(epochs=epochs, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "model": {**LAYER_SCALE, "img_size": side, "drop_path_rate": drop_path},
            "optim": {**LAMB, "lr": 1e-3, "weight_decay": 0.02},
            "augment": {**THREE, "mixup": 0.0, "crop": "simple", "crop_min_area": 1.0}, "preprocess": {"crop_pct": 1.0},
        },
        expects=_expects(
            {f"{SIZES[letter]} at 224 px, after deit3-21k-finetune": TWENTY_ONE_K[SIZES[letter]]}, "README_revenge.md"
        ),
        deviations=(
            AVERAGED, LAMB_CLIPS, NO_BORDER,
            "At batch 4,096 they say 1.5e-3, a little more than the root gives (1.41e-3).",
            *((UNEVEN,) if letter == "h" else ()),
        ),
    )  # fmt: skip


NO_BORDER = "Their simple random crop reflects 4 pixels at the border first; here there is no border."


def _by_size(*rows: tuple[str, tuple[str, ...], float]) -> tuple[Case, ...]:
    """Stochastic depth by size of the model, B first: it is taken for others."""
    return tuple(
        Case(name=name, models=aliases, options={"model": {"drop_path_rate": rate}}) for name, aliases, rate in rows
    )


S, B, L, H = ("vit-s/16",), ("vit-b/16",), ("vit-l/16",), ("vit-h/14",)
TUNE_224 = _by_size(("B", B, 0.2), ("L", L, 0.45), ("H", H, 0.55), ("S", S, 0.0))
TUNE_384 = _by_size(("B", B, 0.15), ("L", L, 0.4), ("S", S, 0.0))
TUNE_21K = _by_size(("B", B, 0.15), ("S", S, 0.05), ("L", L, 0.4), ("H", H, 0.45))


def _deit3_finetune(side: int, cases: tuple[Case, ...], expects: tuple[Expected, ...]) -> Recipe:
    return _recipe(
        name="deit3-finetune" + ("-384" if side == 384 else ""), title=f"DeiT-III, fine-tuned on ImageNet at {side} px",
        stage="fine-tune", source=REVENGE, batch_size=512, length=Length(epochs=20, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "model": {"img_size": side, "drop_path_over": "constant"},
            "optim": {"lr": 1e-5, "weight_decay": 0.1}, "preprocess": {"crop_pct": 1.0},
            "augment": {"policy": RAND, "jitter": 0.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.0, "repeats": 1},
        },
        choices=(cases,), expects=expects,
        deviations=(
            AVERAGED, NO_JITTER,
            "Their min_lr of 1e-5 is the peak itself: after the warm-up the rate is constant, here too.",
        ),
    )  # fmt: skip


DEIT3 = (
    _deit3("s", 224, 4e-3, 0.05),
    _deit3("b", 192, 3e-3, 0.2),
    _deit3("l", 192, 3e-3, 0.45),
    _deit3("h", 160, 3e-3, 0.6),
    _deit3_finetune(
        224,
        TUNE_224,
        _expects({size: ONE_K[size] for size in ("B/16", "L/16", "H/14")}, "README_revenge.md"),
    ),
    _deit3_finetune(384, TUNE_384, _expects({"S/16": 83.4, "B/16": 85.0, "L/16": 85.8}, "README_revenge.md")),
    _deit3_21k("s", 224, 240, 0.05),
    _deit3_21k("b", 224, 240, 0.1),
    _deit3_21k("l", 224, 240, 0.3),
    _deit3_21k("h", 128, 90, 0.5),
    _recipe(
        name="deit3-21k-finetune", title="DeiT-III from ImageNet-21k, fine-tuned on ImageNet", stage="fine-tune",
        source=REVENGE, batch_size=2048, length=Length(epochs=50, warmup_epochs=5),
        options={
            "ema_decay": 0.99996, "model": {"img_size": 224, "drop_path_over": "constant"},
            "optim": {**LAMB, "lr": 3e-4, "weight_decay": 0.02}, "preprocess": {"crop_pct": 1.0},
            "augment": {**THREE, "mixup": 0.0, "crop": "simple", "crop_min_area": 1.0},
        },
        choices=(TUNE_21K,), expects=_expects(TWENTY_ONE_K, "README_revenge.md"),
        deviations=(AVERAGED, LAMB_CLIPS, NO_BORDER),
    ),
)  # fmt: skip

TORCHVISION = (
    _recipe(
        name="torchvision-vit", title="torchvision's ViT-B/16 on ImageNet", arch="vit-b/16", batch_size=4096,
        source="pytorch/vision, references/classification/README.md and pull request 5085",
        length=Length(epochs=300, warmup_epochs=30),
        options={
            "label_smoothing": 0.11, "ema_decay": 0.99998, "model": {"drop_path_rate": 0.0, "weight_init": "jax"},
            "optim": {"lr": 3e-3, "weight_decay": 0.3, "warmup_lr": 0.033 * 3e-3, "min_lr": 0.0, "clip_norm": 1.0},
            "augment": {"policy": "augreg-light2", "mixup": 0.2, "cutmix": 1.0, "repeats": 3},
            "preprocess": {"interpolation": "bilinear"},
        },
        expects=_expects({"B/16": 81.07}, "pytorch/vision, pull request 5085"),
        deviations=(
            "Their RandAugment has two of 14 operations at magnitude 9 of 30; here the same 14 are at 10 of 30.",
            "Their weight decay holds biases, norms, tokens and positions too; here matrices and filters alone.",
            "Their average takes in the weights every 32 steps, with a decay adjusted to it; here every step.",
            "Mixup and CutMix: theirs is with the picture before, here with the one from the other end of the batch.",
        ),
    ),
)  # fmt: skip

LAYERWISE = (
    _recipe(
        name="layer-decay", title="fine-tuning with a lower rate for earlier layers, as BEiT's", stage="fine-tune",
        source="arXiv:2106.08254; microsoft/unilm, beit/get_started_for_image_classification.md",
        length=Length(epochs=100, warmup_epochs=20),
        options={
            "model": {"img_size": 224},
            "optim": {"lr": 4e-3, "weight_decay": 0.05, "layer_decay": 0.65, "min_lr": 1e-6},
            "augment": {"policy": RAND, "jitter": 0.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25, "repeats": 1},
        },
        choices=((
            Case(
                name="B", models=B, length=Length(epochs=100, warmup_epochs=20),
                options={"optim": {"lr": 4e-3, "layer_decay": 0.65}, "model": {"drop_path_rate": 0.1}},
            ),
            Case(
                name="L", models=L, length=Length(epochs=50, warmup_epochs=5),
                options={"optim": {"lr": 1e-3, "layer_decay": 0.75}, "model": {"drop_path_rate": 0.2}},
            ),
        ),),
        expects=_expects(
            {"BEiT-B, self-supervised on ImageNet-21k, then this": 83.7, "BEiT-L, the same": 86.0},
            "microsoft/unilm, beit/README.md",
        ),
        deviations=(
            "The figures are those of BEiT's own weights and architecture (relative positions, mean of the patches).",
            "The norm after the last block has the rate of the last block, as timm's; BEiT's has the head's.",
            "Smoothing, policy, erasing and the least rate are the defaults of its run_class_finetuning.py.", NO_JITTER,
        ),
    ),
)  # fmt: skip

RECIPES = (*DEIT, *DEIT3, *TORCHVISION, *LAYERWISE)
