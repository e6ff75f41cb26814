"""A warning is said once, also over a stop, and what it says is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_signs import SETTING, run
from vitrine.config.options import AugmentConfig, Config, OptimConfig
from vitrine.train.observer import Observer, read_records, setting
from vitrine.train.watch import Watch

STUCK = run(20, val_top1=0.1)


def observer(before: list[dict[str, Any]], notes: list[str]) -> Observer:
    return Observer(before, SETTING, watch=Watch(), notes=notes, board=None)


def test_a_warning_is_said_once_when_it_begins_to_hold(capsys: pytest.CaptureFixture[str]) -> None:
    notes = ["before"]
    seen = observer([], notes)
    said = []
    for record in STUCK:
        seen(record)
        said.append(capsys.readouterr().err)
    assert [epoch for epoch, text in enumerate(said, 1) if text] == [5]
    assert said[4] == f"warning: {notes[1]}\n" and notes[0] == "before" and len(notes) == 2
    assert seen.warnings == {"stuck": notes[1]} and seen.records == STUCK


def test_a_run_taken_up_again_keeps_its_warnings_and_does_not_repeat_them(capsys: pytest.CaptureFixture[str]) -> None:
    straight: list[str] = []
    first = observer([], straight)
    for record in STUCK:
        first(record)
    capsys.readouterr()
    for stop in range(len(STUCK)):
        notes: list[str] = []
        again = observer(STUCK[:stop], notes)
        for record in STUCK[stop:]:
            again(record)
        assert notes == straight and again.warnings == first.warnings
        assert bool(capsys.readouterr().err) == (stop < 5)


def test_records_are_read_up_to_what_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    path.write_text("".join(json.dumps(record) + "\n" for record in STUCK[:3]) + '{"epoch": 4, "st')
    assert read_records(path) == STUCK[:3]


def test_what_the_rules_know_of_a_run() -> None:
    labels = np.array([0, 1, 1, 1, 2])
    found = setting(Config(optim=OptimConfig(warmup_steps=30, clip_norm=0.5, lr=0.25)), labels, steps_per_epoch=20)
    assert (found.lr, found.warmup_epochs, found.clip_norm) == (0.25, 1.5, 0.5)
    assert (found.majority, found.num_validation) == (0.6, 5) and found.cores >= 1
    assert len(found.unused) == 4 and "--optim.weight-decay 0.1" in " ".join(found.unused)
    used = Config(augment=AugmentConfig(policy="three", mixup=0.2), init="x", optim=OptimConfig(weight_decay=0.0))
    assert setting(used, labels, 1).unused == ("more decay (--optim.weight-decay 0.05)",)
    assert setting(used, labels[:0], 1).majority == 0.0
