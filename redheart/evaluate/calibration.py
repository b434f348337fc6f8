"""Calibration of a predicted distribution: temperature, Platt and isotonic, as `calibration_fit` has fitted them.

The score of a class is its log-probability, not its logit, whose zero is arbitrary. What was fitted is kept as numbers:
nothing has to be unpickled to use it, and a prediction does not wait for scikit-learn.

Shape suffixes: N records, C classes.
"""

from typing import Literal

import msgspec
import numpy as np
from scipy.special import expit, log_softmax, softmax

Method = Literal["temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")


class Curve(msgspec.Struct, frozen=True):
    """A monotone map of one class's log-probability, piecewise linear."""

    x: list[float]
    y: list[float]


class Calibration(msgspec.Struct, frozen=True):
    """A fitted calibrator of logits (N, C)."""

    method: Method
    num_records: int
    """Records that it was fitted on."""
    inverse_temperature: float | None = None
    slopes: list[float] | None = None
    """Platt, by class: share = 1 / (1 + exp(slope * log-probability + offset)), then normalised."""
    offsets: list[float] | None = None
    curves: list[Curve] | None = None
    """Isotonic, by class; then normalised, with one pseudo-record spread evenly so that no share is 0."""


def calibrated(logits_NC: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """Shares (N, C) float64 that sum to 1: the softmax of the logits, as the calibration corrects it."""
    if calibration is None:
        shares: np.ndarray = softmax(logits_NC.astype(np.float64), axis=1)
        return shares
    scores_NC = log_softmax(logits_NC.astype(np.float64), axis=1)
    if calibration.inverse_temperature is not None:
        shares = softmax(scores_NC * calibration.inverse_temperature, axis=1)
        return shares
    if calibration.slopes is not None:
        shares = expit(-(np.array(calibration.slopes) * scores_NC + np.array(calibration.offsets)))
    else:
        assert calibration.curves is not None
        columns = [np.interp(scores_NC[:, index], curve.x, curve.y) for index, curve in enumerate(calibration.curves)]
        shares = np.stack(columns, axis=1)
    totals_N1, num_classes = shares.sum(1, keepdims=True), shares.shape[1]
    # All classes at zero say nothing: even shares, as scikit-learn has it.
    shares = np.where(totals_N1 > 0, shares / np.where(totals_N1 > 0, totals_N1, 1), 1 / num_classes)
    if calibration.curves is not None:
        shares = (calibration.num_records * shares + 1 / num_classes) / (calibration.num_records + 1)
    return shares
