from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tars import png, tar
from vitrine.data import tarred
from vitrine.data.packed import Packed
from vitrine.data.tar import MOST_EXTENSION, Member, looks_like_tar, members, require_plain
from vitrine.data.tarred import Tarred
from vitrine.errors import BadData

LONG = "x/" * 90 + "y" * 150 + "/Käse.png"
CONTENTS = {"a/1.png": png(1), "a/empty.png": b"", LONG: png(2), "b/" + "z" * 90 + ".png": png(3) * 5, "c": b"q" * 512}
FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def theirs(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as opened:
        return [(one.name, one.offset_data, one.size) for one in opened if one.isreg()]


def ours(path: Path) -> list[tuple[str, int, int]]:
    return [(one.name, one.offset, one.size) for one in members(path) if one.kind == "file"]


@pytest.mark.parametrize("form", FORMS)
def test_members_are_those_that_the_standard_library_sees(tmp_path: Path, form: str) -> None:
    contents = {n: c for n, c in CONTENTS.items() if n != LONG} if form == "ustar" else CONTENTS
    path = tar(tmp_path / "x.tar", contents, FORMS[form])
    assert ours(path) == theirs(path) and len(ours(path)) == len(contents)
    content = path.read_bytes()
    assert all(content[at : at + size] == contents[name] for name, at, size in ours(path))
    assert looks_like_tar(path)


def test_a_name_in_two_fields(tmp_path: Path) -> None:
    name = "/".join(["folder" * 5] * 6) + "/" + "n" * 60 + ".png"
    path = tar(tmp_path / "x.tar", {name: b"1"}, tarfile.USTAR_FORMAT)
    assert [one.name for one in members(path)] == [name]


def test_old_tar_without_a_mark(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("old.png").tobuf(tarfile.USTAR_FORMAT))
    block[257:512] = bytes(255)
    block[156] = 0
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    (tmp_path / "x.tar").write_bytes(bytes(block) + bytes(1024))
    assert list(members(tmp_path / "x.tar")) == [Member("old.png", 512, 0, "file")]
    assert not looks_like_tar(tmp_path / "x.tar")


def special(kind: bytes, name: str = "s", link: str = "a.png", size: int = 0) -> bytes:
    about = tarfile.TarInfo(name)
    about.type, about.linkname, about.size = kind, link, size
    return about.tobuf(tarfile.USTAR_FORMAT)


def test_what_is_no_file_is_told_and_stepped_over(tmp_path: Path) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    content = b"".join(special(kind, size=1000 if kind != tarfile.DIRTYPE else 0) for kind in kinds)  # no data follows
    content += special(b"S", size=3) + b"abc" + bytes(509)
    content += special(b"Z", size=3) + b"abc" + bytes(509)
    content += special(b"0", "end.png", size=2) + b"hi" + bytes(510)
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    assert [one.kind for one in members(tmp_path / "x.tar")] == [
        "link", "link", "other", "other", "other", "sparse", "other", "file",
    ]  # fmt: skip
    assert ours(tmp_path / "x.tar")[-1][0] == "end.png"


def test_sparse_by_records(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as made:
        about = tarfile.TarInfo("s.png")
        about.size, about.pax_headers = 2, {"GNU.sparse.major": "1"}
        made.addfile(about, io.BytesIO(b"hi"))
        made.addfile(tarfile.TarInfo("plain.png"))
    assert [(one.name, one.kind) for one in members(tmp_path / "x.tar")] == [("s.png", "sparse"), ("plain.png", "file")]


def test_large_numbers(tmp_path: Path) -> None:
    about = tarfile.TarInfo("large.bin")
    about.size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with (tmp_path / "x.tar").open("wb") as file:
            head = about.tobuf(form)
            file.write(head)
            file.truncate(len(head) + about.size + 1024)  # a hole
        assert list(members(tmp_path / "x.tar")) == [Member("large.bin", len(head), 9 << 30, "file")]


@pytest.mark.parametrize("where", ["first", "later"])
def test_a_damaged_header_is_told_with_its_byte(tmp_path: Path, where: str) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"1" * 600, "b": b"2", "c": b"3"})
    content = bytearray(path.read_bytes())
    at = 0 if where == "first" else 1536
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match=rf"x\.tar: .*header.*\(byte {at:,}\)"):
        list(members(path))


@pytest.mark.parametrize("cut", [100, 512 + 10, 1536 + 200])
def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"1" * 600, "b": b"2", "c": b"3"})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadData, match="cut off"):
        list(members(path))


def test_an_end_without_its_mark_is_borne(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"1" * 600, "b": b"2"})
    path.write_bytes(path.read_bytes()[: 1536 + 512 + 1])
    assert [one.name for one in members(path)] == ["a", "b"]
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(BadData, match="empty"):
        list(members(tmp_path / "empty.tar"))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"99 path=x\n", "records"),
        (b"0 path=x\n", "records"),
        (b"nonsense", "records"),
        (b"9 pathxx\n", "records"),
        (b"12 size=abc\n", "size of 'abc'"),
        (b"11 size=-5\n", "size of '-5'"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, record: bytes, said: str) -> None:
    content = special(b"x", size=len(record)) + record + bytes(-len(record) % 512) + special(b"0", "a.png")
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(BadData, match=said):
        list(members(tmp_path / "x.tar"))


def test_a_name_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(special(b"L", size=MOST_EXTENSION + 1))
        file.truncate(MOST_EXTENSION * 3)
    with pytest.raises(BadData, match="at most 1,048,576 are read"):
        list(members(tmp_path / "x.tar"))


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_change_there_is_a_list_or_a_clear_error(changes: list[tuple[int, int]]) -> None:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name in ("a.png", "ö" * 80, "b.png"):
            about = tarfile.TarInfo(name)
            about.size = 3
            made.addfile(about, io.BytesIO(b"abc"))
    content = bytearray(into.getvalue())
    for at, value in changes:
        content[at] = value
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            found = list(members(Path(file.name)))
        except BadData as error:
            assert file.name in str(error) and "\n" not in str(error)
        else:
            assert all(one.offset + one.size <= len(content) for one in found if one.kind == "file")


@pytest.mark.parametrize(
    ("head", "remedy"), [(b"\x1f\x8b\x08", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ\0", "unxz"),
                         (b"BZh9", "bunzip2")],
)  # fmt: skip
def test_a_compressed_file_is_refused_with_the_remedy(tmp_path: Path, head: bytes, remedy: str) -> None:
    (tmp_path / "x.tar").write_bytes(head + bytes(600))
    with pytest.raises(BadData, match=f"`{remedy} x.tar`"):
        require_plain(tmp_path / "x.tar")


# Reading


def reader(path: Path) -> Tarred:
    found = [one for one in members(path) if one.kind == "file"]
    return Tarred(
        files=(path,),
        file=np.zeros(len(found), np.int32),
        offsets=np.array([one.offset for one in found], np.int64),
        lengths=np.array([one.size for one in found], np.int64),
    )


def test_bytes_by_number(tmp_path: Path) -> None:
    held = reader(tar(tmp_path / "x.tar", {"a": b"0123456789", "b": b"abc"}))
    assert isinstance(held, Packed) and len(held) == 2 and held.total_bytes() == 13 and held.size(1) == 3
    assert held.read(0) == b"0123456789" and held.read(1) == b"abc"
    assert held.read(0, 4) == b"456789" and held.read(0, 4, 3) == b"456" and held.read(1, 1, 99) == b"bc"
    assert held.read(1, 7) == b""


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"0123456789" * 100, "b": b"abc"})
    held = reader(path)
    os.truncate(path, 700)
    with pytest.raises(BadData, match=r"x\.tar ends before the picture does"):
        held.read(0)
    assert held.read(0, 0, 10) == b"0123456789"


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"1"})
    held = reader(path)
    path.unlink()
    from vitrine.errors import NotFound

    with pytest.raises(NotFound, match=r"x\.tar: there is no such file"):
        held.read(0)


def test_threads_forks_and_other_processes_read_at_once(tmp_path: Path) -> None:
    contents = {f"{i}": bytes([i % 256]) * (100 + i) for i in range(300)}
    held = reader(tar(tmp_path / "x.tar", contents))
    wanted = list(contents.values())
    assert held.read(0) == wanted[0]  # the file is open before the fork
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(held.read, range(300))) == wanted
    for method in ("fork", "spawn"):
        if method in multiprocessing.get_all_start_methods():
            with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as processes:
                assert list(processes.map(held.read, range(300), chunksize=20)) == wanted


def open_files() -> int:
    """How many this process has open, 0 where the system does not tell."""
    told = Path("/proc/self/fd")
    return len(list(told.iterdir())) if told.is_dir() else 0


def test_of_many_files_only_some_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarred, "KEPT_OPEN", 2)
    files = tuple(tar(tmp_path / f"{i}.tar", {"a": bytes([i])}) for i in range(5))
    held = Tarred(files=files, file=np.arange(5, dtype=np.int32), offsets=np.full(5, 512), lengths=np.ones(5, np.int64))
    before = open_files()
    assert [held.read(i) for i in (0, 1, 2, 3, 4, 4, 0)] == [bytes([i]) for i in (0, 1, 2, 3, 4, 4, 0)]
    if before:
        assert open_files() == before + 2
        del held
        assert open_files() == before
