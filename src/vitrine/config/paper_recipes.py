"""The recipes of the paper and of its released code, and what all of Google's share.

arXiv:2010.11929 (tables 3, 4 and 5, appendix B.1); github.com/google-research/vision_transformer, `vit_jax/configs`.
"""

from __future__ import annotations

from typing import Any

from vitrine.config.recipe import Case, Expected, Length, Recipe
from vitrine.config.text import Nested, merge

IMAGENET, IMAGENET_21K, JFT = 1_281_167, 14_197_122, 303_000_000
"""Training pictures of each."""

ABSTRACT = "arXiv:2010.11929, abstract"
HALF: Nested = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
EVALUATION: Nested = {"resize": "shorter", "crop_pct": 0.875, "interpolation": "bilinear", **HALF}
"""Resized to 256 for 224, big_vision's `resize_small(256)|central_crop(224)`."""

CROPPED: Nested = {"flip": True, "crop_min_area": 0.05, "convention": "google", "mix_per": "batch"}
ADAM: Nested = {"name": "adamw", "beta1": 0.9, "beta2": 0.999, "clip_norm": 1.0, "schedule": "cosine", "min_lr": 0.0}
JAX: Nested = {"weight_init": "jax", "act_layer": "gelu_tanh"}
SIGMOID: Nested = {"loss": "sigmoid", "model": {"head_bias": -10.0}}
PLAIN: Nested = {"label_smoothing": 0.0, "ema_decay": 0.0}

FEWER = "They hold out a part of the training pictures (1 % of ImageNet); here data.val_share or a val/ folder does."
DROPPED = "An incomplete last batch is dropped in every pass here; they go on into the next pass."
RESIZED = "Training crops are resized with antialiasing here; TensorFlow's resize has none."
ZEROED = "Their steps begin at a learning rate of zero, here at the first step of the warm-up."


def pretraining(**more: Any) -> Recipe:
    """A pre-training of the paper or of big_vision; `options` are laid over what all share."""
    shared: Nested = {
        **PLAIN, "loss": "cross_entropy", "model": {**JAX, "drop_rate": 0.0, "drop_path_rate": 0.0},
        "preprocess": EVALUATION, "optim": ADAM, "augment": CROPPED,
    }  # fmt: skip
    options = merge(shared, more.pop("options"))
    said = more.pop("deviations", ())
    whole: dict[str, Any] = {
        "stage": "pre-train", "arch": "vit-b/16", "batch_size": 4096, "pictures": IMAGENET, "rate": "root",
        "deviations": (*said, FEWER, DROPPED, RESIZED, ZEROED), **more,
    }  # fmt: skip
    return Recipe(options=options, **whole)


def _row(model: str, lr: float, epochs: int, *aliases: str, decay: float = 0.1) -> Case:
    options: Nested = {"optim": {"lr": lr, "weight_decay": decay}}
    length = Length(epochs=epochs, warmup_steps=10_000)
    return Case(name=f"{model} of Table 3", models=aliases, options=options, length=length)


JFT_ROWS = (
    _row("ViT-B", 8e-4, 7, "vit-b/16", "vit-b/32"),
    _row("ViT-L/32", 6e-4, 7, "vit-l/32"),
    _row("ViT-L/16", 4e-4, 14, "vit-l/16"),
    _row("ViT-H/14", 3e-4, 14, "vit-h/14"),
    _row("ResNet-50", 1e-3, 7, "bit-r50x1", "bit-r50x2"),
    _row("ResNet-101", 8e-4, 7, "bit-r101x1"),
    _row("ResNet-152", 6e-4, 7, "bit-r152x1", "bit-r152x2"),
    _row("R50+ViT-B", 8e-4, 7, "r50+vit-b/16", "r50+vit-b/32"),
    _row("R50+ViT-L/32", 2e-4, 7, "r50+vit-l/32"),
    _row("R50+ViT-L/16", 4e-4, 14, "r50+vit-l/16"),
)
I21K_ROWS = (
    _row("ViT-B", 1e-3, 90, "vit-b/16", "vit-b/32", decay=0.03),
    _row("ViT-L", 1e-3, 90, "vit-l/16", "vit-l/32", decay=0.03),
)


def _five(values: dict[str, float], on: str) -> tuple[Expected, ...]:
    table = "arXiv:2010.11929, table 5"
    return tuple(Expected(what=f"{model}, {on}", value=value, source=table) for model, value in values.items())


TUNED = _five(
    {"B/16": 83.97, "B/32": 81.28, "L/16": 85.15, "L/32": 80.99, "H/14": 85.13},
    "ImageNet-21k, then fine-tuned on ImageNet at 384 px",
)
CIFAR = _five({"B/16": 98.95, "B/32": 98.79, "L/16": 99.16}, "ImageNet-21k, then fine-tuned on CIFAR-10 at 384 px")
OTHERS = (
    *_five({"B/16": 91.67, "L/16": 93.44}, "ImageNet-21k, then fine-tuned on CIFAR-100 at 384 px"),
    *_five({"B/16": 94.43, "L/16": 94.73}, "ImageNet-21k, then fine-tuned on Oxford pets at 384 px"),
    *_five({"B/16": 99.38, "L/16": 99.61}, "ImageNet-21k, then fine-tuned on Flowers at 384 px"),
)
HEAD = "Table 3 does not name the loss: sigmoids with a head bias of -10 are said in the released code's issue 2."
DROPOUT = "Dropout is after every dense layer but q, k, v, and after the positions, as in the paper."
LINEAR_END = "The released code's issue 2 says a linear way down to 1e-5; so it is here."

PAPER = (
    pretraining(
        name="vit-paper-jft", title="the paper's pre-training on JFT-300M", source="arXiv:2010.11929, table 3",
        pictures=JFT, hidden_head=True, length=Length(epochs=7, warmup_steps=10_000), choices=(JFT_ROWS,),
        options=merge(SIGMOID, {"optim": {"schedule": "linear", "min_lr": 1e-5, "clip_norm": 0.0}}),
        expects=(Expected(what="H/14, JFT, then fine-tuned on ImageNet at 518 px", value=88.55, source=ABSTRACT),),
        deviations=(HEAD, LINEAR_END, "L/16 and R50+L/16 were trained for 7 and for 14 passes: here 14."),
    ),
    pretraining(
        name="vit-paper-i21k", title="the paper's pre-training on ImageNet-21k", source="arXiv:2010.11929, table 3",
        pictures=IMAGENET_21K, hidden_head=True, length=Length(epochs=90, warmup_steps=10_000), choices=(I21K_ROWS,),
        options=merge(
            SIGMOID, {"optim": {"schedule": "linear", "min_lr": 1e-5, "clip_norm": 0.0}, "model": {"drop_rate": 0.1}}
        ),
        expects=TUNED, deviations=(HEAD, LINEAR_END, DROPOUT, "L was trained for 30 and for 90 passes: here 90."),
    ),
    pretraining(
        name="vit-paper-i1k", title="the paper's training on ImageNet alone", source="arXiv:2010.11929, table 3",
        hidden_head=True, length=Length(epochs=300, warmup_steps=10_000),
        options={"optim": {"lr": 3e-3, "weight_decay": 0.3}, "model": {"drop_rate": 0.1}},
        expects=_five(
            {"B/16": 77.91, "B/32": 73.38, "L/16": 76.53, "L/32": 71.16}, "ImageNet, then fine-tuned on it at 384 px"
        ),
        deviations=(DROPOUT,),
    ),
)  # fmt: skip

FINE: Nested = {
    **PLAIN, "loss": "cross_entropy", "model": {"drop_rate": 0.0, "drop_path_rate": 0.0, "img_size": 384},
    "preprocess": {"resize": "squash"}, "augment": CROPPED,
    "optim": {
        "name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 0.0, "clip_norm": 1.0, "schedule": "cosine",
        "min_lr": 0.0,
    },
}  # fmt: skip


def in_steps(steps: int, warmup: int) -> Length:
    """A length in steps, `warmup` of them warm-up."""
    return Length(steps=steps, warmup_steps=warmup)


LOW: Nested = {"optim": {"lr": 0.01}}
SIZES = (
    Case(name="fewer than 20,000 pictures (pets, flowers)", pictures_below=20_000, length=in_steps(500, 100)),
    Case(name="fewer than 500,000 pictures (CIFAR)", pictures_below=500_000, length=in_steps(10_000, 500)),
    Case(name="500,000 pictures or more (ImageNet)", length=in_steps(20_000, 500)),
)
TABLE_4 = (
    Case(name=SIZES[0].name, pictures_below=20_000, length=SIZES[0].length, options=LOW),
    Case(name=SIZES[1].name, pictures_below=500_000, length=SIZES[1].length, options=LOW),
    SIZES[2],
)
WHOLE = "A run ends with a whole pass: its length is the steps rounded to passes."
NEW_HEAD = (
    "The new head begins at zero and the hidden layer of the old one is dropped, unless the classes are the same."
)
HALF_MOMENTUM = "They keep the momentum in bfloat16, here it is float32."
GRID = (
    "The rate is chosen on held-out pictures there, from 0.003, 0.01, 0.03, 0.06 (ImageNet) or 0.001, 0.003, 0.01, "
    "0.03; here it is 0.03 for ImageNet's size and 0.01 below: try the others with --optim.lr."
)
BIT_SIZES = "Which data are large and which small is decided by BiT-HyperRule's limits, 20,000 and 500,000 pictures."
STRETCHED = "Crops, mirroring and evaluation on the whole picture, stretched, are those of the released code."
WARMED = "Table 4 names no warm-up: it is that of the released code (500 steps), 100 in the shortest (its augreg.py)."


def tuning(**more: Any) -> Recipe:
    """A fine-tuning with SGD; `options` are laid over what all share."""
    options = merge(FINE, more.pop("options", {}))
    said = more.pop("deviations", ())
    whole: dict[str, Any] = {
        "stage": "fine-tune", "batch_size": 512, "pictures": IMAGENET, "rate": "linear",
        "length": in_steps(20_000, 500),
        "deviations": (*said, WHOLE, NEW_HEAD, FEWER, RESIZED), **more,
    }  # fmt: skip
    return Recipe(options=options, **whole)


def _readme(values: dict[str, float], on: str) -> tuple[Expected, ...]:
    source = "README of google-research/vision_transformer"
    return tuple(Expected(what=f"{model}, {on}", value=value, source=source) for model, value in values.items())


def _transfer(values: dict[str, float]) -> tuple[Expected, ...]:
    source = "big_vision, configs/transfer.py"
    return tuple(Expected(what=f"B/32 on {data}", value=value, source=source) for data, value in values.items())


TUNING = (
    tuning(
        name="finetune", title="the paper's fine-tuning at 384 px", source="arXiv:2010.11929, table 4 and section 3.2",
        choices=(TABLE_4,), expects=(*TUNED, *CIFAR, *OTHERS), deviations=(GRID, BIT_SIZES, WARMED, STRETCHED),
    ),
    tuning(
        name="finetune-polyak", title="the paper's fine-tuning at 512 px, with averaged weights",
        source="arXiv:2010.11929, table 2 and section 4.1", choices=(TABLE_4,),
        options={"ema_decay": 0.9999, "model": {"img_size": 512}},
        expects=(Expected(what="H/14 from JFT on ImageNet at 518 px", value=88.55, source=ABSTRACT),),
        deviations=(
            GRID, BIT_SIZES, WARMED, STRETCHED,
            "The average forgets its beginning: its decay is (1 + t) / (10 + t) until that exceeds 0.9999.",
        ),
    ),
    tuning(
        name="google-finetune", title="fine-tuning as the released code does it",
        source="google-research/vision_transformer, vit_jax/configs/common.py and input_pipeline.py",
        choices=((
            Case(name=SIZES[1].name, pictures_below=500_000, length=in_steps(10_000, 500)),
            Case(name=SIZES[2].name, length=in_steps(20_000, 500)),
        ),),
        expects=(
            *_readme({"B/16": 84.53, "L/16": 84.47}, "on ImageNet"),
            *_readme({"B/16": 99.02, "L/16": 99.13}, "on CIFAR-10"),
            *_readme({"B/16": 92.06, "L/16": 92.91}, "on CIFAR-100"),
            *_readme({"B/16": 98.59}, "on CIFAR-10 in 500 steps, 50 of them warm-up"),
        ),
        deviations=(
            "The rate is 0.03 by default there; on CIFAR-10 B/16 has 0.01 (--optim.lr 0.01).", HALF_MOMENTUM,
            "Their accumulation in 8 parts is --accumulate 8 here: the same gradient.",
        ),
    ),
    tuning(
        name="augreg-finetune", title="fine-tuning of AugReg's models",
        source="google-research/vision_transformer, vit_jax/configs/augreg.py; big_vision, configs/transfer.py",
        choices=(SIZES,), options={"preprocess": {"resize": "shorter", "crop_pct": 384 / 448}},
        expects=(
            *(
                Expected(what=f"{model} on ImageNet at 384 px", value=value, source="arXiv:2106.10270, released models")
                for model, value in {
                    "B/16": 85.49, "L/16": 85.59, "S/16": 83.73, "Ti/16": 78.22, "R26+S/32": 83.85, "R50+L/32": 85.99
                }.items()
            ),
            *_transfer({"ImageNet": 83.27, "CIFAR-10": 98.55, "CIFAR-100": 91.35, "pets": 93.78, "Flowers": 99.43}),
        ),
        deviations=(
            "The rate is 0.03 by default there; the best found for B/32 are 0.03 on ImageNet, 0.01 on CIFAR-100, 0.003 "
            "on CIFAR-10, pets and Flowers.",
            "On CIFAR they crop 384 from 448 pixels: --augment.crop simple --augment.crop-min-area 0.735.",
            HALF_MOMENTUM,
        ),
    ),
)  # fmt: skip

RECIPES = (*PAPER, *TUNING)
