"""The most memory this process has held, and the most arithmetic this machine does in a second."""

from __future__ import annotations

import sys
import time

import torch

from vitrine.machine import device as machine

SIDES = {"cpu": 1024, "cuda": 8192, "mps": 4096}
LONGEST_S = 0.1
"""Products are repeated for so long; the first one, which warms up, comes on top."""


def memory_peak(device: torch.device) -> int:
    """Bytes: on CUDA the most that torch's tensors held at once, else the most of this process in main memory.

    0 where the system does not tell (Windows). Processes that decode pictures are not counted.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        # What getrusage tells on Linux outlives an exec: a shell of many megabytes would count as ours.
        lines = (machine.SYSTEM / "proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0
    return in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.platform)


def in_bytes(ru_maxrss: int, platform: str) -> int:
    """The figure of getrusage(2) in bytes: it counts bytes on macOS, KiB on Linux and the BSDs."""
    return ru_maxrss if platform == "darwin" else ru_maxrss * 1024


def product_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s (two for each multiply-accumulate) of the fastest of several large square products of matrices.

    In `dtype`, float32 for None, with torch's threads as they are; the yardstick for what a training step
    reaches. Takes a few tenths of a second and no random number. This is a measured rate, not a data sheet's.
    """
    side = SIDES.get(device.type, 1024)
    matrix = torch.linspace(-1, 1, side * side, device=device).reshape(side, side).to(dtype or torch.float32)
    best, spent = float("inf"), 0.0
    with torch.inference_mode():
        _wait(device, matrix @ matrix)
        while spent < LONGEST_S:
            began = time.perf_counter()
            _wait(device, matrix @ matrix)
            took = time.perf_counter() - began
            best, spent = min(best, took), spent + max(took, 1e-6)
    return 2 * side**3 / max(best, 1e-9)


def _wait(device: torch.device, product: torch.Tensor) -> None:
    """Until the product is there."""
    if device.type != "cpu":
        product[0, 0].item()
