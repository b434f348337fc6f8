"""Evaluation of a model's final predictions: every metric with a bootstrap interval."""

import warnings
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from scipy.special import softmax
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from redheart.core.seeds import stream_seed
from redheart.data.inventory import Inventory
from redheart.evaluate import metrics
from redheart.evaluate.reliability import calibration_scores
from redheart.select.statistics import FEW_RECORDS, LEVEL, students_interval

_RESAMPLES = 1000


class Estimate(msgspec.Struct, frozen=True):
    """A metric and its 95 % percentile bootstrap interval over records."""

    value: float
    low: float | None = None
    high: float | None = None


class Evaluation(msgspec.Struct, frozen=True):
    """Metrics by task; a task or target without any label does not appear."""

    num_records: int
    tasks: dict[str, dict[str, Estimate]]


def evaluate_predictions(
    predictions: Mapping[str, np.ndarray],
    values_NT: np.ndarray,
    mask_NT: np.ndarray,
    inventory: Inventory,
    *,
    seed: int = 0,
) -> Evaluation:
    """Evaluate predictions by task: emotion logits (N, C), values in 0-1 (N, O)."""
    tasks: dict[str, dict[str, Estimate]] = {}
    for task in inventory.tasks:
        columns = inventory.columns(task.name)
        targets_NO, mask_NO = values_NT[:, columns].astype(np.float64), mask_NT[:, columns]
        predictions_NO = predictions[task.name].astype(np.float64)
        if task.kind == "distribution":
            rows = mask_NO.all(1)
            if rows.any():
                tasks[task.name] = _distribution(predictions_NO[rows], targets_NO[rows], seed=seed)
        else:
            found = _values(task.targets, predictions_NO, targets_NO, mask_NO, seed=seed)
            if found:
                tasks[task.name] = found
    return Evaluation(len(values_NT), tasks)


def _distribution(logits_NC: np.ndarray, targets_NC: np.ndarray, *, seed: int) -> dict[str, Estimate]:
    per_record = {
        "kl": metrics.emotion_kl(logits_NC, targets_NC),
        "cross_entropy": metrics.soft_cross_entropy(logits_NC, targets_NC),
        "accuracy": metrics.hits(logits_NC, targets_NC, tie_tolerant=False),
        "accuracy_tie": metrics.hits(logits_NC, targets_NC, tie_tolerant=True),
        "brier": metrics.brier(logits_NC, targets_NC),
    }
    found = {name: _interval((values,), np.mean, name, seed=seed) for name, values in per_record.items()}
    found["macro_f1"] = Estimate(metrics.macro_f1(logits_NC, targets_NC))
    shares_NC = softmax(logits_NC.astype(np.float64), axis=1)
    calibration = calibration_scores(shares_NC, targets_NC, seed=stream_seed(seed, "ece floor"))
    for name in ("ece", "ece_noise_floor", "ece_argmax"):
        found[name] = Estimate(getattr(calibration, name))
    return found


def _values(
    names: tuple[str, ...], predictions_NO: np.ndarray, targets_NO: np.ndarray, mask_NO: np.ndarray, *, seed: int
) -> dict[str, Estimate]:
    found = {}
    for index, name in enumerate(names):
        rows = mask_NO[:, index]
        # A spread is needed for R2 and its resamples.
        if rows.sum() < 2 or np.ptp(targets_NO[rows, index]) == 0:
            continue
        pair = (targets_NO[rows, index], predictions_NO[rows, index])
        found[f"r2.{name}"] = _interval(pair, metrics.r_squared, name, seed=seed)
        found[f"mae.{name}"] = _interval((np.abs(pair[0] - pair[1]),), np.mean, name, seed=seed)
    if found:
        shown = [index for index, name in enumerate(names) if f"r2.{name}" in found]
        found["r2"] = (
            found[f"r2.{names[shown[0]]}"]
            if len(shown) == 1
            else _mean_r_squared(predictions_NO[:, shown], targets_NO[:, shown], mask_NO[:, shown], seed=seed)
        )
    return found


def _mean_r_squared(predictions_NO: np.ndarray, targets_NO: np.ndarray, mask_NO: np.ndarray, *, seed: int) -> Estimate:
    """Mean over the targets of their R2; a resample draws records, each with all the targets that it has."""

    def mean_over_targets(counts_RN: np.ndarray) -> np.ndarray:
        num_RO, targets_RO = counts_RN @ mask_NO, counts_RN @ centred_NO
        spread_RO = counts_RN @ np.square(centred_NO) - np.square(targets_RO) / np.maximum(num_RO, 1)
        residual_RO = counts_RN @ np.square(np.where(mask_NO, targets_NO - predictions_NO, 0))
        # Targets lie in 0-1; what is left of a spread of nothing is rounding.
        has_spread_RO = spread_RO > 1e-12 * num_RO
        r_squared_RO = np.where(has_spread_RO, 1 - residual_RO / np.where(has_spread_RO, spread_RO, 1), np.nan)
        return np.nanmean(r_squared_RO, axis=1)  # type: ignore[no-any-return]

    centred_NO = np.where(mask_NO, targets_NO - np.mean(targets_NO, axis=0, where=mask_NO), 0)
    random = np.random.default_rng(stream_seed(seed, "bootstrap", "mean r2"))
    num_rows = len(targets_NO)
    value = float(mean_over_targets(np.ones((1, num_rows)))[0])
    # How often each record is drawn, as floats: the products are BLAS's.
    drawn = (random.integers(0, num_rows, num_rows) for _ in range(_RESAMPLES))
    counts_RN = np.stack([np.bincount(rows_N, minlength=num_rows).astype(np.float64) for rows_N in drawn])
    with warnings.catch_warnings():
        # Of resamples in which no target has a spread, answered below.
        warnings.simplefilter("ignore", RuntimeWarning)
        draws = mean_over_targets(counts_RN)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, float(low), float(high)) if np.isfinite([low, high]).all() else Estimate(value)


def _interval(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], name: str, *, seed: int
) -> Estimate:
    """The statistic with its interval; without one where there are too few records, or too few that differ.

    A mean over a handful of records has the wider of this and Student's, a share of hits Wilson's.
    """
    value, number = float(statistic(*samples)), len(samples[0])
    if number < 2:
        return Estimate(value)
    if statistic is np.mean and (number < FEW_RECORDS or np.ptp(samples[0]) == 0) and np.isin(samples[0], (0, 1)).all():
        share = binomtest(round(samples[0].sum()), number).proportion_ci(LEVEL, method="wilson")
        return Estimate(value, float(share.low), float(share.high))
    if np.ptp(samples[0]) == 0:
        return Estimate(value)
    random = np.random.default_rng(stream_seed(seed, "bootstrap", name))
    with warnings.catch_warnings():
        # What it warns of is answered below.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=_RESAMPLES,
            rng=random,
        )
    interval = result.confidence_interval
    low, high = float(interval.low), float(interval.high)
    if statistic is np.mean and number < FEW_RECORDS:
        low_t, high_t = students_interval(samples[0], level=LEVEL, freedom=number - 1)
        # All of these are sizes: none is below zero.
        low, high = min(low, max(0.0, low_t)), max(high, high_t)
    return Estimate(value, low, high) if np.isfinite([low, high]).all() else Estimate(value)
