"""Adapters through peft on timm's model and through ours: the same files, the same logits."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.made import bundle
from tests.parity.peers import TimmVisionTransformer, timm_vit
from vitrine.config.architecture import ModelConfig
from vitrine.config.lora import LoraConfig, Target
from vitrine.config.options import Config
from vitrine.train import lora
from vitrine.train.modes import HEAD, prepare
from vitrine.weights.bundle import Bundle, build
from vitrine.weights.bundle import save as save_bundle
from vitrine.weights.opening import open_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft


def base(path: Path, **options: Any) -> Bundle:
    made = bundle(depth=2, embed_dim=24, num_heads=3, **options)
    save_bundle(made, path)
    return made


def peer(config: ModelConfig, made: Bundle) -> TimmVisionTransformer:
    model = timm_vit(
        img_size=config.img_size, patch_size=config.patch_size, num_classes=config.num_classes,
        embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio,
    )  # fmt: skip
    model.load_state_dict({name: t.clone() for name, t in made.tensors.items()})
    return model


def pictures() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def shaken(model: nn.Module) -> None:
    """All that learns as after some training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    "targets",
    [("q", "v"), ("q",), ("q", "k", "v"), ("v", "attn.proj", "mlp.fc1", "mlp.fc2"), ("attn.proj",)],
    ids=",".join,
)
def test_our_folder_gives_our_logits_in_peft(tmp_path: Path, targets: tuple[Target, ...]) -> None:
    made = base(tmp_path / "base.safetensors")
    own = LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=targets)
    config = Config(
        model=made.model, preprocess=made.preprocess, init=str(tmp_path / "base.safetensors"), mode="lora", lora=own
    )
    model = build(made)
    before = model(pictures())
    prepare(model, config)
    torch.testing.assert_close(model(pictures()), before, atol=0, rtol=0)  # B is zero
    shaken(model)
    wanted = model.eval()(pictures())
    assert (wanted - before).abs().max() > 0.1
    lora.write(model, config, made.class_names, tmp_path / "adapter", whole=HEAD)

    theirs = peft.PeftModel.from_pretrained(peer(made.model, made), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(pictures()), wanted, atol=1e-5, rtol=0)
    adapted = {name.partition(".lora_A")[0] for name, _ in theirs.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * len({"qkv" if target in ("q", "k", "v") else target for target in targets})
    # Peft's own merge and ours.
    torch.testing.assert_close(theirs.merge_and_unload()(pictures()), wanted, atol=1e-5, rtol=0)
    near = {"atol": 1e-6 * max(1.0, wanted.detach().abs().max().item()), "rtol": 0}
    opened = open_model(tmp_path / "adapter").bundle
    torch.testing.assert_close(build(opened)(pictures()), wanted, **near)
    merged = build(replace(made, tensors=lora.without_factors(model)))
    torch.testing.assert_close(merged(pictures()), wanted, **near)
    assert all(torch.equal(tensor, opened.tensors[name]) for name, tensor in lora.without_factors(model).items())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["qkv", "proj"]},  # proj is the filter of the patches too
        {"target_modules": ["qkv", "fc1"], "rank_pattern": {"fc1": 2}, "alpha_pattern": {"blocks.1.mlp.fc1": 9}},
        {"target_modules": ["qkv"], "use_rslora": True},
        {"target_modules": r"blocks\.1\.attn\.qkv", "modules_to_save": ["head"]},
    ],
    ids=["qkv, proj", "patterns", "rslora", "head"],
)
def test_a_folder_of_pefts_gives_its_logits_here(tmp_path: Path, options: dict[str, Any]) -> None:
    made = base(tmp_path / "base.safetensors")
    settings = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.0, **options)
    theirs = peft.get_peft_model(peer(made.model, made), settings).eval()
    shaken(theirs)
    wanted = theirs(pictures())
    theirs.save_pretrained(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base.safetensors"
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    found = open_model(tmp_path / "adapter")
    assert found.format == "peft" and "base.safetensors" in found.title
    torch.testing.assert_close(build(found.bundle)(pictures()), wanted, atol=1e-5, rtol=0)
    assert (wanted - build(made)(pictures())).abs().max() > 1e-3
