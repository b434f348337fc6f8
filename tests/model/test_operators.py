"""A pass launches little: a card that waits for launches computes a fiftieth of the time."""

import sys
from pathlib import Path

import pytest

from redheart.memory.kernels import CUDA, Kernels

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import operators


@pytest.mark.parametrize(("kernels", "most"), [(None, 9000), (CUDA, 6000)], ids=["on meta", "with a card's kernels"])
def test_a_pass_of_full_launches_at_most_so_many_operators(kernels: Kernels | None, most: int) -> None:
    assert 1000 < operators.operators("full", kernels).total() <= most
