"""Calibrators against scikit-learn's own predictions, planted miscalibration and figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from redheart.evaluate import metrics
from redheart.evaluate.calibration import METHODS, Calibration, Method, calibrated
from redheart.evaluate.calibration_fit import fit, fit_classifier
from redheart.evaluate.reliability import calibration_scores, reliability_bins


def planted(count: int, temperature: float, *, seed: int = 0, hard: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times too sharp for the targets they come with."""
    random = np.random.default_rng(seed)
    logits_NC = random.normal(0, 1.2, (count, 7))
    shares_NC = softmax(logits_NC, axis=1)
    if hard:
        targets_NC = np.eye(7)[[random.choice(7, p=row) for row in shares_NC]]
    else:
        targets_NC = np.stack([random.dirichlet(20 * row) for row in shares_NC])
    # A shift that softmax does not see must not be seen by any calibrator either.
    return logits_NC * temperature + random.normal(0, 3, (count, 1)), targets_NC


@pytest.mark.parametrize("method", METHODS)
def test_what_is_stored_predicts_as_scikit_learn_does(method: Method) -> None:
    logits_NC, targets_NC = planted(80, 2.0)
    fresh_NC, _ = planted(40, 2.0, seed=1)
    expected_NC = fit_classifier(method, logits_NC, targets_NC).predict_proba(log_softmax(fresh_NC, axis=1))
    if method == "isotonic":
        expected_NC = (80 * expected_NC + 1 / 7) / 81
    np.testing.assert_allclose(calibrated(fresh_NC, fit(method, logits_NC, targets_NC)), expected_NC, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(scale=st.floats(0.01, 50), seed=st.integers(0, 2**32 - 1), shift=st.floats(-30, 30), count=st.integers(10, 30))
@settings(max_examples=10)
def test_shares_are_positive_sum_to_one_and_know_no_shift(
    method: Method, scale: float, seed: int, shift: float, count: int
) -> None:
    logits_NC, targets_NC = planted(count, scale, seed=seed)
    calibration = fit(method, logits_NC, targets_NC)
    shares_NC = calibrated(logits_NC, calibration)
    np.testing.assert_allclose(shares_NC.sum(1), 1, rtol=1e-12)
    assert (shares_NC >= 0).all() and (method != "isotonic" or (shares_NC > 0).all())
    # Log-softmax itself rounds the shifted logits.
    np.testing.assert_allclose(calibrated(logits_NC + shift, calibration), shares_NC, rtol=1e-6, atol=1e-9)


def test_the_weights_make_it_the_soft_cross_entropy() -> None:
    logits_NC, targets_NC = planted(200, 2.5)
    best = minimize_scalar(
        lambda beta: metrics.soft_cross_entropy(beta * logits_NC, targets_NC).mean(), bounds=(0.01, 10)
    )
    found = fit("temperature", logits_NC, targets_NC)
    # Both minimise to about the square root of the machine's precision.
    assert found.inverse_temperature == pytest.approx(best.x, rel=1e-4)
    assert found.inverse_temperature == pytest.approx(1 / 2.5, rel=0.1)


def test_without_a_calibration_it_is_the_softmax() -> None:
    logits_NC, _ = planted(5, 1.0)
    np.testing.assert_allclose(calibrated(logits_NC, None), softmax(logits_NC, axis=1), rtol=1e-12)
    half = Calibration("temperature", 5, inverse_temperature=0.5)
    np.testing.assert_allclose(calibrated(logits_NC, half), softmax(logits_NC / 2, axis=1), rtol=1e-12)


def test_scores_by_hand() -> None:
    shares_NC = np.array([[0.6, 0.3, 0.1], [0.6, 0.2, 0.2]])
    targets_NC = np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    scores = calibration_scores(shares_NC, targets_NC, seed=0)
    expected = -(0.5 * np.log(0.6) + 0.5 * np.log(0.3) + 0.9 * np.log(0.6) + 0.1 * np.log(0.2)) / 2
    assert scores.cross_entropy == pytest.approx(expected)
    assert scores.ece == pytest.approx(0.1) and scores.ece_argmax == pytest.approx(0.4)
    assert scores.brier == pytest.approx((0.01 + 0.04 + 0.01 + 0.09 + 0.01 + 0.04) / 2)
    (only,) = reliability_bins(shares_NC, targets_NC)
    assert (only.num_records, only.confidence, only.share) == (2, pytest.approx(0.6), pytest.approx(0.7))


def floor_of_hits(confidence_N: np.ndarray, *, seed: int) -> float:
    """What hits that come as often as is said leave, which is the floor of hard labels."""
    hits_RN = np.random.default_rng(seed).random((200, len(confidence_N))) < confidence_N
    bin_N = np.minimum((confidence_N * metrics.ECE_BINS).astype(int), metrics.ECE_BINS - 1)
    gaps_RK = (confidence_N - hits_RN) @ np.eye(metrics.ECE_BINS)[bin_N]
    return float(np.abs(gaps_RK).sum(1).mean() / len(confidence_N))


def test_a_calibrated_model_shows_its_noise_floor_and_hard_labels_the_known_one() -> None:
    floors, errors, known = [], [], []
    for seed in range(20):
        logits_NC, targets_NC = planted(400, 1.0, seed=seed, hard=True)
        shares_NC = softmax(logits_NC, axis=1)
        scores = calibration_scores(shares_NC, targets_NC, seed=seed)
        floors.append(scores.ece_noise_floor)
        errors.append(scores.ece)
        known.append(floor_of_hits(shares_NC.max(1), seed=seed))
    # 20 data sets of 400 records: the means have standard errors of 3 % or less.
    assert np.mean(errors) == pytest.approx(np.mean(floors), rel=0.12)
    assert np.mean(known) == pytest.approx(np.mean(floors), rel=0.12)
