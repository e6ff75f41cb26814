"""Every command and every line of Python in the README runs, in a folder with some pictures in it.

Only the times differ: where the README trains for minutes, the test trains for seconds. What asks a hub
asks one on loopback here, which has small models and sets under the same names.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests import made
from tests.data.tables import bytes_of, table
from tests.weights.stand_in_hub import Hub, serving
from vitrine.weights.exporting import export

README = Path(__file__).resolve().parents[1] / "README.md"
SECONDS = "3s"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands(language: str = "sh") -> list[str]:
    return [line for block in blocks(language) for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/cat, photos/dog and digit.png."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    for name, colour in (("cat", (200, 120, 60)), ("dog", (70, 110, 190))):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(1, 31):
            side = int(rng.integers(80, 120))
            picture = Image.fromarray(rng.integers(0, 90, (side, 100, 3), dtype=np.uint8))
            left = int(rng.integers(5, 45))
            ImageDraw.Draw(picture).ellipse((left, 20, left + 40, 60), fill=colour)
            picture.save(folder / "photos" / name / f"{number}.jpg", quality=95)
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[3] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "digit.png")
    return folder


def test_there_is_something_to_run() -> None:
    verbs = {shlex.split(command)[1] for command in commands()}
    assert verbs == {"train", "evaluate", "info", "predict", "explain", "export", "shards"}
    assert len(blocks("python")) == 1


def run(command: str, desk: Path, **environment: str) -> None:
    """The command as a user would type it, for seconds where it says minutes; it must end well and say something."""
    words = shlex.split(re.sub(r"--max-time \w+", f"--max-time {SECONDS}", command))
    assert words[0] == "vitrine"
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=desk,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert done.stdout.strip(), command


def test_every_command_runs(desk: Path) -> None:
    for command in commands():
        run(command, desk)
    for picture in ("confusion", "attention"):
        with Image.open(desk / "runs" / f"{picture}.png") as drawn:
            assert drawn.width > 500


def test_every_command_with_a_hub_runs(desk: Path, tmp_path: Path) -> None:
    source = made.bundle(act_layer="gelu_tanh", patch_size=16, img_size=32)
    Image.new("RGB", (50, 40), (90, 120, 60)).save(desk / "dog.jpg")
    export(source, "google", desk / "ViT-B_16.npz")
    hub = Hub()
    for name, to in (("google/vit-base-patch16-224", "hf"), ("timm/vit_small_patch16_224.augreg_in21k", "timm")):
        export(source, to, tmp_path / to)
        hub.add(name, {path.name: path.read_bytes() for path in (tmp_path / to).iterdir()})
    hub.add("datasets/uoft-cs/cifar10", {"plain_text/train-00000-of-00001.parquet": bytes_of(table(60))})
    with serving(hub):
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        for command in commands("sh network"):
            run(command, desk, **own)
    assert len(hub.asked) > 4


def test_every_command_of_several_ranks_runs_with_two(desk: Path) -> None:
    assert commands("sh ranks")
    for command in commands("sh ranks"):
        words = shlex.split(re.sub(r"--max-time \w+", f"--max-time {SECONDS}", command))
        words[words.index("--nproc-per-node") + 1] = "2"
        assert words[0] == "torchrun"
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words[1:], "--device", "cpu"],
            cwd=desk, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.count("model: ") == 1, done.stdout


def test_the_python_runs(desk: Path) -> None:
    code = blocks("python")[0].replace("max_time_s=20.0", "max_time_s=3.0")
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Prediction(label=")


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
