"""The options of low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vitrine.config.field import check_choices, option, require

Target = Literal["q", "k", "v", "attn.proj", "mlp.fc1", "mlp.fc2"]
"""A matrix of a block: one of the three that stand one below the other in `attn.qkv`, or a layer by its name."""

TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685): beside a frozen matrix W learn B A, W + (alpha / rank) B A is what acts."""

    rank: int = option(8, "rows of A, columns of B")
    alpha: float = option(16.0, "what B A is multiplied by, over the rank")
    dropout: float = option(0.0, "dropout on what A is given")
    targets: tuple[Target, ...] = option(("q", "v"), "matrices of every block that are adapted")

    def __post_init__(self) -> None:
        check_choices(self, "lora.")
        require(self.rank >= 1, "lora.rank", self.rank, "must be at least 1")
        require(self.alpha > 0, "lora.alpha", self.alpha, "must be above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "must be in [0, 1)")
        sound = bool(self.targets) and set(self.targets) <= set(TARGETS) and len(set(self.targets)) == len(self.targets)
        require(sound, "lora.targets", self.targets, f"must be some of {', '.join(TARGETS)}, each once")
