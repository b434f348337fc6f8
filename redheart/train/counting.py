"""How far a run has come: losses summed over micro-batches, ranks and the steps of an epoch; steps and epochs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from redheart.snapshots.manifests import Progress
from redheart.train.learner import MicroLoss

AT_START = Progress(epoch=0, step_in_epoch=0, step=0, sums={}, counts={}, bad_steps=0, grad_norm=None, events_bytes=0)


@dataclass(frozen=True)
class StepTotals:
    """What the losses of a step come to, over all ranks."""

    loss: float
    sums: dict[str, float]
    """Over the records, by predictor."""
    counts: dict[str, float]


class StepLosses:
    """The losses of the micro-batches that this rank has had of a step."""

    def __init__(self) -> None:
        self._totals: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, loss: MicroLoss) -> None:
        # Where they are until the step is done: a device is not waited for before its update is launched.
        self._totals.append(loss.total.detach().double())
        for totals, values in ((self._sums, loss.sums), (self._counts, loss.counts)):
            for name, value in values.items():
                totals[name] = totals[name] + value if name in totals else value

    def over_ranks(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> StepTotals:
        """The whole step's, in one sum of all ranks together."""
        parts = [torch.stack(list(values.values())).double().cpu() for values in (self._sums, self._counts)]
        own = sum(torch.stack(self._totals).tolist())
        total, *rest = sum_over_ranks(torch.cat([torch.tensor([own], dtype=torch.float64), *parts])).tolist()
        names = list(self._sums)
        return StepTotals(
            total,
            dict(zip(names, rest[: len(names)], strict=True)),
            dict(zip(self._counts, rest[len(names) :], strict=True)),
        )


def after_step(at: Progress, totals: StepTotals, *, grad_norm: float) -> Progress:
    """How far a run has come with one more step; the losses of one that was skipped or is no number do not count."""
    sums, counts, bad_steps = at.sums, at.counts, at.bad_steps + 1
    if math.isfinite(grad_norm) and math.isfinite(totals.loss):
        sums = {name: sums.get(name, 0.0) + value for name, value in totals.sums.items()}
        counts = {name: counts.get(name, 0.0) + value for name, value in totals.counts.items()}
        bad_steps = 0
    return replace(
        at,
        step=at.step + 1,
        step_in_epoch=at.step_in_epoch + 1,
        sums=sums,
        counts=counts,
        bad_steps=bad_steps,
        grad_norm=finite(grad_norm),
    )


def after_epoch(at: Progress) -> Progress:
    """How far a run has come when an epoch is complete."""
    return replace(at, epoch=at.epoch + 1, step_in_epoch=0, sums={}, counts={})


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None
