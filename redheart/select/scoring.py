"""What a model is worth on one record: the mean over the tasks of their losses, each in units of what is reachable.

Losses of different tasks have different sizes (here nats beside squared errors fifty times smaller). Each task's
loss is counted above its floor, the part that no model can remove, and divided by what the best snapshot leaves of
it, so that one percent of any task counts as much as one percent of another.

N records.
"""

from collections.abc import Mapping

import numpy as np

_SMALLEST_SCALE = 1e-12


def score_N(
    losses: Mapping[str, np.ndarray], *, scales: Mapping[str, float], floors: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Score of every record, lower is better; its mean is the mean over tasks of the tasks' scaled losses.

    Args:
        losses: (N,) by predictor, NaN where a record has no target; others than those with a scale are ignored.
        scales: of a `SelectionProblem`, on the select records: fixed once per run.
        floors: (N,) by predictor; absent ones are zero.
    """
    measured = [name for name in scales if not np.isnan(losses[name]).all()]
    assert measured, "no final predictor has a loss"
    parts = []
    for name in measured:
        present_N = ~np.isnan(losses[name])
        above_N = np.where(present_N, losses[name] - floors.get(name, 0.0), 0.0)
        parts.append(above_N * (len(present_N) / present_N.sum() / scales[name] / len(measured)))
    return sum(parts[1:], parts[0])


def size_of(loss: float) -> float:
    """What losses beside this one are divided by: log densities are below zero, and a scale is a size."""
    return max(abs(float(loss)), _SMALLEST_SCALE)
