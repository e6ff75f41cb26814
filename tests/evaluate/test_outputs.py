from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrine.errors import BadData
from vitrine.evaluate.outputs import collect, reduce


def batches(sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for size in sizes:
        numbers = torch.arange(start, start + size)
        yield numbers.float().reshape(size, 1, 1, 1), numbers
        start += size


def test_every_picture_once_in_order_also_of_a_last_small_batch() -> None:
    scores = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    found = collect(lambda x: scores[x.flatten().long()], batches([4, 4, 0, 1]))
    whole = reduce(scores.numpy(), np.arange(9))
    assert len(found) == 9 and found.num_classes == 20
    assert found.label.tolist() == list(range(9)) and found.label.dtype == np.int64
    assert found.predicted.tolist() == scores.argmax(1).tolist()
    for name in ("label", "predicted", "rank", "log_probability", "confidence", "correct"):
        assert np.array_equal(getattr(found, name), getattr(whole, name)), name


def test_each_number_by_its_definition() -> None:
    scores = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 8, 30)
    found = reduce(scores, labels)
    for i, (row, label) in enumerate(zip(scores.astype(float).tolist(), labels.tolist(), strict=True)):
        total = sum(math.exp(x) for x in row)
        order = sorted(range(8), key=lambda k: -row[k])
        assert found.rank[i] == order.index(label)
        assert found.predicted[i] == order[0] and found.correct[i] == (order[0] == label)
        assert found.log_probability[i] == pytest.approx(row[label] - math.log(total), abs=1e-12)
        assert found.confidence[i] == pytest.approx(max(math.exp(x) / total for x in row), abs=1e-12)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_known_by_nan(broken: float) -> None:
    found = reduce(np.array([[0, 1], [0, broken]], np.float32), np.array([0, 0]))
    assert np.isfinite(found.log_probability).tolist() == np.isfinite(found.confidence).tolist() == [True, False]


def test_what_is_kept_does_not_grow_with_the_classes() -> None:
    """A hundred batches of 64 pictures and 2,000 classes would be 51 MB as they come."""
    tracemalloc.start()
    found = collect(lambda x: torch.zeros(len(x), 2000), ((x, y % 2000) for x, y in batches([64] * 100)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 6400
    assert peak < 10_000_000


def test_runs_without_gradients_and_takes_low_precision() -> None:
    layer = torch.nn.Linear(1, 2)

    def run(x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return layer(x.flatten(1)).bfloat16()

    found = collect(run, ((x, (y % 2).to(torch.int32)) for x, y in batches([3])))
    assert found.label.tolist() == [0, 1, 0]
    assert found.confidence.dtype == found.log_probability.dtype == np.float64


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_no_picture_is_refused(sizes: list[int]) -> None:
    with pytest.raises(BadData, match="no picture"):
        collect(lambda x: x.flatten(1), batches(sizes))


def test_outputs_that_are_not_one_row_a_picture_are_refused() -> None:
    with pytest.raises(BadData, match=r"shape \(3,\) for 3 labels"):
        collect(lambda x: x.flatten(), batches([3]))
    with pytest.raises(BadData, match=r"shape \(2, 1\) for 3 labels"):
        collect(lambda x: x.flatten(1)[:2], batches([3]))
