"""The program as a process of its own: signals, pipes, colours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.made import WORDS, photo
from vitrine.__main__ import main
from vitrine.train import states
from vitrine.weights.bundle import facts_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and pipes: need POSIX")
VITRINE = [sys.executable, "-m", "vitrine"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_ctrl_c_stops_a_run_with_75_and_other_options_are_then_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    words = ["train", "digits", "--out", str(out), "--epochs", "100000", *WORDS]
    with subprocess.Popen([*VITRINE, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=QUIET) as started:
        until = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and started.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        said, told = started.communicate(timeout=30)
    assert started.returncode == 75, told.decode()
    assert said == b""
    last = told.decode().splitlines()[-1]
    assert last.startswith(f"vitrine: {out}: stopped in epoch ") and "the same command goes on" in last
    assert "Traceback" not in told.decode()
    for name in ("model.safetensors", "last.safetensors"):
        assert not facts_of(out / name).finished
    assert states.found(out)
    assert not list(out.glob(".*"))
    assert main([*words, "--seed", "3"]) == 2
    assert "seed = 3 (it began with 0)" in capsys.readouterr().err


def test_a_group_asked_to_end_keeps_the_run_and_leaves_no_process(tmp_path: Path) -> None:
    out, group = tmp_path / "r", 0
    words = ["train", "digits", "--out", str(out), "--epochs", "100000", "--num-workers", "2", *WORDS]
    with subprocess.Popen([*VITRINE, *words], stderr=subprocess.PIPE, env=QUIET, start_new_session=True) as started:
        group = started.pid
        until = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and started.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(group, signal.SIGTERM)
        try:
            _, told = started.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            raise
    assert started.returncode == 75, told.decode()
    assert "stopped in epoch " in told.decode().splitlines()[-1] and "memory" not in told.decode().splitlines()[-1]
    assert states.found(out) and not list(out.glob(".*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


ENDED = """
import os, signal, sys, time
from vitrine.weights import exporting

def save(writing, out):
    out.mkdir()
    os.kill(os.getpid(), signal.{name})
    time.sleep(20)

exporting.save = save
from vitrine.__main__ import main
from vitrine.train import states
sys.exit(main())
"""


@pytest.mark.parametrize(("name", "code", "said"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
def test_an_export_that_is_ended_leaves_nothing(run: Path, tmp_path: Path, name: str, code: int, said: str) -> None:
    words = ["export", str(run), "--to", "timm", "--out", str(tmp_path / "out"), "--accept-difference", "1"]
    command = [sys.executable, "-c", ENDED.replace("{name}", name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=QUIET, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, f"vitrine: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["--help", "predict", "info"])
def test_a_reader_that_goes_away_is_no_error_of_ours(run: Path, tmp_path: Path, verb: str) -> None:
    given = {"predict": [str(run), *[str(photo(tmp_path / "p.png"))] * 3], "info": ["--models"]}
    words = [verb, *given.get(verb, [])]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*VITRINE, *words], stdout=writer, stderr=subprocess.PIPE, env=QUIET, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full stdout: needs /dev/full")
def test_results_that_find_no_room_are_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*VITRINE, "--help"], stdout=full, stderr=subprocess.PIPE, env=QUIET, check=False)
    assert (done.returncode, done.stderr) == (74, b"vitrine: No space left on device\n")


def in_a_terminal(words: list[str], **environment: str) -> bytes:
    """What the program writes to a terminal."""
    import pty

    master, slave = pty.openpty()
    with subprocess.Popen(
        [*VITRINE, *words],
        stdout=slave,
        stderr=slave,
        stdin=slave,
        env={**QUIET, "TERM": "xterm-256color", **environment},
    ) as started:
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            seen += piece
        started.wait(timeout=30)
    os.close(master)
    return seen


def colours(seen: bytes) -> bool:
    """Whether colours were set: an escape sequence of 30 to 37, 90 to 97, or 38 for many."""
    import re

    return bool(re.search(rb"\x1b\[[0-9;]*(?:3[0-8]|9[0-7])[0-9;]*m", seen))


def test_no_color_is_respected() -> None:
    words = ["predict", "--help"]
    assert colours(in_a_terminal(words))
    plain = in_a_terminal(words, NO_COLOR="1")
    assert b"MODEL" in plain and not colours(plain)
