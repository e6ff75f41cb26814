"""A run as TensorBoard reads it: the figures of metrics.jsonl as event files, by tensorboardX."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrine.errors import Unavailable

FOLDER = "tensorboard"

TAGS = {
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "train_top1": "accuracy/training",
    "val_top1": "accuracy/validation",
    "val_map": "mean average precision/validation",
    "train_exact_match": "all classes right/training",
    "val_exact_match": "all classes right/validation",
    "lr": "learning rate",
    "grad_norm_mean": "gradient norm/mean",
    "grad_norm_max": "gradient norm/largest",
    "epoch_pictures_per_s": "machine/pictures a second",
    "wait_share": "machine/share of the time waiting for pictures",
    "peak_share": "machine/share of the measured peak",
    "memory_bytes": "machine/memory in bytes",
}
"""The name in metrics.jsonl, and the one on the board."""


def require() -> None:
    """Raise `Unavailable` where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise Unavailable('--tensorboard: needs tensorboardX. Install it: pip install "vitrine[board]"')


class Board:
    """Event files in the folder of a run, open until `close`. A resource: use `contextlib.closing`.

    A run that goes on from step s tells the board to forget what it had of later steps.
    """

    def __init__(self, out: Path, step: int) -> None:
        require()
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / FOLDER), purge_step=step + 1 if step else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """The figures of an epoch, at its last step."""
        for name, tag in TAGS.items():
            if record.get(name) is not None:
                self._writer.add_scalar(tag, record[name], record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        self._writer.close()
