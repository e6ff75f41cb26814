"""How many pictures fit into memory at once, and when blocks are computed again to make room for more."""

from __future__ import annotations

import math
from typing import Literal

from vitrine.config.architecture import ModelConfig
from vitrine.models.cost import num_kept

SHARE = 0.5
"""Of the memory that is there, what a part of a batch may keep for the backward pass; the rest is for weights,
gradients, the optimiser, and what a product needs while it runs."""

SENSIBLE = 32
"""Pictures of a batch below which memory is found by computing blocks again before the batch is made smaller."""

WRITTEN_TOKENS = 1024
"""Up to so many tokens attention may be written out, and is counted so: `machine.device.attention_way`."""

Choice = Literal["auto", "on", "off"]


def kept_bytes(model: ModelConfig, *, checkpointing: bool) -> int:
    """Bytes that training in float32 keeps of one picture, at most; under autocast it is about half."""
    return 4 * num_kept(model, fused=model.num_tokens > WRITTEN_TOKENS, checkpointing=checkpointing)


def room(model: ModelConfig, memory_bytes: int, *, checkpointing: bool) -> int:
    """Pictures whose activations fit into the share of memory that is theirs; at least 1."""
    return max(1, int(memory_bytes * SHARE / kept_bytes(model, checkpointing=checkpointing)))


def computes_again(
    model: ModelConfig, memory_bytes: int, wanted: int, choice: Choice, *, parts: int = 1, frozen: bool = False
) -> bool:
    """Whether blocks are computed again on the way back: as asked, or where `wanted` pictures would else not fit.

    They go through the model in `parts`; where the blocks are `frozen` nothing is kept of them.
    """
    if choice != "auto" or model.family == "resnet" or frozen:
        return choice == "on"
    return parts * room(model, memory_bytes, checkpointing=False) < wanted


def settled(
    model: ModelConfig, memory_bytes: int, wanted: int, choice: Choice, *, asked: bool, parts: int, frozen: bool = False
) -> tuple[int, Literal["on", "off"], list[str]]:
    """The batch, whether blocks are computed again, and a sentence where they are for want of memory.

    `wanted` pictures a batch, which `parts` go through the model one after another; `asked`: the number is the user's,
    and stays. `frozen`: nothing but the head learns, and then nothing is kept of the blocks.
    """
    # A frozen model keeps what one block needs while it runs, as if it computed the others again.
    plain, saving = (parts * room(model, memory_bytes, checkpointing=way) for way in (frozen, True))
    needed = wanted if asked else min(wanted, SENSIBLE)
    on = computes_again(model, memory_bytes, needed, choice, parts=parts, frozen=frozen)
    batch = wanted if asked else max(parts, min(wanted, 2 ** int(math.log2((saving if on else plain) / parts)) * parts))
    if not on or choice == "on":
        return batch, "on" if on else "off", []
    share = math.ceil(batch / parts)
    full, less = (share * kept_bytes(model, checkpointing=way) / 2**30 for way in (False, True))
    return batch, "on", [
        f"memory: {share} pictures at once would keep {full:.1f} GiB for the backward pass, more than half of "
        f"{memory_bytes / 2**30:.1f} GiB; blocks are computed again on the way back, which keeps {less:.1f} GiB and "
        "takes a third more time (--grad-checkpointing off)"
    ]  # fmt: skip
