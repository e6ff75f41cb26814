"""Stochastic depth and dropout: where they act, how much, and that their expectation is the model itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models.toys import pictures, randomise, toy, toy_config
from vitrine.models.vit import Attention, Block, Mlp, VisionTransformer, add_branch


def changed_rows(before: Tensor, after: Tensor) -> list[bool]:
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize(("batch", "rate", "kept"), [(10, 0.3, 7), (8, 0.5, 4), (8, 0.9, 1), (4, 0.99, 1), (1, 0.5, 1)])
def test_the_branch_sees_the_kept_samples_alone(batch: int, rate: float, kept: int) -> None:
    torch.manual_seed(0)
    x, seen = pictures(batch, 3, 4), []

    def branch(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows * 2

    out = add_branch(x, branch, rate)
    (rows,) = seen
    assert rows.shape == (kept, 3, 4)
    changed = changed_rows(x, out)
    assert sum(changed) == kept
    expected = x * (1 + 2 * batch / kept * torch.tensor(changed).float()[:, None, None])
    torch.testing.assert_close(out, expected)


def test_rate_zero_is_exact_and_sees_all() -> None:
    x, branch = pictures(5, 3, 4), nn.Linear(4, 4)
    assert torch.equal(add_branch(x, branch, 0.0), x + branch(x))


def test_the_input_is_left_as_it_was() -> None:
    x = pictures(6, 3, 4)
    copy = x.clone()
    add_branch(x, torch.sin, 0.5)
    assert torch.equal(x, copy)


def test_the_expectation_is_the_whole_branch() -> None:
    torch.manual_seed(0)
    x, draws, rate = pictures(10, 3, 4, dtype=torch.float64), 4000, 0.3
    mean = torch.stack([add_branch(x, torch.sin, rate) for _ in range(draws)]).mean(0)
    # A sample is kept with probability 1 - rate and then weighs 1 / (1 - rate); five deviations of the mean.
    deviation = x.sin().abs() * (rate / (1 - rate)) ** 0.5 / draws**0.5
    assert ((mean - (x + x.sin())).abs() <= 5 * deviation + 1e-12).all()
    assert (mean - (x + (1 - rate) * x.sin())).abs().max() > 10 * deviation.max()


def test_the_two_branches_of_a_block_drop_samples_of_their_own() -> None:
    torch.manual_seed(0)
    block = Block(toy_config(), drop_path=0.5)
    sizes: list[int] = []
    for part in (block.attn, block.mlp):
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    block.train()(pictures(8, 3, 48))
    block.eval()(pictures(8, 3, 48))
    assert sizes == [4, 4, 8, 8]
    x = pictures(8, 3, 48)
    patterns = {tuple(changed_rows(x, block.train()(x))) for _ in range(20)}
    assert any(sum(pattern) > 4 for pattern in patterns)


def test_rates_rise_linearly_from_zero() -> None:
    model = VisionTransformer(toy_config(depth=4, drop_path_rate=0.3))
    assert [block.drop_path for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert VisionTransformer(toy_config(depth=1, drop_path_rate=0.3)).blocks[0].drop_path == 0


def test_a_constant_rate_is_that_of_every_block() -> None:
    model = VisionTransformer(toy_config(depth=3, drop_path_rate=0.3, drop_path_over="constant"))
    assert [block.drop_path for block in model.blocks] == [0.3, 0.3, 0.3]


def test_gradients_flow_through_kept_samples_alone() -> None:
    torch.manual_seed(0)
    x = pictures(8, 3, 4).requires_grad_()
    add_branch(x, lambda z: z * 3, 0.5).sum().backward()
    per_sample = x.grad[:, 0, 0].tolist()
    assert sorted(per_sample) == [1.0] * 4 + [7.0] * 4


def test_dropout_changes_training_and_not_evaluation() -> None:
    images = pictures(2, 3, 32, 32)
    plain, dropping = toy(), toy(drop_rate=0.3)
    assert torch.equal(plain(images), dropping(images))
    plain.train()
    dropping.train()
    assert torch.equal(plain(images), toy()(images))
    assert (plain(images) - dropping(images)).abs().max() > 1e-3


def test_dropout_stands_where_the_paper_has_it() -> None:
    """Appendix B.1: after every dense layer but q, k, v, and after adding the positions."""
    model = VisionTransformer(toy_config(drop_rate=0.3))
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    blocks = [f"blocks.{i}.{part}.drop" for i in range(2) for part in ("attn", "mlp")]
    assert found == dict.fromkeys(["drop", *blocks], 0.3)


def test_dropout_spares_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    attention = randomise(Attention(toy_config(drop_rate=0.5))).train()
    x = pictures(2, 7, 48)
    for one, other in zip(attention.heads(x), attention.heads(x), strict=True):
        assert torch.equal(one, other)
    dropped, whole = attention(x), attention.eval()(x)
    zero = dropped == 0
    assert 0.4 < zero.float().mean() < 0.6
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])


def test_the_mlp_drops_twice() -> None:
    torch.manual_seed(0)
    mlp, inputs = randomise(Mlp(toy_config(drop_rate=0.5))).train(), []
    mlp.fc2.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    out = mlp(pictures(2, 7, 48))
    for tensor in (inputs[0], out):
        assert 0.4 < (tensor == 0).float().mean() < 0.6


def test_dropout_follows_the_positions() -> None:
    torch.manual_seed(0)
    model, images = toy(drop_rate=0.5), pictures(2, 3, 32, 32)
    whole = model.embed(images)
    dropped = model.train().embed(images)
    zero = dropped == 0
    assert 0.4 < zero.float().mean() < 0.6
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])
