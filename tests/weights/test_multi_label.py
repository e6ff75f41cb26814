"""That a model may name several classes a picture: kept in our file, said in others where they can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.made import bundle
from vitrine.errors import BadConfig, BadData
from vitrine.predict.classifier import load
from vitrine.weights import bundle as bundles
from vitrine.weights import container
from vitrine.weights.exporting import export
from vitrine.weights.opening import open_model


def several(**options: Any) -> bundles.Bundle:
    return replace(bundle(**options), multi_label=True, threshold=0.25)


def test_our_file_keeps_it_and_an_older_one_means_one_class(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bundles.save(several(), path)
    found = bundles.open_bundle(path)
    assert found.multi_label and found.threshold == 0.25 and load(path, "cpu").threshold == 0.25
    tensors, facts = container.read(path)
    older = {name: value for name, value in facts.items() if name not in ("multi_label", "threshold")}
    container.write(path, tensors, older)
    found = bundles.open_bundle(path)
    assert not found.multi_label and found.threshold == 0.5


@pytest.mark.parametrize("facts", [{"threshold": 0.0}, {"threshold": 1}, {"threshold": "x"}, {"multi_label": 1}])
def test_facts_that_cannot_hold(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    bundles.save(several(), path)
    tensors, own = container.read(path)
    container.write(path, tensors, own | facts)
    with pytest.raises(BadData, match="|".join(facts)):
        bundles.open_bundle(path)


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(BadConfig, match=r"threshold = 1\.5: must be a probability"):
        replace(several(), threshold=1.5)


def test_transformers_has_a_word_for_it(tmp_path: Path) -> None:
    written = export(several(norm_eps=1e-12), "hf", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "multi_label_classification"
    assert any("from the probability 0.25 on" in sentence for sentence in written.said)
    found = open_model(tmp_path / "out")
    assert found.bundle.multi_label and found.bundle.threshold == 0.5
    assert any("several classes a picture, as config.json says" in sentence for sentence in found.said)
    export(bundle(norm_eps=1e-12), "hf", tmp_path / "single")
    assert "problem_type" not in json.loads((tmp_path / "single/config.json").read_text())
    assert not open_model(tmp_path / "single").bundle.multi_label


def test_transformers_itself_reads_it_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(several(norm_eps=1e-12), "hf", tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").problem_type == "multi_label_classification"


def test_timm_has_none_and_it_is_said(tmp_path: Path) -> None:
    written = export(several(), "timm", tmp_path / "out")
    assert any("timm has no place to say so. Take the sigmoid" in sentence for sentence in written.said)
    assert not any("several" in sentence for sentence in export(bundle(), "timm", tmp_path / "one").said)
    assert export(several(), "vitrine", tmp_path / "own").said == ()
    assert open_model(tmp_path / "own").bundle.threshold == 0.25
