"""What a model is worth on one record: the mean over the tasks of their losses, each in units of what is reachable.

Losses of different tasks have different sizes (here nats beside squared errors fifty times smaller). Each task's
loss is counted above its floor, the part that no model can remove, and divided by what the best snapshot leaves of
it, so that one percent of any task counts as much as one percent of another.

Shape suffixes: E snapshots, N records.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class Scoring:
    """How losses become one number; fixed once per run, on the select records."""

    scales: dict[str, float]
    """By final predictor, its lowest mean loss above the floor over the snapshots; a task without any is left out."""

    def score_N(self, losses: Mapping[str, np.ndarray], floors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Score of every record, lower is better; its mean is the mean over tasks of the tasks' scaled losses.

        Args:
            losses: (N,) by predictor, NaN where a record has no target; others than the final ones are ignored.
            floors: (N,) by predictor; absent ones are zero.
        """
        total_N: np.ndarray | None = None
        measured = [name for name in self.scales if not np.isnan(losses[name]).all()]
        for name in measured:
            present_N = ~np.isnan(losses[name])
            above_N = np.where(present_N, losses[name] - floors.get(name, 0.0), 0.0)
            part_N = above_N * (len(present_N) / present_N.sum() / self.scales[name] / len(measured))
            total_N = part_N if total_N is None else total_N + part_N
        assert total_N is not None, "no final predictor has a loss"
        return total_N

    def labelled_TN(self, losses: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether a record has a target of a task that is scored."""
        return np.stack([~np.isnan(losses[name]) for name in self.scales])


def scoring_of(
    losses_EN: Mapping[str, np.ndarray], floors: Mapping[str, np.ndarray], finals: tuple[str, ...]
) -> Scoring:
    """The scoring that snapshots' losses lead to; `losses_EN` by predictor."""
    scales = {}
    for name in finals:
        if name in losses_EN and not np.isnan(losses_EN[name]).all():
            above_E = np.nanmean(losses_EN[name] - floors.get(name, 0.0), axis=1)
            scales[name] = size_of(above_E.min())
    return Scoring(scales)


def size_of(loss: float) -> float:
    """What losses beside this one are divided by: log densities are below zero, and a scale is a size."""
    return max(abs(float(loss)), _SMALLEST_SCALE)
