"""Sets as Hugging Face keeps them, by path or hub id: Parquet files, folders of these, `save_to_disk`, the hub's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrine.config.options import DataConfig
from vitrine.data import hub_set
from vitrine.data.columns import require_pyarrow
from vitrine.data.parquet import Disk, open_files
from vitrine.data.parted import WORDS, parted
from vitrine.data.saved import is_saved, open_saved
from vitrine.data.tabled import Tabled
from vitrine.errors import UsageError
from vitrine.hub import is_id, without_scheme

ON_THIS_DISK = "data.streaming is of no account: the data lies on this disk."


def is_set(word: str) -> bool:
    """Whether `word` names such a set: a hub id, a .parquet file, a folder with such files or one that was saved."""
    if is_id(word):
        return True
    path = Path(word).expanduser()
    if path.is_dir():
        try:
            return is_saved(path) or bool(_files(path))
        except OSError:  # it is told by whoever reads the folder
            return False
    return path.suffix.lower() == ".parquet" and path.is_file()


def open_set(
    word: str,
    settings: DataConfig,
    *,
    labelled: bool,
    classes: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Tabled:
    """The set that `word` names, with its columns chosen by `settings`; `progress(done, all)` counts files.

    Without `classes` no row is left out for want of one, and all are of one class without a name.

    Raises `BadData`, `NotFound`, `UsageError`, and `Unavailable` for want of a library or of the network.
    """
    columns: dict[str, Any] = {
        "picture": settings.image_column,
        "label": settings.label_column if classes else None,
    }
    if is_id(word):
        if not without_scheme(word).startswith("datasets/"):
            raise UsageError(
                f"{word!r}: names a model of the hub, where a data set is needed: hf://datasets/ORGANISATION/NAME."
            )
        require_pyarrow(word)
        found = hub_set.find(word, settings.streaming)
        opened = open_files(
            found.place, found.chosen.files, hub_set.parse(word).repo, labelled=labelled, progress=progress, **columns
        )
        return replace(opened, notes=(*found.notes, *opened.notes), again=found.pinned)
    path = Path(word).expanduser()
    if path.is_dir() and is_saved(path):
        made = open_saved(path, labelled=labelled, **columns)
    else:
        chosen = parted(str(path), _files(path)) if path.is_dir() else None
        files = chosen.files if chosen else ((path.name, ""),)
        folder = path if chosen else path.parent
        made = open_files(Disk(folder), files, path.resolve().name, labelled=labelled, progress=progress, **columns)
        made = replace(made, notes=(*(chosen.notes if chosen else ()), *made.notes))
    return replace(made, notes=(*made.notes, ON_THIS_DISK)) if settings.streaming else made


def _files(folder: Path) -> list[str]:
    """The Parquet files of a set: in the folder, in data/, and in folders that are parts there. A folder of pictures is
    not searched any deeper."""
    homes = [folder, folder / "data"]
    for home in (folder, folder / "data"):
        if home.is_dir():
            homes += sorted(sub for sub in home.iterdir() if sub.name.lower() in WORDS and sub.is_dir())
    found = {path for home in homes if home.is_dir() for path in home.glob("*.parquet") if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))
