"""Fitting a calibration to soft labels, by scikit-learn.

A record whose target gives class c the share p stands once for every class, with the weight p. Weighted so, the log
loss that the calibrators minimise is the soft cross-entropy itself, and each one-against-rest fit sees exactly the
shares; no label is drawn or rounded to the arg-max.

Shape suffixes: N records, C classes.
"""

from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV

from redheart.evaluate.calibration import Calibration, Curve, Method

_SKLEARN_NAMES = {"temperature": "temperature", "platt": "sigmoid", "isotonic": "isotonic"}


class _LogProbabilities(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The model as scikit-learn sees it: its inputs are its own log-probabilities, and there is nothing to fit.

    Not a `FrozenEstimator`, through which scikit-learn 1.9 warns that weights would be lost, though none are.
    """

    def fit(
        self, scores_NC: np.ndarray, labels_N: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "_LogProbabilities":
        self.classes_ = np.unique(labels_N)
        return self

    def decision_function(self, scores_NC: np.ndarray) -> np.ndarray:
        return scores_NC

    def predict(self, scores_NC: np.ndarray) -> np.ndarray:
        labels: np.ndarray = self.classes_[scores_NC.argmax(1)]
        return labels


def fit(method: Method, logits_NC: np.ndarray, targets_NC: np.ndarray) -> Calibration:
    """Fit a calibrator to soft targets (N, C) that sum to 1; at least five records are needed.

    Sources: Guo et al. 2017 (temperature), Platt 1999, Zadrozny and Elkan 2002, through `CalibratedClassifierCV`.
    """
    classifier = fit_classifier(method, logits_NC, targets_NC)
    (fitted,) = classifier.calibrated_classifiers_
    calibrators, num_records = fitted.calibrators, len(logits_NC)
    if method == "temperature":
        return Calibration(method, num_records, inverse_temperature=float(calibrators[0].beta_))
    if method == "platt":
        slopes, offsets = [float(item.a_) for item in calibrators], [float(item.b_) for item in calibrators]
        return Calibration(method, num_records, slopes=slopes, offsets=offsets)
    curves = [Curve(item.X_thresholds_.tolist(), item.y_thresholds_.tolist()) for item in calibrators]
    return Calibration(method, num_records, curves=curves)


def fit_classifier(method: Method, logits_NC: np.ndarray, targets_NC: np.ndarray) -> Any:
    """scikit-learn's own fitted classifier, over log-probabilities."""
    num_records, num_classes = targets_NC.shape
    scores_NC = log_softmax(logits_NC.astype(np.float64), axis=1)
    classifier = CalibratedClassifierCV(_LogProbabilities(), method=_SKLEARN_NAMES[method], ensemble=False)
    classifier.fit(
        np.repeat(scores_NC, num_classes, axis=0),
        np.tile(np.arange(num_classes), num_records),
        sample_weight=targets_NC.astype(np.float64).reshape(-1),
    )
    return classifier
