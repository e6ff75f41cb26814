"""The states of a run in its folder: named by their steps, the newest whole one found unaided, older ones let go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.config.saving import SaveConfig
from vitrine.errors import BadData, VitrineError
from vitrine.files import sweep_all
from vitrine.train import sharded, state
from vitrine.train.optim import Average
from vitrine.train.shards import is_parted
from vitrine.train.state import STATE_FILE, Progress

FOLDER = "state"


def path_of(out: Path, step: int, *, parted: bool = False) -> Path:
    """Where the state after so many steps stands: a file, or a folder where ranks hold parts of it."""
    return out / FOLDER / f"step-{step:08d}{'' if parted else '.safetensors'}"


def found(out: Path) -> list[Path]:
    """The states in a run's folder, the newest first; the one file of older versions is the oldest."""
    named = [path for path in (out / FOLDER).glob("step-*") if step_of(path) >= 0]
    older = [out / STATE_FILE] if (out / STATE_FILE).exists() else []
    return sorted(named, key=lambda path: (step_of(path), path.stat().st_mtime_ns), reverse=True) + older


def step_of(path: Path) -> int:
    """The step in the name of a state; -1 where there is none."""
    named = re.fullmatch(r"step-(\d+)(\.safetensors)?", path.name)
    return int(named[1]) if named else -1


def newest(out: Path) -> tuple[Path, Mapping[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest state that is whole: where it is, its tensors, its facts, and a sentence for each one passed over.

    None where there are no states. Raises `BadData` where there are some and none is whole.
    """
    said: list[str] = []
    for path in found(out):
        try:
            read: tuple[Mapping[str, Tensor], dict[str, Any]]
            read = sharded.opened(path) if path.is_dir() else state.read(path)
        except VitrineError as error:
            said.append(f"warning: {error} The state before it is taken")
            continue
        return path, *read, said
    if said:
        first = said[0].removeprefix("warning: ").removesuffix(" The state before it is taken")
        raise BadData(f"{first} No other state of this run is whole: begin anew with another --out.")
    return None


def put(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], model: nn.Module,
    optimizer: torch.optim.Optimizer, average: Average | None,
) -> tuple[Progress, list[str]]:  # fmt: skip
    """Put what `newest` gave into the given objects, whole or parted; gives the progress and sentences for the user."""
    if is_parted(model):
        return sharded.put(path, tensors, facts, model, optimizer, average)
    try:
        return state.put(tensors, facts, model, optimizer, average)
    except (KeyError, RuntimeError) as error:
        raise BadData(f"{path}: the state of another model ({error}).") from error


def let_go(out: Path, step: int, settings: SaveConfig) -> None:
    """Remove what is no longer needed now that the state of `step` is written: all but the newest `keep_last` and those
    of every `keep_every_steps`; those of later steps, which belong to a course that was left; what killed writers left.
    """
    sweep_all(out / FOLDER)
    kept = 0
    for path in found(out):
        number = step_of(path)
        for_good = settings.keep_every_steps and number > 0 and number % settings.keep_every_steps == 0
        if number > step:
            _remove(path)
            continue
        kept += 1
        if kept > settings.keep_last and not for_good:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():  # it goes at once: what a kill leaves of it no longer bears its name
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.rename(part)
        shutil.rmtree(part, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def drop(out: Path, settings: SaveConfig) -> None:
    """Remove the states of a run that has ended, but for those that were to be kept for good."""
    for path in found(out):
        if not (settings.keep_every_steps and step_of(path) > 0 and step_of(path) % settings.keep_every_steps == 0):
            _remove(path)
    sweep_all(out / FOLDER)
    with contextlib.suppress(OSError):
        (out / FOLDER).rmdir()
