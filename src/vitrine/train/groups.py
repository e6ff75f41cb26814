"""Which parameters weight decay holds, and how fast each layer learns: the groups that an optimiser is given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from vitrine.config.options import OptimConfig
from vitrine.models.init import PLACES
from vitrine.train.plain import plain_names
from vitrine.train.shards import layout

# Tokens, positions of every kind, and the query of attention pooling, as parts of a parameter's name.
UNDECAYED = PLACES | {"cls_token", "latent", "mask_token"}

STEM = frozenset(
    {
        "patch_embed",
        "cls_token",
        "dist_token",
        "reg_token",
        "mask_token",
        "pos_embed",
        "shared_rel_pos",
        "norm_pre",
        "stem",
    }
)
"""How the names begin of what stands before the first block: patches (a hybrid's ResNet too), tokens, positions."""

_UNIT = re.compile(r"(?:stages\.(\d+)\.)?blocks\.(\d+)\.")


def groups(
    parameters: Iterable[tuple[str, Tensor]], config: OptimConfig, scales: dict[str, float]
) -> list[dict[str, Any]]:
    """`params`, `weight_decay` and `scale` for each kind of parameter that there is, those with decay first.

    `scale` is what the learning rate of the step is multiplied by for the group. What is parted among ranks in another
    way is in a group of its own.
    """
    found: dict[tuple[float, bool, str], list[Tensor]] = {}
    for name, parameter in parameters:
        found.setdefault((scales[name], decays(name, parameter), layout(parameter)), []).append(parameter)
    return [
        {"params": found[scale, decayed, how], "weight_decay": config.weight_decay if decayed else 0.0, "scale": scale}
        for scale, decayed, how in sorted(found, key=lambda kind: (kind[0], not kind[1], kind[2]))
    ]


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter: to matrices and filters, not to what `UNDECAYED` names."""
    return parameter.ndim >= 2 and not UNDECAYED & set(name.split("."))


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """decay^(L - i) for each parameter by name, i being its layer and L the last one (arXiv:2106.08254, appendix)."""
    numbers = layers([name for name, _ in plain_names(model)])
    last = max(numbers.values(), default=0)
    return {name: decay ** (last - number) for name, number in numbers.items()}


def layers(names: Sequence[str]) -> dict[str, int]:
    """The layer of each parameter, from 0: what stands before the blocks, each block (or unit of a ResNet), the head.

    The norm after the last block belongs to it, what pools and all that follows to the head, as in timm's
    `param_groups_layer_decay`. Relative positions that all blocks share are layer 0, those of a block in it.
    """
    units = sorted({unit for unit in map(_unit, names) if unit is not None})
    place = {unit: number for number, unit in enumerate(units, start=1)}
    found = {}
    for name in names:
        unit, begin = _unit(name), name.partition(".")[0]
        if unit is not None:
            found[name] = place[unit]
        else:
            found[name] = 0 if begin in STEM else len(place) + (begin != "norm")
    return found


def _unit(name: str) -> tuple[int, int] | None:
    """Stage (0 in a ViT) and number of the block a parameter is in."""
    match = _UNIT.match(name)
    return match and (int(match[1] or 0), int(match[2]))
