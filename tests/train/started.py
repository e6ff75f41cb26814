"""Processes started as a launcher starts the ranks of a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
VIT = [
    "--model.depth", "2", "--model.embed-dim", "16", "--model.num-heads", "2", "--model.mlp-ratio", "2.0",
    "--device", "cpu", "--precision", "fp32", "--threads", "1", "--batch-size", "128", "--optim.eps", "1e-5",
]  # fmt: skip
"""A run of the digits within seconds, as it is typed."""


def environment(**more: str) -> dict[str, str]:
    """That of a process that finds these tests and the source, on one thread."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def started(world: int, words: Sequence[str]) -> list[subprocess.Popen[str]]:
    """`python WORDS`, once a rank, as they would be by a launcher without a master of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *words], env=environment(**where, RANK=str(rank), LOCAL_RANK=str(rank)), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


def ended(children: Sequence[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str]]:
    """Exit code and stderr of each; none is left."""
    try:
        return [(child.wait(timeout), child.communicate()[1]) for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()


def torchrun(*words: str, world: int = 2, restarts: int = 0) -> list[str]:
    """The command by which torchrun starts `python WORDS` as ranks of this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world),
        "--max-restarts", str(restarts), *words,
    ]  # fmt: skip
