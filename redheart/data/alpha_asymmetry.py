"""Frontal alpha asymmetry: ln P(F4) - ln P(F3) over 8-13 Hz, by epochs.

Shape suffixes: E epochs, S samples, F frequencies.
"""

import math

import msgspec
import numpy as np
from scipy.signal import welch

from redheart.core.errors import BadInput

ALPHA_HZ = (8.0, 13.0)
EPOCH_S, OVERLAP_S = 2.0, 1.0


class Asymmetry(msgspec.Struct, frozen=True):
    """The asymmetry of one recording."""

    id: str
    subject: str
    faa: float
    """Mean over epochs of ln P(F4) - ln P(F3): above zero, alpha is stronger on the right."""
    standard_error: float
    """Of that mean; epochs overlap by half, so every second one is counted."""
    num_epochs: int


def log_ratio(left_E: np.ndarray, right_E: np.ndarray, *, name: str, subject: str) -> Asymmetry:
    """The asymmetry from the band power of every epoch at F3 (left) and F4 (right), in any common unit.

    Raises:
        BadInput: no epoch, or a power that is not a positive number, as of a flat channel.
    """
    if len(left_E) == 0:
        raise BadInput("the recording is too short", where=name, expected=f"{EPOCH_S:g} s or more without artefacts")
    powers = np.stack((left_E, right_E))
    if not (np.isfinite(powers) & (powers > 0)).all():
        flat = "F3" if not (np.isfinite(left_E) & (left_E > 0)).all() else "F4"
        raise BadInput("a channel is flat or not a number", where=f"{name}: {flat}", hint="leave the recording out")
    ratio_E = np.log(right_E) - np.log(left_E)
    spread = float(ratio_E.std(ddof=1)) if len(ratio_E) > 1 else 0.0
    error = spread / math.sqrt(max(1, len(ratio_E) // 2))
    return Asymmetry(name, subject, float(ratio_E.mean()), error, len(ratio_E))


def alpha_power(signal_S: np.ndarray, *, rate_hz: float) -> np.ndarray:
    """Power in the alpha band of every epoch of a channel by Welch (1967), (E,), in squared units per Hz."""
    length, step = round(EPOCH_S * rate_hz), round((EPOCH_S - OVERLAP_S) * rate_hz)
    if len(signal_S) < length:
        return np.empty(0)
    starts = np.arange(0, len(signal_S) - length + 1, step)
    epochs_ES = np.stack([signal_S[start : start + length] for start in starts])
    frequencies_F, power_EF = welch(epochs_ES, fs=rate_hz, nperseg=length, axis=-1)
    band = (frequencies_F >= ALPHA_HZ[0]) & (frequencies_F <= ALPHA_HZ[1])
    return np.asarray(power_EF[:, band].mean(1))
