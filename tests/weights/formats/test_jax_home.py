"""The recorded logits are what JAX computes today, where it is installed (`pip install jax flax scipy`)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.weights.formats.filled import numbers, recorded


@pytest.mark.slow
def test_what_is_recorded_is_made_again() -> None:
    for needed in ("jax", "flax", "scipy"):
        pytest.importorskip(needed)
    from tests.weights.formats.jax_home import CASES, record

    assert set(CASES) == set(recorded())
    for name, case in CASES.items():
        again = record(case)
        assert again["shapes"] == recorded()[name]["shapes"]
        for size, logits in recorded()[name]["logits"].items():
            tolerance = 1e-4 if name in ("hybrid", "root") else 2e-5
            np.testing.assert_allclose(again["logits"][size], logits, atol=tolerance, rtol=0, err_msg=f"{name} {size}")


def test_the_numbers_are_the_same_for_ever() -> None:
    assert numbers("cls", (3,)).tolist() == [-0.8079800605773926, 0.4837644100189209, -0.8400261402130127]
