"""P1: kill -9 at any moment costs at most one save interval. P2: every flipped bit is noticed. P3: a full disk loses
nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made import told_to_nobody, trained
from tests.train import killed
from vitrine.errors import BadData, DiskError, Stopped, VitrineError
from vitrine.train import state, states
from vitrine.train.state import Progress
from vitrine.weights import container
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE, open_bundle

ROOT = Path(__file__).parents[2]


def ran(name: str, *words: object, timeout: float = 240) -> dict[str, Any]:
    """What a program of this folder prints; it forks from a process without threads."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.train.{name}", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 during a save: needs fork")
@pytest.mark.parametrize(
    ("kills", "every"), [(40, 6), pytest.param(500, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_after_each_kill_the_newest_whole_state_is_found(tmp_path: Path, kills: int, every: int) -> None:
    report = ran("killed", tmp_path, kills, every, timeout=1500)
    print(report)
    assert report["random"]["kills"] == kills
    assert report["random"]["steps"] > kills / 4, "the children saved too little for the kills to mean anything"
    assert report["random"]["leftovers"] > 0, "no kill fell into a write"
    acts = report["points"]["acts"]
    assert acts["fsync"] >= 4 and acts["replace"] >= 2 and acts["unlink"] >= 1 and acts["write"] > 40
    assert report["points"]["unreached"] <= 2
    assert 0 < report["points"]["new"] < report["points"]["points"]
    last = report["last"]
    assert report["names"] == [LAST_FILE, *(f"state/step-{step:08d}.safetensors" for step in (last - 1, last))]


@pytest.fixture
def stopped(tmp_path: Path, signal_at: Callable[..., None]) -> Path:
    """The folder of a stopped run with two states."""
    out = tmp_path / "r"
    signal_at(12)
    with pytest.raises(Stopped):
        trained(out, epochs=2, save__every_steps=5)
    assert [states.step_of(path) for path in states.found(out)] == [13, 10]
    signal_at()
    return out


def altered(content: bytes, rng: random.Random) -> bytes:
    """A bit flipped, or the end cut off."""
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("times", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flip_and_every_cut_in_a_runs_files_is_refused_by_name(stopped: Path, times: int) -> None:
    readers: dict[Path, Callable[[Path], object]] = dict.fromkeys(states.found(stopped), state.read)
    readers |= {stopped / name: open_bundle for name in (MODEL_FILE, LAST_FILE)}
    rng, seen = random.Random(0), dict.fromkeys(readers, 0)
    whole = {path: path.read_bytes() for path in readers}
    for _ in range(times):
        path = rng.choice(list(readers))
        path.write_bytes(altered(whole[path], rng))
        with pytest.raises(BadData, match=re.escape(str(path))):
            readers[path](path)
        seen[path] += 1
        path.write_bytes(whole[path])
    for path, reader in readers.items():
        reader(path)
        assert seen[path] > times / 8


@pytest.mark.slow
def test_checking_takes_less_than_six_tenths_of_a_millisecond_a_megabyte(tmp_path: Path) -> None:
    """The best of ten, as neighbours only ever make one slower."""
    container.write(tmp_path / "a", {"x": torch.rand(100_000_000 // 4)}, {})
    times = []
    for _ in range(10):
        began = time.perf_counter()
        container.read_facts(tmp_path / "a")
        times.append(time.perf_counter() - began)
    print(f"{min(times) * 10:.3f} ms a MB, n = 10, {os.cpu_count()} processors")
    assert min(times) * 1000 / 100 < 0.6


def test_a_damaged_newest_state_is_told_and_the_one_before_it_taken(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = trained(tmp_path / "straight", epochs=2, save__every_steps=5)
    newest, older = states.found(stopped)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    from vitrine.train.run import train

    threads = torch.get_num_threads()
    done = train(None, stopped)
    torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert f"warning: {newest}: the file is damaged" in said and "The state before it is taken" in said
    assert f"going on from step 10 ({older.name})" in said
    assert done.bundle.metrics == straight.bundle.metrics
    a, b = (open_bundle(out / LAST_FILE).tensors for out in (stopped, tmp_path / "straight"))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    lines = [json.loads(line)["epoch"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2]
    assert not (stopped / states.FOLDER).exists()


def test_where_no_state_is_whole_the_run_says_so(stopped: Path) -> None:
    for path in states.found(stopped):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadData, match=r"step-00000013.safetensors: .*No other state of this run is whole: begin anew"):
        told_to_nobody(None, stopped)


def test_the_state_file_of_older_versions_is_gone_on_from(stopped: Path, tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", epochs=2, save__every_steps=5)
    newest, older = states.found(stopped)
    newest.rename(stopped / state.STATE_FILE)
    older.unlink()
    tensors, facts = state.read(stopped / state.STATE_FILE)
    new = ("grad_norm", "ending", "done", "in_a_row", "refused")
    facts["progress"] = {name: value for name, value in facts["progress"].items() if name not in new}
    container.write(stopped / state.STATE_FILE, tensors, facts)
    del tensors
    done = told_to_nobody(None, stopped)
    assert done.bundle.metrics == straight.bundle.metrics
    assert not (stopped / state.STATE_FILE).exists() and not (stopped / states.FOLDER).exists()


def test_the_states_that_are_kept_are_those_asked_for(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    out = tmp_path / "r"
    asked = {"epochs": 3, "save__every_steps": 1, "save__keep_last": 3, "save__keep_every_steps": 7}
    signal_at(20)
    with pytest.raises(Stopped):
        trained(out, **asked)
    steps = [states.step_of(path) for path in states.found(out)]
    assert steps[0] == 21 and {7, 14, 21} <= set(steps) and len(steps) <= 5
    assert all(later > earlier for later, earlier in itertools.pairwise(steps))
    signal_at()
    assert told_to_nobody(None, out).bundle.finished
    assert [states.step_of(path) for path in states.found(out)] == [21, 14, 7]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes disks of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    held: list[Path] = []

    def made(size: int) -> Path:
        while held:
            subprocess.run(["umount", str(held.pop())], check=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a full disk: a small tmpfs cannot be mounted here")
        held.append(place)
        return place

    yield made
    for left in held:
        subprocess.run(["umount", str(left)], check=True)


@pytest.mark.parametrize("sizes", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, small_disk: Callable[[int], Path], sizes: int) -> None:
    of = killed.parts()
    with killed.saver(tmp_path / "big", of) as writing:
        writing.state(Progress(epochs=1, step=1))
    one, last = states.found(tmp_path / "big")[0].stat().st_size, (tmp_path / "big" / LAST_FILE).stat().st_size
    full = 0
    for number in range(sizes):
        # From too little for one state to enough for three, two of which stay, and two of the last weights.
        out = small_disk(int(one * (0.3 + 4.2 * number / (sizes - 1)) + 2 * last)) / "r"
        written, said = 0, ""
        try:
            with killed.saver(out, of) as writing:
                for step in range(1, 6):
                    killed.fill(of, step)
                    writing.state(Progress(epochs=1, step=step))
                    writing.wait()
                    written = step
        except DiskError as error:
            said = str(error)
            full += 1
            assert re.search(r"no space left on the disk \([\d,]+ bytes needed, [\d,]+ bytes free\)", said), said
        names = [path.name for path in out.rglob("*") if path.is_file()]
        assert not [name for name in names if name.startswith(".")], names
        assert (written == 5) is (said == "")
        if written:
            assert killed.looked(out, of) >= written
            assert len(states.found(out)) >= min(written, 2)
    assert sizes / 4 < full < sizes


def test_a_full_disk_ends_the_run_with_its_states_whole(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk(200_000) / "r"
    with pytest.raises(VitrineError) as caught:
        trained(out, epochs=4, model={"depth": 2, "embed_dim": 32, "num_heads": 2}, save__every_steps=2)
    assert caught.value.exit_code == 74 and "bytes needed" in str(caught.value)
    for path in states.found(out):
        state.read(path)
