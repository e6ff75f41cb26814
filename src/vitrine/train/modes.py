"""What of a model learns: everything, the head, the attention layers, or low-rank adapters."""

from __future__ import annotations

from torch import nn

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import AugmentConfig, Config
from vitrine.errors import UsageError
from vitrine.models.networks import Network
from vitrine.models.vit import Block, VisionTransformer, use_checkpointing
from vitrine.train import lora

HEAD = ("head.", "head_dist.", "pre_logits.")
"""How the names of the prediction head begin: its linear layer, DeiT's second one, its hidden layer (section 3.1)."""


def require_init(mode: str) -> None:
    """Raise `UsageError` where a part of a model is to learn; called where there is no model to start from."""
    if mode != "full":
        raise UsageError(f"--mode {mode}: the rest of the model stays as it is, so give one to start from by --init.")


def require_fitting(mode: str, model: ModelConfig, optimiser: str) -> None:
    """Raise `UsageError` where the model does not have what the mode trains, or the optimiser nothing to do."""
    if model.family == "resnet" and mode not in ("full", "head"):
        raise UsageError(f"--mode {mode}: a ResNet has no attention layers. Use --mode full or head.")
    if mode == "head" and optimiser == "muon":
        raise UsageError("--optim.name muon: takes the matrices of blocks, which --mode head freezes. Use adamw.")


def learns(name: str, mode: str) -> bool:
    """Whether the parameter of that name is trained.

    attention: those of every block's attention, its qkv and proj with what norms or relative positions it has, the
    head, and learned positions: as in the code of "Three things everyone should know about Vision Transformers"
    (arXiv:2203.09795, section 4; `--attn-only` of github.com/facebookresearch/deit, main.py).
    """
    if mode == "full" or name.startswith(HEAD):
        return True
    if mode == "attention":
        return ".attn." in name or name.startswith("pos_embed")
    return mode == "lora" and name.endswith((".lora_A", ".lora_B"))


def prepare(model: Network, config: Config) -> list[str]:
    """Freeze what `config.mode` leaves alone and put in what it adds, in place; gives a sentence for the user."""
    use_checkpointing(model, config.grad_checkpointing == "on")
    if config.mode == "full":
        return []
    if config.mode == "lora":
        assert isinstance(model, VisionTransformer)
        lora.adapt(model, config.lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name, config.mode))
    if config.mode == "head":
        _still(model)
    every = sum(p.numel() for p in model.parameters())
    some = sum(p.numel() for p in model.parameters() if p.requires_grad)
    what = {
        "head": "the head",
        "attention": "the attention layers, positions and the head",
        "lora": f"adapters of rank {config.lora.rank} on {', '.join(config.lora.targets)}, and the head",
    }[config.mode]
    return [f"learns: {what}; {some:,} of {every:,} numbers, the rest stays as it is"]


def _still(model: nn.Module) -> None:
    """Take dropout and stochastic depth out: frozen layers have nothing to gain from noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Block):
            module.drop_path = 0.0


def looks_once(config: Config) -> bool:
    """Whether the frozen layers give the same for a picture in every epoch, so that they need to see it but once."""
    return config.mode == "head" and not random(config.augment)


def random(augment: AugmentConfig) -> bool:
    """Whether anything is random about a training picture but its place in the order."""
    amounts = ("flip", "shift", "rotate_deg", "zoom", "jitter", "mixup", "cutmix", "erase")
    drawn = any(getattr(augment, name) for name in amounts) or augment.policy != "none"
    return drawn or augment.crop_min_area < 1 or augment.repeats > 1
