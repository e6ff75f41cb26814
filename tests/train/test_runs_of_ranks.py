"""Whole runs by several ranks, as torchrun starts them: the figures of one process, one voice, one folder; and what
happens when a rank dies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.made import photos
from tests.train.started import ROOT, VIT, ended, environment, started, torchrun
from vitrine.errors import CannotCreate
from vitrine.weights.bundle import facts_of, open_bundle

LEARNS = ["--epochs", "2", "--augment.mixup", "0.3", "--augment.cutmix", "0.5", "--augment.mix-per", "picture"]


def ran(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    return subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )


def digits(out: Path, *more: str) -> list[str]:
    """The words after `python` that train on the digits."""
    return ["-m", "vitrine", "train", "digits", "--out", str(out), *VIT, *LEARNS, *more]


def content(out: Path, name: str = "last.safetensors") -> str:
    """A hash of the names and bytes of a model's tensors."""
    found = hashlib.sha256()
    for key, tensor in sorted(open_bundle(out / name).tensors.items()):
        found.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("one") / "r"
    done = ran(sys.executable, *digits(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--parallel.mode", "fsdp", "--accumulate", "2"], ["--parallel.tensor", "2"]])
def test_a_run_by_two_ranks_has_the_figures_of_one_process(one: Path, tmp_path: Path, more: list[str]) -> None:
    out = tmp_path / "r"
    if more:
        found = ended(started(2, digits(out, *more)), timeout=120)
        assert [code for code, _ in found] == [0, 0], found
        said = found[0][1]
        assert found[1][1] == ""  # rank 1 says nothing
    else:
        done = ran(*torchrun(*digits(out)))
        assert done.returncode == 0, done.stderr
        said = done.stderr
        assert done.stdout.count("top-1 accuracy") == 1 and done.stdout.count("model: ") == 1
    assert said.count("2 ranks, 128 pictures a step in all;") == 1 or "2 ranks: 2 share every layer" in said
    names = {"config.toml", "metrics.jsonl", "model.safetensors", "last.safetensors", "report.html"}
    assert {entry.name for entry in out.iterdir()} == names
    for a, b in zip(records(one), records(out), strict=True):
        assert a["step"] == b["step"] and a["lr"] == b["lr"]
        for name in ("train_loss", "val_loss", "grad_norm", "grad_norm_max"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name
        assert (a["val_top1"], a["val_n"]) == (b["val_top1"], b["val_n"])
        assert a["train_top1"] == pytest.approx(b["train_top1"], abs=1e-6)
    a, b = open_bundle(one), open_bundle(out)
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], tensor, atol=1e-5, rtol=0)
    assert {part: {n: f.n for n, f in of.items()} for part, of in a.metrics.items()} == {
        part: {n: f.n for n, f in of.items()} for part, of in b.metrics.items()
    }
    assert b.metrics["test"]["top1"].value == a.metrics["test"]["top1"].value
    assert b.finished and b.class_names == a.class_names


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_told_once_by_rank_0(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 42, "b": 42}, size=(40, 40))
    (data / "a" / "5.png").write_bytes(b"no picture")
    for name in ("a/7", "b/9", "b/11"):
        whole = (data / f"{name}.png").read_bytes()
        (data / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    words = ["-m", "vitrine", "train", str(data), *VIT, "--batch-size", "4", "--init", "none", "--epochs", "1"]
    words += ["--model.img-size", "16", "--model.patch-size", "4"]
    words += ["--data.max-bad-share", "0.2", "--data.val-share", "0.4"]
    (alone,) = ended(started(1, [*words, "--out", str(tmp_path / "one")]), timeout=120)
    both = ended(started(2, [*words, "--out", str(tmp_path / "two"), "--parallel.mode", "fsdp"]), timeout=120)
    assert alone[0] == 0 and [code for code, _ in both] == [0, 0], both
    assert both[1][1] == ""
    named = [sorted(re.findall(r"[ab]/\d+\.png", text)) for text in (alone[1], both[0][1])]
    assert named[0] == named[1] and "a/5.png" in named[0]
    (a,), (b,) = records(tmp_path / "one"), records(tmp_path / "two")
    assert b["val_n"] == a["val_n"] > 20 and b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-5)
    assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_an_error_of_all_is_told_once_with_its_code(one: Path) -> None:
    found = ended(started(2, digits(one)), timeout=60)
    assert [code for code, _ in found] == [CannotCreate.exit_code] * 2
    told = "".join(error for _, error in found)
    assert told.count("vitrine: ") == 1 and "a finished run stands here" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--parallel.tensor", "3"], "--parallel.tensor 3: 2 ranks cannot be grouped so"),
        (["--parallel.mode", "fsdp", "--optim.name", "muon"], "muon works on whole matrices"),
    ],
)
def test_what_cannot_be_spread_is_refused_once(tmp_path: Path, more: list[str], said: str) -> None:
    found = ended(started(2, digits(tmp_path / "r", *more)), timeout=60)
    assert [code for code, _ in found] == [2, 2], found
    told = "".join(error for _, error in found)
    assert said in told and told.count("vitrine: ") == 1
    assert not (tmp_path / "r").exists()


SLOWLY = """
import sys, time
from vitrine.train import fit
from vitrine.__main__ import main
plain = fit.train_step
def slowly(*args, **how):
    time.sleep(0.05)
    return plain(*args, **how)
fit.train_step = slowly
sys.argv = ["vitrine", *sys.argv[1:]]
sys.exit(main())
"""
"""A run with time to kill it, that saves as often as it may."""


def slowly(tmp_path: Path, out: Path, *more: str) -> list[str]:
    file = tmp_path / "slowly.py"
    file.write_text(SLOWLY)
    return [str(file), *digits(out, "--epochs", "6", "--save.every-s", "0", *more)[2:]]


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started."""
    return [child.pid for child in psutil.Process(launcher.pid).children()]


def wait_for(path: Path, seconds: float = 60.0) -> float:
    """The moment when `path` is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)
    return time.monotonic()


def newest(states: Path) -> int:
    """The step of the newest state; -1 where there is none."""
    return max((int(path.name[5:13]) for path in states.glob("step-*")), default=-1)


def wait_for_newer(states: Path, step: int, seconds: float = 60.0) -> None:
    """Until a state of a later step is there."""
    end = time.monotonic() + seconds
    while newest(states) <= step:
        assert time.monotonic() < end, f"no state after step {step} came"
        time.sleep(0.02)


def test_after_a_rank_was_killed_the_run_goes_on_from_the_last_save_to_the_same_end(tmp_path: Path) -> None:
    straight = ran(*torchrun(*slowly(tmp_path, tmp_path / "a")))
    assert straight.returncode == 0, straight.stderr
    launcher = subprocess.Popen(
        torchrun(*slowly(tmp_path, tmp_path / "b"), restarts=1), env=environment(), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "b" / "state")
    wait_for_newer(tmp_path / "b" / "state", -1)
    before = ranks_of(launcher)
    killed = time.monotonic()
    os.kill(before[-1], signal.SIGKILL)
    while set(ranks_of(launcher)) & set(before):
        assert time.monotonic() - killed < 30
        time.sleep(0.02)
    again = time.monotonic() - killed
    wait_for_newer(tmp_path / "b" / "state", newest(tmp_path / "b" / "state"))
    print(f"begun anew after {again:.2f} s, a step learnt and saved after {time.monotonic() - killed:.2f} s")
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 0, said
    assert "going on from step" in said
    assert again < 5, f"the ranks were begun anew after {again:.1f} s"
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a", "model.safetensors") == content(tmp_path / "b", "model.safetensors")
    assert [record["epoch"] for record in records(tmp_path / "b")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("then", [["--parallel.mode", "fsdp"], ["--parallel.tensor", "2"], None], ids=str)
def test_a_stopped_run_goes_on_with_other_ranks(tmp_path: Path, then: list[str] | None) -> None:
    """Two ranks that shard the model are asked to stop; then others, or one process, go on."""
    out = tmp_path / "r"
    children = started(2, slowly(tmp_path, out, "--parallel.mode", "fsdp"))
    end = time.monotonic() + 60
    while not list(out.glob("state/step-*/manifest.json")):
        assert time.monotonic() < end
        time.sleep(0.02)
    children[1].send_signal(signal.SIGTERM)  # one of them is enough
    found = ended(children, timeout=60)
    assert [code for code, _ in found] == [75, 75], found
    assert "all is kept; the same command goes on" in found[0][1] + found[1][1]
    assert 1 <= len(list(out.glob("state/step-*"))) <= 2 and all(path.is_dir() for path in out.glob("state/*"))
    steps = facts_of(out / "last.safetensors").provenance.steps
    assert 0 < steps < 48
    words = ["-m", "vitrine", "train", "--out", str(out), *(then or [])]
    found = ended(started(1 if then is None else 2, words), timeout=120)
    assert {code for code, _ in found} == {0}, found
    assert f"going on from step {steps}" in found[0][1]
    assert facts_of(out / "last.safetensors").provenance.steps == 48
    assert not list(out.glob("state*"))
    (alone,) = ended(started(1, digits(tmp_path / "one", "--epochs", "6")), timeout=120)
    assert alone[0] == 0
    for name, tensor in open_bundle(tmp_path / "one" / "last.safetensors").tensors.items():
        torch.testing.assert_close(open_bundle(out / "last.safetensors").tensors[name], tensor, atol=1e-4, rtol=0)
