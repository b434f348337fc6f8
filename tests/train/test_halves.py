"""Two threads that compute half of a batch each: the sums of two parts, whatever their number of records."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from redheart.train.halves import Halves, by_length
from redheart.train.learner import MicroLoss

INPUTS = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 1))


FIRST, SECOND = np.arange(2), np.arange(2, 4)


def loss_of(model: nn.Module) -> Callable[[np.ndarray], MicroLoss]:
    def loss(records: np.ndarray) -> MicroLoss:
        values_B = model(INPUTS[records]).square().squeeze(1)
        return MicroLoss(values_B.mean(), {"a": values_B.detach().sum()}, {"a": torch.tensor(len(values_B))})

    return loss


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@given(
    num_records=st.integers(2, len(INPUTS)), middle=st.integers(1, len(INPUTS) - 1), scale=st.sampled_from([1.0, 3.0])
)
def test_they_are_the_sum_of_two_parts(num_records: int, middle: int, scale: float) -> None:
    ours, reference = network(), network()
    order = np.random.default_rng(num_records).permutation(num_records)
    halves = order[: min(middle, num_records - 1)], order[min(middle, num_records - 1) :]
    found = Halves().loss(loss_of(ours), halves, list(ours.parameters()))
    (scale * found.total).backward()  # type: ignore[no-untyped-call]
    parts = [loss_of(reference)(half) for half in halves]
    for part in parts:
        part.total.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(found.total, parts[0].total + parts[1].total)
    assert torch.equal(found.sums["a"], parts[0].sums["a"] + parts[1].sums["a"]) and found.counts["a"] == num_records
    for mine, expected in zip(gradients(ours), gradients(reference), strict=True):
        assert torch.equal(mine, scale * expected)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=70))
def test_the_short_ones_are_apart_from_the_long_ones_and_no_cut_leaves_fewer_tokens_to_the_longer_half(
    lengths: list[int],
) -> None:
    found = by_length(np.array(lengths))
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert all(len(half) and list(half) == sorted(half) for half in found)
    ordered = sorted(lengths)
    assert max(lengths[row] for row in found[0]) <= min(lengths[row] for row in found[1])
    tokens = max(len(half) * max(lengths[row] for row in half) for half in found)
    cuts = range(1, len(ordered))
    assert tokens == min(max(cut * ordered[cut - 1], (len(ordered) - cut) * ordered[-1]) for cut in cuts)


def test_records_of_one_length_are_halved_as_they_come() -> None:
    assert [half.tolist() for half in by_length(np.full(5, 7))] == [[0, 1], [2, 3, 4]]


def test_gradients_that_two_parameters_share_or_that_are_one_number_repeated_are_added_up_as_any() -> None:
    first, second, third = (nn.Parameter(torch.ones(3) * number) for number in (0.1, 0.2, 0.3))

    def loss(records: np.ndarray) -> MicroLoss:
        return MicroLoss((first + second).tanh().sum() + third.sum(), {}, {})

    Halves().loss(loss, (FIRST, SECOND), [first, second, third]).total.backward()  # type: ignore[no-untyped-call]
    expected = 2 * (1 - (first + second).tanh().square())
    assert torch.allclose(first.grad, expected) and torch.allclose(second.grad, expected)  # type: ignore[arg-type]
    assert torch.equal(third.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]


def test_each_has_half_of_torch_s_threads_as_they_are_at_the_first_batch() -> None:
    model, halves, before, found = network(), Halves(), torch.get_num_threads(), []

    def loss(records: np.ndarray) -> MicroLoss:
        found.append(torch.get_num_threads())
        return loss_of(model)(records)

    torch.set_num_threads(6)
    halves.loss(loss, (FIRST, SECOND), list(model.parameters()))
    assert found == [3, 3] and torch.get_num_threads() == 6
    torch.set_num_threads(before)


def test_both_compute_at_once_and_an_error_is_told_when_none_does_any_more() -> None:
    model, both, late = network(), threading.Barrier(2, timeout=30), threading.Event()

    def loss(records: np.ndarray) -> MicroLoss:
        both.wait()
        if records is FIRST:
            raise torch.OutOfMemoryError("planted")
        found = loss_of(model)(records)
        late.set()
        return found

    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        Halves().loss(loss, (FIRST, SECOND), list(model.parameters()))
    assert late.is_set()
