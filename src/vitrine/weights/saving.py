"""A model in a stranger's terms onto the disk: one .npz, or a folder with model.safetensors and JSON beside it.

Equal content gives equal bytes, and what appears under the name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from vitrine.errors import BadData, CannotCreate
from vitrine.files import disk_error, sync_folder, whole
from vitrine.weights.foreign import Writing
from vitrine.weights.header import bytes_of, in_order, laid_out

WEIGHTS = "model.safetensors"
_EARLIEST = (1980, 1, 1, 0, 0, 0)


def save(writing: Writing, out: Path) -> None:
    """Write a model at `out`, a file for npz and a folder for safetensors, whole or not at all.

    Raises `CannotCreate` where something stands at `out` already or no file can be made, `BadData` for a tensor that
    the kind cannot hold, `DiskError`.
    """
    if out.exists() or out.is_symlink():
        raise CannotCreate(f"{out}: something stands there already. Choose another place.")
    if writing.kind == "npz":
        with whole(out) as file:
            _write_npz(writing.tensors, file, str(out))
    else:
        _write_folder(writing, out)


def _write_npz(tensors: Mapping[str, Tensor], file: IO[bytes], where: str) -> None:
    """Arrays stored one after another by name, uncompressed as numpy's savez does, with no time of writing."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(tensors):
            info = zipfile.ZipInfo(f"{name}.npy", _EARLIEST)
            info.external_attr = 0o600 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _array(tensors[name], f"{where}: {name}"))


def _array(tensor: Tensor, what: str) -> np.ndarray:
    """A tensor as numpy has it; bfloat16, which numpy lacks, as two raw bytes, as JAX's are saved."""
    flat = tensor.detach().to("cpu").contiguous()
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view("V2")
    try:
        return flat.numpy()
    except TypeError as error:
        raise BadData(f"{what} is of type {tensor.dtype}, which numpy lacks.") from error


def _write_folder(writing: Writing, out: Path) -> None:
    """The folder is filled beside its place, every file synced, and renamed."""
    for name in writing.files:
        if Path(name).name != name or not name.endswith(".json"):
            raise BadData(f"{out}: {name!r} is no name for a JSON file beside the weights.")
    part = out.with_name(f".{out.name}.{os.getpid()}.folder")
    ordered = in_order(writing.tensors)
    header = laid_out(ordered, writing.metadata, f"{out}/{WEIGHTS}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with (part / WEIGHTS).open("xb") as file:
            file.write(header)
            for _, tensor in ordered:
                file.write(bytes_of(tensor))
            _sync(file)
        for name, content in writing.files.items():
            with (part / name).open("xb") as file:
                file.write(_json(content, f"{out}/{name}"))
                _sync(file)
        sync_folder(part)
        part.rename(out)
        sync_folder(out.parent)
    except FileNotFoundError as error:
        raise CannotCreate(f"{out}: no folder can be made here. Choose another place.") from error
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _json(content: Mapping[str, Any], what: str) -> bytes:
    try:
        return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BadData(f"{what}: is not JSON ({error}).") from error


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
