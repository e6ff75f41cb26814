"""What the machine offers, and what is chosen from it: device, precision, way of attention, memory, versions."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from vitrine.config.options import Device
from vitrine.errors import Unavailable

SYSTEM = Path("/")
"""Where the proc and sys of Linux are found."""

# Limit, use, and the row of memory.stat with cached file pages, by version of Linux's control groups.
GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
GROUP_2 = ("memory.max", "memory.current", "inactive_file")


def pick(wanted: Device) -> torch.device:
    """The device meant by `wanted`; `auto` is the first of cuda, mps, cpu that is there. Raises `Unavailable`."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[wanted]:
        found = ", ".join(name for name, available in there.items() if available)
        raise Unavailable(f"--device {wanted}: this machine or this build of torch has none. There is: {found}.")
    return torch.device(wanted)


def describe(device: torch.device) -> str:
    """The device in words, such as `cpu (2 threads, Intel Xeon, bfloat16 in hardware)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}, {memory_bytes(device) / 2**30:.0f} GiB)"
    if device.type == "mps":
        return "mps (Apple GPU)"
    extra = ", bfloat16 in hardware" if gains_from_bf16(device) else ""
    return f"cpu ({torch.get_num_threads()} threads, {_processor()}{extra})"


def _processor() -> str:
    return str(_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def _capabilities() -> dict[str, object]:
    """What torch knows of the processor; versions that cannot tell know nothing."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return dict(ask()) if ask else {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def gains_from_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: compute capability 8 and up, AVX512-BF16 or AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "mps":
        return False
    found = _capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def autocast_dtype(device: torch.device, precision: Literal["auto", "fp32", "bf16"]) -> torch.dtype | None:
    """The type of autocast, or None for float32 throughout. Raises `Unavailable` for bf16 on mps."""
    if precision == "bf16" and device.type == "mps":
        raise Unavailable("--precision bf16: not on mps. Use --precision fp32.")
    wanted = precision == "bf16" or (precision == "auto" and gains_from_bf16(device))
    return torch.bfloat16 if wanted else None


def attention_way(device: torch.device, dtype: torch.dtype | None, num_tokens: int) -> Literal["fused", "written"]:
    """How attention is computed best for training here.

    On a CPU in bfloat16, two plain products beat the fused kernel (whose backward is slow) up to about a
    thousand tokens; everywhere else the fused kernel wins or saves the memory of N x N maps.
    """
    return "written" if device.type == "cpu" and dtype == torch.bfloat16 and num_tokens <= 1024 else "fused"


def memory_bytes(device: torch.device) -> int:
    """Memory that the device may still use: free on a GPU, available on the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_host_bytes(), *_group_bytes()])


def _host_bytes() -> int:
    """Memory available on the host; where only its whole size is told (macOS), half of that."""
    try:
        with (SYSTEM / "proc/meminfo").open(encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    for name, share in (("SC_AVPHYS_PAGES", 1), ("SC_PHYS_PAGES", 2)):
        try:
            found = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") // share
        except (AttributeError, ValueError, OSError):  # Windows has no sysconf, and not every system every name
            continue
        if found > 0:
            return found
    return 4 << 30  # no way to ask without another library: assume a small laptop


def _group_bytes() -> list[int]:
    """What each control group that this process is in, and each above it, leaves it (Linux; versions 1 and 2)."""
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (SYSTEM / "sys/fs/cgroup/memory", GROUP_1) if controllers else (SYSTEM / "sys/fs/cgroup", GROUP_2)
        place = top / path.lstrip("/")
        left += [_left(folder, *names) for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return [found for found in left if found is not None]


def _left(group: Path, limit: str, use: str, cache: str) -> int | None:
    """Bytes below the limit of a control group; cached file pages, which give way, count as free. None: no limit."""
    try:
        most, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, use))
        rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, most - used + int(rows.get(cache, 0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says, in one of torch's ways, that there was no space for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_compiler() -> bool:
    """Whether a C++ compiler is found, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("vitrine", "torch", "numpy", "pillow", "simplejpeg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
