"""Half of the patches hidden, and their colour learnt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.made import MODEL, photo, photos, small, trained
from tests.models.toys import randomise
from vitrine.__main__ import main
from vitrine.config.options import Config, PreprocessConfig
from vitrine.errors import BadConfig, BadData, Stopped, UsageError
from vitrine.images.augment import Draw, draw_table, more
from vitrine.models.vit import VisionTransformer
from vitrine.train.groups import decays, layers
from vitrine.train.masked import MASK, MaskedPatches, colours, corruption, judged, predict_colours
from vitrine.train.objective import Part
from vitrine.train.optim import optimizer
from vitrine.train.plain import plain_names, plain_tensors
from vitrine.weights.bundle import build, open_bundle

BASE = PreprocessConfig(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
MASKED: dict[str, Any] = {"task": "masked_patches"}


def config(**options: Any) -> Config:
    return Config(model=small(num_classes=0), preprocess=BASE, task="masked_patches", **options)


def model(seed: int = 0, **overrides: Any) -> MaskedPatches:
    torch.manual_seed(seed)
    return MaskedPatches(randomise(VisionTransformer(small(num_classes=0, **overrides)), seed))  # type: ignore[arg-type]


def normalised(pixels: torch.Tensor, base: PreprocessConfig = BASE) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=pixels.dtype)[:, None, None] for v in (base.mean, base.std))
    return (pixels - mean) / std


def part(n: int = 4, seed: int = 0) -> Part:
    pixels = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Part(images=normalised(pixels), targets=torch.zeros(n, 0), draws=torch.from_numpy(draw_table(seed, 0, n)))


def test_the_corruption_is_the_literal_one() -> None:
    table = draw_table(3, 1, 7)
    where, source = corruption(torch.from_numpy(table), 9)
    for i in range(7):
        numbers = more(table[i, [Draw.MASK]], 9 + 2 * 4)[0]
        hidden = sorted(range(9), key=lambda j, numbers=numbers: numbers[j])[:4]
        assert where[i].tolist() == hidden
        for m, own in enumerate(hidden):
            kind, pick = numbers[9 + m], numbers[13 + m]
            others = [j for j in range(9) if j != own]
            wanted = MASK if kind < 0.8 else others[int(pick * 8)] if kind < 0.9 else own
            assert source[i, m] == wanted


def test_half_is_hidden_in_the_papers_proportions() -> None:
    where, source = corruption(torch.from_numpy(draw_table(0, 0, 2000)), 49)
    assert where.shape == source.shape == (2000, 24)
    assert all(len(set(row.tolist())) == 24 for row in where)
    shares = torch.bincount(where.flatten(), minlength=49) / 2000
    assert (shares - 24 / 49).abs().max() < 5 * math.sqrt(0.25 / 2000)
    n, kept = source.numel(), source == where
    for found, share in (((source == MASK), 0.8), (kept, 0.1), (~kept & (source != MASK), 0.1)):
        assert abs(float(found.float().mean()) - share) < 5 * math.sqrt(share * (1 - share) / n)
    other = source[~kept & (source != MASK)]
    counts = torch.bincount(other, minlength=49) / len(other)
    assert (counts - 1 / 49).abs().max() < 5 * math.sqrt(1 / 49 / len(other))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colours_are_three_bits_of_the_mean(channels: int) -> None:
    base = PreprocessConfig(size=(8, 12), mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.1)[:channels])
    bytes_ = np.random.default_rng(0).integers(0, 256, (5, channels, 8, 12))
    found = colours(normalised(torch.from_numpy(bytes_ / 255), base), 4, base)
    assert found.shape == (5, 6)
    for b in range(5):
        for p in range(6):
            row, column = 4 * (p // 3), 4 * (p % 3)
            number = 0
            for c in range(channels):
                mean = bytes_[b, c, row : row + 4, column : column + 4].sum() / 16 / 255
                number = 8 * number + min(7, int(mean * 8))
            assert found[b, p] == number


def test_each_byte_gives_its_three_high_bits() -> None:
    base = PreprocessConfig(size=(1, 256), mean=(0.5,), std=(0.5,))
    ramp = torch.arange(256)[None, None, None].float() / 255
    assert torch.equal(colours(normalised(ramp, base), 1, base)[0], torch.arange(256) >> 5)


def test_what_is_erased_beyond_black_and_white_has_the_colour_of_the_end() -> None:
    base = PreprocessConfig(size=(1, 2), mean=(0.5,), std=(0.5,))
    assert colours(torch.tensor([[[[-9.0, 9.0]]]]), 1, base).tolist() == [[0, 7]]


def test_the_loss_is_the_literal_one() -> None:
    """Patch by patch in float64: embed, replace, add positions, encode, and the mean over those that were corrupted."""
    made, one, settings = model().double(), part(), config()
    one = Part(images=one.images.double(), targets=one.targets, draws=one.draws)
    where, source = corruption(one.draws, 16)
    found, right = predict_colours(settings)(made, one)
    network, wanted = made.network, colours(one.images, 4, BASE)
    assert network.cls_token is not None and network.pos_embed is not None
    for i in range(4):
        patches = network.patch_embed(one.images[i : i + 1])[0]
        seen = patches.clone()
        for place, what in zip(where[i].tolist(), source[i].tolist(), strict=True):
            seen[place] = made.mask_token[0, 0] if what == MASK else patches[what]
        z = (torch.cat([network.cls_token[0], seen]) + network.pos_embed[0])[None]
        for block in network.blocks:
            z = block(z)
        logits = made.head(network.norm(z)[0, 1:])
        each = [-logits[p].log_softmax(0)[wanted[i, p]] for p in where[i].tolist()]
        torch.testing.assert_close(found[i], torch.stack(each).mean().float(), atol=1e-6, rtol=1e-6)
        hits = [float(logits[p].argmax() == wanted[i, p]) for p in where[i].tolist()]
        assert float(right[i]) == pytest.approx(sum(hits) / 8)


def test_what_a_hidden_patch_shows_is_not_seen_and_what_the_others_are_called_is_not_asked() -> None:
    made, one = model(), part(1)
    where, _ = corruption(one.draws, 16)
    source = torch.full_like(where, MASK)
    hidden, shown = int(where[0, 0]), next(p for p in range(16) if p not in where[0])

    def logits(place: int) -> torch.Tensor:
        images = one.images.clone()
        images[0, :, 4 * (place // 4) : 4 * (place // 4) + 4, 4 * (place % 4) : 4 * (place % 4) + 4] += 1.0
        with torch.no_grad():
            return made(images, where, source)

    plain = made(one.images, where, source).detach()
    assert torch.equal(logits(hidden), plain)
    assert not torch.allclose(logits(shown), plain)
    table = torch.zeros(1, 16, 16, requires_grad=True)
    from vitrine.train.masked import taken

    taken(table, where).sum().backward()
    assert table.grad is not None and not table.grad[0, shown].any() and table.grad[0, hidden].all()


def test_the_task_in_parts_has_the_gradient_of_the_whole() -> None:
    made, one, objective = model(), part(6), predict_colours(config())
    whole, _ = objective(made, one)
    halves = [
        objective(made, Part(images=one.images[s], targets=one.targets[s], draws=one.draws[s]))[0]
        for s in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-6, rtol=1e-6)


def test_a_picture_of_one_colour_is_learnt() -> None:
    made, settings = model(), config()
    shades = torch.tensor([0.1, 0.5, 0.9])[:, None, None, None].expand(3, 3, 16, 16)
    one = Part(images=normalised(shades), targets=torch.zeros(3, 0), draws=part(3).draws)
    made_optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    objective, losses = predict_colours(settings), []
    for _ in range(60):
        each, right = objective(made, one)
        made_optimizer.zero_grad()
        each.mean().backward()
        made_optimizer.step()
        losses.append(float(each.mean().detach()))
    assert losses[-1] < 0.05 < 1 < losses[0] and float(right.mean()) == 1


def test_layers_and_decay_go_by_the_networks_own_names() -> None:
    made = model()
    names = dict(plain_names(made))
    numbers = layers(list(names))
    inner = layers([name for name, _ in made.network.named_parameters()])
    assert all(numbers[name] == number for name, number in inner.items() if not name.startswith("head"))
    assert numbers["mask_token"] == 0 and numbers["head.weight"] == max(numbers.values())
    assert not decays("mask_token", names["mask_token"])
    assert set(plain_tensors(made)) == set(made.network.state_dict())
    assert set(plain_tensors(made.network)) == set(made.network.state_dict())
    groups = optimizer(made, config().optim).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(made.parameters()))


def test_judging_hides_the_same_patches_of_a_picture_whatever_its_batch() -> None:
    made, one, device = model().eval(), part(6), torch.device("cpu")
    numbers = torch.tensor([4, 1, 9, 0, 7, 2])
    together = judged(made, [(one.images, numbers)], config(seed=1), device)
    rows = [(one.images[i : i + 1], numbers[i : i + 1]) for i in range(6)]
    alone = judged(made, rows, config(seed=2), device)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert not np.allclose(together[0], judged(made, [(one.images, numbers + 1)], config(), device)[0])


# Whole runs


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masked") / "r"
    grown = {**MODEL, "embed_dim": 32, "depth": 2}
    trained(out, epochs=6, batch_size=64, model=grown, optim={"lr": 5e-3}, **MASKED)
    return out


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_more_than_how_often_each_colour_comes(masked_run: Path) -> None:
    """Against the best that can be done without looking: the entropy of the colours of the digits' patches."""
    from sklearn.datasets import load_digits

    means = load_digits().images.reshape(-1, 4, 2, 4, 2).mean((2, 4)) / 16
    counts = np.bincount(np.minimum(7, (means * 8).astype(int)).ravel(), minlength=8)
    shares = counts[counts > 0] / counts.sum()
    last = records(masked_run)[-1]
    assert last["val_loss"] < 0.8 * -(shares * np.log(shares)).sum()
    assert last["val_top1"] > shares.max() + 0.05


def test_the_bundle_is_the_vit_alone_and_fine_tunes(masked_run: Path, tmp_path: Path) -> None:
    found = open_bundle(masked_run)
    assert found.finished and found.model.num_classes == 0 and found.class_names == ()
    assert not any("mask" in name or name.startswith("head") for name in found.tensors)
    assert build(found)(torch.zeros(1, 1, 8, 8)).shape == (1, 32)
    assert any("hidden patches" in note for note in found.notes)
    assert found.run["task"] == "masked_patches" and found.run["label_smoothing"] == 0
    best = records(masked_run)[found.provenance.epoch - 1]
    assert set(found.metrics) == {"validation"}
    for name, record in (("masked_top1", "val_top1"), ("masked_loss", "val_loss")):
        figure = found.metrics["validation"][name]
        assert figure.value == best[record] and figure.low < figure.value < figure.high and figure.n == 360
    tuned = trained(tmp_path / "r", epochs=1, model={}, init=str(masked_run), optim={"lr": 1e-4})
    assert tuned.bundle.class_names == tuple("0123456789") and tuned.bundle.tensors["head.weight"].any()
    moved = (tuned.bundle.tensors["blocks.0.mlp.fc1.weight"] - found.tensors["blocks.0.mlp.fc1.weight"]).abs().max()
    assert moved < 0.01


def test_info_says_what_it_is(masked_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(masked_run)]) == 0
    said = capsys.readouterr().out
    assert "no head: it gives features" in said and "colour of hidden patches named" in said


def test_more_of_it_goes_on_from_it(masked_run: Path, tmp_path: Path) -> None:
    again = trained(tmp_path / "r", epochs=1, model={}, init=str(masked_run), **MASKED)
    assert again.bundle.model == open_bundle(masked_run).model and again.test is None


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_stopped_run_ends_bit_for_bit(tmp_path: Path, signal_at: Callable[..., None], optim: str) -> None:
    model = {**MODEL, "drop_path_rate": 0.1, "depth": 2}
    options: dict[str, Any] = {**MASKED, "epochs": 2, "model": model, "optim": {"name": optim}, "ema_decay": 0.9}
    trained(tmp_path / "a", **options)
    signal_at(3, 11)
    for _ in range(2):
        with pytest.raises(Stopped):
            trained(tmp_path / "b", **options)
    trained(tmp_path / "b", **options)
    for file in ("model.safetensors", "last.safetensors"):
        first, second = (open_bundle(tmp_path / name / file) for name in "ab")
        assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
        assert first.metrics == second.metrics
    assert [r["val_loss"] for r in records(tmp_path / "a")] == [r["val_loss"] for r in records(tmp_path / "b")]


def test_a_folder_of_pictures_without_classes_will_do(tmp_path: Path) -> None:
    for i in range(40):
        photo(tmp_path / "flat" / f"{i}.png", seed=i)
    (tmp_path / "flat" / "notes.txt").write_text("x")
    small_model = {**MODEL, "img_size": 16, "patch_size": 4}
    options: dict[str, Any] = {"epochs": 1, "model": small_model, "data__val_share": 0.5, "data__test_share": 0.0}
    outcome = trained(tmp_path / "r", str(tmp_path / "flat"), **options, **MASKED)
    assert outcome.bundle.provenance.train_pictures == 20 and outcome.bundle.model.in_chans == 3
    with pytest.raises(BadData, match="40 pictures but no class folders"):
        trained(tmp_path / "q", str(tmp_path / "flat"), **options)
    with pytest.raises(BadData, match="holds nothing"):
        (tmp_path / "empty").mkdir()
        trained(tmp_path / "q", str(tmp_path / "empty"), **options, **MASKED)


def test_pictures_of_one_class_will_do(tmp_path: Path) -> None:
    folder = photos(tmp_path / "one", {"only": 12})
    outcome = trained(tmp_path / "r", str(folder), epochs=1, model={**MODEL, "img_size": 16, "patch_size": 4}, **MASKED)
    assert outcome.bundle.class_names == () and outcome.test is None and outcome.bundle.metrics == {}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"label_smoothing": 0.1}, UsageError, "--label-smoothing 0.1: no labels are learnt here"),
        ({"model__num_classes": 10}, UsageError, "--model.num-classes 10: no classes are learnt here"),
        ({"loss": "bce"}, BadConfig, "loss = 'bce': task = masked_patches has no labels"),
        ({"class_weights": "balanced"}, BadConfig, "class_weights = 'balanced'"),
        ({"distill": {"kind": "hard", "teacher": "x"}}, BadConfig, "distill.kind = 'hard'"),
        ({"arch": "bit-r50x1"}, BadConfig, "model.family = 'resnet'"),
        ({"model": {"img_size": 8, "patch_size": 8}}, BadConfig, "needs two patches"),
    ],
)
def test_what_makes_no_sense_without_labels_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    options = {**options, **({} if "model" in options else {"model": {}})}
    with pytest.raises(error) as caught:
        trained(tmp_path / "r", **options, **MASKED)
    assert said in str(caught.value)
    assert not (tmp_path / "r").exists()
