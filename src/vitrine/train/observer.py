"""Who looks at each epoch's record: warns of what goes wrong, once, and keeps the TensorBoard files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitrine.config.options import Config
from vitrine.machine import device as machine
from vitrine.train.board import Board
from vitrine.train.signs import Setting, signs
from vitrine.train.watch import Watch


class Observer:
    """The records of a run so far, and the warnings that came of them, in their order.

    Begins with the records of a run that is taken up again, whose warnings are not said a second time.
    `notes`, which go into the model file, gain each warning.
    """

    def __init__(self, before: list[dict[str, Any]], setting: Setting, *, watch: Watch, notes: list[str],
                 board: Board | None) -> None:  # fmt: skip
        self.records: list[Mapping[str, Any]] = []
        self.warnings: dict[str, str] = {}
        self._setting, self._watch, self._notes, self._board = setting, watch, notes, board
        for record in before:
            self._judge(record)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take note of an epoch."""
        for sentence in self._judge(record):
            self._watch.say(f"warning: {sentence}")
        if self._board is not None:
            self._board.write(record)

    def _judge(self, record: Mapping[str, Any]) -> list[str]:
        """The warnings that begin to hold with this record."""
        self.records.append(record)
        new = {name: text for name, text in signs(self.records, self._setting).items() if name not in self.warnings}
        self.warnings |= new
        self._notes.extend(new.values())
        return list(new.values())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; none where there is no file, and none of a last line that is cut off."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def setting(config: Config, labels: np.ndarray, steps_per_epoch: int) -> Setting:
    """What the rules must know; `labels` are those of the validation part."""
    augment, classes = config.augment, config.task == "classify"
    ways = {
        "more augmentation (--augment.policy trivial)": augment.policy == "none",
        "mixing pictures (--augment.mixup 0.2 --augment.cutmix 1)": not (augment.mixup or augment.cutmix),
        f"more decay (--optim.weight-decay {2 * config.optim.weight_decay or 0.05:.2g})": True,
        "starting from a trained model (--init)": not config.begins_from and classes,
    }
    return Setting(
        lr=config.optim.lr,
        warmup_epochs=config.optim.warmup_steps / steps_per_epoch,
        clip_norm=config.optim.clip_norm,
        num_workers=config.num_workers,
        cores=machine.num_cores(),
        majority=_guess(labels) if len(labels) and classes else 0.0,
        num_validation=len(labels),
        unused=tuple(way for way, free in ways.items() if free),
        several=config.multi_label,
    )


def _guess(labels: np.ndarray) -> float:
    """What a guess that looks at nothing reaches: the share of the most frequent class; for rows of 0 and 1 the mean
    average precision, which is the mean share of the classes that are there."""
    if labels.ndim == 1:
        return float(np.bincount(labels).max() / len(labels))
    shares = labels.mean(axis=0)
    return float(shares[shares > 0].mean()) if shares.any() else 0.0
