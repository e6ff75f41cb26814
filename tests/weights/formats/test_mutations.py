"""Files with one thing wrong, of every format here: each is read, refused in words, or of no format; never a crash."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import made
from tests.weights.formats import test_clip, test_lucidrains, test_numpy_list
from tests.weights.formats.readings import raw, written
from vitrine.errors import VitrineError
from vitrine.weights.foreign import Format, Raw
from vitrine.weights.formats import clip, lucidrains, numpy_list, torchvision, transformers

JUNK: list[Any] = [None, "x", -1, 0, [], {}, 1e9, [1, 2, 3], True, 2.5, "1"]
OPEN_CLIP = {
    "model_cfg": {"vision_cfg": {"image_size": 32, "head_width": 16}, "quick_gelu": True},
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
}


def of(format: Format, **given: Any) -> Raw:
    """What the format writes."""
    assert format.write is not None
    return replace(written(format.write(made.bundle())), given=given)


CASES: dict[str, tuple[Format, Callable[[], Raw]]] = {
    "hf": (transformers.FORMAT, lambda: of(transformers.FORMAT)),
    "torchvision": (torchvision.FORMAT, lambda: of(torchvision.FORMAT, num_heads=2)),
    "openai": (clip.FORMAT, lambda: test_clip.openai(num_heads=3)),
    "open_clip": (clip.FORMAT, lambda: raw(test_clip.tensors(), config=OPEN_CLIP)),
    "lucidrains": (
        lucidrains.FORMAT,
        lambda: raw(test_lucidrains.tensors(hidden_head=12), given=test_lucidrains.GIVEN),
    ),
    "vit-numpy": (numpy_list.FORMAT, lambda: test_numpy_list.file(3, last_norm=True)),
}


def spoilt(file: Raw, chance: random.Random) -> Raw:
    """The file with a tensor gone, reshaped or of whole numbers, or an entry of its facts replaced by nonsense."""
    tensors: dict[str, Tensor] = dict(file.tensors)
    name = chance.choice(list(tensors))
    kind = chance.random()
    if kind < 0.4 and (file.config or file.preprocessor):
        where = chance.choice([part for part in ("config", "preprocessor") if getattr(file, part)])
        return replace(file, **{where: nonsense(getattr(file, where), chance)})
    if kind < 0.6:
        del tensors[name]
    elif kind < 0.7:
        tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int64)
    else:
        shape = list(tensors[name].shape)
        at = chance.randrange(len(shape)) if shape else 0
        ways = [[*shape[:at], size, *shape[at + 1 :]] for size in (0, 1, 7)]
        tensors[name] = torch.zeros(chance.choice([*ways, [tensors[name].numel()], [1, *shape], []]))
    return replace(file, tensors=tensors)


def nonsense(facts: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    name = chance.choice(list(facts))
    inner = facts[name]
    deeper = isinstance(inner, dict) and inner and chance.random() < 0.7
    return {**facts, name: nonsense(inner, chance) if deeper else chance.choice(JUNK)}


@pytest.mark.parametrize("case", CASES)
def test_one_wrong_thing_never_crashes(case: str) -> None:
    format, make = CASES[case]
    file, chance, outcomes = make(), random.Random(case), Counter[str]()
    assert format.fits(file)
    format.read(file)
    for _ in range(200):
        broken = spoilt(file, chance)
        try:
            outcome = "read" if format.fits(broken) and format.read(broken) else "of no format"
        except VitrineError as error:
            outcome = "refused"
            assert len(str(error)) > 20
        outcomes[outcome] += 1
    assert outcomes["refused"] + outcomes["of no format"] > 60
