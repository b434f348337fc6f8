"""Does a prediction follow what people said or showed: Spearman's correlation, subject by subject, then combined.

Subjects use a scale each in their own way, so rows of different subjects are never ranked together where every subject
has rated enough texts. Correlations are combined as Fisher's z = artanh(rho), whose sampling variance for Spearman's
rho is 1.06 / (n - 3) (Fieller, Hartley and Pearson 1957).

Subjects who rate the same texts and agree with each other repeat whatever the prediction has in common with them by
chance. So both are samples: the variance is that of subjects, and what that of texts is more than each text of each
subject has by itself (two-way clusters, Cameron, Gelbach and Miller 2011; Clark 1973). Where subjects have rated too
few texts each for that, means are correlated: of texts if there are no more of them than of subjects, else of subjects.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.stats import norm, spearmanr, t

_LEAST_TEXTS = 4
_LEAST_UNITS = 6
"""Of one correlation alone: of five pairs one in sixty is perfect by chance, which no interval says."""
_VARIANCE = 1.06
_LEVEL, _POWER = 0.95, 0.8
# artanh(1) is infinite; a perfect correlation of few texts must not be worth more than all other subjects together.
_LARGEST = 0.999
_TEXT_GROUPS = 25
"""Of texts that the jackknife leaves out in turn."""


class Correlation(msgspec.Struct, frozen=True):
    """A combined correlation."""

    rho: float
    low: float
    high: float
    """95 % interval."""
    p_value: float
    """Two-sided, of no correlation."""
    design: str
    """`within subjects`; where each has too few texts for a correlation of its own `across subjects`, or `across texts`
    where there are no more of these."""
    num_subjects: int
    num_left_out: int
    """Subjects with too few texts, or who gave all of them the same value."""
    num_pairs: int
    detectable_rho: float
    """The smallest |rho| that as many subjects and texts show with 80 % power at the 5 % level."""
    by_subject: dict[str, float]


def correlate(
    predicted: Sequence[float], rated: Sequence[float], subjects: Sequence[str], texts: Sequence[str] | None = None
) -> Correlation | None:
    """Combine the correlations of all subjects; None where there is too little to correlate.

    Every row is a prediction for a text, and the value that a subject gave it; `texts` are None where no two subjects
    have rated the same.
    """
    predicted_N, rated_N, subject_N = np.asarray(predicted), np.asarray(rated), np.asarray(subjects)
    names = [str(name) for name in np.unique(subject_N)]
    found = {}
    for name in names:
        rows = subject_N == name
        if rows.sum() >= _LEAST_TEXTS and np.ptp(predicted_N[rows]) > 0 and np.ptp(rated_N[rows]) > 0:
            found[name] = (float(spearmanr(predicted_N[rows], rated_N[rows]).statistic), int(rows.sum()))
    design, num_left_out = "within subjects", len(names) - len(found)
    correlations = list(found.values())
    if not found:
        # What one subject says twice is not two observations, nor what two say of one text: one mean pair for each of
        # those of which there are fewer.
        design, num_left_out, unit_N = "across subjects", 0, subject_N
        if texts is not None and len(np.unique(texts)) <= len(names):
            design, unit_N = "across texts", np.asarray(texts)
        units = np.unique(unit_N)
        pairs_U2 = np.array([(predicted_N[unit_N == unit].mean(), rated_N[unit_N == unit].mean()) for unit in units])
        if len(units) < _LEAST_UNITS or (np.ptp(pairs_U2, axis=0) == 0).any():
            return None
        correlations = [(float(spearmanr(*pairs_U2.T).statistic), len(units))]
    rhos, counts = (np.array(column) for column in zip(*correlations, strict=True))
    z_S = np.arctanh(np.clip(rhos, -_LARGEST, _LARGEST))
    sampling_S = _VARIANCE / (counts - 3)
    num = len(z_S)
    if num == 1:
        error, quantile, power = math.sqrt(sampling_S[0]), float(norm.ppf((1 + _LEVEL) / 2)), float(norm.ppf(_POWER))
        p_value = 2 * float(norm.sf(abs(z_S[0]) / error))
    else:
        # Subjects are a sample: the interval is that of their mean, with their own spread in it. Few texts allow few
        # correlations, and subjects that happen to share one are no more certain than their texts make them.
        planned, freedom = float(sampling_S.mean()) / num, num - 1
        variance = max(float(z_S.var(ddof=1)) / num, planned)
        if texts is not None:
            of_texts, groups = _variance_of_texts(predicted_N, rated_N, subject_N, np.asarray(texts), list(found))
            variance, freedom = variance + max(0.0, of_texts - planned), min(num, groups) - 1
        error = math.sqrt(variance)
        quantile, power = float(t.ppf((1 + _LEVEL) / 2, freedom)), float(t.ppf(_POWER, freedom))
        p_value = 2 * float(t.sf(abs(z_S.mean()) / error, freedom))
    mean = float(z_S.mean())
    return Correlation(
        rho=math.tanh(mean),
        low=math.tanh(mean - quantile * error),
        high=math.tanh(mean + quantile * error),
        p_value=p_value,
        design=design,
        num_subjects=len(names) - num_left_out,
        num_left_out=num_left_out,
        num_pairs=int(counts.sum()),
        detectable_rho=math.tanh((quantile + power) * error),
        by_subject={name: rho for name, (rho, _) in found.items()},
    )


def _variance_of_texts(
    predicted_N: np.ndarray, rated_N: np.ndarray, subject_N: np.ndarray, text_N: np.ndarray, names: Sequence[str]
) -> tuple[float, int]:
    """Jackknife variance of the mean z over groups of texts, and how many groups there are."""
    _, index_N = np.unique(text_N, return_inverse=True)
    groups = min(int(index_N.max()) + 1, _TEXT_GROUPS)
    means = []
    for group in range(groups):
        rhos = []
        for name in names:
            rows = (subject_N == name) & (index_N % groups != group)
            if rows.sum() > 2 and np.ptp(predicted_N[rows]) > 0 and np.ptp(rated_N[rows]) > 0:
                rhos.append(float(spearmanr(predicted_N[rows], rated_N[rows]).statistic))
        if rhos:
            means.append(float(np.arctanh(np.clip(rhos, -_LARGEST, _LARGEST)).mean()))
    return (groups - 1) * float(np.var(means)), groups
