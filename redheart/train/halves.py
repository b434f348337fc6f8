"""A batch's loss and gradients by two threads of the CPU, each for half of the records.

Where operators are small, two threads within each of them mostly wait for each other. One thread to a half waits once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redheart.train.learner import MicroLoss

Records = np.ndarray
"""Numbers of records within a batch."""


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

    def loss(
        self, loss_of: Callable[[Records], MicroLoss], halves: tuple[Records, Records], parameters: Sequence[Tensor]
    ) -> MicroLoss:
        """The loss of both halves, whose gradients are there already: its backward pass hands them over.

        `loss_of` gives a half's share of the loss, which depends on all of these parameters; it is called by both
        threads at once and may draw nothing.
        """
        computed = [self._threads.submit(_with_gradients, loss_of, half, parameters) for half in halves]
        # Nobody computes any more when an error is told.
        wait(computed)
        (first, mine), (second, others) = (half.result() for half in computed)
        parts = mine.add_(others).split([parameter.numel() for parameter in parameters])
        gradients = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
        return MicroLoss(
            _Computed.apply(first.total + second.total, gradients, *parameters),
            {name: first.sums[name] + second.sums[name] for name in first.sums},
            {name: first.counts[name] + second.counts[name] for name in first.counts},
        )


def by_length(lengths_B: np.ndarray) -> tuple[Records, Records]:
    """The short and the long ones of at least two records, so that padded each has about as many tokens; in order."""
    order = np.argsort(lengths_B, kind="stable")
    counts = np.arange(1, len(order))
    short, long = counts * lengths_B[order[:-1]], counts[::-1] * lengths_B[order[-1]]
    first = 1 + int(np.argmin(np.maximum(short, long)))
    return np.sort(order[:first]), np.sort(order[first:])


def _with_gradients(
    loss_of: Callable[[Records], MicroLoss], half: Records, parameters: Sequence[Tensor]
) -> tuple[MicroLoss, Tensor]:
    loss = loss_of(half)
    found = torch.autograd.grad(loss.total, parameters)
    # One behind the other: hundreds of small tensors are slow to add up and to free.
    flat = torch.cat([gradient.flatten() for gradient in found])
    return MicroLoss(loss.total.detach(), loss.sums, loss.counts), flat


class _Computed(torch.autograd.Function):
    """A loss with the gradients of parameters that were computed before."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if scale != 1:
            gradients = [item * scale for item in gradients]
        return None, None, *gradients
