"""Muon: what the iteration does, that it equals torch's, that q, k and v are apart, and that its state is whole."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.made import small
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.options import OptimConfig
from vitrine.errors import BadConfig
from vitrine.models.networks import network
from vitrine.models.vit import VisionTransformer
from vitrine.train.muon import COEFFICIENTS, RMS, Muon, orthogonal
from vitrine.train.optim import optimizer


def step(made: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seed: int) -> None:
    """One update on random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.step()


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24)])
def test_every_singular_value_comes_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ found @ vt.T
        assert ((inner.diagonal() > 0.3) & (inner.diagonal() < 1.3)).all()
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-10


@pytest.mark.parametrize("shape", [(32, 32), (24, 32), (24, 48), (24, 96), (96, 24)])
def test_carrying_the_small_square_is_the_plain_iteration(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    a, b, c = COEFFICIENTS
    x = (matrix.T if shape[0] > shape[1] else matrix).double()
    x = x / x.norm()
    for _ in range(5):
        x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
    expected = x.T if shape[0] > shape[1] else x
    torch.testing.assert_close(orthogonal(matrix[None])[0].double(), expected, atol=2e-5, rtol=0)


def alone(matrix: torch.nn.Parameter, **options: float) -> Muon:
    """Muon for one matrix and a bias that does not move."""
    rest = [{"params": [torch.nn.Parameter(torch.zeros(3))], "weight_decay": 0.0}]
    own = [{"params": [matrix], "weight_decay": 0.1}]
    return Muon(own, rest, lr=0.02, momentum=0.95, betas=(0.9, 0.999), **options)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_it_equals_torchs_up_to_bfloat16(shape: tuple[int, int]) -> None:
    ours = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    mine = alone(ours)
    for seed in range(4):
        step(mine, [ours], seed)
        step(peer, [theirs], seed)
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_the_update_has_the_size_of_adamws() -> None:
    matrix = torch.nn.Parameter(torch.zeros(64, 256))
    step(alone(matrix), [matrix], 0)
    # U V^T of 64 x 256 has a mean square of 1 / 256; the iteration leaves it within a third of that.
    assert matrix.detach().pow(2).mean().sqrt() == pytest.approx(0.02 * RMS, rel=0.34)


def test_queries_keys_and_values_are_apart() -> None:
    fused = torch.nn.Parameter(torch.zeros(96, 32))
    made = alone(fused)
    gradient = torch.randn(96, 32, generator=torch.Generator().manual_seed(2))
    gradient[:32] *= 1000  # loud queries must not drown the keys
    fused.grad = gradient
    made.step()
    sizes = [float(part.norm()) for part in fused.detach().chunk(3)]
    assert max(sizes) < 1.5 * min(sizes)


def test_the_matrices_of_the_blocks_are_muons_and_the_rest_is_adamws() -> None:
    model = VisionTransformer(small())
    made = optimizer(model, OptimConfig(name="muon", weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    mine, decayed, free = ([names[p] for p in group["params"]] for group in made.param_groups)
    assert set(mine) == {f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert set(decayed) == {"patch_embed.proj.weight", "head.weight"}
    assert set(mine) | set(decayed) | set(free) == set(names.values())
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.3, 0.0]


def test_every_parameter_moves() -> None:
    model = VisionTransformer(small())
    before = copy.deepcopy(model.state_dict())
    step(optimizer(model, OptimConfig(name="muon")), list(model.parameters()), 0)
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_its_state_can_be_saved_and_loaded() -> None:
    model = VisionTransformer(small())
    twin = copy.deepcopy(model)
    made, other = (optimizer(one, OptimConfig(name="muon")) for one in (model, twin))
    step(made, list(model.parameters()), 0)
    twin.load_state_dict(model.state_dict(), strict=True)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for seed in (1, 2):
        step(made, list(model.parameters()), seed)
        step(other, list(twin.parameters()), seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_model_without_blocks_is_refused() -> None:
    bare = ResNetConfig(layers=(1,))
    model = network(ModelConfig(family="resnet", resnet=bare, img_size=32, num_classes=3))
    with pytest.raises(BadConfig, match="no Transformer blocks"):
        optimizer(model, OptimConfig(name="muon"))
