"""What the passes of a step ask of the learner and the engine."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from line import Line

from redheart.train.passes import Passes


class Reading(Line):
    """Notes which rows it is asked to read before they are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: list[list[int]] = []

    def read_ahead(self, rows: np.ndarray) -> None:
        self.ahead.append(rows.tolist())


def passes_of(learner: Line, *, micro_batch: int = 2) -> Passes:
    engine = SimpleNamespace(
        module=learner.model,
        rank=0,
        world_size=1,
        backward=lambda loss, last: loss.backward(),
    )
    return Passes(learner, cast(Any, engine), micro_batch=micro_batch, on_halved=lambda size: None, draws="")


@pytest.mark.parametrize(("following", "ahead"), [([4, 5, 6, 7], [4, 5]), ([], [])])
def test_the_next_micro_batch_may_be_read_while_one_is_computed(following: list[int], ahead: list[int]) -> None:
    learner = Reading()
    passes_of(learner).step(1, np.arange(4), following=np.array(following, int))
    assert learner.ahead == [[2, 3], ahead]


def test_what_was_left_in_evaluation_between_two_steps_trains_in_the_next() -> None:
    learner = Line()
    passes = passes_of(learner)
    for left in (learner.model["line"], learner.model):  # type: ignore[index]
        left.eval()
        passes.step(1, np.arange(4), following=np.arange(0))
        assert all(module.training for module in learner.model.modules())


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
