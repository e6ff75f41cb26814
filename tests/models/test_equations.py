"""Each part of the network against its equation, written out slowly in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.toys import pictures, randomise, toy, toy_config
from vitrine.models.heads import PreLogits, pool
from vitrine.models.vit import ACTIVATIONS, Attention, Block, Mlp, PatchEmbed, SwiGlu, attend, use_attention

EXACT = {"rtol": 0, "atol": 1e-12}


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def slow_attention(x: Tensor, attn: Attention) -> Tensor:
    """Appendix A, head by head."""
    weights, biases = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    q, k, v = (torch.einsum("bnc,ac->bna", x, w) + b for w, b in zip(weights, biases, strict=True))
    mixed = []
    for rows in torch.arange(attn.num_heads * attn.head_dim).split(attn.head_dim):
        a = torch.einsum("bid,bjd->bij", q[..., rows], k[..., rows]) / math.sqrt(attn.head_dim)
        mixed.append(torch.einsum("bij,bjd->bid", a.exp() / a.exp().sum(-1, keepdim=True), v[..., rows]))
    return torch.einsum("bna,ca->bnc", torch.cat(mixed, -1), attn.proj.weight) + attn.proj.bias


def slow_mlp(x: Tensor, mlp: Mlp) -> Tensor:
    hidden = torch.einsum("bnc,mc->bnm", x, mlp.fc1.weight) + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return torch.einsum("bnm,cm->bnc", hidden, mlp.fc2.weight) + mlp.fc2.bias


@pytest.mark.parametrize("head_dim", [None, 10])
def test_a_block_is_equations_2_and_3(head_dim: int | None) -> None:
    block = randomise(Block(toy_config(head_dim=head_dim)).double()).eval()
    x = pictures(2, 7, 48, dtype=torch.float64)
    inner = slow_attention(layer_norm(x, block.norm1), block.attn) + x
    outer = slow_mlp(layer_norm(inner, block.norm2), block.mlp) + inner
    torch.testing.assert_close(block(x), outer, **EXACT)


@pytest.mark.parametrize("bias_shape", [None, (2, 3, 7, 7), (1, 1, 7, 7)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_both_ways_of_attention_agree(bias_shape: tuple[int, ...] | None, dtype: torch.dtype, bound: float) -> None:
    q, k, v = (pictures(2, 3, 7, 16, seed=s, dtype=dtype) for s in range(3))
    bias = None if bias_shape is None else pictures(*bias_shape, seed=3, dtype=dtype)
    fused, written = (attend(q, k, v, bias, scale=0.3, way=way) for way in ("fused", "written"))
    torch.testing.assert_close(fused, written, rtol=0, atol=bound)
    if bias is not None:
        assert (fused - attend(q, k, v, scale=0.3)).abs().max() > 0.01


def test_attention_with_equal_keys_is_the_mean_of_the_values() -> None:
    q, v = (pictures(1, 2, 5, 4, seed=s, dtype=torch.float64) for s in range(2))
    for way in ("fused", "written"):
        mixed = attend(q, torch.ones_like(v), v, scale=1.0, way=way)
        torch.testing.assert_close(mixed, v.mean(-2, keepdim=True).expand_as(v), **EXACT)


def test_use_attention_switches_every_block_and_keeps_the_logits() -> None:
    model, images = toy(), pictures(2, 3, 32, 32)
    with torch.no_grad():
        fused = model(images)
        use_attention(model, "written")
        assert [block.attn.way for block in model.blocks] == ["written", "written"]
        torch.testing.assert_close(model(images), fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [(32, 32), (16, 40), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_a_convolution_and_an_unfold_with_a_product(sides: tuple[int, int], channels: int) -> None:
    embed = randomise(PatchEmbed(toy_config(in_chans=channels)).double())
    images = pictures(2, channels, *sides, dtype=torch.float64)
    tokens = embed(images)
    convolved = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, convolved, **EXACT)
    columns = F.unfold(images, kernel_size=8, stride=8)
    product = torch.einsum("bfp,df->bpd", columns, embed.proj.weight.flatten(1)) + embed.proj.bias
    torch.testing.assert_close(tokens, product, **EXACT)


def test_a_model_is_equations_1_to_4() -> None:
    model, images = toy().double(), pictures(2, 3, 32, 32, dtype=torch.float64)
    patches = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(2, 1, 48), patches], 1) + model.pos_embed
    for block in model.blocks:
        x = x + slow_attention(layer_norm(x, block.norm1), block.attn)
        x = x + slow_mlp(layer_norm(x, block.norm2), block.mlp)
    y = layer_norm(x[:, 0], model.norm)
    logits = torch.einsum("bd,kd->bk", y, model.head.weight) + model.head.bias
    torch.testing.assert_close(model(images), logits, **EXACT)


def test_the_three_poolings() -> None:
    tokens = pictures(2, 17, 48, dtype=torch.float64)
    for how, class_token in (
        ("token", True),
        ("norm_then_avg", True),
        ("norm_then_avg", False),
        ("avg_then_norm", True),
        ("avg_then_norm", False),
    ):
        model = toy(global_pool=how, class_token=class_token).double()
        first = int(class_token)
        mean = tokens[:, first:].sum(1) / (17 - first)
        assert torch.equal(pool(tokens, how, first), tokens[:, 0]) is (how == "token")
        pooled = {
            "token": tokens[:, 0],
            "norm_then_avg": mean,
            "avg_then_norm": layer_norm(mean, model.fc_norm) if how == "avg_then_norm" else None,
        }[how]
        expected = torch.einsum("bd,kd->bk", pooled, model.head.weight) + model.head.bias
        torch.testing.assert_close(model.forward_head(tokens), expected, **EXACT)


def test_where_the_final_norm_stands() -> None:
    for how in ("token", "norm_then_avg", "avg_then_norm"):
        model = toy(global_pool=how)
        before, after = isinstance(model.norm, nn.LayerNorm), isinstance(model.fc_norm, nn.LayerNorm)
        assert (before, after) == ((False, True) if how == "avg_then_norm" else (True, False))


@pytest.mark.parametrize("act", ["tanh", "gelu"])
def test_the_pre_training_head(act: str) -> None:
    hidden = randomise(PreLogits(toy_config(representation_size=9, representation_act=act)).double())
    x = pictures(4, 48, dtype=torch.float64)
    z = torch.einsum("bd,rd->br", x, hidden.fc.weight) + hidden.fc.bias
    expected = (1 - 2 / ((2 * z).exp() + 1)) if act == "tanh" else 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    torch.testing.assert_close(hidden(x), expected, **EXACT)


def test_the_pre_training_head_stands_between_pooling_and_head() -> None:
    model, tokens = toy(representation_size=9).double(), pictures(2, 17, 48, dtype=torch.float64)
    expected = model.head(torch.tanh(model.pre_logits.fc(tokens[:, 0])))
    torch.testing.assert_close(model.forward_head(tokens), expected, **EXACT)
    assert model.head.in_features == 9


def test_no_classes_gives_the_pooled_features() -> None:
    model, images = toy(num_classes=0), pictures(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.forward_features(images)[:, 0], rtol=0, atol=1e-6)


def test_attention_pooling_is_big_visions_map_head() -> None:
    """big_vision/models/vit.py, `MAPHead`: x = MHA(probe, tokens), then x + Mlp(LN(x)); nothing else."""
    model = toy(global_pool="map", class_token=False, reg_tokens=2).double()
    head, tokens = model.attn_pool, pictures(2, 2 + 16, 48, dtype=torch.float64)
    patches = tokens[:, 2:]
    (wk, wv), (bk, bv) = head.kv.weight.chunk(2), head.kv.bias.chunk(2)
    q = head.q.weight @ head.latent[0, 0] + head.q.bias
    mixed = []
    for rows in torch.arange(48).split(16):
        k, v = patches @ wk[rows].T + bk[rows], patches @ wv[rows].T + bv[rows]
        a = (k @ q[rows]) / 4
        mixed.append(torch.einsum("bp,bpd->bd", a.exp() / a.exp().sum(1, keepdim=True), v))
    x = torch.cat(mixed, 1) @ head.proj.weight.T + head.proj.bias
    normed = layer_norm(x, head.norm)
    hidden = normed @ head.mlp["fc1"].weight.T + head.mlp["fc1"].bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    y = x + hidden @ head.mlp["fc2"].weight.T + head.mlp["fc2"].bias
    torch.testing.assert_close(model.pooled(tokens), y, **EXACT)


def test_a_distilled_model_averages_both_heads() -> None:
    model, tokens = toy(distilled=True).double(), pictures(2, 18, 48, dtype=torch.float64)
    one = tokens[:, 0] @ model.head.weight.T + model.head.bias
    other = tokens[:, 1] @ model.head_dist.weight.T + model.head_dist.bias
    torch.testing.assert_close(model.forward_head(tokens), (one + other) / 2, **EXACT)


def test_a_gated_mlp() -> None:
    mlp = randomise(SwiGlu(toy_config()).double())
    x = pictures(2, 5, 48, dtype=torch.float64)
    (wg, wv), (bg, bv) = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    gate, value = x @ wg.T + bg, x @ wv.T + bv
    expected = (gate / (1 + (-gate).exp()) * value) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, **EXACT)


def test_layer_scale_stands_at_the_end_of_each_branch() -> None:
    block = toy(init_values=0.1).blocks[0].double()
    x = pictures(2, 7, 48, dtype=torch.float64)
    inner = slow_attention(layer_norm(x, block.norm1), block.attn) * block.ls1.gamma + x
    outer = slow_mlp(layer_norm(inner, block.norm2), block.mlp) * block.ls2.gamma + inner
    torch.testing.assert_close(block(x), outer, **EXACT)


def test_queries_and_keys_are_normalised_head_by_head() -> None:
    attention = toy(qk_norm=True).blocks[0].attn.double()
    x = pictures(2, 7, 48, dtype=torch.float64)
    q, k, _ = attention.heads(x)
    plain = (x @ attention.qkv.weight.T + attention.qkv.bias).unflatten(2, (3, 3, 16))
    for made, norm, number in ((q, attention.q_norm, 0), (k, attention.k_norm, 1)):
        for head in range(3):
            torch.testing.assert_close(made[:, head], layer_norm(plain[:, :, number, head], norm), **EXACT)


def test_the_activations() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        "gelu": x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + torch.tanh(cubic)),
        "quick_gelu": x / (1 + torch.exp(-1.702 * x)),
        "relu": x.clamp(min=0),
    }
    assert ACTIVATIONS.keys() == expected.keys()
    for name, act in ACTIVATIONS.items():
        torch.testing.assert_close(act(x), expected[name], **EXACT)


def test_the_gradient_of_a_block() -> None:
    config = toy_config(embed_dim=6, num_heads=2, mlp_ratio=1.0)
    block = randomise(Block(config).double()).eval()
    x = pictures(1, 3, 6, dtype=torch.float64).requires_grad_()
    names, values = zip(*block.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    for way in ("fused", "written"):
        block.attn.way = way
        assert torch.autograd.gradcheck(run, (x, *values))
