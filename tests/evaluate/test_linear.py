"""Linear models on soft targets against scikit-learn's on classes."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from redheart.evaluate.linear import logistic_path, ridge_path


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    inputs_ND = random.normal(size=(200, 5))
    return inputs_ND, (inputs_ND[:, :3] + random.normal(size=(200, 3))).argmax(1)


def test_logistic_on_classes_is_scikit_learns() -> None:
    inputs_ND, classes_N = data()
    expected_NC = (
        LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(inputs_ND, classes_N).predict_log_proba(inputs_ND)
    )
    for given in (inputs_ND, csr_matrix(inputs_ND)):
        (found_NC,) = logistic_path(given, np.eye(3)[classes_N], given, strengths=(2.0,))
        np.testing.assert_allclose(log_softmax(found_NC, axis=1), expected_NC, atol=2e-3)


def test_sparse_and_dense_ridge_agree() -> None:
    inputs_ND, classes_N = data()
    values_NG = np.stack((inputs_ND[:, 0] * 0.3, classes_N.astype(float)), axis=1)
    dense = ridge_path(inputs_ND, values_NG, inputs_ND[:7], strengths=(1.0, 10.0))
    sparse = ridge_path(csr_matrix(inputs_ND), values_NG, csr_matrix(inputs_ND[:7]), strengths=(1.0, 10.0))
    for one, other in zip(dense, sparse, strict=True):
        assert one.shape == (7, 2)
        np.testing.assert_allclose(one, other, atol=1e-3)
