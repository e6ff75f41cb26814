"""Learning where a picture may have several classes: targets, weights, what is chosen, and whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.made import MARKS, bundle, marks, small, told_to_nobody
from tests.train.test_plan import facts
from vitrine.config.options import AugmentConfig, Config, PreprocessConfig
from vitrine.config.text import read_toml
from vitrine.data.loader import Batch
from vitrine.errors import BadConfig, BadData, Stopped, UsageError
from vitrine.train import fit
from vitrine.train.losses import losses
from vitrine.train.multi_label import MAX_WEIGHT, first_bias, multi_label_targets, positive_weights
from vitrine.train.objective import Part, name_all, objective_of
from vitrine.train.plan import decide
from vitrine.train.state import Progress
from vitrine.train.step import inputs
from vitrine.weights.bundle import open_bundle


def config(**options: Any) -> Config:
    made = {"model": small(), "preprocess": PreprocessConfig(size=(16, 16)), "label_smoothing": 0.0, **options}
    return Config(**{"multi_label": True, "loss": "bce", **made})


def test_targets_are_smoothed_between_yes_and_no() -> None:
    rows = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.uint8)
    assert torch.equal(multi_label_targets(rows, 0.0), rows.float())
    torch.testing.assert_close(multi_label_targets(rows, 0.2), torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.1, 0.1]]))


def test_positive_weights_by_hand() -> None:
    rows = np.zeros((100, 4), np.uint8)
    rows[:20, 0], rows[:1, 1], rows[:, 3] = 1, 1, 1
    found = positive_weights(rows, 4)
    torch.testing.assert_close(found, torch.tensor([4.0, MAX_WEIGHT, 1.0, 1 / MAX_WEIGHT]))


@pytest.mark.parametrize("kind", ["bce", "sigmoid"])
def test_the_loss_is_torchs_with_and_without_positive_weights(kind: Any) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.rand(5, 3).round()
    for weights in (None, torch.tensor([2.0, 0.5, 3.0])):
        found = losses(logits, targets, kind, positive_weights=weights)
        each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
        torch.testing.assert_close(found, each.mean(1) if kind == "bce" else each.sum(1))


def test_right_is_a_picture_with_all_of_its_classes_right() -> None:
    targets = torch.tensor([[0.95, 0.05, 0.05], [0.05, 0.05, 0.05], [0.95, 0.95, 0.05]])
    logits = torch.tensor([[3.0, -1.0, -2.0], [-1.0, -1.0, 0.1], [2.0, 2.0, -0.1]])

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits

    part = Part(images=torch.zeros(3, 3, 16, 16), targets=targets, draws=torch.zeros(3, 16, dtype=torch.float64))
    each, right = name_all(config())(Fixed(), part)
    assert right.tolist() == [1, 0, 1]
    torch.testing.assert_close(each, losses(logits, targets, "bce"))
    weighted, _ = objective_of(config(loss="sigmoid"), torch.full((3,), 2.0))(Fixed(), part)
    assert (weighted > losses(logits, targets, "sigmoid")).all()


def test_mixed_pictures_have_mixed_rows() -> None:
    rows = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.uint8)
    batch = Batch(
        images=torch.zeros(4, 3, 16, 16, dtype=torch.uint8), labels=rows, weights=torch.ones(4),
        index=torch.arange(4), draws=torch.rand(4, 16, dtype=torch.float64),
    )  # fmt: skip
    settings = config(augment=AugmentConfig(mixup=0.4))
    _, targets, _ = inputs(batch, settings, 3, torch.device("cpu"), 10)
    whole = rows.float()
    share = (targets[1] / whole[2])[1]  # the second picture has none of its own: this is what the third gave
    assert 0 < share < 1
    torch.testing.assert_close(targets, (1 - share) * whole + share * whole.flip(0))


def test_what_is_chosen_and_said() -> None:
    found, reasons = decide(facts(mean_share=0.1), {})
    assert (found.multi_label, found.loss, found.label_smoothing) == (True, "bce", 0.0)
    assert found.model.head_bias == first_bias(0.1) == round(math.log(0.1 / 0.9), 1)
    (told,) = [reason for reason in reasons if reason.startswith("several classes a picture")]
    assert "loss bce," in told and "label smoothing 0;" in told and "begin at -2.2" in told
    asked, reasons = decide(facts(mean_share=0.1), {"loss": "sigmoid", "target_threshold": 0.3, "multi_label": True})
    assert asked.loss == "sigmoid" and any("loss sigmoid as asked" in reason for reason in reasons)
    assert decide(facts(mean_share=0.1), {"model": {"head_bias": 0.0}})[0].model.head_bias == 0
    single, reasons = decide(facts(), {})
    assert (single.multi_label, single.loss, single.label_smoothing) == (False, "cross_entropy", 0.1)
    assert single.model.head_bias == 0 and not any("several" in reason for reason in reasons)
    kept = replace(bundle(), class_names=("a", "b", "c"))
    assert decide(facts(mean_share=0.1, init=kept), {})[0].model.head_bias == 0


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(BadConfig, match="loss = 'cross_entropy': must be bce or sigmoid"):
        decide(facts(mean_share=0.1), {"loss": "cross_entropy"})
    with pytest.raises(UsageError, match="--multi-label True: the data has one class a picture"):
        decide(facts(), {"multi_label": True})
    with pytest.raises(UsageError, match="--multi-label False: the data has labels"):
        decide(facts(mean_share=0.1), {"multi_label": False})


def test_the_weights_kept_are_of_the_highest_mean_average_precision() -> None:
    progress = Progress(epochs=9, best=0.8, best_loss=0.5, peak=0.8)

    def better(mean_ap: float, loss: float) -> bool:
        return fit.better(fit.Validation(top1=0.0, loss=loss, n=20, mean_ap=mean_ap), progress)

    assert better(0.81, 9.0) and better(0.8, 0.4)
    assert not better(0.8, 0.6) and not better(0.79, 0.1)
    assert fit.better(fit.Validation(top1=0.0, loss=9.0, n=20, mean_ap=0.0), Progress(epochs=9))


def test_two_independent_marks_are_learnt(marked: Path) -> None:
    best = open_bundle(marked)
    assert best.multi_label and best.class_names == ("disc", "square") and 0 < best.threshold < 1
    assert best.run["multi_label"] is True and best.run["loss"] == "bce"
    assert open_bundle(marked / "last.safetensors").multi_label
    for figures in best.metrics.values():
        assert figures["map"].value > 0.95 and figures["micro_f1_at"].value > 0.9
        assert abs(figures["map"].n - 48) <= 2
    lines = [json.loads(line) for line in (marked / "metrics.jsonl").read_text().splitlines()]
    assert {"train_exact_match", "val_map", "val_exact_match", "val_loss"} <= lines[-1].keys()
    assert not {"train_top1", "val_top1"} & lines[-1].keys()
    top = max(lines, key=lambda line: (line["val_map"], -line["val_loss"]))
    assert best.provenance.epoch == top["epoch"]
    assert best.metrics["validation"]["map"].value == pytest.approx(top["val_map"], abs=1e-6)


def test_a_stopped_run_goes_on_and_every_option_works_together(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    data = str(marks(tmp_path / "data", 120))
    options: dict[str, Any] = {
        **MARKS, "epochs": 2, "class_weights": "balanced", "label_smoothing": 0.1, "loss": "sigmoid",
        "augment": {"mixup": 0.3, "cutmix": 0.3}, "accumulate": 2,
    }  # fmt: skip
    told_to_nobody(data, tmp_path / "whole", **options)
    signal_at(5)
    with pytest.raises(Stopped):
        told_to_nobody(data, tmp_path / "parts", **options)
    told_to_nobody(data, tmp_path / "parts", **options)
    whole, parts = open_bundle(tmp_path / "whole"), open_bundle(tmp_path / "parts")
    assert all(torch.equal(parts.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert whole.threshold == parts.threshold and read_toml(tmp_path / "parts/config.toml")["multi_label"] is True


def test_without_a_validation_part_the_threshold_is_a_half(tmp_path: Path) -> None:
    data = str(marks(tmp_path / "data", 60))
    made = told_to_nobody(data, tmp_path / "run", **{**MARKS, "epochs": 1}, data__val_share=0.0)
    assert made.bundle.threshold == 0.5 and made.test is not None and made.test.threshold == 0.5


def test_bad_lists_end_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("path,label\na.png,x|y\nb.png,z\n")
    with pytest.raises(BadData, match="name the column labels"):
        told_to_nobody(str(tmp_path / "set.csv"), tmp_path / "run")
    with pytest.raises(BadConfig, match="must be bce or sigmoid"):
        told_to_nobody(str(marks(tmp_path / "data", 60)), tmp_path / "run", loss="cross_entropy", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_model_of_one_class_a_picture_is_tuned_to_several(tmp_path: Path, run: Path) -> None:
    data = str(marks(tmp_path / "data", 60))
    options = {name: value for name, value in MARKS.items() if name != "model"}
    tuned = told_to_nobody(data, tmp_path / "run", **{**options, "epochs": 1}, init=str(run))
    assert tuned.bundle.multi_label and tuned.bundle.class_names == ("disc", "square")
    assert tuned.bundle.model.embed_dim == open_bundle(run).model.embed_dim and tuned.bundle.model.num_classes == 2
