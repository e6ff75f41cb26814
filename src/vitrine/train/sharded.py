"""The state of a run whose model is parted: a folder with a file a rank, and a manifest; read by any number of ranks.

Each rank writes the shares that it holds, in the container of every other file of ours, as boxes of the tensors that
one process has: so two ranks, four, or one may go on, whatever each is to hold. `manifest.json` has the SHA-256 of
each file and the progress; the folder appears under its name when all of it is on the disk, and older ones go after.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.errors import BadData
from vitrine.files import read_error, sync_folder, write_text
from vitrine.machine import ranks
from vitrine.train import shards, state
from vitrine.train.optim import Average
from vitrine.train.state import STATE_FILE, Progress
from vitrine.weights import container
from vitrine.weights.header import strict_json

PREFIX, MANIFEST = "state-", "manifest.json"
FORMAT = 1

Get = Callable[[str], Tensor]


def there(out: Path) -> bool:
    """Whether a run in `out` left a state to go on from, of either kind."""
    return (out / STATE_FILE).exists() or _newest(out) is not None


def drop(out: Path) -> None:
    """Remove every state in `out`."""
    (out / STATE_FILE).unlink(missing_ok=True)
    for folder in _folders(out):
        shutil.rmtree(folder, ignore_errors=True)


def save(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, progress: Progress
) -> None:
    """Write the whole state: a file where rank 0 holds the model, else a folder to which every rank adds its shares.
    All ranks call it together, and see the same disk."""
    if not shards.is_parted(model):
        if ranks.first():
            state.save(out / STATE_FILE, model, optimizer, average, progress)
            for folder in _folders(out):
                shutil.rmtree(folder, ignore_errors=True)
        return
    place = ranks.here()
    folder = out / f"{PREFIX}{progress.step:09}"
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
        facts = {"format": FORMAT, "files": hashes, "progress": asdict(progress), "threads": torch.get_num_threads()}
        write_text(part / MANIFEST, json.dumps(facts, indent=1, sort_keys=True, allow_nan=False))
        if folder.exists():  # the same step once more
            shutil.rmtree(folder)
        part.replace(folder)
        sync_folder(out)
        for old in _folders(out):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        (out / STATE_FILE).unlink(missing_ok=True)
    ranks.wait()


def _begun(folder: Path) -> Path:
    """An empty folder beside the place of `folder`, what killed writers left being removed."""
    for left in folder.parent.glob(f".{PREFIX}*.part"):
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir()
    return part


def _folders(out: Path) -> list[Path]:
    """The complete folders of states, the oldest first."""
    return sorted(found.parent for found in out.glob(f"{PREFIX}*/{MANIFEST}"))


def _newest(out: Path) -> Path | None:
    return next(reversed(_folders(out)), None)


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


def load(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> tuple[Progress, list[str]]:
    """Put the newest state in `out` into the given objects, however it and they are parted; gives the progress, and
    sentences for the user. Raises `BadData` where a file is damaged or belongs to another model."""
    folder = _newest(out)
    if folder is None and not shards.is_parted(model):
        return state.load(out / STATE_FILE, model, optimizer, average)
    if folder is None:
        tensors, facts = container.read(out / STATE_FILE)
        get, names = tensors.__getitem__, list(tensors)
    else:
        get, names, facts = _opened(folder)
    try:
        _put(get, names, model, optimizer, average)
        torch.set_rng_state(get("random.cpu"))
    except (KeyError, RuntimeError) as error:
        raise BadData(f"{folder or out / STATE_FILE}: the state of another model ({error}).") from error
    notes = []
    if facts["threads"] != torch.get_num_threads():
        notes.append(
            f"the run began with {facts['threads']} threads and goes on with {torch.get_num_threads()}: "
            "sums are ordered differently, so the result may differ in its last bits"
        )
    return Progress(**facts["progress"]), notes


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


def _opened(folder: Path) -> tuple[Get, list[str], dict[str, Any]]:
    """What is in a folder of a state: a tensor by its name, all names, and the facts. Every file is held against its
    hash."""
    path = folder / MANIFEST
    try:
        facts = strict_json(path.read_bytes(), str(path))
    except OSError as error:
        raise read_error(error, path) from error
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

    def get(name: str) -> Tensor:
        whole = torch.empty(shapes[name], dtype=boxes[name][0][1].dtype)
        for offset, piece in boxes[name]:
            spans = tuple(slice(at, at + side) for at, side in zip(offset, piece.shape, strict=True))
            whole[spans] = piece
        return whole

    return get, list(boxes), facts
