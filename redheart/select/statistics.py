"""Is one model really better than another? Paired intervals, corrections for having searched, and the sentence.

Shape suffixes: N records, C candidates, B bootstrap rounds.
"""

import warnings
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, t

from redheart.core.errors import BadInput

_RESAMPLES = 5000
_ROUNDS = 1000
LEVEL = 0.95
FEW_RECORDS = 30
"""Below so many a bootstrap's interval is too narrow: of two records it is the two themselves."""
_SMALLEST_LOSS = 1e-12


class Gain(msgspec.Struct, frozen=True):
    """How much lower a candidate's loss is than a reference's, in percent of the size of the reference's."""

    percent: float
    low: float
    high: float
    num_records: int
    level: float = LEVEL
    """Of the interval from `low` to `high`."""

    @property
    def is_evidence(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]"
        if self.level != LEVEL:
            interval += f" at {self.level:.1%}"
        return f"{self.percent:+.2f} % {interval} on {self.num_records} records"


def percent_of(reference_N: np.ndarray) -> float:
    """What turns a difference of losses into percent of a reference's mean, which is below zero for log densities."""
    return 100 / max(abs(float(reference_N.mean())), _SMALLEST_LOSS)


def level_of(number: int) -> float:
    """Level of the interval of the n-th choice that the same records judge, counted from 1.

    What a false "better" may cost is halved with every choice, so that it is at most doubled, however many there are.
    """
    return 1 - (1 - LEVEL) / 2 ** (number - 1)


def paired_gain(
    reference_N: np.ndarray,
    candidate_N: np.ndarray,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
    least_labelled: int | None = None,
) -> Gain:
    """Gain in mean loss with a paired BCa interval (Efron 1987) over records.

    Of fewer than thirty records the interval is the wider of this and Student's, end by end.

    Args:
        reference_N: loss of the reference on every record, NaN where it has no target.
        candidate_N: loss of the candidate on the same records.
        seed: seed of the bootstrap.
        level: of the interval.
        resamples: of the bootstrap.
        least_labelled: where a loss is made of several tasks, the records of the one that has the fewest.

    Raises:
        BadInput: fewer than two records have a target.
    """
    labelled_N = ~np.isnan(reference_N) & ~np.isnan(candidate_N)
    reference_N, candidate_N = reference_N[labelled_N], candidate_N[labelled_N]
    if len(reference_N) < 2:
        raise BadInput("too few labelled records to compare two models", got=len(reference_N), expected="2 or more")
    differences_N = reference_N - candidate_N
    scale = percent_of(reference_N)
    if np.ptp(differences_N) == 0:
        value = float(differences_N.mean() * scale)
        return Gain(value, value, value, len(differences_N), level)
    low, high = _interval(differences_N, "BCa", level=level, resamples=resamples, seed=seed)
    if not np.isfinite([low, high]).all():
        # BCa is not defined where all resamples lie on one side of the mean, as with a handful of records.
        low, high = _interval(differences_N, "percentile", level=level, resamples=resamples, seed=seed)
    fewest = min(len(differences_N), least_labelled or len(differences_N))
    if fewest < FEW_RECORDS:
        low_t, high_t = students_interval(differences_N, level=level, freedom=max(1, fewest - 1))
        low, high = min(low, low_t), max(high, high_t)
    return Gain(
        float(differences_N.mean() * scale),
        float(low * scale),
        float(high * scale),
        len(differences_N),
        level,
    )


def scored_gain(
    reference_N: np.ndarray, candidate_N: np.ndarray, labelled_TN: np.ndarray, *, seed: int, level: float = LEVEL
) -> Gain:
    """`paired_gain` of scores that are means over tasks; records without a target are none.

    Args:
        reference_N: score of the reference on every record.
        candidate_N: score of the candidate.
        labelled_TN: whether a record has a target of a task.
        seed: seed of the bootstrap.
        level: of the interval.

    Raises:
        BadInput: fewer than two records have a target.
    """
    has_any_N = labelled_TN.sum(0) > 0
    return paired_gain(
        np.where(has_any_N, reference_N, np.nan),
        np.where(has_any_N, candidate_N, np.nan),
        seed=seed,
        level=level,
        least_labelled=fewest_labelled(labelled_TN),
    )


def fewest_labelled(labelled_TN: np.ndarray) -> int:
    """Records with a target of the task that has the fewest, of those that have any."""
    counts_T = labelled_TN.sum(1)
    return int(counts_T[counts_T > 0].min(initial=labelled_TN.shape[1]))


def _interval(values_N: np.ndarray, method: str, *, level: float, resamples: int, seed: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (values_N,),
            np.mean,
            vectorized=True,
            confidence_level=level,
            method=method,
            n_resamples=resamples,
            rng=np.random.default_rng(seed),
        )
    return found.confidence_interval.low, found.confidence_interval.high


def students_interval(values_N: np.ndarray, *, level: float, freedom: int) -> tuple[float, float]:
    """Student's interval of a mean by its standard error, with so many degrees of freedom."""
    error = values_N.std(ddof=1) / np.sqrt(len(values_N))
    low, high = t.interval(level, freedom, loc=values_N.mean(), scale=error)
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979): the chance of one false alarm among all stays below them."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(value) for value in result]


def one_sided_p(z: float, num_records: int) -> float:
    """Chance of a mean gain this many standard errors above zero, or more, where there is none (Student's)."""
    return float(t.sf(z, max(1, num_records - 1)))


def out_of_bag_gain(
    scores_CN: np.ndarray, reference_N: np.ndarray, *, seed: int, rounds: int = _ROUNDS
) -> tuple[float, float]:
    """What the choice of the best of C candidates gains where it was not made, and where it was, in percent.

    The choice itself is bootstrapped on the stored losses: the best candidate of a resample is scored on the records
    that the resample left out (Tsamardinos et al. 2018; the bias is that of Tibshirani and Tibshirani 2009). What was
    a candidate was itself decided on all these records, so this corrects the choice among them, not the whole search.

    Args:
        scores_CN: scores of all candidates that were looked at.
        reference_N: scores of the model that the gain is over.
        seed: seed of the bootstrap.
        rounds: number of resamples, B.

    Returns:
        The gain on the records left out, and on the resample itself; their difference is the optimism.
    """
    number = scores_CN.shape[1]
    random = np.random.default_rng(seed)
    counts_BN = random.multinomial(number, np.full(number, 1 / number), size=rounds).astype(np.float64)
    counts_BN = counts_BN[(counts_BN == 0).any(1)]
    left_out_BN = (counts_BN == 0).astype(np.float64)
    left_out_BN /= left_out_BN.sum(1, keepdims=True)
    chosen_B = np.argmin(counts_BN @ scores_CN.T, axis=1)
    gains_CN = reference_N - scores_CN
    inside_B = (counts_BN / number * gains_CN[chosen_B]).sum(1)
    outside_B = (left_out_BN * gains_CN[chosen_B]).sum(1)
    scale = percent_of(reference_N)
    return float(outside_B.mean() * scale), float(inside_B.mean() * scale)


def verdict(gain: Gain, *, candidate: str, reference: str) -> str:
    """What the interval allows to be said."""
    if gain.is_evidence:
        return f"The {candidate} is better than the {reference}: loss lower by {gain}."
    return f"No evidence of gain of the {candidate} over the {reference} ({gain}): use the {reference}."
