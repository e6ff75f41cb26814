from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vitrine.errors import Unavailable
from vitrine.machine import device
from vitrine.machine.device import (
    attention_way,
    autocast_dtype,
    describe,
    gains_from_bf16,
    has_compiler,
    is_out_of_memory,
    memory_bytes,
    num_cores,
    pick,
    versions,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def test_the_cpu_is_always_there() -> None:
    assert pick("cpu") == CPU


@pytest.mark.parametrize(("cuda", "mps", "best"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_auto_is_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, best: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick("auto").type == best


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(Unavailable, match=r"--device cuda: .* has none\. There is: cpu\."):
        pick("cuda")


def test_precision() -> None:
    assert autocast_dtype(CPU, "fp32") is None
    assert autocast_dtype(CPU, "bf16") == torch.bfloat16
    assert autocast_dtype(CPU, "auto") == (torch.bfloat16 if gains_from_bf16(CPU) else None)
    assert autocast_dtype(MPS, "auto") is None
    with pytest.raises(Unavailable, match=r"--precision bf16: not on mps\. Use --precision fp32"):
        autocast_dtype(MPS, "bf16")


def test_the_way_of_attention() -> None:
    assert attention_way(CPU, torch.bfloat16, 197) == "written"
    assert attention_way(CPU, torch.bfloat16, 1025) == "fused"
    assert attention_way(CPU, None, 197) == "fused"
    assert attention_way(CUDA, torch.bfloat16, 197) == "fused"


def test_the_words_for_a_cpu_count_its_threads() -> None:
    assert describe(CPU).startswith(f"cpu ({torch.get_num_threads()} threads, ")
    assert ("bfloat16 in hardware" in describe(CPU)) == gains_from_bf16(CPU)


def test_torchs_own_complaint_about_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_complaints(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_is_asked_of_the_machine_is_plausible() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    assert memory_bytes(CPU) > 1 << 20
    assert isinstance(has_compiler(), bool)


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "vitrine", "torch", "numpy", "pillow"} <= set(found)


FREE = "MemTotal:  9000 kB\nMemAvailable:    8000 kB\n"
V1, V2 = "sys/fs/cgroup/memory/", "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc/meminfo": FREE}, 8000 * 1024),
        (  # version 2: the group itself has no limit, the one above it has
            {
                "proc/meminfo": FREE, "proc/self/cgroup": "0::/a/b\n",
                f"{V2}a/b/memory.max": "max", f"{V2}a/b/memory.current": "70", f"{V2}a/b/memory.stat": "anon 3",
                f"{V2}a/memory.max": "5000", f"{V2}a/memory.current": "900", f"{V2}a/memory.stat": "inactive_file 60\n",
            },
            5000 - 900 + 60,
        ),
        (  # version 1, in a container whose group is not seen from within
            {
                "proc/meminfo": FREE, "proc/self/cgroup": "5:cpu:/z\n4:memory:/lxc/1\n0::/\n",
                f"{V1}memory.limit_in_bytes": "4096", f"{V1}memory.usage_in_bytes": "96", f"{V1}memory.stat": "cache 1",
            },
            4000,
        ),
        (  # a limit wider than the host
            {
                "proc/meminfo": FREE, "proc/self/cgroup": "4:cpu,memory:/\n",
                f"{V1}memory.limit_in_bytes": "9223372036854771712", f"{V1}memory.usage_in_bytes": "96",
                f"{V1}memory.stat": "total_inactive_file 9",
            },
            8000 * 1024,
        ),
        (  # above its limit already
            {
                "proc/meminfo": FREE, "proc/self/cgroup": "0::/\n",
                f"{V2}memory.max": "50", f"{V2}memory.current": "70", f"{V2}memory.stat": "anon 3",
            },
            0,
        ),
    ],
    ids=["none", "version 2", "version 1", "wide", "above"],
)  # fmt: skip
def test_memory_is_what_the_host_and_the_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], left: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(device, "SYSTEM", tmp_path)
    assert memory_bytes(CPU) == left


@pytest.mark.parametrize(
    ("known", "left"),
    [
        ({"SC_AVPHYS_PAGES": 7, "SC_PHYS_PAGES": 20, "SC_PAGE_SIZE": 4096}, 7 * 4096),
        ({"SC_PHYS_PAGES": 20, "SC_PAGE_SIZE": 4096}, 10 * 4096),
        ({"SC_AVPHYS_PAGES": -1, "SC_PHYS_PAGES": 20, "SC_PAGE_SIZE": 4096}, 10 * 4096),
        ({}, 4 << 30),
        (None, 4 << 30),
    ],
)
def test_memory_where_there_is_no_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, int] | None, left: int
) -> None:
    def ask(name: str) -> int:
        if known is None:
            raise AttributeError("sysconf")
        if name not in known:
            raise ValueError("unrecognized configuration name")
        return known[name]

    monkeypatch.setattr(device, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sysconf", ask)
    assert memory_bytes(CPU) == left
