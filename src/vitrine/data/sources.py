"""From a path or a built-in name to a list of pictures with labels: nothing is decoded yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image

from vitrine.config.options import DataConfig
from vitrine.data import huggingface
from vitrine.data.folders import part_folders, read_flat, read_folder, sub_folders
from vitrine.data.idx import has_idx, read_idx, read_names
from vitrine.data.index import has_index, open_index
from vitrine.data.lines import read_lines
from vitrine.data.listing import REMEDY, Listing, natural_key
from vitrine.data.packed import Known, Packed
from vitrine.data.table import read_table
from vitrine.data.tabled import Tabled
from vitrine.data.tar import looks_like_tar, require_plain
from vitrine.data.tarsets import COMPRESSED, read_tars, tar_files
from vitrine.errors import BadData, DiskError, NotFound, UsageError, nearest
from vitrine.images.decode import decode, read_file, require_bytes

BUILT_IN = ("digits",)
ACCEPTED = (
    "a class folder, a folder with train/ and val/ or test/, a CSV with the columns path,label (or path,labels "
    "for several classes a picture), a .jsonl of the same, a tar of class folders, a folder of tar shards, Parquet, "
    "hf://datasets/ORG/NAME, a folder of IDX files, or the built-in name digits"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Pictures with labels. One of `paths`, `packed` and `arrays` holds them, the others are None.

    `labels` index `class_names`, or are a row of 0 and 1 for each picture where one may have several classes or none
    (multi-label: n x K); `ids` name pictures the same way on every machine; `given` is the part each
    came with: "train", "val", "test", or "" for none; `ignored` counts files that are no pictures; `limits`
    are the sizes above which a picture is refused; `known` is what looking at every picture would find, where that is
    known; `notes` are sentences for the user; `again` names the very same pictures for ever, where the name that was
    given may mean others later.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n K"]
    ids: Sequence[str]
    given: Shaped[np.ndarray, " n"]
    paths: tuple[Path, ...] | None = None
    packed: Packed | None = None
    arrays: UInt8[np.ndarray, "n H W C"] | None = None
    ignored: int = 0
    limits: DataConfig = field(default_factory=DataConfig)
    known: Known | None = None
    notes: tuple[str, ...] = ()
    again: str = ""

    def __post_init__(self) -> None:
        if sum(held is not None for held in (self.paths, self.packed, self.arrays)) != 1:
            raise UsageError(f"{self.name}: a source has paths, packed pictures or arrays; give one of them.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def encoded(self) -> bool:
        """Whether pictures must be decoded: their bytes are those of picture files, wherever they lie."""
        return self.arrays is None

    @property
    def multi_label(self) -> bool:
        """Whether a picture may have several classes, or none."""
        return self.labels.ndim == 2

    def classes_of(self, i: int) -> tuple[str, ...]:
        """The names of the classes of picture `i`: one, or in a multi-label source any number."""
        row = self.labels[i]
        return tuple(self.class_names[k] for k in (np.flatnonzero(row) if self.multi_label else [row]))

    def counts(self, indices: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " K"]:
        """How many of these pictures are of each class."""
        labels = self.labels[indices]
        if self.multi_label:
            return labels.sum(axis=0, dtype=np.int64)
        return np.bincount(labels, minlength=len(self.class_names)).astype(np.int64)

    def picture(self, i: int) -> Image.Image:
        """Picture `i`, upright, in mode L or RGB. Raises an error of `vitrine.errors` if unreadable."""
        if self.arrays is not None:
            pixels = self.arrays[i]
            return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        limits = self.limits
        return decode(self.content(i), name=self.ids[i], max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)

    def content(self, i: int) -> bytes:
        """The bytes of picture `i`, which must be encoded. Raises an error of `vitrine.errors` where there are none."""
        if self.packed is None:
            assert self.paths is not None
            return read_file(self.paths[i], self.ids[i], self.limits.max_bytes)
        require_bytes(self.ids[i], self.packed.size(i), self.limits.max_bytes)
        return self.packed.read(i)

    def within(self, limits: DataConfig) -> Source:
        """The same pictures under other limits."""
        return replace(self, limits=limits)


def open_source(
    settings: DataConfig,
    class_names: tuple[str, ...] | None = None,
    *,
    labelled: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """The pictures that `settings.source` names; what kind of source it is follows from what lies there.

    A built-in name wins over a folder of that name (write `./digits` for the folder). With `class_names`,
    those of a trained model, classes are matched by name and keep the model's order. Where labels are of no
    use (`labelled` False) one class will do, and a folder of pictures without class folders. `progress(done, all)`
    counts the files of a set of many. Raises `NotFound` where there is nothing, `BadData` where nothing can be learnt
    from it, `DiskError` where it cannot be read, `Unavailable` for want of a library or the network.
    """
    word = settings.source
    if not word:
        raise UsageError(f"data.source is empty: give {ACCEPTED}.")
    try:
        if word not in BUILT_IN and huggingface.is_set(word):
            source = _from_tabled(huggingface.open_set(word, settings, labelled=labelled, progress=progress))
        else:
            source = _digits() if word in BUILT_IN else _open_path(Path(word).expanduser(), word, labelled)
    except OSError as error:
        where = error.filename or word
        raise DiskError(
            f"{where}: cannot be read: {error.strerror or error}. Check the path and its rights."
        ) from error
    source = source.within(settings)
    if class_names is not None:
        return _with_names(source, class_names)
    if labelled and len(source.class_names) < 2 and not source.multi_label:
        raise BadData(_one_class(source, Path(word)))
    return source


def rows_of(word: str, settings: DataConfig) -> Source | None:
    """All pictures of the table or the hub's set that `word` names, whatever is said of their classes; None where it
    names no such set. Raises what `open_source` raises."""
    if not huggingface.is_set(word):
        return None
    return _from_tabled(huggingface.open_set(word, settings, labelled=False, classes=False)).within(settings)


def _open_path(path: Path, word: str, labelled: bool) -> Source:
    if path.is_dir() and has_index(path):
        return _from_index(path)
    if path.is_dir() and (files := tar_files(path)):
        return _from_tars(path, files, labelled)
    if path.is_dir() and not labelled and not has_idx(path) and not sub_folders(path):
        return _from_listing(path, read_flat(path))
    if path.is_dir():
        return _from_idx(path) if has_idx(path) else _from_listing(path, read_folder(path))
    if not path.exists():
        raise NotFound(f"{word}: there is no such path or built-in name.{nearest(word, BUILT_IN)} Give {ACCEPTED}.")
    if path.name.lower().endswith(COMPRESSED):
        require_plain(path)
    if path.suffix.lower() == ".tar" or looks_like_tar(path):
        return _from_tars(path, [("", path)], labelled)
    if path.suffix.lower() == ".jsonl":
        return _from_listing(path, read_lines(path))
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        advice = " Unpack it first." if path.suffix.lower() in (".zip", ".gz", ".xz", ".7z") else ""
        raise BadData(f"{path}: is a file that cannot be a data set.{advice} Give {ACCEPTED}.")
    return _from_listing(path, read_table(path))


def _from_listing(path: Path, listing: Listing) -> Source:
    rows = listing.rows
    names, labels = _numbered(path, [row.labels if listing.multi_label else row.label for row in rows])
    return Source(
        name=path.resolve().name,
        class_names=names,
        labels=labels,
        ids=tuple(row.id for row in rows),
        given=np.array([row.part for row in rows], np.str_),
        paths=tuple(row.path for row in rows),
        ignored=listing.ignored,
    )


def _from_tars(path: Path, files: Sequence[tuple[str, Path]], labelled: bool) -> Source:
    """A source of tar files, by their headers."""
    found = read_tars(path, files, labelled=labelled)
    names, labels = _numbered(path, found.labels)
    return Source(
        name=path.resolve().name, class_names=names, labels=labels, ids=found.ids, given=np.array(found.parts, np.str_),
        packed=found.packed, ignored=found.ignored, notes=found.notes,
    )  # fmt: skip


def _from_index(folder: Path) -> Source:
    """A source of shards that `vitrine shards` wrote: all that is known of them stands in their index."""
    index = open_index(folder)
    return Source(
        name=folder.resolve().name, class_names=index.class_names, labels=index.labels, ids=index.ids,
        given=index.given, packed=index.packed, known=index.known,
    )  # fmt: skip


def _numbered(path: Path, labels: Sequence[str | tuple[str, ...]]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes in natural order, and each label as its number, or as a row of 0 and 1 where labels are several."""
    several = [label for label in labels if isinstance(label, tuple)]
    used = {name for label in several for name in label} | {label for label in labels if isinstance(label, str)}
    if not used:
        raise BadData(f"{path}: no picture has a class; there is nothing to learn. Fill in the column labels.")
    names = tuple(sorted(used, key=natural_key))
    number = {name: k for k, name in enumerate(names)}
    if not several:
        return names, np.array([number[str(label)] for label in labels], np.int64)
    rows = np.zeros((len(labels), len(names)), np.uint8)
    for i, label in enumerate(several):
        rows[i, [number[name] for name in label]] = 1
    return names, rows


def _from_tabled(found: Tabled) -> Source:
    return Source(**{f.name: getattr(found, f.name) for f in fields(found)})


def _from_idx(folder: Path) -> Source:
    """A source of IDX files. A class number that no picture has is left out of the classes."""
    parts = list(read_idx(folder))
    if len({pixels.shape[1:] for _, pixels, _ in parts}) > 1:
        sizes = " and ".join(f"{part} {p.shape[2]} x {p.shape[1]}" for part, p, _ in parts)
        raise BadData(f"{folder}: the parts have pictures of different size ({sizes}). Use files of one data set.")
    numbers = np.concatenate([labels for _, _, labels in parts])
    if not len(numbers):
        raise BadData(f"{folder}: the IDX files hold no pictures. Get the files again.")
    used, labels = np.unique(numbers, return_inverse=True)
    names = read_names(folder) or [str(k) for k in range(256)]
    if used[-1] >= len(names):
        raise BadData(f"{folder}/labels.txt: has {len(names)} names, but there is a class number {used[-1]}.")
    pixels = parts[0][1] if len(parts) == 1 else np.concatenate([pixels for _, pixels, _ in parts])
    return Source(
        name=folder.resolve().name,
        class_names=tuple(names[k] for k in used),
        labels=labels.astype(np.int64).reshape(-1),
        ids=tuple(f"{part}/{i}" for part, _, members in parts for i in range(len(members))),
        given=np.array([part for part, _, members in parts for _ in members], np.str_),
        arrays=pixels[..., None],
    )


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, values 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    n = len(labels)
    return Source(
        name="digits",
        class_names=tuple(str(k) for k in range(10)),
        labels=labels.astype(np.int64),
        ids=tuple(f"digits/{i}" for i in range(n)),
        given=np.full(n, "", np.str_),
        arrays=np.round(images * 255 / 16).astype(np.uint8).reshape(n, 8, 8, 1),
    )


def _with_names(source: Source, class_names: tuple[str, ...]) -> Source:
    """The source with its labels counted in a model's classes."""
    number = {name: k for k, name in enumerate(class_names)}
    unknown = [name for name in source.class_names if name not in number]
    if unknown:
        shown = ", ".join(unknown[:8]) + (" and more" if len(unknown) > 8 else "")
        raise BadData(
            f"{source.name}: the model does not know {len(unknown)} of {len(source.class_names)} classes: "
            f"{shown}.{nearest(unknown[0], class_names)} Rename them as the model does, or leave them out."
        )
    places = np.array([number[name] for name in source.class_names], np.int64)
    if source.multi_label:
        labels = np.zeros((len(source), len(class_names)), np.uint8)
        labels[:, places] = source.labels
    else:
        labels = places[source.labels]
    return replace(source, class_names=class_names, labels=labels)


def _one_class(source: Source, path: Path) -> str:
    """Why a single class will not do, and where the classes may really be."""
    only = source.class_names[0]
    inner = path.expanduser() / only
    if inner.is_dir() and not part_folders(path.expanduser()) and len(sub_folders(inner)) > 1:
        return f"{path}: has one folder, {only}, alone. Did you mean {path / only}?"
    return f"{path}: all pictures are of one class, {only!r}; there is nothing to tell apart. {REMEDY}"
