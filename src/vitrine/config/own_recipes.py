"""Recipes of no other project's code: small pictures from scratch, parts of a model, hidden patches.

`small-data` and `head-only` are ours. The others take their numbers from the source that they name.
"""

from __future__ import annotations

from typing import Any

from vitrine.config.paper_recipes import IMAGENET
from vitrine.config.recipe import BY_DATA, Expected, Length, Recipe
from vitrine.config.text import Nested, merge

NOTHING_RANDOM: Nested = {
    "flip": False, "crop_min_area": 1.0, "shift": 0.0, "rotate_deg": 0.0, "zoom": 0.0, "jitter": 0.0, "mixup": 0.0,
    "cutmix": 0.0, "policy": "none", "erase": 0.0,
}  # fmt: skip

SMALL = Recipe(
    name="small-data",
    title="a plain ViT on some ten thousand pictures of 28 to 64 px, from scratch",
    source="ours; docs/log.md has what was tried",
    stage="pre-train",
    arch="vit_mini_patch4_32",
    batch_size=512,
    pictures=50_000,
    rate="root",
    length=Length(epochs=300, warmup_epochs=10),
    by_data=BY_DATA,
    options={
        "loss": "cross_entropy", "label_smoothing": 0.1, "ema_decay": 0.999,
        "model": {
            "embed_dim": 256, "depth": 8, "num_heads": 4, "class_token": False, "global_pool": "norm_then_avg",
            "pos_embed": "sincos2d", "qk_norm": True, "drop_path_rate": 0.1, "drop_rate": 0.0, "weight_init": "jax",
        },
        "preprocess": {"resize": "squash", "crop_pct": 1.0, "interpolation": "bilinear"},
        "augment": {
            **{name: value for name, value in NOTHING_RANDOM.items() if name != "flip"},
            "shift": 0.125, "policy": "trivial", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0, "mix_off_share": 0.33,
        },
        "optim": {
            "name": "muon", "lr": 3e-3, "weight_decay": 0.1, "clip_norm": 1.0, "schedule": "cosine", "min_lr": 0.0,
        },
    },
    deviations=(
        "It is made to reach 95.0 % on CIFAR-10 with 6.3 M parameters and has not yet been run at full length: "
        "`bench/cifar10.py` does. On a slice of CIFAR-10 and minutes of a CPU it is ahead of timm's ViT under DeiT's "
        "recipe (docs/log.md).",
        "Published for plain ViTs from scratch on CIFAR-10: 90.92 % (6.3 M parameters, 200 passes, "
        "omihub777/ViT-CIFAR), 93.58 % (2.8 M, best of 300 passes on the test pictures, aanna0701/SPT_LSA_ViT).",
    ),
)  # fmt: skip

PARTS: Nested = {
    "loss": "cross_entropy", "label_smoothing": 0.1, "ema_decay": 0.0, "augment": NOTHING_RANDOM,
    "optim": {
        "name": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip_norm": 1.0, "schedule": "cosine",
        "min_lr": 0.0,
    },
}  # fmt: skip


def _part(**more: Any) -> Recipe:
    """A fine-tuning of a part of a model; `options` are laid over what all share."""
    options = merge(PARTS, more.pop("options"))
    whole: dict[str, Any] = {"stage": "fine-tune", "rate": "root", "pictures": 5_000, "batch_size": 128, **more}
    return Recipe(options=options, **whole)


PEFT = 'peft, task guide "Image classification using LoRA"'
PARTIAL = (
    _part(
        name="head-only", title="the head alone, on features that each picture gives once",
        source="ours, after the linear classifiers of arXiv:2010.11929, section 4.1 (few-shot)",
        length=Length(epochs=100, warmup_epochs=5),
        options={"mode": "head", "optim": {"lr": 2e-3, "weight_decay": 0.05}},
        deviations=(
            "The paper's few-shot figures solve a least-squares problem in closed form; here the head is trained.",
            "Nothing about a picture is random, so that the frozen layers see it once.",
        ),
    ),
    _part(
        name="attention-only", title="attention layers, positions and the head, at a higher resolution",
        source="arXiv:2203.09795, section 4; options of DeiT-III's fine-tuning at 384 px",
        batch_size=512, pictures=IMAGENET, length=Length(epochs=20, warmup_epochs=5),
        options={
            "mode": "attention", "model": {"img_size": 384, "weight_init": "timm"},
            "augment": {
                "flip": True, "crop_min_area": 0.08, "convention": "torch", "policy": "rand-m9-mstd0.5-inc1",
                "mixup": 0.8, "cutmix": 1.0,
            },
            "preprocess": {"crop_pct": 1.0}, "optim": {"lr": 1e-5, "weight_decay": 0.1, "clip_norm": 0.0},
        },
        deviations=("The paper sweeps the rate for each data set and finds this part as good as all: --optim.lr.",),
    ),
    _part(
        name="lora", title="low-rank adapters on queries and values, and the head", source=PEFT,
        length=Length(steps=45), batch_size=512,
        options={
            "mode": "lora", "lora": {"rank": 16, "alpha": 16.0, "dropout": 0.1, "targets": ["q", "v"]},
            "label_smoothing": 0.0, "augment": {"flip": True, "crop_min_area": 0.08, "convention": "torch"},
            "optim": {"lr": 5e-3, "weight_decay": 0.0, "schedule": "linear"},
        },
        deviations=("Batches of 128 in four parts there; --accumulate 4 has the same gradient.",),
    ),
)  # fmt: skip

MASKED = Recipe(
    name="masked-patches",
    title="the paper's self-supervision: the mean colour of hidden patches",
    source="arXiv:2010.11929, appendix B.1.2",
    stage="pre-train",
    arch="vit-b/16",
    batch_size=4096,
    pictures=300_000_000,
    rate="root",
    length=Length(steps=1_000_000, warmup_steps=10_000),
    options={
        "task": "masked_patches", "loss": "cross_entropy", "label_smoothing": 0.0, "ema_decay": 0.0,
        "model": {"drop_rate": 0.0, "drop_path_rate": 0.0},
        "augment": {**NOTHING_RANDOM, "flip": True, "crop_min_area": 0.05, "convention": "google"},
        "optim": {
            "name": "adamw", "lr": 2e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": "cosine", "min_lr": 0.0,
        },
    },
    expects=(
        Expected(what="B/16 on ImageNet after fine-tuning; 2 points above training from scratch", value=79.9,
                 source="arXiv:2010.11929, section 4.6"),
    ),
    deviations=(
        "The paper names rate, batch, warm-up, schedule and steps; decay, clipping and crops are those of its "
        "pre-training on labels.",
        "It trains on JFT, which is not public. 100,000 steps reach nearly as much there: --epochs for fewer passes.",
        "Which 3-bit colours are meant is ours to read: 8 levels a channel of the mean of the patch.",
    ),
)  # fmt: skip

RECIPES = (SMALL, *PARTIAL, MASKED)
