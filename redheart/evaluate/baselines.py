"""What simple models reach on the same split: constant, TF-IDF, and a linear probe on the pooled features.

All are fitted on the training records; strengths, and ridge or logistic for the emotion, are chosen on the select half
of the validation records.

Shape suffixes: N records, T target columns, G some of them, O targets of a task, D inputs.
"""

import numpy as np
from scipy.sparse import issparse
from sklearn.preprocessing import StandardScaler

from redheart.data.features import FeatureCache
from redheart.data.input_text import input_text
from redheart.data.inventory import Inventory
from redheart.data.prepare import Prepared
from redheart.data.words import columns_of_equal_rows, word_counts
from redheart.evaluate import metrics
from redheart.evaluate.evaluation import Evaluation, evaluate_predictions
from redheart.evaluate.linear import Inputs, logistic_path, ridge_path

_RIDGE_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
# TF-IDF rows have unit length and standardised features a length of about 28, so their best strengths lie far apart.
_LOGISTIC_STRENGTHS = {True: (0.03, 0.1, 0.3, 1.0), False: (100.0, 300.0, 1000.0, 3000.0)}
# Keeps the logarithm of a predicted share finite.
_SMALLEST_SHARE = 0.01

CHECKED = ("val_select", "test")
"""Parts that every baseline predicts."""

Predictions = dict[str, np.ndarray]
"""By task: emotion logits (N, C), values in 0-1 (N, O)."""


def fit_baselines(prepared: Prepared, features: FeatureCache, *, text_chars: int) -> dict[str, Evaluation]:
    """Evaluate every baseline on the test split; by name."""
    found = linear_baselines(prepared, features, text_chars=text_chars)
    return {name: evaluate_on(prepared, parts["test"], "test") for name, parts in found.items()}


def linear_baselines(
    prepared: Prepared, features: FeatureCache, *, text_chars: int
) -> dict[str, dict[str, Predictions]]:
    """Predictions of every linear baseline: by name, then part."""
    texts = [input_text(record, text_chars=text_chars) for record in prepared.records]
    train = prepared.split["train"]
    pooled_ND = pooled_features(features)
    found = {"constant": _constant(prepared)}
    if counted := word_counts([texts[row] for row in train]):
        found["TF-IDF + linear"] = _linear(prepared, counted[0].transform(texts))
    found["linear probe"] = _linear(prepared, StandardScaler().fit(pooled_ND[train]).transform(pooled_ND))
    if features.manifest.summary_width:
        found["linear probe, all layers"] = _linear(prepared, features.layers_NP.astype(np.float32))
    return found


def pooled_features(features: FeatureCache) -> np.ndarray:
    """Mean of the encoder's last states over the tokens of every record, (N, W) float32."""
    width = features.manifest.state_width
    if features.manifest.summary_width:
        return features.summaries_NL[:, -width:]
    return np.stack([features.row(index).astype(np.float32).mean(0) for index in range(len(features))])


def evaluate_on(prepared: Prepared, predictions: Predictions, part: str) -> Evaluation:
    """Evaluate predictions of a part of the split."""
    rows = prepared.split[part]
    return evaluate_predictions(predictions, prepared.values_NT[rows], prepared.mask_NT[rows], prepared.inventory)


def _constant(prepared: Prepared) -> dict[str, Predictions]:
    train = prepared.split["train"]
    columns = zip(prepared.values_NT[train].T, prepared.mask_NT[train].T, strict=True)
    means_T = [values_N[mask_N].mean() if mask_N.any() else 0.0 for values_N, mask_N in columns]
    return {
        part: as_predictions(np.tile(means_T, (len(prepared.split[part]), 1)), prepared.inventory) for part in CHECKED
    }


def _linear(prepared: Prepared, inputs_ND: Inputs) -> dict[str, Predictions]:
    train, select = prepared.split["train"], prepared.split["val_select"]
    columns = [column for column in range(prepared.inventory.num_targets) if prepared.mask_NT[train, column].any()]
    rows = np.concatenate([prepared.split[part] for part in CHECKED])
    predicted_NT = np.zeros((len(rows), prepared.inventory.num_targets))
    # Strengths are chosen where the target is, so that the select records count too.
    for group in columns_of_equal_rows(prepared.mask_NT[np.concatenate([train, select])], columns):
        present = train[prepared.mask_NT[train, group[0]]]
        checked = np.asarray(prepared.mask_NT[select, group[0]])
        path = ridge_path(
            inputs_ND[present],
            prepared.values_NT[np.ix_(present, group)],
            inputs_ND[rows],
            strengths=_RIDGE_STRENGTHS,
        )
        truth_NG = prepared.values_NT[np.ix_(select[checked], group)]
        # Without a record to choose on, the strengths are as good as each other.
        errors_SG = np.zeros((len(path), len(group)))
        if checked.any():
            errors_SG[:] = [np.square(found_NG[: len(select)][checked] - truth_NG).mean(0) for found_NG in path]
        # One strength for a whole distribution, one for each value.
        emotion = [index for index, column in enumerate(group) if column < prepared.inventory.columns("emotion").stop]
        errors_SG[:, emotion] = errors_SG[:, emotion].sum(1, keepdims=True)
        for index, best in enumerate(np.argmin(errors_SG, axis=0)):
            predicted_NT[:, group[index]] = path[best][:, index]
    predictions = as_predictions(predicted_NT, prepared.inventory)
    _take_logistic_if_better(prepared, inputs_ND, rows, predictions)
    ends = np.cumsum([len(prepared.split[part]) for part in CHECKED])[:-1]
    cut = {task: np.split(values_NO, ends) for task, values_NO in predictions.items()}
    return {part: {task: pieces[index] for task, pieces in cut.items()} for index, part in enumerate(CHECKED)}


def _take_logistic_if_better(prepared: Prepared, inputs_ND: Inputs, rows: np.ndarray, predictions: Predictions) -> None:
    columns = prepared.inventory.columns("emotion")
    labelled_N = np.asarray(prepared.mask_NT[:, columns].all(1))
    train, select = prepared.split["train"], prepared.split["val_select"]
    present, checked = train[labelled_N[train]], labelled_N[select]
    if not len(present) or not checked.any():
        return
    targets_NC = prepared.values_NT[select[checked]][:, columns]

    def loss(logits_NC: np.ndarray) -> float:
        return float(metrics.soft_cross_entropy(logits_NC[: len(select)][checked], targets_NC).mean())

    path = logistic_path(
        inputs_ND[present],
        prepared.values_NT[present][:, columns].astype(np.float64),
        inputs_ND[rows],
        strengths=_LOGISTIC_STRENGTHS[issparse(inputs_ND)],
    )
    predictions["emotion"] = min([predictions["emotion"], *path], key=loss)


def as_predictions(values_NT: np.ndarray, inventory: Inventory) -> Predictions:
    """Predicted targets as predictions by task: shares become logits, values stay within 0-1."""
    predictions = {}
    for task in inventory.tasks:
        part_NO = values_NT[:, inventory.columns(task.name)]
        is_distribution = task.kind == "distribution"
        predictions[task.name] = np.log(np.maximum(part_NO, _SMALLEST_SHARE)) if is_distribution else part_NO.clip(0, 1)
    return predictions
