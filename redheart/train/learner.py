"""What the trainer needs of a model and its data. Anything that fits can be trained, snapshotted and recombined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class MicroLoss:
    """Loss of one micro-batch."""

    total: Tensor
    """Scalar to run backward from; over the micro-batches of a step it sums to the step's loss."""
    sums: dict[str, Tensor]
    """Sum over the records of the loss of every predictor, detached."""
    counts: dict[str, Tensor]
    """Records behind each of those sums."""


@dataclass(frozen=True)
class Validation:
    """One pass over the validation records."""

    loss: float
    task_losses: dict[str, float]
    module_losses: dict[str, float]
    """By predictor."""
    metrics: dict[str, float]
    outputs: dict[str, np.ndarray]
    """By predictor, one row per validation record, float32."""


class Learner(Protocol):
    """A model with its training data, its loss and its groups of parameters."""

    model: nn.Module

    def modules(self) -> Sequence[str]:
        """Dotted names of the submodules that are snapshotted apart; together they hold every tensor."""

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Training rows of an epoch in the order in which they are seen."""

    def loss(self, module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        """Forward `rows` and give their share of the loss of the effective batch `step_rows`."""

    def read_ahead(self, rows: np.ndarray) -> None:
        """Begin to read the rows that `loss` will be asked for next, if that pays; none where that is not known.

        On the CPU what reads meanwhile takes cores from what computes.
        """

    def mean_losses(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[float, dict[str, float]]:
        """The total loss and the losses per task from sums over an epoch."""

    def validate(self, module: nn.Module) -> Validation:
        """Run the model over all validation records without gradients."""
