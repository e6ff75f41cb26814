"""Mixup and CutMix against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrine.config.options import AugmentConfig
from vitrine.images.mixing import cut_box, cutmix, mix, mixup

MIXUP = AugmentConfig(mixup=0.8)
CUTMIX = AugmentConfig(cutmix=1.0)
BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)


def batch(num: int = 6, height: int = 12, width: int = 20) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, height, width, generator=random)
    return images, torch.softmax(torch.randn(num, 5, generator=random), 1)


def was_cut(images: Tensor, mixed: Tensor) -> bool:
    """Whether every pixel of `mixed` is one of the picture or its partner, unmixed."""
    return bool(((mixed == images) | (mixed == images.flip(0))).all())


def test_mixup_equals_the_formula() -> None:
    images, targets = batch()
    mixed, soft = mixup(images, targets, 0.3)
    for i in range(6):
        j = 5 - i
        assert torch.allclose(mixed[i], 0.3 * images[i] + 0.7 * images[j])
        assert torch.allclose(soft[i], 0.3 * targets[i] + 0.7 * targets[j])


def test_cutmix_equals_a_loop_over_pixels() -> None:
    images, targets = batch()
    mixed, soft = cutmix(images, targets, (4, 2, 15, 9))
    share = 1 - 11 * 7 / (12 * 20)
    for i in range(6):
        for y in range(12):
            for x in range(20):
                source = 5 - i if 4 <= x < 15 and 2 <= y < 9 else i
                assert torch.equal(mixed[i, :, y, x], images[source, :, y, x])
        assert torch.allclose(soft[i], share * targets[i] + (1 - share) * targets[5 - i])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.64, 1.0])
def test_the_box_has_the_drawn_area_where_it_fits(share: float) -> None:
    left, top, right, bottom = cut_box((100, 200), share, (0.5, 0.5))
    assert (right - left) * (bottom - top) == pytest.approx((1 - share) * 100 * 200, rel=0.02)
    if share < 1:
        assert (right - left) == pytest.approx(2 * (bottom - top), rel=0.02)
        assert (left + right, top + bottom) == (200, 100)


def test_the_box_is_cut_at_the_edges() -> None:
    assert cut_box((100, 100), 0.75, (0.0, 0.99)) == (0, 74, 25, 100)
    for place in np.random.default_rng(0).random((200, 2)):
        left, top, right, bottom = cut_box((7, 13), 0.4, (float(place[0]), float(place[1])))
        assert 0 <= left <= right <= 13 and 0 <= top <= bottom <= 7


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH])
def test_targets_keep_their_sum_and_nothing_is_altered(settings: AugmentConfig) -> None:
    images, targets = batch()
    before = images.clone(), targets.clone()
    for step in range(30):
        mixed, soft = mix(images, targets, settings, 0, step)
        assert mixed.shape == images.shape and soft.shape == targets.shape
        assert torch.allclose(soft.sum(1), torch.ones(6))
        assert (soft >= 0).all()
    assert torch.equal(images, before[0]) and torch.equal(targets, before[1])


def test_off_is_off() -> None:
    images, targets = batch()
    mixed, soft = mix(images, targets, AugmentConfig(), 0, 0)
    assert mixed is images and soft is targets


def test_seed_and_step_decide_alone() -> None:
    images, targets = batch()
    first = mix(images, targets, BOTH, 3, 7)[1]
    torch.rand(5)
    np.random.default_rng().random(5)
    assert torch.equal(first, mix(images, targets, BOTH, 3, 7)[1])
    assert not torch.equal(first, mix(images, targets, BOTH, 3, 8)[1])
    assert not torch.equal(first, mix(images, targets, BOTH, 4, 7)[1])


def test_each_alone_and_a_fair_draw_with_both() -> None:
    images, targets = batch(4, 32, 32)
    steps = range(300)
    assert not any(was_cut(images, mix(images, targets, MIXUP, 0, step)[0]) for step in range(20))
    assert all(was_cut(images, mix(images, targets, CUTMIX, 0, step)[0]) for step in range(20))
    cut = [was_cut(images, mix(images, targets, BOTH, 0, step)[0]) for step in steps]
    assert 0.4 < sum(cut) / len(cut) < 0.6


def test_the_share_is_beta_distributed() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    images, targets = torch.zeros(2, 1, 1, 1), torch.eye(2)
    shares = np.array([float(mix(images, targets, MIXUP, 0, step)[1][0, 0]) for step in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 2.6), rel=0.1)


def test_cutmix_labels_follow_the_pixels() -> None:
    """With the partner's pixels marked, the share of them is the share of its label."""
    images = torch.stack([torch.zeros(1, 16, 24), torch.ones(1, 16, 24)])
    for step in range(50):
        mixed, soft = mix(images, torch.eye(2), CUTMIX, 1, step)
        assert float(soft[0, 1]) == pytest.approx(float(mixed[0].mean()), abs=1e-6)


def test_a_batch_of_one_is_itself() -> None:
    images, targets = batch(1)
    for step in range(10):
        mixed, soft = mix(images, targets, BOTH, 0, step)
        assert torch.allclose(mixed, images) and torch.allclose(soft, targets)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_each_picture_may_have_a_share_of_its_own(kind: str) -> None:
    """Pixels of 0 and 1: the share of the partner's label is that of its pixels, whatever was done."""
    settings = AugmentConfig(
        mixup=0.8 if kind != "cutmix" else 0.0, cutmix=1.0 if kind != "mixup" else 0.0, mix_per="picture"
    )
    images = torch.cat([torch.zeros(400, 1, 16, 24), torch.ones(400, 1, 16, 24)])
    targets = torch.eye(2).repeat_interleave(400, 0)
    mixed, soft = mix(images, targets, settings, 0, 0)
    assert torch.allclose(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-5)
    assert torch.allclose(soft.sum(1), torch.ones(800), atol=1e-6)
    assert len(soft[:, 0].unique()) > 100
    whole = ((mixed == 0) | (mixed == 1)).flatten(1).all(1).float().mean()
    lowest, highest = {"mixup": (0, 0.1), "cutmix": (1, 1), "both": (0.42, 0.58)}[kind]
    assert lowest <= whole <= highest
    if kind == "mixup":
        own = torch.cat([soft[:400, 0], soft[400:, 1]])
        assert float(own.var()) == pytest.approx(1 / (4 * 2.6), rel=0.12)
    assert torch.equal(mixed, mix(images, targets, settings, 0, 0)[0])
    assert not torch.equal(mixed, mix(images, targets, settings, 0, 1)[0])
