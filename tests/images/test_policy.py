"""Policies: their words, how often and how strongly each operation comes, and that a picture is alone in it."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity.peers import timm
from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.config.policies import AUGREG, Policy, policy
from vitrine.errors import BadConfig
from vitrine.images.augment import Draw, distort, draw_table, more
from vitrine.images.operations import Op
from vitrine.images.policy import PER_LAYER, Convention, augmented, plan, space

WORDS = ["trivial", "three", *AUGREG, "rand-m9-mstd0.5-inc1", "rand-n3-p0.9", "rand-tweights", "rand-t3a", "rand-t3aw"]
PLAIN = PreprocessConfig(mean=(0.0,) * 3, std=(1.0,) * 3)
SIZE = (48, 80)


def batch(num: int, height: int = 24, width: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)


def drawn(word: str, convention: Convention = "own", num: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Operations and their numbers for many pictures."""
    chosen = policy(word)
    table = draw_table(3, 1, num)
    numbers = more(table[:, Draw.POLICY], chosen.layers * PER_LAYER).reshape(num, chosen.layers, PER_LAYER)
    return plan(chosen, space(chosen, convention), numbers, SIZE)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("rand-m9-mstd0.5-inc1", Policy(kind="rand", layers=2, magnitude=9, spread=0.5, probability=0.5,
                                        increasing=True)),
        ("rand", Policy(kind="rand", layers=2, magnitude=10, probability=0.5)),
        ("rand-n3-mmax20-p1-m15", Policy(kind="rand", layers=3, magnitude=15, largest=20, probability=1)),
        ("rand-mstd101-t3aw", Policy(kind="rand", layers=2, spread=math.inf, probability=0.5, choices="3aw")),
        ("augreg-medium1", Policy(kind="augreg", layers=2, magnitude=15, largest=math.inf)),
        ("none", Policy(kind="none")),
    ],
)  # fmt: skip
def test_words(word: str, wanted: Policy) -> None:
    assert policy(word) == wanted


@pytest.mark.parametrize("part", ["w0", "x3", "m", "m9.5", "n0", "n17", "p1.5", "inc2", "tall", "mstd", "", "mmax0"])
def test_an_unknown_part_is_named(part: str) -> None:
    with pytest.raises(BadConfig, match=rf"augment\.policy = 'rand-m9-{part}': '{part}' is no part of it"):
        AugmentConfig(policy=f"rand-m9-{part}")


@pytest.mark.parametrize(("word", "meant"), [("trivail", "trivial"), ("augreg-strong", "augreg-strong")])
def test_an_unknown_policy_has_a_remedy(word: str, meant: str) -> None:
    with pytest.raises(BadConfig, match=f"augment.policy = '{word}': must be one of none, .* Did you mean '{meant}"):
        AugmentConfig(policy=word)


def test_further_numbers_are_uniform_and_belong_to_a_draw() -> None:
    table = draw_table(0, 0, 3000)
    numbers = more(table[:, Draw.POLICY], 12)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.025 and np.abs(numbers.var(0) - 1 / 12).max() < 0.005
    together = np.concatenate([table, numbers], 1)
    assert np.abs(np.corrcoef(together.T) - np.eye(28)).max() < 0.08
    assert len(np.unique(together)) == together.size
    assert np.array_equal(more(table[7:9, Draw.POLICY], 5), numbers[7:9, :5])
    # SplitMix64 begun at 0, as its authors' program prints it.
    first = [[0xE220A8397B1DCDAF >> 11, 0x6E789E6AA1B965F4 >> 11]]
    assert (more(np.zeros(1), 2) * 2.0**53).astype(np.uint64).tolist() == first


@pytest.mark.parametrize(
    ("word", "convention", "shares"),
    [
        ("trivial", "own", {Op.IDENTITY: 1 / 14, Op.AFFINE: 5 / 14, Op.SHARPNESS: 1 / 14, Op.EQUALIZE: 1 / 14}),
        ("three", "own", {Op.COLOR: 1 / 3, Op.SOLARIZE: 1 / 3, Op.BLUR: 1 / 3}),
        ("augreg-light2", "own", {Op.AFFINE: 5 / 16, Op.CUTOUT: 1 / 16, Op.FLAT_CONTRAST: 1 / 16, Op.IDENTITY: 0}),
        ("augreg-light2", "torch", {Op.AFFINE: 5 / 14, Op.CUTOUT: 0, Op.IDENTITY: 1 / 14, Op.INVERT: 0}),
        ("rand-m9-mstd0.5-inc1", "own", {Op.IDENTITY: 0.5, Op.AFFINE: 0.5 / 3, Op.INVERT: 0.5 / 15}),
        ("rand-p1", "google", {Op.CUTOUT: 1 / 16, Op.AFFINE: 5 / 16}),
        ("rand-p1-tweights-n1", "own", {Op.AFFINE: 9 / 10.1, Op.SHARPNESS: 0.25 / 10.1, Op.INVERT: 0.05 / 10.1}),
    ],
)  # fmt: skip
def test_how_often(word: str, convention: Convention, shares: dict[Op, float]) -> None:
    ops, _ = drawn(word, convention)
    count = Counter(ops.flatten().tolist())
    for op, share in shares.items():
        assert count[op] / ops.size == pytest.approx(share, abs=0.008)


def spied(word: str, num: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, ...]]]:
    """The arguments that timm gives its own operations in many draws."""
    module, seen = timm.data.auto_augment, {}

    def spy(name: str) -> Any:
        def note(image: Any, *args: float, **_: Any) -> Any:
            seen.setdefault(name, []).append(args)
            return image

        return note

    monkeypatch.setattr(
        module, "NAME_TO_OP", {name: spy(name.removesuffix("Increasing")) for name in module.NAME_TO_OP}
    )
    transform = module.rand_augment_transform(word, {"translate_pct": 0.45})
    random.seed(0)
    np.random.seed(0)
    for _ in range(num):
        transform(None)
    return seen


@pytest.mark.parametrize(
    "word", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-mstd1.5", "rand-m9-mstd101-inc1-p0.8", "rand-m7-mmax12-mstd2-inc1"]
)
def test_counts_and_strengths_are_timms(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and deviation of the argument of each operation; an affine one by the column that it moves."""
    num = 20_000
    theirs = spied(word, num, monkeypatch)
    ops, args = drawn(word, num=num)

    def ours(name: str) -> np.ndarray:
        columns = {"ShearX": 1, "ShearY": 3, "TranslateXRel": 2, "TranslateYRel": 5}
        moved, sides = args[ops == Op.AFFINE], {"TranslateXRel": SIZE[1], "TranslateYRel": SIZE[0]}
        turned = moved[:, 0] != 1
        if name == "Rotate":
            return np.degrees(np.arctan2(moved[turned, 3], moved[turned, 0]))
        if name in columns:
            column = moved[~turned, columns[name]]
            return column[column != 0] / sides.get(name, 1)
        names = {"AutoContrast": "AUTOCONTRAST", "SolarizeAdd": "SOLARIZE_ADD"}
        return args[ops == Op[names.get(name, name.upper())], 0]

    assert len(theirs) == 15
    for name, given in theirs.items():
        values = np.array([arg[0] if arg else 0.0 for arg in given])
        own = ours(name)
        assert len(own) == pytest.approx(len(values), rel=0.15)
        spread = max(values.std(), 1e-3)
        assert own.mean() == pytest.approx(values.mean(), abs=0.12 * spread)
        assert own.std() == pytest.approx(values.std(), rel=0.1, abs=1e-6)
        assert own.min() >= values.min() - 1.5 * spread and own.max() <= values.max() + 1.5 * spread


def test_trivial_has_31_strengths_to_the_papers_limits() -> None:
    """arXiv:2103.10158, table 6, "wide"."""
    ops, args = drawn("trivial")
    factors = np.unique(args[ops == Op.CONTRAST][:, 0].round(6))
    assert len(factors) == 61 and factors.min() == pytest.approx(0.01) and factors.max() == pytest.approx(1.99)
    assert np.unique(args[ops == Op.POSTERIZE][:, 0]).tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert np.allclose(np.unique(args[ops == Op.SOLARIZE][:, 0]), np.linspace(0, 255, 31))
    moved = args[ops == Op.AFFINE]
    assert np.abs(moved[moved[:, 0] == 1][:, [2, 5]]).max() == 32
    assert np.abs(moved[moved[:, 0] == 1][:, [1, 3]]).max() == pytest.approx(0.99)
    angles = np.degrees(np.arctan2(moved[:, 3], moved[:, 0]))
    assert angles.max() == pytest.approx(135) and angles.min() == pytest.approx(-135)


@pytest.mark.parametrize(("word", "level"), AUGREG.items())
def test_googles_strengths(word: str, level: int) -> None:
    """big_vision, `pp/autoaugment.py`; a magnitude above 10 goes beyond the end of the scale."""
    ops, args = drawn(word)
    assert np.allclose(args[ops == Op.BRIGHTNESS][:, 0], 0.18 * level + 0.1)
    assert np.allclose(args[ops == Op.CUTOUT][:, 0], 4 * level)
    assert np.allclose(args[ops == Op.SOLARIZE_ADD][:, 0], 11 * level)
    shifts = args[ops == Op.AFFINE][:, 2]
    assert np.abs(np.abs(shifts) - 10 * level).min() < 1e-9


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("convention", ["own", "torch", "google"])
def test_a_picture_does_not_depend_on_its_batch(word: str, convention: Convention, channels: int) -> None:
    """Bit for bit, however the batch is parted, and nothing given is altered."""
    settings = AugmentConfig(policy=word, convention=convention, flip=True, erase=0.4)
    preprocess = PLAIN if channels == 3 else PreprocessConfig(mean=(0.4,), std=(0.2,))
    images, table = batch(40, channels=channels), draw_table(0, 0, 40)
    before = images.clone()
    together = distort(images, table, settings, preprocess)
    parts = [distort(images[a:b], table[a:b], settings, preprocess) for a, b in ((0, 1), (1, 8), (8, 40))]
    assert torch.equal(together, torch.cat(parts))
    assert torch.equal(images, before)
    plain = distort(images, table, AugmentConfig(flip=True), preprocess)
    assert (together - plain).flatten(1).abs().amax(1).gt(0.01).float().mean() > 0.4


def test_outside_is_the_mean_or_black_or_128() -> None:
    """Of white pictures; by timm what the model is given as 0."""
    white = torch.full((400, 3, 16, 16), 255, dtype=torch.uint8)
    for word, convention, fill in (
        ("rand-p0.5-m9", "own", (51, 102, 153)),
        ("rand-n1-p1-m9", "google", (128, 128, 128)),
        ("trivial", "own", (0, 0, 0)),
    ):
        chosen = policy(word)
        numbers = np.random.default_rng(0).random((400, chosen.layers, PER_LAYER))
        ops, _ = plan(chosen, space(chosen, convention), numbers, (16, 16))
        result = augmented(white, chosen, convention, numbers, (0.2, 0.4, 0.6))
        moved = result[
            torch.from_numpy(np.isin(ops, [Op.AFFINE, Op.IDENTITY]).all(1) & ((ops == Op.AFFINE).sum(1) == 1))
        ]
        assert len(moved) > 20
        inner = (moved < 255).any(1, keepdim=True).expand_as(moved)
        found = moved.permute(0, 2, 3, 1)[inner[:, 0]].unique(dim=0)
        assert [tuple(row) for row in found.tolist()] == [fill]


def test_a_policy_comes_after_the_mirror_and_before_the_jitter() -> None:
    images, table = batch(12), draw_table(0, 0, 12)
    mirrored = torch.where(torch.from_numpy(table[:, Draw.FLIP] < 0.5)[:, None, None, None], images.flip(-1), images)
    numbers = more(table[:, Draw.POLICY], PER_LAYER).reshape(12, 1, PER_LAYER)
    wanted = augmented(mirrored, policy("trivial"), "own", numbers, PLAIN.mean)
    result = distort(images, table, AugmentConfig(policy="trivial", flip=True, jitter=0.3), PLAIN)
    assert torch.equal(result, distort(wanted, table, AugmentConfig(jitter=0.3), PLAIN))
