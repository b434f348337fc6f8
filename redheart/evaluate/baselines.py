"""What simple models reach on the same split: constant, TF-IDF, and a linear probe on the pooled features.

All are fitted on the training records; ridge strengths are chosen on the select half of the validation records.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from redheart.data.features import FeatureCache, input_text
from redheart.data.inventory import Inventory
from redheart.data.prepare import Prepared
from redheart.evaluate.evaluation import Evaluation, evaluate_predictions

_RIDGE_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
# Keeps the logarithm of a predicted share finite.
_SMALLEST_SHARE = 0.01

# Dense or sparse rows; scipy.sparse has no types.
Inputs = Any


def fit_baselines(prepared: Prepared, features: FeatureCache, *, text_chars: int) -> dict[str, Evaluation]:
    """Evaluate every baseline on the test split; by name."""
    texts = [input_text(record, text_chars=text_chars) for record in prepared.records]
    train = prepared.split["train"]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=50_000)
    vectorizer.fit([texts[row] for row in train])
    pooled_ND = np.stack([features.row(index).astype(np.float32).mean(0) for index in range(len(features))])
    scaled_ND = StandardScaler().fit(pooled_ND[train]).transform(pooled_ND)
    return {
        "constant": _evaluate(prepared, _constant(prepared)),
        "TF-IDF + ridge": _evaluate(prepared, _ridge(prepared, vectorizer.transform(texts))),
        "linear probe": _evaluate(prepared, _ridge(prepared, scaled_ND)),
    }


def _evaluate(prepared: Prepared, predictions: dict[str, np.ndarray]) -> Evaluation:
    rows = prepared.split["test"]
    return evaluate_predictions(predictions, prepared.values_NT[rows], prepared.mask_NT[rows], prepared.inventory)


def _constant(prepared: Prepared) -> dict[str, np.ndarray]:
    train, test = prepared.split["train"], prepared.split["test"]
    means_T = [
        prepared.values_NT[train, column][prepared.mask_NT[train, column]].mean()
        if prepared.mask_NT[train, column].any()
        else 0.0
        for column in range(prepared.inventory.num_targets)
    ]
    return as_predictions(np.tile(means_T, (len(test), 1)), prepared.inventory)


def _ridge(prepared: Prepared, inputs_ND: Inputs) -> dict[str, np.ndarray]:
    train, select, test = (prepared.split[part] for part in ("train", "val_select", "test"))
    columns = [column for column in range(prepared.inventory.num_targets) if prepared.mask_NT[train, column].any()]
    predicted_NT = np.zeros((len(test), prepared.inventory.num_targets))
    for group in _columns_of_equal_rows(prepared.mask_NT[train], columns):
        present = train[prepared.mask_NT[train, group[0]]]
        checked = select[prepared.mask_NT[select, group[0]]]
        fits = [
            Ridge(strength, solver="lsqr" if isinstance(inputs_ND, csr_matrix) else "auto").fit(
                inputs_ND[present], prepared.values_NT[np.ix_(present, group)]
            )
            for strength in _RIDGE_STRENGTHS
        ]
        errors_SG = [
            np.square(_table(fit.predict(inputs_ND[checked])) - prepared.values_NT[np.ix_(checked, group)]).mean(0)
            for fit in fits
        ]
        best_G = np.argmin(errors_SG, axis=0)
        # One strength for a whole distribution, one for each value.
        emotion = prepared.inventory.columns("emotion")
        of_emotion = [index for index, column in enumerate(group) if column < emotion.stop]
        if of_emotion:
            best_G[of_emotion] = np.argmin(np.array(errors_SG)[:, of_emotion].sum(1))
        for index, column in enumerate(group):
            predicted_NT[:, column] = _table(fits[best_G[index]].predict(inputs_ND[test]))[:, index]
    return as_predictions(predicted_NT, prepared.inventory)


def _columns_of_equal_rows(mask_NT: np.ndarray, columns: Sequence[int]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for column in columns:
        groups.setdefault(mask_NT[:, column].tobytes(), []).append(column)
    return list(groups.values())


def _table(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def as_predictions(values_NT: np.ndarray, inventory: Inventory) -> dict[str, np.ndarray]:
    """Predicted targets as predictions by task: shares become logits, values stay within 0-1."""
    predictions = {}
    for task in inventory.tasks:
        part_NO = values_NT[:, inventory.columns(task.name)]
        is_distribution = task.kind == "distribution"
        predictions[task.name] = np.log(np.maximum(part_NO, _SMALLEST_SHARE)) if is_distribution else part_NO.clip(0, 1)
    return predictions
