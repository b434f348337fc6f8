"""What the passes of a step ask of the learner and the engine."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from redheart.train.passes import Passes
from tests.train.line import Line


class Reading(Line):
    """Notes which rows it is asked to read before they are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: list[list[int]] = []

    def read_ahead(self, rows: np.ndarray) -> None:
        self.ahead.append(rows.tolist())


def passes_of(learner: Line, *, device: str = "cpu", micro_batch: int = 2) -> Passes:
    engine = SimpleNamespace(
        module=learner.model,
        device=torch.device(device),
        rank=0,
        world_size=1,
        backward=lambda loss, last: loss.backward(),
    )
    return Passes(learner, cast(Any, engine), micro_batch=micro_batch, on_halved=lambda size: None, draws="")


def rows_read_ahead(device: str, following: np.ndarray) -> list[list[int]]:
    """In a step of four rows, two at a time."""
    learner = Reading()
    passes_of(learner, device=device).step(1, np.arange(4), following=following)
    return learner.ahead


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With which torch computes meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_the_next_micro_batch_is_read_while_a_card_computes(threads: int) -> None:
    assert rows_read_ahead("cuda", np.arange(4, 8)) == [[2, 3], [4, 5]]
    assert rows_read_ahead("cuda", np.arange(0)) == [[2, 3], []]


def test_on_the_cpu_it_is_read_only_where_one_thread_computes(threads: int) -> None:
    assert rows_read_ahead("cpu", np.arange(4, 8)) == ([[2, 3], [4, 5]] if threads == 1 else [])


def test_no_two_passes_of_a_step_draw_the_same_also_after_a_halving() -> None:
    drawn: list[float] = []

    def fault(call: int, loss: torch.Tensor) -> torch.Tensor:
        if call == 2:
            raise torch.OutOfMemoryError("planted")
        drawn.append(float(torch.rand(())))
        return loss

    passes = passes_of(Line(fault), micro_batch=8)
    passes.step(1, np.arange(24), following=np.arange(0))
    assert passes.micro_batch == 4 and len(drawn) == 5 == len(set(drawn))
