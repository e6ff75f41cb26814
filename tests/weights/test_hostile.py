"""A hostile weight file runs no code and stays small: every one ends in an error of ours, in time and in memory."""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.weights import strangers
from vitrine.errors import BadData, NotFound, VitrineError
from vitrine.weights import quarantine, unpack
from vitrine.weights.reading import read_raw

MB = 1 << 20
PROC = Path("/proc/self")
AT = '        if request["kind"] == "npz":\n            arrays'
"""A line of the child after its limits are set."""


def peak() -> int:
    """The most memory this process has held since `forget`, in bytes."""
    rows = dict(line.split(":", 1) for line in (PROC / "status").read_text().splitlines() if ":" in line)
    return int(rows["VmHWM"].split()[0]) * 1024


def forget() -> None:
    (PROC / "clear_refs").write_text("5")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that code of a hostile file would make; no test may leave one."""
    place = tmp_path / "canary"
    yield place
    assert not place.exists()
    assert not Path("canary").exists()


@functools.cache
def refused_in_the_parent() -> list[tuple[str, bytes]]:
    sources = (strangers.headers, strangers.cut_off, strangers.archives, strangers.strangers)
    return [pair for source in sources for pair in source()]


def test_whatever_needs_no_child_is_refused_at_once_and_small(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrine.weights.reading.unpack", lambda *_: pytest.fail("a child was asked"))
    programs = [(name, data) for name, data in strangers.programs(canary) if data[:1] == b"\x80"]
    files = [*refused_in_the_parent(), *programs]
    assert len(files) >= 160
    for number, (what, data) in enumerate(files):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(data)
        measured = os.access(PROC / "clear_refs", os.W_OK)
        if measured:
            forget()
            before = peak()
        began = time.process_time()
        with pytest.raises(VitrineError) as caught:
            read_raw(path)
        # Time of this process, as other processes may keep the machine busy.
        assert time.process_time() - began < 0.2, what
        if measured:
            assert peak() - before < len(data) + 64 * MB, what
        assert str(path) in str(caught.value), what
        assert "\n" not in str(caught.value), what
        assert len(str(caught.value)) < 900, what
        path.unlink()


def test_the_corpus_has_two_hundred_files(canary: Path) -> None:
    programs, arrays = list(strangers.programs(canary)), list(strangers.arrays())
    assert len(refused_in_the_parent()) + 2 * len(programs) + len(arrays) >= 200


def test_no_program_runs_however_it_is_packed(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child does, done here: an execution would show."""
    monkeypatch.chdir(tmp_path)
    for number, (what, program) in enumerate(strangers.programs(canary)):
        script = strangers.torch_zip(program, **{"archive/constants.pkl": b"\x80\x02).", "archive/code/m.py": b""})
        for packed in (strangers.torch_zip(program), LEGACY + program, script):
            path = tmp_path / f"{number}.pt"
            path.write_bytes(packed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(Exception) as caught:
                    unpack.from_torch(path, "", 1 << 30)
            assert isinstance(caught.value, Exception), what
            assert "\n" not in unpack.reason(caught.value)
            assert not canary.exists(), what


LEGACY = strangers.saved({}, _use_new_zipfile_serialization=False)[:15]


def test_arrays_that_lie_are_refused(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (what, data) in enumerate(strangers.arrays()):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(data)
        with pytest.raises(Exception) as caught:
            arrays, _ = unpack.from_npz(path)
            for array in arrays:
                array[-1]()
        assert "\n" not in unpack.reason(caught.value), what


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("huge shape", "does not fill"),
        ("objects", "objects of Python"),
        ("a wrong checksum", "Bad CRC"),
    ],
)
def test_the_child_refuses_arrays_that_lie(tmp_path: Path, canary: Path, name: str, said: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(dict(strangers.arrays())[name])
    with pytest.raises(BadData, match=said):
        read_raw(path)


def test_the_child_runs_no_program(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(strangers.torch_zip(strangers.named_call("os", "system", f"touch {canary}")))
    with pytest.raises(BadData, match=r"not read: it holds an object of os\.system, which only running code"):
        read_raw(path)


def test_a_tensor_far_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pt")
    with pytest.raises(BadData, match="far more than the file"):
        read_raw(tmp_path / "a.pt")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_program_and_array_through_the_child(tmp_path: Path, canary: Path) -> None:
    for number, (what, data) in enumerate(
        [*((name, strangers.torch_zip(program)) for name, program in strangers.programs(canary)), *strangers.arrays()]
    ):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(data)
        with pytest.raises(BadData) as caught:
            read_raw(path)
        assert str(path) in str(caught.value), what
        assert not canary.exists(), what


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "pointed").symlink_to(tmp_path / "pipe")
    (tmp_path / "bare").mkdir()
    began = time.monotonic()
    for name in ("pipe", "nowhere", "round", "pointed", "bare", "x\0y", "none", "a" * 5000):
        with pytest.raises(VitrineError):
            read_raw(tmp_path / name)
    for device in ("/dev/zero", "/dev/null", "/dev/random"):
        with pytest.raises(BadData, match="no regular file"):
            read_raw(device)
    assert time.monotonic() - began < 2


def test_a_folder_with_hostile_facts(tmp_path: Path) -> None:
    for name, facts in {
        "bomb": b'{"a":[' + b"0," * (5 << 20) + b"0]}", "deep": b'{"a":' * 100_000, "list": b"[]", "cut": b'{"a": ',
        "twice": b'{"a": 1, "a": 2}', "nan": b'{"a": NaN}', "binary": bytes(range(256)), "empty": b"",
    }.items():  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(strangers.safetensors({"w": strangers.entry(0, 8)}, bytes(8)))
        (folder / "config.json").write_bytes(facts)
        with pytest.raises(BadData, match=r"config\.json"):
            read_raw(folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "..",
        "",
        "a\0.safetensors",
        "x.bin",
        ".safetensors",
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(strangers.safetensors({"w": strangers.entry(0, 8)}, bytes(8)))
    index = {"weight_map": {"w": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadData, match="no safetensors file of this folder"):
        read_raw(folder)


def test_a_child_that_takes_too_long_or_dies_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(strangers.zipped({"a.npy": strangers.npy()}))
    child = tmp_path / "child.py"
    monkeypatch.setattr(quarantine, "CHILD", child)
    monkeypatch.setattr(quarantine, "SECONDS", 1)
    for code, said in [
        ("import time; time.sleep(60)", "more than 1 seconds"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
        ("raise MemoryError('all gone')", "ended with 'MemoryError: all gone'"),
        ("print('not JSON')", "the answer of the process"),
        ("print('{}' * 99)", "the answer of the process"),
    ]:
        child.write_text(code)
        with pytest.raises(BadData, match=said):
            read_raw(path)


@pytest.mark.skipif(not PROC.exists(), reason="limits of memory hold on Linux")
def test_the_child_is_held_to_its_memory_time_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(strangers.zipped({"a.npy": strangers.npy()}))
    source = quarantine.CHILD.read_text()
    child = tmp_path / "child.py"
    monkeypatch.setattr(quarantine, "CHILD", child)
    for line, said in [
        ("hold = bytes(1 << 30)", "needs far more memory"),
        ("Path('big').write_bytes(bytes(100 << 20))", "ended by signal 25|File too large"),
    ]:
        assert source.count(AT) == 1
        child.write_text(source.replace(AT, f"        {line}\n{AT}"))
        with pytest.raises(BadData, match=said):
            read_raw(path)


def test_the_child_sees_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = tmp_path / "a.npz"
    path.write_bytes(strangers.zipped({"a.npy": strangers.npy()}))
    child = tmp_path / "child.py"
    monkeypatch.setattr(quarantine, "CHILD", child)
    child.write_text("import os, json; print(json.dumps({'refused': f'{sorted(os.environ)} {os.listdir()}'}))")
    with pytest.raises(BadData) as caught:
        read_raw(path)
    assert "HF_TOKEN" not in str(caught.value)
    assert str(caught.value).endswith("[].")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such file"):
        read_raw(tmp_path / "none.pt")
