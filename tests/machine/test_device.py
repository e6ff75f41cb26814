from __future__ import annotations

import os

import pytest
import torch

from vitrine.errors import Unavailable
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
