"""Which public model a training on photographs would begin from, by what the cache and the hub have."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.weights.stand_in_hub import Hub
from tests.weights.test_hub import VIT
from vitrine.weights import hub, starts


def repository(name: str) -> str:
    return name.removeprefix("hf://")


def test_both_lists_have_the_same_models_which_are_hub_ids() -> None:
    assert set(starts.ON_CPU) == set(starts.ON_GPU)
    assert all(hub.parse(name)[1:] == (None, None) for name in starts.ON_CPU)


def test_without_a_hub_and_a_cache_there_is_none_and_the_reason_is_said() -> None:
    name, why = starts.found(on_cpu=True)
    assert name is None
    assert why == "HF_HUB_OFFLINE is set, and the cache has none of 5 models that would do"


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_first_is_fetched_once_and_then_found(there: Hub, on_cpu: bool) -> None:
    first = (starts.ON_CPU if on_cpu else starts.ON_GPU)[0]
    for name in starts.ON_CPU:
        there.add(repository(name), VIT)
    assert starts.found(on_cpu=on_cpu) == (first, "fetched from the hub")
    asked = len(there.asked)
    others = set(starts.ON_CPU) - {first}
    assert asked and not any(repository(name) in request for request in there.asked for name in others)
    assert starts.found(on_cpu=on_cpu) == (first, "found in the hub's cache")
    assert len(there.asked) == asked


def test_a_copy_at_hand_goes_before_fetching_a_better_one(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in starts.ON_CPU:
        there.add(repository(name), VIT)
    hub.fetch(starts.ON_CPU[3])
    there.asked.clear()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert starts.found(on_cpu=True) == (starts.ON_CPU[3], "found in the hub's cache")
    assert not there.asked


def test_a_cached_folder_without_weights_is_no_model(there: Hub, tmp_path: Path) -> None:
    for name in starts.ON_CPU:
        there.add(repository(name), VIT)
    hub.fetch(starts.ON_CPU[0])
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.unlink()
    assert not hub.has_weights(starts.ON_CPU[0])


def test_what_the_hub_says_is_the_reason(there: Hub) -> None:
    name, why = starts.found(on_cpu=True)  # it has no model at all
    assert name is None and starts.ON_CPU[0] in why and "the hub has no such model" in why
    assert not why.endswith(".")
