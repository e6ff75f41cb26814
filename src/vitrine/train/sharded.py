"""The state of a run whose model is parted: a folder with a file a rank, and a manifest; read by any number of ranks.

Each rank writes the shares that it holds, in the container of every other file of ours, as boxes of the tensors that
one process has: so two ranks, four, or one may go on, whatever each is to hold. `manifest.json` has the SHA-256 of
each file, the progress, and a SHA-256 of itself; the folder appears under its name when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.errors import BadData
from vitrine.files import content_hash, disk_error, read_error, sweep, sync_folder, write_text
from vitrine.machine import ranks
from vitrine.train import shards, state
from vitrine.train.optim import Average
from vitrine.train.state import Progress
from vitrine.weights import container
from vitrine.weights.header import strict_json

MANIFEST = "manifest.json"
FORMAT = 1

Get = Callable[[str], Tensor]


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, progress: Progress
) -> None:
    """Write the whole state as `folder`, to which every rank adds its shares. All ranks call it together, and see the
    same disk."""
    place = ranks.here()
    part = Path(ranks.from_first(lambda: str(_begun(folder))))
    file = part / f"part-{place.rank + 1:05}-of-{place.world:05}.safetensors"
    tensors, boxes = dict[str, Tensor](), dict[str, Any]()
    for name, tensor, like, slices in _named(model, optimizer, average):
        for number, (offset, piece) in enumerate(_boxes(tensor, like, slices)):
            tensors[f"{name}@{number}"] = piece
            boxes[f"{name}@{number}"] = {"name": name, "offset": offset, "shape": list(like.shape)}
    container.write(file, tensors, {"kind": "state part", "boxes": boxes})
    hashes = dict(ranks.each([file.name, _hash(file)]))
    if ranks.first():
        facts = {"format": FORMAT, "files": hashes, **state.facts_of(progress)}
        write_text(part / MANIFEST, _text({**facts, "sha256": content_hash(_text(facts).encode())}))
        if folder.exists():  # the same step once more
            folder.rename(folder.with_name(f"..{folder.name}.{os.getpid()}.part.old"))
        part.replace(folder)
        sync_folder(folder.parent)
    ranks.wait()


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)


def _begun(folder: Path) -> Path:
    """An empty folder beside the place of `folder`, what killed writers left being removed."""
    sweep(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    return part


def _named(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Name, tensor, one that is parted as it is, and slices, of all that is kept."""
    for kind, module in (("model", model), ("average", average.model if average is not None else None)):
        for name, tensor in module.state_dict().items() if module is not None else ():
            yield f"{kind}.{name}", tensor, tensor, shards.slices_of(model, name)
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            like = parameter if tensor.ndim else tensor
            yield f"optim.{name}.{slot}", tensor, like, shards.slices_of(model, name)
    random = torch.get_rng_state()
    yield "random.cpu", random, random, 1


def _boxes(tensor: Tensor, like: Tensor, slices: int) -> Iterator[tuple[list[int], Tensor]]:
    """What this rank writes of a tensor: where each piece begins in the plain one, and the piece."""
    share, ways = shards.local(tensor).detach(), shards.directions(like)
    if not ways and ranks.first():
        yield [0] * like.ndim, share
    if not shards.parted(like) or not share.numel():
        return
    if any(not parts and like.device_mesh.get_local_rank(name) for name, (_, parts) in ways.items()):
        return  # another rank has the same
    rows, *columns = shards.places(like, slices)
    begins = [0, *(rows.diff() != 1).nonzero().flatten().add(1).tolist(), len(rows)]
    for begin, end in pairwise(begins):
        offset = [int(rows[begin]), *(int(column[0]) for column in columns)]
        yield offset + [0] * (like.ndim - len(offset)), share[begin:end]


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def put(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], model: nn.Module,
    optimizer: torch.optim.Optimizer, average: Average | None,
) -> tuple[Progress, list[str]]:  # fmt: skip
    """Give every object its share of the `tensors` of a state, however it is parted; gives the progress, and sentences
    for the user. Raises `BadData` naming `path` where the state is that of another model."""
    try:
        _put(tensors.__getitem__, list(tensors), model, optimizer, average)
        torch.set_rng_state(tensors["random.cpu"])
    except (KeyError, RuntimeError) as error:
        raise BadData(f"{path}: the state of another model ({error}).") from error
    return state.told_by(facts)


def _put(
    get: Get, names: list[str], model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Give every object its share of what `get` gives by name."""
    shards.fill(model, lambda name: get(f"model.{name}"))
    if average is not None:
        shards.fill(average.model, lambda name: get(f"average.{name}"))
    slots: dict[str, list[str]] = {}
    for name in names:
        kind, _, rest = name.partition(".")
        if kind == "optim":
            parameter, _, slot = rest.rpartition(".")
            slots.setdefault(parameter, []).append(slot)
    known = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = known[parameter]
            for slot in slots.get(name, ()):
                value = get(f"optim.{name}.{slot}")
                if value.ndim:
                    made = torch.zeros_like(parameter).detach()
                    shards.put(made, value, shards.slices_of(model, name))
                else:
                    made = value.clone().to(parameter.device if group.get("fused") else "cpu")
                optimizer.state[parameter][slot] = made


class Whole(Mapping[str, Tensor]):
    """The tensors of a state by name, each put together from its boxes when it is asked for."""

    def __init__(self, boxes: dict[str, list[tuple[list[int], Tensor]]], shapes: dict[str, list[int]]) -> None:
        self._boxes, self._shapes = boxes, shapes

    def __getitem__(self, name: str) -> Tensor:
        whole = torch.empty(self._shapes[name], dtype=self._boxes[name][0][1].dtype)
        for offset, piece in self._boxes[name]:
            spans = tuple(slice(at, at + side) for at, side in zip(offset, piece.shape, strict=True))
            whole[spans] = piece
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)


def opened(folder: Path) -> tuple[Whole, dict[str, Any]]:
    """The tensors in the folder of a state, and the facts beside them. Every file is held against its hash. Raises
    `BadData` where one is damaged or missing."""
    path = folder / MANIFEST
    try:
        facts = strict_json(path.read_bytes(), str(path))
    except OSError as error:
        raise read_error(error, path) from error
    digest = facts.pop("sha256", None)
    if digest != content_hash(_text(facts).encode()):
        raise BadData(f"{path}: the file is damaged: its content does not match its own SHA-256. Take another copy.")
    if facts.get("format") != FORMAT:
        raise BadData(f"{path}: format {facts.get('format')!r} is not read, only {FORMAT}. Update vitrine.")
    boxes: dict[str, list[tuple[list[int], Tensor]]] = {}
    shapes: dict[str, list[int]] = {}
    for name, digest in facts["files"].items():
        if not (folder / name).is_file():
            raise BadData(f"{folder / name}: is missing from the state. Take another copy of it.")
        if _hash(folder / name) != digest:
            raise BadData(f"{folder / name}: damaged: its SHA-256 is not that of {MANIFEST}. Take another copy of it.")
        tensors, own = container.read(folder / name)
        for key, box in own["boxes"].items():
            boxes.setdefault(box["name"], []).append((box["offset"], tensors[key]))
            shapes[box["name"]] = box["shape"]
    return Whole(boxes, shapes), facts
