"""What TensorBoard reads is what metrics.jsonl says, also of a run that was stopped."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.made import trained
from vitrine.errors import Stopped, Unavailable
from vitrine.train import board, states

RUN: dict[str, Any] = {"epochs": 3, "tensorboard": True}


def events(out: Path) -> list[Any]:
    """The events of all files in their order: records of length, its check sum, bytes, and theirs."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((out / board.FOLDER).iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += length + 16
    return found


def shown(out: Path) -> dict[tuple[str, int], float]:
    """What a board shows: values by tag and step; a purge forgets those of its step and later."""
    values: dict[tuple[str, int], float] = {}
    for event in events(out):
        if event.WhichOneof("what") == "session_log":
            values = {key: value for key, value in values.items() if key[1] < event.step}
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
    return values


def expected(out: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        (tag.replace(" ", "_"), line["step"]): line[name]
        for line in lines for name, tag in board.TAGS.items() if line.get(name) is not None
    }  # fmt: skip


def same(out: Path) -> None:
    found, wanted = shown(out), expected(out)
    assert {(tag.replace(" ", "_"), step) for tag, step in found} == set(wanted)
    assert {(tag.replace(" ", "_"), step): value for (tag, step), value in found.items()} == pytest.approx(wanted)


def test_the_board_shows_the_records(tmp_path: Path) -> None:
    trained(tmp_path / "r", **RUN)
    same(tmp_path / "r")
    of_one_class = [name for name in board.TAGS if not name.endswith(("_map", "_exact_match"))]
    assert len(shown(tmp_path / "r")) == 3 * len(of_one_class)


def test_epochs_that_are_trained_again_are_shown_once(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    """The run is stopped in its third epoch, and its state put back to the second as a power cut might."""
    out = tmp_path / "r"
    signal_at(10)
    with pytest.raises(Stopped):
        trained(out, **RUN)
    state = states.found(out)[0]
    kept = state.read_bytes()
    signal_at(18)
    with pytest.raises(Stopped):
        trained(out, **RUN)
    for later in states.found(out):
        later.unlink()
    state.write_bytes(kept)
    signal_at()
    trained(out, **RUN)
    assert [event.step for event in events(out) if event.WhichOneof("what") == "session_log"] == [12, 12]
    assert [line["epoch"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())] == [1, 2, 3]
    same(out)


def test_without_the_library_the_extra_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    with pytest.raises(Unavailable, match=r'pip install "vitrine\[board\]"'):
        trained(tmp_path / "r", **RUN)
    assert not (tmp_path / "r").exists()


def test_a_run_that_does_not_ask_has_none(run: Path) -> None:
    assert not (run / board.FOLDER).exists()
