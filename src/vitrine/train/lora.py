"""Low-rank adapters while they learn: beside the frozen layers of the blocks, and out again.

LoRA, arXiv:2106.09685, section 4.1: y = W x + b + (alpha / r) B A x, W frozen, A random and B zero at first. What a
run leaves is merged; `weights.adapter` writes the factors alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.lora import LoraConfig
from vitrine.config.options import Config
from vitrine.models.vit import Block, VisionTransformer
from vitrine.weights import adapter, hub
from vitrine.weights.adapter import Factors, merged, spread

FOLDER = "adapter"
"""Where in a run's folder the factors of the best epoch stand."""

QKV = ("q", "k", "v")


class AdaptedLinear(nn.Module):
    """Stands in for a linear layer, whose `weight` and `bias` it keeps under their names, with factors beside it.

    The layer's rows are `of` equal slices, of which those numbered in `slices` are adapted, each with an A and a B of
    its own; the A stand one below the other in `lora_A`, so do the B in `lora_B`. The layer itself stays one product.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, slices: tuple[int, ...] = (0,), of: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.slices, self.of, self.scale = slices, of, config.alpha / config.rank
        number, device = len(slices), base.weight.device
        self.lora_A = nn.Parameter(torch.empty(number * config.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(number * base.out_features // of, config.rank, device=device))
        self.drop = nn.Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft, and as nn.Linear begins

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """W x + b + scale * B A x."""
        low = F.linear(self.drop(x), self.lora_A)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.wide())

    def wide(self) -> Float[Tensor, "o r"]:
        """B in blocks, with the rows of the whole layer."""
        return spread(self.lora_B, self.slices, self.of)

    def factors(self) -> Factors:
        """The factors as peft has them."""
        return Factors(a=self.lora_A.detach(), b=self.wide().detach(), scale=self.scale)


def adapt(model: VisionTransformer, config: LoraConfig) -> None:
    """Put factors beside the layers of every block that `config.targets` names, in place."""
    slices = tuple(number for number, name in enumerate(QKV) if name in config.targets)
    for block in model.blocks:
        if slices:
            _put(block, "attn.qkv", AdaptedLinear(block.attn.qkv, config, slices, len(QKV)))
        for name in config.targets:
            if name not in QKV:
                _put(block, name, AdaptedLinear(cast(nn.Linear, block.get_submodule(name)), config))


def _put(block: Block, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(block.get_submodule(parent), own, layer)


def adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """The adapted layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def without_factors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model` under the names of a model without factors, which are merged into its weights."""
    tensors = dict(model.state_dict())
    for name, layer in adapted(model):
        del tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
        tensors[f"{name}.weight"] = merged(layer.weight, layer.factors())
    return tensors


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take all factors out of `model`, in place, and give it the tensors of a model without."""
    for name, layer in list(adapted(model)):
        with torch.device("meta"):
            bare = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias=layer.bias is not None)
        bare.weight, bare.bias = layer.weight, layer.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, bare)
    model.load_state_dict(dict(tensors), strict=True)


def write(
    model: nn.Module, config: Config, class_names: tuple[str, ...], folder: Path, *, whole: tuple[str, ...]
) -> None:
    """Write the factors of `model` as an adapter on `config.init`, with the parameters whose names begin as in `whole`.

    Raises `DiskError` or `CannotCreate`.
    """
    base = config.init if hub.is_id(config.init) else str(Path(config.init).resolve())
    factors = {name: layer.factors() for name, layer in adapted(model)}
    learnt = {name: parameter.detach() for name, parameter in model.named_parameters() if name.startswith(whole)}
    own = config.lora
    adapter.save(
        adapter.Adapter(
            base=base, factors=factors, saved=learnt, model=config.model, preprocess=config.preprocess,
            class_names=class_names, multi_label=config.multi_label,
        ),
        folder, rank=own.rank, alpha=own.alpha, dropout=own.dropout,
    )  # fmt: skip


def retell(folder: Path, config: Config, threshold: float) -> None:
    """Write the adapter in `folder` again, which now knows from which probability on a class is called."""
    own, found = config.lora, adapter.read(folder)
    adapter.save(
        replace(found, threshold=threshold), folder, rank=own.rank, alpha=own.alpha, dropout=own.dropout
    )  # fmt: skip
