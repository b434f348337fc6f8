"""A batch's loss and gradients by two threads of the CPU, each for half of the records.

Where operators are small, two threads within each of them mostly wait for each other. One thread to a half waits once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from redheart.train.learner import MicroLoss


class Halves:
    """Two threads that stay, with half of torch's threads each.

    As it is with two micro-batches, gradients are those of the whole batch but for rounding, the same at every call.
    """

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        # Not before the first batch: the engine says how many there are. Asked for here, this thread keeps its number
        # when those that come later are given another.
        each = max(1, torch.get_num_threads() // 2)
        return ThreadPoolExecutor(2, "half", initializer=torch.set_num_threads, initargs=(each,))

    def loss(self, loss_of: Callable[[slice], MicroLoss], num_records: int, parameters: Sequence[Tensor]) -> MicroLoss:
        """The loss of so many records, whose gradients are there already: its backward pass hands them over.

        `loss_of` gives a part's share of the loss; it is called by both threads at once and may draw nothing.
        """
        middle = (num_records + 1) // 2
        halves = slice(0, middle), slice(middle, num_records)
        parts = [self._threads.submit(_with_gradients, loss_of, half, parameters) for half in halves]
        # Nobody computes any more when an error is told.
        wait(parts)
        (first, mine), (second, others) = (part.result() for part in parts)
        gradients = [_sum(*pair) for pair in zip(mine, others, strict=True)]
        return MicroLoss(
            _Computed.apply(first.total + second.total, gradients, *parameters),
            {name: first.sums[name] + second.sums[name] for name in first.sums},
            {name: first.counts[name] + second.counts[name] for name in first.counts},
        )


Gradients = Sequence[Tensor | None]


def _with_gradients(
    loss_of: Callable[[slice], MicroLoss], half: slice, parameters: Sequence[Tensor]
) -> tuple[MicroLoss, Gradients]:
    loss = loss_of(half)
    gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    return MicroLoss(loss.total.detach(), loss.sums, loss.counts), gradients


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    # Not in place: a gradient may be another parameter's too, or a view of a single number.
    return second if first is None else first if second is None else first + second


class _Computed(torch.autograd.Function):
    """A loss with the gradients of parameters that were computed before."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if scale != 1:
            gradients = [item if item is None else item * scale for item in gradients]
        return None, None, *gradients
