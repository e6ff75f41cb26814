"""Writing whole or not at all, hashing content, and saying plainly why a disk refused.

A file appears under its name complete or not: it is written beside its place, synced, and renamed, and the
folder is synced after. A kill at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vitrine.errors import CannotCreate, DiskError, NotFound, VitrineError

SYNCS_FOLDERS = os.name == "posix"


@contextlib.contextmanager
def whole(path: Path, needs: int = 0) -> Iterator[BinaryIO]:
    """A file open for reading and writing that becomes `path` when the block ends well, and is gone otherwise.

    `needs` is how many bytes it will have, where that is known. Raises `DiskError` (no space, with the bytes needed and
    free, or an input/output error) or `CannotCreate` (permission).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except FileNotFoundError as error:
        raise CannotCreate(f"{path}: no file can be made here. Choose another place.") from error
    except OSError as error:
        _gone(part)  # what it took is free again for whoever is told how much is
        raise disk_error(error, path, needs) from error
    finally:
        _gone(part)


def _gone(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode())


def append_line(path: Path, line: str) -> None:
    """Add `line` and a line break to the end of the file at `path`, as UTF-8. Raises what `whole` raises.

    A kill or a full disk may leave a part of the line: whoever reads the file back bears with a last line cut off.
    """
    try:
        with path.open("ab") as file:
            file.write(f"{line}\n".encode())
    except OSError as error:
        raise disk_error(error, path) from error


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left behind: drafts of it, and drafts of those."""
    name = glob.escape(path.name)
    _remove(*path.parent.glob(f".{name}.*.part"), *path.parent.glob(f"..{name}.*.part.*"))


def sweep_all(folder: Path) -> None:
    """Remove what killed writers of any file in `folder` left behind. This process may have nothing under way there."""
    _remove(*folder.glob(".*.*.part"))


def _remove(*parts: Path) -> None:
    for left in parts:
        if _alive(left):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _alive(part: Path) -> bool:
    """Whether the process that writes `part` still runs (its number stands in the name)."""
    number = part.name.split(".")[-2]
    if not number.isdigit() or int(number) == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable where the system can (POSIX); elsewhere the rename alone must do."""
    if not SYNCS_FOLDERS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path, needs: int = 0) -> VitrineError:
    """The clear error for what the operating system said about `path`, which was to have `needs` bytes (0: unknown)."""
    wanted = f"{needs:,} bytes needed, " if needs else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing_parent(path)).free
        return DiskError(
            f"{path}: no space left on the disk ({wanted}{free:,} bytes free). Free some, or choose another place."
        )
    if error.errno == errno.EFBIG:
        limit = f" ({needs:,} bytes needed)" if needs else ""
        return DiskError(
            f"{path}: the file would be larger than this account may write (ulimit -f){limit}. Raise the limit."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CannotCreate(f"{path}: {error.strerror}. Choose a place you may write to.")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return CannotCreate(f"{path}: {error.strerror}. Choose another name.")
    if error.errno == errno.ENOENT:
        return NotFound(f"{path}: there is no such file.")
    return DiskError(f"{path}: {error.strerror or error}")


def read_error(error: OSError, path: Path) -> VitrineError:
    """The clear error for what the operating system said when `path` was read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return DiskError(f"{path}: may not be read ({error.strerror}). Change its permissions.")
    if error.errno == errno.ELOOP:
        return NotFound(f"{path}: the link leads in a circle. Point it at a file, or name the file itself.")
    if error.errno == errno.EISDIR:
        return NotFound(f"{path}: is a folder, where a file is needed.")
    return disk_error(error, path)


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            return folder
    return Path("/")


def content_hash(data: bytes | memoryview) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
