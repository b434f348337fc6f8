"""Is one model really better than another? Paired intervals, corrections for having searched, and the sentence.

Shape suffixes: N records, C candidates, B bootstrap rounds.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t

from redheart.core.errors import BadInput
from redheart.select.scoring import size_of

_RESAMPLES = 5000
_ROUNDS = 1000
LEVEL = 0.95
FEW_RECORDS = 30
"""Below so many a bootstrap's interval is too narrow: of two records it is the two themselves."""
_WORST = 1e6
"""How many times the largest loss one is that is not finite."""
_SAME = 1e-9
"""Differences whose spread is a smaller share of their size than this are one number, rounded."""
_SMALLEST_CHANCE = 1e-12
"""Of a false "better": below it, what the choice before was given is not halved any more."""
_LEAST_SLOPE = 0.1
_BLOCK_NUMBERS = 1 << 22


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
            interval += f" at {level_text(self.level)}"
        return f"{self.percent:+.2f} % {interval} on {self.num_records} records"


def percent_of(reference_N: np.ndarray) -> float:
    """What turns a difference of losses into percent of a reference's mean, which is below zero for log densities."""
    return 100 / size_of(reference_N.mean())


def level_of(number: int) -> float:
    """Level of the interval of the n-th choice that the same records judge, counted from 1.

    What a false "better" may cost is halved with every choice, so that it is at most doubled, however many there are.
    """
    return 1 - max(math.ldexp(1 - LEVEL, 1 - number), _SMALLEST_CHANCE)


def level_text(level: float) -> str:
    """A level in percent, with as many decimals as tell it from 100 %."""
    decimals = max(0, math.ceil(-math.log10(100 * max(1 - level, 1e-15)))) + 1
    return f"{level:.{decimals}%}"


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

    Of fewer than thirty records the interval is the wider of this and Student's, end by end. Above a level of 95 %,
    whose tails hold few resamples or none, it is the widest of both and Student's corrected for skew.

    Args:
        reference_N: loss of the reference on every record, NaN where it has no target.
        candidate_N: loss of the candidate on the same records; where one of the two is not finite it is a large one.
        least_labelled: where a loss is made of several tasks, the records of the one that has the fewest.

    Raises:
        BadInput: fewer than two records have a target.
    """
    labelled_N = ~(np.isnan(reference_N) & np.isnan(candidate_N))
    number = int(labelled_N.sum())
    if number < 2:
        raise BadInput("too few labelled records to compare two models", got=number, expected="2 or more")
    reference_N, candidate_N = _finite(np.stack([reference_N, candidate_N])[:, labelled_N].astype(np.float64))
    differences_N = reference_N - candidate_N
    mean, fewest = float(differences_N.mean()), min(number, least_labelled or number)
    if np.ptp(differences_N) <= _SAME * abs(mean):
        # No spread tells what comes by chance; that all have one sign does so once in 2^N.
        is_chance = math.ldexp(1.0, -fewest) > (1 - level) / 2
        ends = (min(mean, 0.0), max(mean, 0.0)) if is_chance else (mean, mean)
    else:
        ends = _interval(differences_N, level=level, resamples=resamples, seed=seed, fewest=fewest)
    scale = percent_of(reference_N)
    return Gain(mean * scale, ends[0] * scale, ends[1] * scale, number, level)


def _finite(losses_MN: np.ndarray) -> np.ndarray:
    """Losses of M models, with a large one where a model has none: that it fails on a record takes no target away."""
    is_finite_MN = np.isfinite(losses_MN)
    worst = _WORST * size_of(np.abs(losses_MN[is_finite_MN]).max(initial=0.0))
    return np.where(is_finite_MN, losses_MN, worst)


def scored_gain(
    reference_N: np.ndarray, candidate_N: np.ndarray, labelled_TN: np.ndarray, *, seed: int, level: float = LEVEL
) -> Gain:
    """`paired_gain` of scores that are means over tasks; records that `labelled_TN` gives no target are none.

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


def _interval(values_N: np.ndarray, *, level: float, resamples: int, seed: int, fewest: int) -> tuple[float, float]:
    means_B = np.sort(_resampled_means(values_N, resamples=resamples, seed=seed))
    deviations_N = values_N - values_N.mean()
    # The jackknife of a mean in closed form.
    acceleration = float((deviations_N**3).sum() / (deviations_N**2).sum() ** 1.5 / 6)
    low, high = bca_interval(means_B, float(values_N.mean()), acceleration, level=level)
    skews = [0.0, acceleration] if level > LEVEL else [0.0] if fewest < FEW_RECORDS else []
    for skew in skews:
        low_t, high_t = students_interval(values_N, level=level, freedom=max(1, fewest - 1), skew=skew)
        low, high = min(low, low_t), max(high, high_t)
    return low, high


def _resampled_means(values_N: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of B resamples, drawn in blocks: together their numbers would be B x N."""
    random, number = np.random.default_rng(seed), len(values_N)
    size = max(1, _BLOCK_NUMBERS // number)
    blocks = [min(size, resamples - start) for start in range(0, resamples, size)]
    return np.concatenate([values_N[random.integers(0, number, (block, number))].mean(1) for block in blocks])


def bca_interval(means_B: np.ndarray, mean: float, acceleration: float, *, level: float) -> tuple[float, float]:
    """The bias-corrected and accelerated interval of a mean, from its resamples' means."""
    below = ((means_B < mean).mean() + (means_B <= mean).mean()) / 2
    # All resamples may lie on one side of the mean, as with a handful of records: then the correction has no end.
    bias = ndtri(below) if 0 < below < 1 else 0.0
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means_B, ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, _LEAST_SLOPE)))
    return float(low), float(high)


def students_interval(values_N: np.ndarray, *, level: float, freedom: int, skew: float = 0.0) -> tuple[float, float]:
    """Student's interval of a mean by its standard error, with so many degrees of freedom.

    `skew` is an acceleration to correct for as the ABC interval does (DiCiccio and Efron 1992).
    """
    error = float(values_N.std(ddof=1)) / math.sqrt(len(values_N))
    shifted = skew + np.array([-1.0, 1.0]) * t.isf((1 - level) / 2, freedom)
    low, high = values_N.mean() + error * shifted / np.maximum(1 - skew * shifted, _LEAST_SLOPE) ** 2
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979): the chance of one false alarm among all stays below them."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    return adjusted[np.argsort(order)].tolist()


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

    Returns:
        The gain over the reference on the records left out, and on the resample itself; their difference is the
        optimism.
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
    if gain.high < 0:
        return f"The {candidate} is worse than the {reference} ({gain}): use the {reference}."
    return f"No evidence of gain of the {candidate} over the {reference} ({gain}): use the {reference}."
