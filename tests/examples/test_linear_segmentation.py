"""The example of docs/backbone.md, at reduced length, and the code on that page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.made import bundle
from vitrine.weights.bundle import save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples/linear_segmentation.py"))


def test_it_learns_says_so_and_draws(
    example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        reached = example["main"](["--steps", "100", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    figures = re.findall(r"canvases of (\d+x\d+): mean IoU (0\.\d+), all background (0\.\d+)", said)
    assert [size for size, _, _ in figures] == ["32x32", "40x64"]
    assert reached == pytest.approx(float(figures[0][1]), abs=1e-3)
    for _, found, baseline in figures:
        assert float(found) > float(baseline) + 0.03
    with Image.open(tmp_path / "linear_segmentation.png") as drawn:
        assert min(drawn.size) > 600
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 12


def test_a_canvas_says_of_every_pixel_whose_it_is(example: dict[str, Any]) -> None:
    images, targets = example["canvases"](True, 20, (40, 64), np.random.default_rng(0))
    assert images.shape == (20, 1, 40, 64)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(targets != 10, images[:, 0] >= -0.5)
    assert set(targets.unique().tolist()) == set(range(11))


def test_the_mean_iou_class_by_class(example: dict[str, Any]) -> None:
    target, guess = (torch.randint(11, (3, 8, 8), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    every = []
    for number in range(11):
        hit = ((target == number) & (guess == number)).sum().item()
        every.append(hit / ((target == number) | (guess == number)).sum().item())
    assert example["mean_iou"](guess, target) == pytest.approx(sum(every) / 11)
    assert example["mean_iou"](target, target) == 1


def test_the_code_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(bundle(depth=3, in_chans=3), tmp_path / "model.safetensors")
    page = (ROOT / "docs/backbone.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))
    names: dict[str, Any] = {}
    exec(compile(code, "docs/backbone.md", "exec"), names)
    assert names["middle"].shape == names["last"].shape == (2, 16, 6, 10)
    assert names["scores"].shape == (2, 5, 24, 40)
    assert names["head"].weight.grad.abs().max() > 0
    backbone = names["backbone"]
    assert all(parameter.grad is None for parameter in backbone.parameters())
