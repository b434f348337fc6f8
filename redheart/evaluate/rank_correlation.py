"""Does a prediction follow what people said or showed: Spearman's correlation, subject by subject, then combined.

Subjects use a scale each in their own way, so rows of different subjects are never ranked together where every subject
has rated enough texts. Correlations are combined as Fisher's z = artanh(rho), whose sampling variance for Spearman's
rho is 1.06 / (n - 3) (Fieller, Hartley and Pearson 1957).
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.stats import norm, spearmanr, t

_LEAST_TEXTS = 4
_VARIANCE = 1.06
_LEVEL, _POWER = 0.95, 0.8
# artanh(1) is infinite; a perfect correlation of few texts must not be worth more than all other subjects together.
_LARGEST = 0.999


class Correlation(msgspec.Struct, frozen=True):
    """A combined correlation."""

    rho: float
    low: float
    high: float
    """95 % interval."""
    p_value: float
    """Two-sided, of no correlation."""
    design: str
    """`within subjects`, or `across subjects` where each has too few texts for a correlation of its own."""
    num_subjects: int
    num_left_out: int
    """Subjects with too few texts, or who gave all of them the same value."""
    num_pairs: int
    detectable_rho: float
    """The smallest |rho| that as many subjects and texts show with 80 % power at the 5 % level."""
    by_subject: dict[str, float]


def correlate(predicted: Sequence[float], rated: Sequence[float], subjects: Sequence[str]) -> Correlation | None:
    """Combine the correlations of all subjects; None where there is too little to correlate.

    Args:
        predicted: the prediction for the text of every row.
        rated: the value that the subject gave it.
        subjects: who.
    """
    predicted_N, rated_N, subject_N = np.asarray(predicted), np.asarray(rated), np.asarray(subjects)
    names = [str(name) for name in np.unique(subject_N)]
    found = {}
    for name in names:
        rows = subject_N == name
        if rows.sum() >= _LEAST_TEXTS and np.ptp(predicted_N[rows]) > 0 and np.ptp(rated_N[rows]) > 0:
            found[name] = (float(spearmanr(predicted_N[rows], rated_N[rows]).statistic), int(rows.sum()))
    if not found:
        return _across(predicted_N, rated_N, subject_N)
    rhos, counts = (np.array(column) for column in zip(*found.values(), strict=True))
    z_S = np.arctanh(np.clip(rhos, -_LARGEST, _LARGEST))
    sampling_S = _VARIANCE / (counts - 3)
    num = len(z_S)
    if num == 1:
        error, quantile, power = math.sqrt(sampling_S[0]), float(norm.ppf((1 + _LEVEL) / 2)), float(norm.ppf(_POWER))
        p_value = 2 * float(norm.sf(abs(z_S[0]) / error))
    else:
        # Subjects are a sample: the interval is that of their mean, with their own spread in it. Few texts allow few
        # correlations, and subjects that happen to share one are no more certain than their texts make them.
        planned = math.sqrt(float(sampling_S.mean()) / num)
        error = max(float(z_S.std(ddof=1)) / math.sqrt(num), planned)
        quantile, power = float(t.ppf((1 + _LEVEL) / 2, num - 1)), float(t.ppf(_POWER, num - 1))
        p_value = 2 * float(t.sf(abs(z_S.mean()) / error, num - 1))
    mean = float(z_S.mean())
    return Correlation(
        rho=math.tanh(mean),
        low=math.tanh(mean - quantile * error),
        high=math.tanh(mean + quantile * error),
        p_value=p_value,
        design="within subjects",
        num_subjects=num,
        num_left_out=len(names) - num,
        num_pairs=int(counts.sum()),
        detectable_rho=math.tanh((quantile + power) * error),
        by_subject={name: rho for name, (rho, _) in found.items()},
    )


def detectable_across(num_subjects: int) -> float:
    """The smallest |rho| that this many independent pairs show with 80 % power at the 5 % level (Fisher's z)."""
    return math.tanh(float(norm.ppf((1 + _LEVEL) / 2) + norm.ppf(_POWER)) / math.sqrt(num_subjects - 3))


def _across(predicted_N: np.ndarray, rated_N: np.ndarray, subject_N: np.ndarray) -> Correlation | None:
    """One mean pair a subject: what one subject says twice is not two observations."""
    names = np.unique(subject_N)
    pairs = np.array([(predicted_N[subject_N == name].mean(), rated_N[subject_N == name].mean()) for name in names])
    if len(pairs) < _LEAST_TEXTS or (np.ptp(pairs, axis=0) == 0).any():
        return None
    result = spearmanr(pairs[:, 0], pairs[:, 1])
    z, error = (
        math.atanh(float(np.clip(result.statistic, -_LARGEST, _LARGEST))),
        math.sqrt(_VARIANCE / (len(pairs) - 3)),
    )
    quantile = float(norm.ppf((1 + _LEVEL) / 2))
    return Correlation(
        rho=float(result.statistic),
        low=math.tanh(z - quantile * error),
        high=math.tanh(z + quantile * error),
        p_value=2 * float(norm.sf(abs(z) / error)),
        design="across subjects",
        num_subjects=len(names),
        num_left_out=0,
        num_pairs=len(pairs),
        detectable_rho=detectable_across(len(names)),
        by_subject={},
    )
