"""How far confidence and truth lie apart, for soft labels.

A labeller's distribution gives the predicted class a share, and a model is calibrated where its confidence is that
share on average. The arg-max would not do: a model that repeats every soft label exactly, with a confidence of 0.4,
hits the arg-max always. For one-hot labels the share is the hit, and this is the usual calibration error.

Shape suffixes: N records, C classes, K bins.
"""

import msgspec
import numpy as np

from redheart.evaluate.metrics import ECE_BINS


class Bin(msgspec.Struct, frozen=True):
    """Records of similar confidence."""

    low: float
    high: float
    num_records: int
    confidence: float
    """Mean confidence."""
    share: float
    """Mean share that the labels give the predicted class."""


class CalibrationScores(msgspec.Struct, frozen=True):
    """How good predicted shares are, on average over records."""

    cross_entropy: float
    """The negative log-likelihood under soft labels, nats."""
    kl: float
    brier: float
    ece: float
    """Expected calibration error of the confidence against the labels' share."""
    ece_noise_floor: float
    """What a perfectly calibrated model would show on as many records."""
    ece_argmax: float
    """The same against the arg-max of the labels; not what soft labels ask for, but what is often reported."""


def share_losses(shares_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """Soft cross-entropy of every record, (N,) nats."""
    losses: np.ndarray = -(targets_NC * np.log(np.maximum(shares_NC, np.finfo(np.float64).tiny))).sum(1)
    return losses


def calibration_scores(shares_NC: np.ndarray, targets_NC: np.ndarray, *, seed: int) -> CalibrationScores:
    """Score predicted shares against soft targets."""
    targets_NC = targets_NC.astype(np.float64)
    losses_N = share_losses(shares_NC, targets_NC)
    confidence_N, share_N = confidence_and_share(shares_NC, targets_NC)
    bin_N = _bins(confidence_N)
    hits_N = (shares_NC.argmax(1) == targets_NC.argmax(1)).astype(np.float64)
    return CalibrationScores(
        cross_entropy=float(losses_N.mean()),
        kl=float((losses_N - share_losses(targets_NC, targets_NC)).mean()),
        brier=float(np.square(shares_NC - targets_NC).sum(1).mean()),
        ece=_error(confidence_N - share_N, bin_N),
        ece_noise_floor=_noise_floor(confidence_N, share_N, seed=seed),
        ece_argmax=_error(confidence_N - hits_N, bin_N),
    )


def reliability_bins(shares_NC: np.ndarray, targets_NC: np.ndarray) -> list[Bin]:
    """Confidence and share in bins of equal width; empty ones are left out."""
    confidence_N, share_N = confidence_and_share(shares_NC, targets_NC)
    bin_N = _bins(confidence_N)
    return [
        Bin(
            index / ECE_BINS,
            (index + 1) / ECE_BINS,
            int((bin_N == index).sum()),
            float(confidence_N[bin_N == index].mean()),
            float(share_N[bin_N == index].mean()),
        )
        for index in np.unique(bin_N).tolist()
    ]


def confidence_and_share(shares_NC: np.ndarray, targets_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted class's predicted share and the labels' share of it, (N,) each."""
    predicted_N1 = shares_NC.argmax(1)[:, None]
    return shares_NC.max(1), np.take_along_axis(targets_NC.astype(np.float64), predicted_N1, axis=1)[:, 0]


def _bins(confidence_N: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    return found


def _error(gap_N: np.ndarray, bin_N: np.ndarray) -> float:
    gaps_K = np.bincount(bin_N, weights=gap_N, minlength=ECE_BINS)
    return float(np.abs(gaps_K).sum() / len(gap_N))


def _noise_floor(confidence_N: np.ndarray, share_N: np.ndarray, *, seed: int, draws: int = 200) -> float:
    """The error that is left when every bin's mean gap is taken away: the gaps about their means are drawn anew."""
    random = np.random.default_rng(seed)
    bin_N, gap_N = _bins(confidence_N), confidence_N - share_N
    num_K = np.bincount(bin_N, minlength=ECE_BINS)
    centred_N = gap_N - (np.bincount(bin_N, weights=gap_N, minlength=ECE_BINS) / np.maximum(num_K, 1))[bin_N]
    # n gaps about their own mean have lost a degree of freedom; one alone says nothing of its spread.
    several_N = num_K[bin_N] > 1
    pool = (centred_N * np.sqrt(num_K[bin_N] / np.maximum(num_K[bin_N] - 1, 1)))[several_N]
    if len(pool) == 0:
        pool = gap_N - gap_N.mean()
    drawn_RN = random.choice(pool, size=(draws, len(gap_N)))
    return float(np.mean([_error(row_N, bin_N) for row_N in drawn_RN]))
