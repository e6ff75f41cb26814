from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrine.errors import BadData, CannotCreate, DiskError, NotFound
from vitrine.files import append_line, content_hash, disk_error, existing_parent, sweep, whole, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with whole(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
        file.seek(0)
        assert file.read() == b"half and half"
    assert path.read_bytes() == b"half and half"
    assert names(path.parent) == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), BadData("y")])
def test_an_error_inside_the_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)), whole(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_error_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a") as file:
        file.write(b"%d" % (1 // 0))
    assert names(tmp_path) == []


def dead_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("name", ["a.txt", "model [1] *.txt"])
def test_what_killed_writers_left_is_swept_and_a_living_one_is_not(tmp_path: Path, name: str) -> None:
    dead, living = f".{name}.{dead_process()}.part", f".{name}.{os.getppid()}.part"
    for left in (dead, living, f".{name}.{os.getpid()}.part", f".{name}.notes.part", f".other.{dead_process()}.part"):
        (tmp_path / left).write_bytes(b"left")
    write_text(tmp_path / name, "new")
    kept = names(tmp_path)
    assert dead not in kept
    assert living in kept
    assert any(left.startswith(".other.") for left in kept)
    assert (tmp_path / name).read_text() == "new"


def test_sweeping_takes_only_parts_of_that_file(tmp_path: Path) -> None:
    number = dead_process()
    for left in (f".a.{number}.part", f".ab.{number}.part", f"a.{number}.part"):
        (tmp_path / left).touch()
    sweep(tmp_path / "a")
    assert names(tmp_path) == sorted([f".ab.{number}.part", f"a.{number}.part"])


LIMITED = """
import resource, sys
from pathlib import Path
from vitrine.errors import VitrineError
from vitrine.files import whole
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with whole(Path(sys.argv[1])) as file:
        file.write(bytes(int(sys.argv[2])))
except VitrineError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process: needs POSIX")
@pytest.mark.parametrize("size", [12_000, 5_000_000])
def test_a_file_larger_than_the_account_may_write(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(size)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"DiskError {path}: the file would be larger than this account may write")
    assert done.stderr == ""
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    tried = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not tried or tried.returncode:
        pytest.skip("a full disk: a small tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_a_full_disk_keeps_the_old_file_and_tells_the_bytes_free(tiny_disk: Path, size: int) -> None:
    write_text(tiny_disk / "a", "old")
    with (
        pytest.raises(DiskError, match=r"a: no space left on the disk \([\d,]+ bytes free\)"),
        whole(tiny_disk / "a") as file,
    ):
        file.write(bytes(size))
    assert (tiny_disk / "a").read_text() == "old"
    assert names(tiny_disk) == ["a"]


def test_lines_are_added_at_the_end(tmp_path: Path) -> None:
    for line in ("one", "zwölf"):
        append_line(tmp_path / "a", line)
    assert (tmp_path / "a").read_bytes() == "one\nzwölf\n".encode()
    with pytest.raises(CannotCreate, match="Choose another name"):
        append_line(tmp_path, "one")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk: needs /dev/full")
def test_a_line_that_finds_no_room_is_told_plainly() -> None:
    with pytest.raises(DiskError, match=r"/dev/full: no space left on the disk"):
        append_line(Path("/dev/full"), "one")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with pytest.raises(CannotCreate, match="Choose another name"):
            write_text(path, "new")
    assert (tmp_path / "a").read_text() == "old"


def test_a_name_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(CannotCreate, match="a: "):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


REFUSED = """
import os, sys
from pathlib import Path
from vitrine.errors import VitrineError
from vitrine.files import write_text
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    write_text(Path(sys.argv[1]), "new")
except VitrineError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="rights of a folder: needs POSIX")
def test_a_folder_one_may_not_write_to() -> None:
    # /usr belongs to root, and every account can get there, unlike to pytest's own folders.
    path = Path("/usr/vitrine-test-none")
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(path)], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode:
        pytest.skip("rights of a folder: another account cannot read this checkout")
    assert done.stdout.startswith(f"CannotCreate {path}: ") and "you may write to" in done.stdout
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, DiskError, "bytes free"),
        (errno.EDQUOT, DiskError, "bytes free"),
        (errno.EFBIG, DiskError, "ulimit -f"),
        (errno.EACCES, CannotCreate, "you may write to"),
        (errno.EROFS, CannotCreate, "you may write to"),
        (errno.ENOTDIR, CannotCreate, "another name"),
        (errno.ENOENT, NotFound, "no such file"),
        (errno.EIO, DiskError, "Input/output error"),
    ],
)
def test_what_the_system_says_is_told_plainly(tmp_path: Path, number: int, kind: type, said: str) -> None:
    error = disk_error(OSError(number, os.strerror(number)), tmp_path / "none" / "a")
    assert type(error) is kind
    assert said in str(error) and str(tmp_path / "none" / "a") in str(error)


def test_the_nearest_folder_above(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert existing_parent(tmp_path / "x" / "y") == existing_parent(tmp_path / "file" / "z") == tmp_path


def test_the_hash_of_content() -> None:
    assert content_hash(b"abc") == content_hash(memoryview(b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.skipif(os.name != "posix", reason="rights of a file: needs POSIX")
def test_others_may_read_a_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
