"""Attention rollout against a literal version in plain loops, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.toys import pictures
from vitrine.errors import UsageError
from vitrine.explain.rollout import picture_map, rollout


def attention(layers: int, B: int = 2, h: int = 3, N: int = 7) -> list[Tensor]:
    return [pictures(B, h, N, N, seed=i, dtype=torch.float64).mul(2).softmax(-1) for i in range(layers)]


def slow_rollout(attentions: list[Tensor], picture: int) -> Tensor:
    """Section 3 of arXiv:2005.00928, one number at a time, from the top layer down."""
    _, h, N, _ = attentions[0].shape
    layers = []
    for weights in attentions:
        layer = [[0.0] * N for _ in range(N)]
        for i in range(N):
            for j in range(N):
                mean = sum(float(weights[picture, head, i, j]) for head in range(h)) / h
                layer[i][j] = 0.5 * mean + (0.5 if i == j else 0.0)
            total = sum(layer[i])
            layer[i] = [value / total for value in layer[i]]
        layers.append(layer)

    def below(depth: int, i: int, j: int) -> float:
        if depth == 0:
            return layers[0][i][j]
        return sum(layers[depth][i][t] * below(depth - 1, t, j) for t in range(N))

    return torch.tensor([[below(len(layers) - 1, i, j) for j in range(N)] for i in range(N)], dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_the_literal_version(layers: int) -> None:
    attentions = attention(layers)
    found = rollout(attentions)
    for picture in range(2):
        torch.testing.assert_close(found[picture], slow_rollout(attentions, picture), rtol=0, atol=1e-14)


def test_rows_sum_to_one_and_the_order_of_layers_matters() -> None:
    attentions = attention(6)
    found = rollout(attentions)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 7, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (found >= 0).all()
    assert (found - rollout(attentions[::-1])).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [1, 4, 12])
def test_uniform_attention_has_a_closed_form(layers: int) -> None:
    N = 5
    uniform = torch.full((1, 2, N, N), 1 / N, dtype=torch.float64)
    # (I/2 + U/2)^L with U^2 = U
    kept = 0.5**layers
    expected = kept * torch.eye(N, dtype=torch.float64) + (1 - kept) * uniform[0, 0]
    torch.testing.assert_close(rollout([uniform] * layers)[0], expected, rtol=0, atol=1e-14)


def test_identity_attention_gives_identity() -> None:
    eye = torch.eye(4).expand(1, 2, 4, 4)
    assert torch.equal(rollout([eye] * 5)[0], torch.eye(4))


def test_rows_that_do_not_sum_to_one_are_normalised() -> None:
    halved = [weights * 0.3 for weights in attention(2)]
    torch.testing.assert_close(rollout(halved)[0], slow_rollout(halved, 0), rtol=0, atol=1e-14)


def test_the_map_is_the_class_tokens_row_over_the_patches() -> None:
    joint = rollout(attention(2))
    found = picture_map(joint, (2, 3), 1, pooled=False)
    assert found.shape == (2, 2, 3)
    for row, column in [(0, 0), (0, 2), (1, 1)]:
        expected = joint[0, 0, 1 + 3 * row + column] / (1 - joint[0, 0, 0])
        assert found[0, row, column].item() == pytest.approx(expected.item(), abs=1e-14)


@pytest.mark.parametrize("prefix", [0, 1])
def test_where_the_model_averages_the_map_is_the_mean_of_the_patches_rows(prefix: int) -> None:
    joint = rollout(attention(2, N=6 + prefix))
    found = picture_map(joint, (2, 3), prefix, pooled=True)
    mean = torch.stack([joint[:, prefix + patch, prefix:] for patch in range(6)]).sum(0) / 6
    torch.testing.assert_close(found, (mean / mean.sum(-1, keepdim=True)).reshape(2, 2, 3), rtol=0, atol=1e-14)


def test_maps_sum_to_one_and_heads_are_read_the_same_way() -> None:
    weights = attention(1)[0]
    for pooled in (True, False):
        heads = picture_map(weights, (3, 2), 1, pooled)
        assert heads.shape == (2, 3, 3, 2)
        torch.testing.assert_close(heads.sum((-1, -2)), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-14)
        for head in range(3):
            assert torch.equal(heads[:, head], picture_map(weights[:, head], (3, 2), 1, pooled))


def test_a_row_that_saw_no_patch_gives_zeros() -> None:
    assert torch.equal(picture_map(torch.eye(5)[None], (2, 2), 1, pooled=False), torch.zeros(1, 2, 2))


def test_what_does_not_fit_is_refused() -> None:
    joint = rollout(attention(1))
    with pytest.raises(UsageError, match="grid of 3x3 and 1 prefix tokens do not make 7"):
        picture_map(joint, (3, 3), 1, pooled=False)
    with pytest.raises(UsageError, match="no class token"):
        picture_map(joint, (1, 7), 0, pooled=False)
    with pytest.raises(UsageError, match="0 layers"):
        rollout([])
