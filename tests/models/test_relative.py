"""Relative tables on another grid, and what their rows mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.models.toys import pictures, toy, toy_config
from vitrine.models import relative
from vitrine.models.relative import RelativeKeys, bias_on_grid, keys_on_grid, offsets2d

GRIDS = [(4, 4), (2, 3), (6, 6), (1, 5), (8, 2)]


@pytest.mark.parametrize("grid", GRIDS)
def test_offsets_in_two_dimensions_pair_by_pair(grid: tuple[int, int]) -> None:
    rows, columns = grid
    every = [(dy, dx) for dy in range(1 - rows, rows) for dx in range(1 - columns, columns)]
    patches = [(y, x) for y in range(rows) for x in range(columns)]
    expected = [[every.index((y - v, x - u)) for v, u in patches] for y, x in patches]
    assert offsets2d(grid).tolist() == expected
    assert relative.num_offsets2d(grid) == len(every)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_pairs_with_a_prefix_token(prefix: int) -> None:
    index = relative.with_prefix(offsets2d((2, 2)), 9, prefix)
    assert index.shape == (prefix + 4, prefix + 4)
    assert (index[:prefix, :prefix] == 11).all()
    assert (index[:prefix, prefix:] == 9).all()
    assert (index[prefix:, :prefix] == 10).all()
    assert torch.equal(index[prefix:, prefix:], offsets2d((2, 2)))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("prefix", [{}, {"no_embed_class": True}])
def test_a_bias_table_is_resized_as_an_image_of_offsets(grid: tuple[int, int], prefix: dict[str, bool]) -> None:
    model = toy(pos_embed="rel_bias2d", pos_at="layers_shared", **prefix).double()
    config, table = model.config, model.shared_rel_pos.relative_position_bias_table.detach()
    assert len(table) == 49 + (0 if prefix else 3)
    made = bias_on_grid(config, table, grid)
    size = 2 * grid[0] - 1, 2 * grid[1] - 1
    image = table[:49].T.reshape(1, 3, 7, 7)
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    expected = torch.cat([image[0].reshape(3, -1).T, table[49:]])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    if grid == (4, 4):
        assert torch.equal(made, table)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("prefix", [{}, {"no_embed_class": True}])
def test_one_dimensional_keys_go_through_two_dimensions(grid: tuple[int, int], prefix: dict[str, bool]) -> None:
    """For every pair of patches the vector of its way down and across, and of those the mean by offset."""
    model = toy(pos_embed="rel1d", pos_at="layers_shared", img_size=(32, 24), **prefix).double()
    config, keys = model.config, model.shared_rel_pos.keys.detach()
    assert keys.shape == (2 * 12 - 1 + (0 if prefix else 3), 48)
    image = torch.stack([keys[dy * 3 + dx + 11] for dy in range(-3, 4) for dx in range(-2, 3)])
    rows, columns = grid
    size = 2 * rows - 1, 2 * columns - 1
    image = image.T.reshape(1, 48, 7, 5)
    if grid != (4, 3):
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    patches = [(y, x) for y in range(rows) for x in range(columns)]
    found: dict[int, list[torch.Tensor]] = {}
    for i, (y, x) in enumerate(patches):
        for j, (v, u) in enumerate(patches):
            found.setdefault(i - j, []).append(image[0, :, y - v + rows - 1, x - u + columns - 1])
    expected = [torch.stack(found[offset]).mean(0) for offset in sorted(found)]
    made = keys_on_grid(config, keys, grid)
    torch.testing.assert_close(made, torch.cat([torch.stack(expected), keys[23:]]), rtol=0, atol=1e-12)
    assert torch.equal(keys_on_grid(config, keys, (4, 3)), keys)


@pytest.mark.parametrize("clip", [1, 2, 100])
def test_shaws_offsets_are_clipped(clip: int) -> None:
    layer = RelativeKeys(toy_config(pos_embed="rel_shaw", pos_at="layers", pos_clip=clip, no_embed_class=True))
    assert layer.keys.shape == layer.values.shape == (2 * clip + 1, 16)
    index, offsets = layer.index((2, 3), torch.device("cpu"))
    assert offsets == 2 * clip + 1
    for i in range(6):
        for j in range(6):
            assert index[1 + i, 1 + j] == max(-clip, min(clip, j - i)) + clip


@pytest.mark.parametrize("kind", ["rel1d", "rel_shaw", "rel_bias2d"])
def test_tables_are_one_a_layer_or_one_in_all(kind: str) -> None:
    own, shared = (toy(pos_embed=kind, pos_at=place).state_dict() for place in ("layers", "layers_shared"))
    tables = {name.rpartition("rel_pos.")[2] for name in own if "rel_pos" in name}
    assert {name for name in own if "rel_pos" in name} == {
        f"blocks.{i}.attn.rel_pos.{t}" for i in (0, 1) for t in tables
    }
    assert {name for name in shared if "rel_pos" in name} == {f"shared_rel_pos.{t}" for t in tables}
    assert tables == {
        "rel1d": {"keys"}, "rel_shaw": {"keys", "values"}, "rel_bias2d": {"relative_position_bias_table"}
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["rel1d", "rel_shaw", "rel_bias2d"])
@torch.no_grad()
def test_tables_of_zeros_add_nothing(kind: str) -> None:
    model, plain, images = toy(pos_embed=kind, pos_at="layers_shared"), toy(pos_embed="none"), pictures(2, 3, 24, 40)
    state = {name: tensor for name, tensor in model.state_dict().items() if "rel_pos" not in name}
    plain.load_state_dict(state, strict=True)
    assert (model(images) - plain(images)).abs().max() > 1e-4
    for table in model.shared_rel_pos.parameters():
        table.zero_()
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=1e-6)


@torch.no_grad()
def test_fused_attention_is_used_wherever_weights_need_not_be_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: (called.append(k["attn_mask"]), fused(*a, **k))[1]
    )
    for kind, masks in (("rope2d", False), ("rel1d", True), ("rel_bias2d", True)):
        called.clear()
        toy(pos_embed=kind, pos_at="layers")(pictures(1, 3, 32, 32))
        assert [mask is not None for mask in called] == [masks] * 2
    called.clear()
    toy(pos_embed="rel_shaw", pos_at="layers")(pictures(1, 3, 32, 32))
    assert called == []
