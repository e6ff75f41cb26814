from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrine.errors import BadData
from vitrine.evaluate.outputs import collect


def batches(sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for size in sizes:
        numbers = torch.arange(start, start + size)
        yield numbers.float().reshape(size, 1, 1, 1), numbers
        start += size


def test_every_picture_once_in_order_also_of_a_last_small_batch() -> None:
    logits, labels = collect(lambda x: torch.cat([x.flatten(1), -x.flatten(1)], 1), batches([4, 4, 0, 1]))
    assert logits.dtype == np.float32
    assert labels.dtype == np.int64
    assert labels.tolist() == list(range(9))
    assert logits.tolist() == [[i, -i] for i in range(9)]


def test_runs_without_gradients_and_takes_low_precision() -> None:
    layer = torch.nn.Linear(1, 2)

    def run(x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return layer(x.flatten(1)).bfloat16()

    logits, labels = collect(run, ((x, y.to(torch.int32)) for x, y in batches([3])))
    assert logits.dtype == np.float32
    assert labels.dtype == np.int64


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_no_picture_is_refused(sizes: list[int]) -> None:
    with pytest.raises(BadData, match="no picture"):
        collect(lambda x: x.flatten(1), batches(sizes))


def test_outputs_that_are_not_one_row_a_picture_are_refused() -> None:
    with pytest.raises(BadData, match=r"shape \(3,\) for 3 labels"):
        collect(lambda x: x.flatten(), batches([3]))
    with pytest.raises(BadData, match=r"shape \(2, 1\) for 3 labels"):
        collect(lambda x: x.flatten(1)[:2], batches([3]))
