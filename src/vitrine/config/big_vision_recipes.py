"""Recipes of big_vision and BiT: AugReg's levels, the better plain ViT, BiT-HyperRule and its ResNet-50, ViT-g.

arXiv:2106.10270, 2205.01580, 1912.11370, 2106.04560; github.com/google-research/big_vision, `big_vision/configs`, whose
weight decay is given over the learning rate here (there the schedule alone multiplies it);
github.com/google-research/big_transfer, `bit_hyperrule.py`.
"""

from __future__ import annotations

from vitrine.config.paper_recipes import IMAGENET, IMAGENET_21K, SIGMOID, in_steps, pretraining, tuning
from vitrine.config.recipe import Case, Expected, Length, Recipe
from vitrine.config.text import Nested, merge

JFT_3B = 3_000_000_000
BETTER = "arXiv:2205.01580, table 1"
MOMENTS = "They keep Adam's first moment in bfloat16, here it is float32: no measurable difference (EIFY/mup-vit)."

MIXUP = {"none": 0.0, "light1": 0.0, "light2": 0.2, "medium1": 0.2, "medium2": 0.5, "strong1": 0.5, "strong2": 0.8}
"""Alpha of mixup by level of AugReg; the operations are those of the policy of the same name."""

BEST = {
    False: {"light1": ("Ti/16",), "medium1": ("S/32",), "medium2": ("S/16", "B/32", "B/16", "L/16")},
    True: {"none": ("Ti/16", "S/32"), "light1": ("S/16",), "light2": ("B/32", "B/16"), "medium2": ("L/16",)},
}
"""The models that a level is best for, on ImageNet and on ImageNet-21k (figure 4 and the configs)."""

GRID_28 = (
    "One of 28 runs of the paper's grid: it also has weight decay 0.03 (--optim.weight-decay) and, together, dropout "
    "and stochastic depth 0.1, which helped B/32, B/16 and L/16 on ImageNet (--model.drop-rate and .drop-path-rate)."
)


def _level(level: str, large: bool) -> Recipe:
    """A level of AugReg on ImageNet, or on ImageNet-21k where `large`."""
    augment = {"policy": "none" if level == "none" else f"augreg-{level}", "mixup": MIXUP[level]}
    best = BEST[large].get(level, ())
    data = "ImageNet-21k" if large else "ImageNet"
    config = "vit_i21k.py" if large else "vit_i1k.py"
    model: Nested = {"head_bias": -10.0 if large else -6.9}
    if large:
        model |= {"class_token": False, "global_pool": "norm_then_avg"}
    return pretraining(
        name=f"augreg-{'i21k-' if large else ''}{level}",
        title=f"AugReg on {data}, {level}" + (f": best for {', '.join(best)}" if best else ""),
        source=f"arXiv:2106.10270; big_vision, configs/{config}", pictures=IMAGENET_21K if large else IMAGENET,
        hidden_head=not large, length=Length(epochs=300, warmup_steps=10_000),
        options={
            "loss": "sigmoid", "model": model, "augment": augment, "optim": {"lr": 1e-3, "weight_decay": 0.1},
        },
        expects=tuple(
            Expected(what=f"{model}, then fine-tuned on ImageNet at 384 px", value=value, source="arXiv:2106.10270")
            for model, value in {"Ti/16": 78.22, "S/16": 83.73, "B/16": 85.49, "L/16": 85.59}.items()
            if large and model in best
        ),
        deviations=(
            GRID_28, MOMENTS,
            *(("Also published for 30 passes: --epochs 30.",) if large else (
                "Later versions of that config have a softmax: --loss cross_entropy --model.head-bias 0.",
            )),
        ),
    )  # fmt: skip


PASSES = {"90 passes": 76.5, "150 passes": 78.5, "300 passes": 80.0}
AUGREG = (
    *(_level(level, large) for large in (False, True) for level in MIXUP),
    pretraining(
        name="plain-vit-s16", title="better plain ViT baselines for ImageNet-1k, S/16 in 90 passes", source=BETTER,
        arch="vit-s/16", hidden_head=True, batch_size=1024, length=Length(epochs=90, warmup_steps=10_000),
        options={
            "optim": {"lr": 1e-3, "weight_decay": 0.1},
            "model": {"class_token": False, "global_pool": "norm_then_avg", "pos_embed": "sincos2d"},
            "augment": {"policy": "augreg-light2", "mixup": 0.2},
        },
        expects=(
            *(Expected(what=f"S/16, {length}", value=value, source=BETTER) for length, value in PASSES.items()),
            *(
                Expected(what=f"S/16, 90 passes, {change}", value=value, source=BETTER)
                for change, value in {
                    "neither RandAugment nor mixup": 73.6, "learned positions": 75.0, "batch 4,096": 74.7,
                    "class token": 75.0, "linear head": 76.7, "as the paper has it": 66.8,
                }.items()
            ),
        ),
        deviations=(
            MOMENTS, "One share of mixup a batch; theirs is one for each device's part of it.",
            "150 and 300 passes: --epochs. An independent reproduction (EIFY/mup-vit) has runs 0.2 apart.",
        ),
    ),
)  # fmt: skip

HYPER: tuple[tuple[Case, ...], ...] = (
    (
        Case(
            name="fewer than 20,000 pictures", pictures_below=20_000, length=in_steps(500, 100),
            options={"optim": {"step_at": [0.4, 0.6, 0.8]}},
        ),
        Case(
            name="fewer than 500,000 pictures", pictures_below=500_000, length=in_steps(10_000, 500),
            options={"optim": {"step_at": [0.3, 0.6, 0.9]}, "augment": {"mixup": 0.1}},
        ),
        Case(
            name="500,000 pictures or more", length=in_steps(20_000, 500),
            options={"optim": {"step_at": [0.3, 0.6, 0.9]}, "augment": {"mixup": 0.1}},
        ),
    ),
    (
        Case(
            name="pictures of less than 96 x 96 pixels: 128 of 160", area_below=96 * 96,
            options={"model": {"img_size": 128}, "augment": {"crop_min_area": (128 / 160) ** 2}},
        ),
        Case(
            name="larger pictures: 480 of 512",
            options={"model": {"img_size": 480}, "augment": {"crop_min_area": (480 / 512) ** 2}},
        ),
    ),
)  # fmt: skip

BIT = (
    tuning(
        name="bit-hyperrule", title="BiT-HyperRule: fine-tuning with nothing to choose",
        source="arXiv:1912.11370, section 3.3; google-research/big_transfer, bit_hyperrule.py", choices=HYPER,
        options={
            "augment": {"crop": "simple", "mixup": 0.0},
            "optim": {"lr": 0.003, "schedule": "steps", "clip_norm": 0.0}, "model": {"img_size": 480},
        },
        expects=(
            Expected(what="BiT-L (R152x4 from JFT) on ImageNet", value=87.5, source="arXiv:1912.11370, abstract"),
            Expected(what="BiT-L (R152x4 from JFT) on CIFAR-10", value=99.4, source="arXiv:1912.11370, abstract"),
        ),
        deviations=(
            "The side is the middle picture's, not that of a named data set.",
            "With a ViT the sides are rounded to a multiple of its patch.",
        ),
    ),
    pretraining(
        name="bit-i1k", title="BiT's ResNet-50 on ImageNet, to compare with", source="big_vision, configs/bit_i1k.py",
        arch="bit-r50x1", rate="linear", length=Length(epochs=90, warmup_steps=1_000),
        options={
            "optim": {"name": "sgd", "lr": 1.6, "momentum": 0.9, "weight_decay": 1e-4}, "augment": {"policy": "none"},
        },
        deviations=(
            "Their decay is apart from the momentum, 1.6e-3 of a weight a step; torch's goes through it: 1e-4 comes to "
            "the same: 1.6 x 1e-4 / (1 - 0.9).",
        ),
    ),
    pretraining(
        name="vit-g", title="scaling Vision Transformers: g/14 on JFT-3B", arch="vit-g/14", batch_size=16_384,
        source="arXiv:2106.04560; big_vision, configs/proj/scaling_laws/train_vit_g.py", pictures=JFT_3B,
        length=in_steps(1_000_000, 10_000),
        options=merge(SIGMOID, {
            "optim": {
                "lr": 8e-4, "weight_decay": 0.03, "schedule": "rsqrt", "timescale_steps": 10_000,
                "cooldown_steps": 50_000,
            },
            "model": {"class_token": False, "global_pool": "map"},
        }),
        expects=(Expected(what="G/14, then fine-tuned on ImageNet", value=90.45, source="arXiv:2106.04560, abstract"),),
        deviations=(
            "AdamW stands for their Adafactor, which has no first moment in full and a limit on beta2.",
            "The head decays like all else; theirs a hundred times as much.",
        ),
    ),
)  # fmt: skip

RECIPES = (*AUGREG, *BIT)
