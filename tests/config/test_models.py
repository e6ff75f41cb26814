"""The table of named models."""

from __future__ import annotations

import pytest

from vitrine.config.models import ALIASES, NAMES, SIZES, named
from vitrine.config.options import ModelConfig
from vitrine.errors import BadConfig, NotFound


def test_names_are_unique_and_read_as_they_should() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        config = named(name)
        _, size, patch, side = name.split("_")
        assert (f"patch{config.patch_size}", config.size) == (patch, (int(side), int(side)))
        assert (config.embed_dim, config.depth, config.num_heads) == SIZES[size][:3]


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
