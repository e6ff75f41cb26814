"""The options of a run on several devices: what each of them holds of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrine.config.field import check_choices, option, require


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a model is spread over the processes that torchrun or srun started.

    Nothing here changes what is learnt: a run may go on with other values.
    """

    mode: Literal["auto", "ddp", "fsdp"] = option(
        "auto", "each rank holds: ddp the whole model, fsdp a share of it; auto: fsdp where the whole would not fit"
    )
    tensor: int = option(1, "ranks that share every layer of a ViT, its heads and its MLP (tensor parallel)")
    timeout_s: float = option(600.0, "without a sign of life for so long a rank counts as hung", "seconds")

    def __post_init__(self) -> None:
        check_choices(self, "parallel.")
        require(self.tensor >= 1, "parallel.tensor", self.tensor, "must be at least 1")
        require(self.timeout_s > 0, "parallel.timeout_s", self.timeout_s, "must be above 0")
