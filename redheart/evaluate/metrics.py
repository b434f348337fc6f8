"""Metrics of predictions against targets, in float64, on the records and targets that are present.

Shape suffixes: N records, C classes, O targets of a task.
"""

import numpy as np
from scipy.special import log_softmax, rel_entr

# Two shares of a target closer than this are a tie: the labels have two decimals.
_TIE = 1e-6
ECE_BINS = 15


def emotion_kl(logits_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """KL divergence of every target distribution from the prediction, (N,) nats."""
    return soft_cross_entropy(logits_NC, targets_NC) - entropy(targets_NC)


def soft_cross_entropy(logits_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """Cross-entropy of every prediction under its target distribution, (N,) nats."""
    values: np.ndarray = -(targets_NC * log_softmax(logits_NC.astype(np.float64), axis=1)).sum(1)
    return values


def entropy(targets_NC: np.ndarray) -> np.ndarray:
    """Smallest cross-entropy under every target distribution, (N,) nats: its entropy.

    Rounded shares may miss a sum of 1 by a little; the best prediction then has them divided by their sum.
    """
    shares = targets_NC.astype(np.float64)
    totals = shares.sum(1, keepdims=True)
    values: np.ndarray = rel_entr(shares, totals).sum(1)
    return -values


def hits(logits_NC: np.ndarray, targets_NC: np.ndarray, *, tie_tolerant: bool) -> np.ndarray:
    """1 where the predicted class is the target's first arg-max (any of a tie, if tolerant), (N,) float64."""
    predicted_N = logits_NC.argmax(1)
    if not tie_tolerant:
        return (predicted_N == targets_NC.argmax(1)).astype(np.float64)
    chosen_N = np.take_along_axis(targets_NC, predicted_N[:, None], axis=1)[:, 0]
    return (chosen_N >= targets_NC.max(1) - _TIE).astype(np.float64)


def brier(logits_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """Multi-class Brier score of every record, the squared distance of the distributions, (N,)."""
    chances_NC = np.exp(log_softmax(logits_NC.astype(np.float64), axis=1))
    values: np.ndarray = np.square(chances_NC - targets_NC).sum(1)
    return values


def macro_f1(logits_NC: np.ndarray, targets_NC: np.ndarray) -> float:
    """Mean F1 over the classes that occur among the targets' arg-maxes."""
    predicted_N, true_N = logits_NC.argmax(1), targets_NC.argmax(1)
    scores = []
    for label in np.unique(true_N):
        both = np.sum((predicted_N == label) & (true_N == label))
        scores.append(2 * both / (np.sum(predicted_N == label) + np.sum(true_N == label)))
    return float(np.mean(scores))


def r_squared(targets: np.ndarray, predictions: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of the targets' variance that the predictions explain, along an axis; NaN where there is none."""
    residual = np.square(targets - predictions).sum(axis)
    spread = np.square(targets - targets.mean(axis, keepdims=True)).sum(axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - residual / np.where(spread > 0, spread, np.nan)


def record_losses(kind: str, predictions_NO: np.ndarray, targets_NO: np.ndarray, mask_NO: np.ndarray) -> np.ndarray:
    """The training loss of every record, NaN where it has no target of the task, (N,).

    Distributions: soft cross-entropy of logits. Values: smooth L1 with beta 1 (half the squared error in 0-1),
    mean over the present targets.
    """
    present_N = mask_NO.any(1)
    if kind == "distribution":
        return np.where(present_N, soft_cross_entropy(predictions_NO, targets_NO), np.nan)
    squared_NO = 0.5 * np.square(predictions_NO.astype(np.float64) - targets_NO) * mask_NO
    return np.where(present_N, squared_NO.sum(1) / np.maximum(mask_NO.sum(1), 1), np.nan)
