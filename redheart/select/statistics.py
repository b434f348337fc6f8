"""Is one model really better than another? A paired bootstrap interval, and the sentence that follows from it."""

import warnings

import msgspec
import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

from redheart.core.errors import BadInput

_RESAMPLES = 5000


class Gain(msgspec.Struct, frozen=True):
    """How much lower a candidate's loss is than a reference's, in percent of the reference's."""

    percent: float
    low: float
    high: float
    num_records: int

    @property
    def is_evidence(self) -> bool:
        """Whether the 95 % interval lies above zero."""
        return self.low > 0


def paired_gain(reference_N: np.ndarray, candidate_N: np.ndarray, *, seed: int) -> Gain:
    """Gain in mean loss with a paired BCa 95 % interval (Efron 1987) over records.

    Args:
        reference_N: loss of the reference on every record, NaN where it has no target.
        candidate_N: loss of the candidate on the same records.
        seed: seed of the bootstrap.

    Raises:
        BadInput: fewer than two records have a target.
    """
    labelled_N = ~np.isnan(reference_N) & ~np.isnan(candidate_N)
    reference_N, candidate_N = reference_N[labelled_N], candidate_N[labelled_N]
    if len(reference_N) < 2:
        raise BadInput("too few labelled records to compare two models", got=len(reference_N), expected="2 or more")
    differences_N = reference_N - candidate_N
    scale = 100 / reference_N.mean()
    if np.ptp(differences_N) == 0:
        value = float(differences_N.mean() * scale)
        return Gain(value, value, value, len(differences_N))
    interval = _interval(differences_N, "BCa", seed=seed)
    if not np.isfinite(interval).all():
        # BCa is not defined where all resamples lie on one side of the mean, as with a handful of records.
        interval = _interval(differences_N, "percentile", seed=seed)
    low, high = interval
    return Gain(
        float(differences_N.mean() * scale),
        float(low * scale),
        float(high * scale),
        len(differences_N),
    )


def _interval(values_N: np.ndarray, method: str, *, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap((values_N,), np.mean, vectorized=True, method=method, n_resamples=_RESAMPLES, rng=random)
    return found.confidence_interval.low, found.confidence_interval.high


def verdict(gain: Gain, *, candidate: str, reference: str) -> str:
    """What the interval allows to be said."""
    figures = f"{gain.percent:+.2f} % [{gain.low:+.2f}, {gain.high:+.2f}] on {gain.num_records} records"
    if gain.is_evidence:
        return f"The {candidate} is better than the {reference}: loss lower by {figures}."
    return f"No evidence of gain of the {candidate} over the {reference} ({figures}): use the {reference}."
