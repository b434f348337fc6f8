"""Linear models for soft targets: ridge for values, logistic regression on target distributions.

Shape suffixes: N records, D inputs, C classes, G target columns, S strengths.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Ridge

# Dense or sparse rows; scipy.sparse has no types.
Inputs = Any

_MAX_ITERATIONS = 150


def ridge_path(
    inputs_ND: Inputs, values_NG: np.ndarray, checked_MD: Inputs, *, strengths: tuple[float, ...]
) -> list[np.ndarray]:
    """Predictions (M, G) of a ridge regression for every strength."""
    solver = "lsqr" if issparse(inputs_ND) else "auto"
    fits = [Ridge(strength, solver=solver).fit(inputs_ND, values_NG) for strength in strengths]
    return [fit.predict(checked_MD).reshape(-1, values_NG.shape[1]) for fit in fits]


def logistic_path(
    inputs_ND: Inputs, shares_NC: np.ndarray, checked_MD: Inputs, *, strengths: tuple[float, ...]
) -> list[np.ndarray]:
    """Logits (M, C) of a multinomial logistic regression on target distributions, for every L2 strength.

    The strength weighs half the squared weights against the summed cross-entropy. Each fit starts from the one before.
    """
    num_inputs, num_classes = inputs_ND.shape[1], shares_NC.shape[1]
    transposed_DN = inputs_ND.T.tocsr() if issparse(inputs_ND) else inputs_ND.T
    start = np.concatenate((np.zeros(num_inputs * num_classes), np.log(shares_NC.mean(0) + 1e-6)))

    def objective(flat: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        weights_DC, bias_C = flat[:-num_classes].reshape(num_inputs, num_classes), flat[-num_classes:]
        logits_NC = inputs_ND @ weights_DC + bias_C
        error_NC = softmax(logits_NC, axis=1) - shares_NC
        loss = -(shares_NC * log_softmax(logits_NC, axis=1)).sum() + 0.5 * strength * np.square(weights_DC).sum()
        gradient = np.concatenate(((transposed_DN @ error_NC + strength * weights_DC).ravel(), error_NC.sum(0)))
        return float(loss), gradient

    found = []
    # The strongest penalty first: its solution is near the start, and near the next one's.
    for strength in sorted(strengths, reverse=True):
        result = minimize(
            objective, start, args=(strength,), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}
        )
        start = result.x
        found.append(checked_MD @ start[:-num_classes].reshape(num_inputs, num_classes) + start[-num_classes:])
    return found
