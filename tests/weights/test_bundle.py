from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.made import bundle
from vitrine.errors import BadConfig, BadData, NotFound
from vitrine.results import Figure, Provenance
from vitrine.weights import bundle as bundles
from vitrine.weights import container
from vitrine.weights.bundle import build, facts_of, locate, open_bundle, save


def test_everything_comes_back(tmp_path: Path) -> None:
    figure = Figure(value=0.9, low=0.8, high=0.95, n=77)
    made = replace(
        bundle(),
        metrics={"test": {"top1": figure}},
        provenance=Provenance(command="vitrine train", seed=3, seconds=1.5, versions={"torch": "2"}),
        run={"epochs": 3, "data": {"source": "digits"}},
        finished=False,
        notes=("few pictures",),
    )
    save(made, tmp_path / "m.safetensors")
    found = open_bundle(tmp_path / "m.safetensors")
    assert replace(found, tensors={}) == replace(made, tensors={}) == facts_of(tmp_path / "m.safetensors")
    assert set(found.tensors) == set(made.tensors)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in made.tensors.items())


def test_the_built_model_gives_identical_logits(tmp_path: Path) -> None:
    made = bundle(representation_size=8)
    save(made, tmp_path / "m")
    images = torch.randn(2, 3, 16, 16)
    first, second = build(made), build(open_bundle(tmp_path / "m"))
    assert not second.training
    assert all(parameter.requires_grad for parameter in second.parameters())
    assert torch.equal(first(images), second(images))
    assert first(images).std() > 0.01


def test_a_build_has_its_own_weights_even_of_an_open_file(tmp_path: Path) -> None:
    save(bundle(), tmp_path / "m")
    model = build(open_bundle(tmp_path / "m"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert open_bundle(tmp_path / "m").finished


def test_an_older_format_is_read_and_a_newer_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save(bundle(), path)
    monkeypatch.setattr(bundles, "FORMAT", bundles.FORMAT + 1)
    assert open_bundle(path).class_names == ("a", "b", "c")
    save(bundle(), path)
    monkeypatch.undo()
    with pytest.raises(BadData, match=r"m: written in bundle format 2; this version reads up to 1\. Update vitrine"):
        open_bundle(path)


def test_provenance_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    tensors, facts = _written(tmp_path / "m")
    facts["provenance"]["weather"] = "fine"
    container.write(tmp_path / "m", tensors, facts)
    assert open_bundle(tmp_path / "m").provenance == Provenance()


@pytest.mark.parametrize("name", ["model", "preprocess", "class_names", "format"])
def test_facts_that_lack_something_are_called_incomplete(tmp_path: Path, name: str) -> None:
    tensors, facts = _written(tmp_path / "m")
    del facts[name]
    container.write(tmp_path / "m", tensors, facts)
    with pytest.raises(BadData, match=f"m: .*incomplete.*{name}"):
        open_bundle(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model", {"depht": 3}, "model.depht: there is no such option. Did you mean 'depth'"),
        ("model", {"depth": "3"}, "model.depth = '3': must be of type int"),
        (
            "preprocess",
            {"mean": [0.5], "std": [0.5]},
            "preprocess.mean = (0.5,): must have as many values as model.in_chans = 3",
        ),
        ("class_names", ["a"], "1 class names for a head of 3 classes"),
        ("metrics", {"test": {"top1": 0.5}}, "incomplete"),
        ("metrics", [1], "incomplete"),
        ("format", "1", "incomplete"),
    ],
)
def test_facts_that_cannot_hold_are_refused_by_name(tmp_path: Path, name: str, value: object, said: str) -> None:
    tensors, facts = _written(tmp_path / "m")
    container.write(tmp_path / "m", tensors, {**facts, name: value})
    with pytest.raises(BadData) as caught:
        open_bundle(tmp_path / "m")
    assert str(caught.value).startswith(f"{tmp_path / 'm'}: ") and said in str(caught.value)


def _written(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    save(bundle(), path)
    return container.read(path)


def test_missing_unexpected_and_misshapen_tensors_are_named_in_one_error() -> None:
    made = bundle()
    tensors = dict(made.tensors)
    del tensors["norm.weight"], tensors["head.bias"]
    tensors["blocks.7.norm1.weight"] = torch.ones(3)
    tensors["cls_token"] = torch.ones(1, 1, 5)
    with pytest.raises(BadData) as caught:
        build(replace(made, tensors=tensors))
    said = str(caught.value)
    assert "missing: norm.weight, head.bias" in said
    assert "unexpected: blocks.7.norm1.weight" in said
    assert "of the wrong shape: cls_token (1, 1, 5) where (1, 1, 16) is needed" in said


def test_the_state_of_a_run_is_no_model(tmp_path: Path) -> None:
    container.write(tmp_path / "state.safetensors", {"model.x": torch.ones(1)}, {"kind": "state", "progress": {}})
    with pytest.raises(BadData, match=r"holds the state of a run.*Give the run's folder or its model\.safetensors"):
        open_bundle(tmp_path / "state.safetensors")


def test_a_folder_stands_for_its_best_model(tmp_path: Path) -> None:
    save(bundle(), tmp_path / "model.safetensors")
    assert locate(tmp_path) == locate(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"
    assert open_bundle(str(tmp_path)).class_names == ("a", "b", "c")


def test_places_without_a_model_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no model\.safetensors in this folder\.$"):
        open_bundle(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(NotFound, match="has not finished its first epoch"):
        open_bundle(tmp_path)
    with pytest.raises(NotFound, match=r"no such file or run folder.*vitrine train DATA --out"):
        open_bundle(tmp_path / "none")


def test_a_bundle_holds_together() -> None:
    with pytest.raises(BadConfig, match="2 class names for a head of 3 classes"):
        bundle(class_names=("a", "b"))
    made = bundle()
    with pytest.raises(BadConfig, match=r"preprocess\.mean = \(0.*must have as many values as model\.in_chans = 1"):
        replace(made, model=replace(made.model, in_chans=1))
