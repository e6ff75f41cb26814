"""The table of named models."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.models import ALIASES, BIT, HYBRIDS, NAMES, SIZES, VARIANTS, named
from vitrine.errors import BadConfig, NotFound


def test_names_are_unique_and_read_as_they_should() -> None:
    assert len(set(NAMES)) == len(NAMES)
    plain = [name for name in NAMES if re.fullmatch(r"vit_[a-z]+_patch\d+_\d+", name)]
    others = {f"{name}_{side}" for name, entry in HYBRIDS.items() for side in entry.sides}
    others |= set(VARIANTS) | {f"resnetv2_{name}_bit" for name in BIT}
    assert set(plain) | others == set(NAMES)
    for name in plain:
        config = named(name)
        _, size, patch, side = name.split("_")
        assert (f"patch{config.patch_size}", config.size) == (patch, (int(side), int(side)))
        assert (config.embed_dim, config.depth, config.num_heads) == SIZES[size][:3]


@pytest.mark.parametrize("name", [f"{name}_{side}" for name, entry in HYBRIDS.items() for side in entry.sides])
def test_a_hybrid_reads_as_it_should(name: str) -> None:
    config = named(name)
    size, _, stride = name.split("_")[1:4]
    assert config.family == "hybrid"
    assert config.embed_dim == SIZES[size].embed_dim
    # R+Ti/16 is 32 pixels from token to token whatever its name says: 4 by the root, 8 by the patches.
    assert f"s{config.stride}" == ("s32" if size == "tiny" else stride)
    assert not config.resnet.preact
    assert (config.resnet.padding, config.resnet.conv_eps, config.resnet.conv_eps_at) == ("same", 1e-5, "std")


@pytest.mark.parametrize(
    ("alias", "layers", "patch", "grid"),
    [  # google-research/vision_transformer, configs/models.py
        ("r+vit-ti/16", (), 8, (7, 7)),
        ("r26+vit-s/32", (2, 2, 2, 2), 1, (7, 7)),
        ("R50+ViT-B/16", (3, 4, 9), 1, (14, 14)),
        ("R50+ViT-L/32", (3, 4, 6, 3), 1, (7, 7)),
        ("r50+vit-b/32", (3, 4, 6, 3), 1, (7, 7)),
        ("r50+vit-l/16", (3, 4, 9), 1, (14, 14)),
    ],
)
def test_stems_are_the_released_ones(alias: str, layers: tuple[int, ...], patch: int, grid: tuple[int, int]) -> None:
    config = named(alias)
    assert (config.resnet.layers, config.patch_size, config.grid) == (layers, patch, grid)


def test_bit_has_its_own_numerics() -> None:
    config = named("bit-r152x4")
    assert config.family == "resnet"
    assert config.resnet == ResNetConfig(layers=(3, 8, 36, 3), width_factor=4)
    assert (config.num_features, config.grid) == (8192, (7, 7))
    own = config.resnet
    assert (own.preact, own.padding, own.conv_eps, own.conv_eps_at, own.norm_eps) == (True, "fixed", 1e-10, "var", 1e-5)


def test_an_override_of_the_stem_leaves_the_rest_of_it() -> None:
    assert named("r50+vit-b/16", resnet={"layers": [1, 1]}).resnet == ResNetConfig(
        layers=(1, 1), preact=False, padding="same", conv_eps=1e-5, conv_eps_at="std", norm_eps=1e-6
    )
    assert named("bit-r50x1", resnet=ResNetConfig(layers=(1,))).resnet.layers == (1,)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, vitrine.config.models as m; m.named('bit-r50x1'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # arXiv:2010.11929 Table 1; arXiv:2012.12877 Table 1; arXiv:2106.04560 Table 2
        ("vit_tiny_patch16_224", (192, 12, 3, 768)),
        ("vit_small_patch16_224", (384, 12, 6, 1536)),
        ("vit_base_patch16_224", (768, 12, 12, 3072)),
        ("vit_large_patch16_224", (1024, 24, 16, 4096)),
        ("vit_huge_patch14_224", (1280, 32, 16, 5120)),
        ("vit_giant_patch14_224", (1408, 40, 16, 6144)),
        ("vit_gigantic_patch14_224", (1664, 48, 16, 8192)),
    ],
)
def test_sizes_are_those_of_the_papers(name: str, sizes: tuple[int, int, int, int]) -> None:
    config = named(name)
    assert (config.embed_dim, config.depth, config.num_heads, config.mlp_dim) == sizes


def test_aliases_lead_to_names() -> None:
    assert set(ALIASES.values()) <= set(NAMES)
    for alias, name in ALIASES.items():
        assert named(alias) == named(alias.upper()) == named(name)
    assert named("ViT-B/16") == named("vit_base_patch16_224")
    assert named("vit-h/14").size == (224, 224)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("vit_base_patch16_225", "vit_base_patch16_224"), ("vit-b16", "vit-b/16"), ("vit_tiny16_224", "vit_tiny")],
)
def test_an_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(NotFound, match=f"'{typed}': .*Did you mean '{meant}"):
        named(typed)


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(NotFound) as caught:
        named("zzzz")
    assert "Did you mean" not in str(caught.value)


def test_overrides_replace_options() -> None:
    config = named("vit-b/16", num_classes=7, img_size=(32, 64), head_dim=None, drop_rate=0)
    assert (config.num_classes, config.img_size, config.drop_rate) == (7, (32, 64), 0.0)
    assert config == ModelConfig(num_classes=7, img_size=(32, 64))


def test_an_unknown_override_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"'num_clases': .*Did you mean 'num_classes'"):
        named("vit-b/16", num_clases=7)


@pytest.mark.parametrize(
    "override", [{"num_heads": 7}, {"img_size": 225}, {"num_classes": "ten"}, {"depth": True}, {"drop_rate": None}]
)
def test_an_override_that_does_not_fit_is_refused(override: dict[str, object]) -> None:
    ((name, value),) = override.items()
    with pytest.raises(BadConfig, match=rf"model\.{name} = {value!r}: must "):
        named("vit-b/16", **override)
