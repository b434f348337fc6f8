"""Metrics against scikit-learn, scipy and figures worked out by hand."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from sklearn.metrics import f1_score, r2_score

from redheart.data.inventory import make_inventory
from redheart.evaluate import metrics
from redheart.evaluate.evaluation import Estimate, _interval, evaluate_predictions


def emotion(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 7)), random.dirichlet(np.ones(7), count)


def test_the_floor_of_shares_that_miss_a_sum_of_one_is_what_the_best_prediction_leaves() -> None:
    targets_NC = np.array([[0.3, 0.67, 0.0], [0.5, 0.5, 0.03], [0.2, 0.3, 0.5]])
    with np.errstate(divide="ignore"):
        best_NC = np.log(targets_NC / targets_NC.sum(1, keepdims=True))
    best_NC[0, 2] = -60.0
    np.testing.assert_allclose(metrics.emotion_kl(best_NC, targets_NC), 0, atol=1e-12)
    others_NC = best_NC + np.random.default_rng(0).normal(0, 0.3, best_NC.shape)
    assert (metrics.emotion_kl(others_NC, targets_NC) > 0).all()


def test_kl_and_f1_agree_with_the_libraries() -> None:
    logits_NC, targets_NC = emotion(50)
    expected_N = rel_entr(targets_NC, softmax(logits_NC, axis=1)).sum(1)
    np.testing.assert_allclose(metrics.emotion_kl(logits_NC, targets_NC), expected_N, rtol=1e-12)
    expected = f1_score(
        targets_NC.argmax(1), logits_NC.argmax(1), average="macro", labels=np.unique(targets_NC.argmax(1))
    )
    assert metrics.macro_f1(logits_NC, targets_NC) == pytest.approx(expected)
    one_hot = np.eye(7)[[2]]
    assert metrics.entropy(one_hot)[0] == 0
    assert metrics.soft_cross_entropy(np.zeros((1, 7)), one_hot)[0] == pytest.approx(np.log(7))


def test_ties_count_for_any_of_the_tied_classes() -> None:
    targets_NC = np.array([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]])
    logits_NC = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert metrics.hits(logits_NC, targets_NC, tie_tolerant=False).tolist() == [0, 0]
    assert metrics.hits(logits_NC, targets_NC, tie_tolerant=True).tolist() == [1, 0]


def test_a_model_that_repeats_soft_labels_is_calibrated() -> None:
    """Held against the arg-max it was off by .6, thirty times the floor that stood beside it."""
    inventory = make_inventory()
    targets_NT = np.zeros((200, inventory.num_targets))
    columns = inventory.columns("emotion")
    targets_NT[:, columns] = np.random.default_rng(0).dirichlet(np.full(7, 3.0), 200)
    mask_NT = np.zeros(targets_NT.shape, dtype=bool)
    mask_NT[:, columns] = True
    predictions = {task.name: np.zeros((200, len(task.targets))) for task in inventory.tasks}
    predictions["emotion"] = np.log(targets_NT[:, columns])
    found = evaluate_predictions(predictions, targets_NT, mask_NT, inventory)
    emotion = found.tasks["emotion"]
    assert emotion["ece"].value == pytest.approx(0, abs=1e-12) == emotion["ece_noise_floor"].value
    assert emotion["ece_argmax"].value > 0.5


def test_evaluation_masks_what_is_absent_and_brackets_its_values() -> None:
    inventory = make_inventory()
    random = np.random.default_rng(0)
    values_NT = random.random((80, 22)).astype(np.float32)
    logits_NC, values_NT[:, :7] = emotion(80)
    mask_NT = np.ones((80, 22), dtype=bool)
    mask_NT[:, 11:17] = False
    mask_NT[40:, 17] = False
    predictions = {task.name: random.random((80, len(task.targets))) for task in inventory.tasks}
    predictions["emotion"] = logits_NC
    found = evaluate_predictions(predictions, values_NT, mask_NT, inventory)
    assert {name for name in found.tasks["bentham"] if name.startswith("r2.")} == {
        "r2.intensity",
        "r2.duration",
        "r2.certainty",
        "r2.propinquity",
    }
    regret = found.tasks["regret"]["r2.regret_factor"]
    assert regret.value == pytest.approx(r2_score(values_NT[:40, 17], predictions["regret"][:40, 0]), rel=1e-5)
    bentham = found.tasks["bentham"]
    mean = np.mean([bentham[name].value for name in bentham if name.startswith("r2.")])
    assert bentham["r2"].value == pytest.approx(mean, rel=1e-12)
    assert bentham["r2"].low is not None and bentham["r2"].high is not None
    assert bentham["r2"].low < mean < bentham["r2"].high
    kl = found.tasks["emotion"]["kl"]
    assert kl.low is not None and kl.high is not None and kl.low < kl.value < kl.high
    mask_NT[:, 18:] = False
    assert "surd" not in evaluate_predictions(predictions, values_NT, mask_NT, inventory).tasks


def test_losses_are_the_training_losses() -> None:
    mask_NO = np.array([[True, False], [False, False]])
    losses_N = metrics.record_losses("values", np.array([[0.5, 9], [1, 1]]), np.array([[0.3, 0], [0, 0]]), mask_NO)
    assert losses_N[0] == pytest.approx(0.5 * 0.04) and np.isnan(losses_N[1])


def test_a_handful_of_records_has_values_and_no_interval_that_is_no_number() -> None:
    inventory = make_inventory()
    for count in (1, 2, 3):
        random = np.random.default_rng(count)
        predictions = {task.name: random.uniform(0, 1, (count, len(task.targets))) for task in inventory.tasks}
        values_NT = random.uniform(0, 1, (count, inventory.num_targets))
        found = evaluate_predictions(predictions, values_NT, np.ones(values_NT.shape, dtype=bool), inventory)
        estimates = [estimate for task in found.tasks.values() for estimate in task.values()]
        assert estimates and all(np.isfinite(estimate.value) for estimate in estimates)
        bounds = [bound for estimate in estimates for bound in (estimate.low, estimate.high) if bound is not None]
        assert np.isfinite(bounds).all()


def test_intervals_of_few_records_are_those_of_so_few() -> None:
    """A bootstrap of three hits of three is certain, and of five values it covers 82 % where it says 95."""
    hits = _interval((np.ones(3),), np.mean, "hits", seed=0)
    assert hits.low is not None and hits.low < 0.5 and hits.high == 1.0
    assert _interval((np.full(3, 0.3),), np.mean, "loss", seed=0) == Estimate(0.3)
    assert _interval((np.array([0.1, 0.2, 1.5]),), np.mean, "loss", seed=0).low == 0.0
    random, covered = np.random.default_rng(0), 0
    for seed in range(200):
        found = _interval((random.normal(9, 1, 5),), np.mean, "loss", seed=seed)
        assert found.low is not None and found.high is not None
        covered += found.low < 9 < found.high
    assert covered >= 180
