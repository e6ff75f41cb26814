"""A model written in another format, and the proof: what was written is read again and must give the same logits."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData, CannotCreate, UsageError, VitrineError, nearest
from vitrine.files import disk_error, sweep
from vitrine.weights import bundle as bundles
from vitrine.weights.bundle import Bundle
from vitrine.weights.formats.registry import ALIASES, FORMATS, format_named
from vitrine.weights.opening import open_model
from vitrine.weights.saving import save

OURS = "vitrine"
TOLERANCE = 1e-4
"""Largest difference of a logit that counts as equal, over the spread of the logits where that is above 1."""

PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written: `tensors` under the names of `format` at `out`, and how far its logits are from the source's.

    `max_difference` is the largest |difference| of a logit (of a feature, for a model without a head) over
    `num_pictures` random pictures, `spread` the standard deviation of the source's, `agreement` the share of
    pictures with the same first class.
    """

    out: Path
    format: str
    tensors: int
    max_difference: float
    spread: float
    agreement: float
    num_pictures: int
    said: tuple[str, ...]


def targets() -> list[str]:
    """The names that `to` takes."""
    return [OURS, *(name for name in FORMATS if format_named(name).write), *ALIASES]


def export(source: Bundle, to: str, out: Path, *, accept: float = 0.0) -> Export:
    """`source` written at `out` in the format named `to`, after its logits were compared with the source's.

    Nothing is left where they differ by more than the rounding of float32 and more than `accept`. Raises
    `UsageError` for a model that the format cannot hold, `CannotCreate` where something stands at `out`,
    `BadData` for a difference, `DiskError`.
    """
    name = ALIASES.get(to, to)
    if to not in targets():
        raise UsageError(f"--to {to}: cannot be written.{nearest(to, targets())} There is: {', '.join(targets())}.")
    if not accept >= 0:
        raise UsageError(f"--accept-difference {accept:g}: must be 0 or more.")
    if out.exists() or out.is_symlink():
        raise CannotCreate(f"--out {out}: something stands there already. Choose another place.")
    if not out.parent.is_dir():
        raise CannotCreate(f"--out {out}: there is no folder {out.parent}. Make it first.")
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        sweep(out)
        tensors, said = _write(source, name, draft)
        found = _compare(source, draft, name)
        limit = max(TOLERANCE * max(1.0, found.spread), accept)
        if not found.max_difference <= limit:
            raise _unequal(to, found, said)
        draft.rename(out)
    except VitrineError as error:
        raise type(error)(str(error).replace(str(draft), str(out))) from error
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        _remove(draft)
    return Export(
        out=out, format=name, tensors=tensors, max_difference=found.max_difference, spread=found.spread,
        agreement=found.agreement, num_pictures=PICTURES, said=said,
    )  # fmt: skip


def _write(source: Bundle, name: str, out: Path) -> tuple[int, tuple[str, ...]]:
    """Write the file or folder; gives the number of tensors and what there is to say."""
    if name == OURS:
        bundles.save(source, out)
        return len(source.tensors), ()
    write = format_named(name).write
    assert write is not None
    try:
        writing = write(source)
    except UsageError as error:
        raise UsageError(f"--to {name}: {str(error).removeprefix(f'--to {name}: ')}") from error
    save(writing, out)
    return len(writing.tensors), (*writing.said, *_said_of_several(source, name))


def _said_of_several(source: Bundle, name: str) -> tuple[str, ...]:
    """What a format cannot say of a model that may name several classes: that it does (but for transformers), and the
    threshold."""
    if not source.multi_label or not source.model.num_classes:
        return ()
    at = f"a class is called from the probability {source.threshold:.3g} on"
    if name == "hf":
        return (f"several classes a picture: problem_type in config.json says so; it has no place for this: {at}",)
    return (f"several classes a picture: {name} has no place to say so. Take the sigmoid of each logit; {at}",)


def _unequal(to: str, found: Difference, said: tuple[str, ...]) -> BadData:
    """The error for logits that differ, with the reasons that are known, and how to have the file all the same."""
    reasons = [sentence.removeprefix("warning: ") for sentence in said if sentence.startswith("warning: ")]
    why = f" Known: {'; '.join(reasons)}." if reasons else ""
    remedy = f"--accept-difference {found.max_difference * 1.1:.2g} writes it all the same"
    if not found.max_difference < float("inf"):
        remedy = "No figure can be accepted for it: look at the weights by `vitrine info`"
    return BadData(
        f"--to {to}: what was written gives other logits, by up to {found.max_difference:.2g}: nothing is left of "
        f"it.{why} {remedy}."
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one model's outputs are from another's."""

    max_difference: float
    spread: float
    agreement: float


def _compare(source: Bundle, written: Path, name: str) -> Difference:
    """The written file, read as its home would read it, against the source on the same random pictures.

    A reader at home knows the architecture, so the number of heads is given; an epsilon is not.
    """
    given = {} if name == OURS or source.model.family == "resnet" else {"num_heads": source.model.num_heads}
    back = open_model(str(written), format=None if name == OURS else name, given=given).bundle
    images = pictures(source.model)
    with torch.inference_mode():
        return difference(bundles.build(source)(images), bundles.build(back)(images))


def difference(wanted: Float[Tensor, "B K"], found: Float[Tensor, "B K"]) -> Difference:
    """The largest |difference|, the spread of what is `wanted`, and how often the largest entry is the same one."""
    if wanted.shape != found.shape:
        return Difference(max_difference=float("inf"), spread=float(wanted.std()), agreement=0.0)
    return Difference(
        max_difference=float((wanted - found).abs().max()),
        spread=float(wanted.std()) if wanted.numel() > 1 else 0.0,
        agreement=float((wanted.argmax(1) == found.argmax(1)).float().mean()),
    )


def pictures(config: ModelConfig) -> Float[Tensor, "B C H W"]:
    """Random pictures of the model's size, the same each time: coarse blots and fine noise, in about [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    size = (PICTURES, config.in_chans)
    coarse = torch.randn(*size, 4, 4, generator=generator)
    fine = torch.randn(*size, *config.size, generator=generator)
    return torch.nn.functional.interpolate(coarse, config.size, mode="bicubic") * 0.5 + fine * 0.2


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)
