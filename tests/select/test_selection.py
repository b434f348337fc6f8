"""Strategies see the select records only; the verdict follows from the interval."""

import numpy as np
import pytest

from redheart.core.errors import BadInput
from redheart.select.problem import SelectionProblem
from redheart.select.statistics import paired_gain, verdict
from redheart.select.strategies import STRATEGIES, strategy_named
from redheart.select.sweet_spot import find_sweet_spot

EPOCHS = (2, 4, 6)


def problem(curves: dict[str, list[float]], *, train: dict[str, list[float]] | None = None) -> SelectionProblem:
    random = np.random.default_rng(0)
    noise_N = random.normal(0, 0.01, 200)
    noise_N -= noise_N.mean()
    return SelectionProblem(
        epochs=EPOCHS,
        modules=("backbone", "heads.a", "neural.a", "phases.b"),
        groups={"top": ("backbone", "heads.a"), "neural": ("neural.a",), "phases": ("phases.b",)},
        losses_EN={name: np.array(means)[:, None] + noise_N for name, means in curves.items()},
        train_losses_E={name: np.array((train or curves)[name]) for name in curves},
        finals=("heads.a",),
    )


def test_design_takes_each_group_at_its_own_best_and_the_anchor_where_it_has_no_loss() -> None:
    choice = STRATEGIES["design"](problem({"heads.a": [1.0, 0.8, 0.9], "neural.a": [0.7, 0.8, 0.9]}))
    assert choice.anchor_epoch == 4
    assert choice.groups["top"].epochs == (4,)
    assert choice.groups["neural"].epochs == (2,)
    assert choice.groups["phases"].epochs == (4,) and choice.groups["phases"].scores_E is None


def test_overfit_penalty_counts_only_validation_above_training() -> None:
    curves = {"heads.a": [1.0, 1.0, 1.0], "neural.a": [0.80, 0.79, 0.81]}
    penalised = problem(curves, train={"heads.a": [1.0] * 3, "neural.a": [0.80, 0.60, 0.95]})
    assert STRATEGIES["design"](penalised).groups["neural"].epochs == (2,)


def test_ties_go_to_the_lower_variance() -> None:
    tied = problem({"heads.a": [1.0, 0.9, 1.0], "neural.a": [0.5, 0.5, 0.5]})
    tied.losses_EN["neural.a"][0] += np.tile([0.2, -0.2], 100)
    tied.losses_EN["neural.a"][2] += np.tile([0.1, -0.1], 100)
    chosen = STRATEGIES["design"](tied).groups["neural"]
    assert chosen.epochs == (4,) and "variance" in chosen.reason


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_covers_every_module(name: str) -> None:
    given = problem({"heads.a": [1.0, 0.8, 0.9], "neural.a": [0.7, 0.8, 0.9]})
    spot = find_sweet_spot(given, name)
    assert set(spot.modules) == set(given.modules)
    assert all(epoch in EPOCHS for epochs in spot.modules.values() for epoch in epochs)


def test_unknown_strategy() -> None:
    with pytest.raises(BadInput, match="unknown selection strategy"):
        strategy_named("luck")


def test_noise_alone_is_no_evidence_in_95_of_100_seeds() -> None:
    false_alarms = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        base_N = random.gamma(2.0, 0.5, 300)
        gain = paired_gain(base_N + random.normal(0, 0.1, 300), base_N + random.normal(0, 0.1, 300), seed=seed)
        false_alarms += gain.is_evidence
    assert false_alarms <= 5


def test_a_planted_gain_is_found_and_said() -> None:
    random = np.random.default_rng(0)
    base_N = random.gamma(2.0, 0.5, 300)
    gain = paired_gain(base_N, base_N - 0.05 + random.normal(0, 0.05, 300), seed=0)
    assert gain.is_evidence and gain.low < gain.percent < gain.high
    assert "is better than" in verdict(gain, candidate="crossover", reference="best single snapshot")
    same = paired_gain(base_N, base_N, seed=0)
    assert same.percent == 0 and "No evidence of gain" in verdict(same, candidate="a", reference="b")


def test_records_without_a_target_are_left_out_of_the_comparison() -> None:
    reference_N = np.array([1.0, np.nan, 2.0, 1.5])
    gain = paired_gain(reference_N, reference_N * 0.9, seed=0)
    assert gain.num_records == 3 and gain.percent == pytest.approx(10)
    with pytest.raises(BadInput, match="too few"):
        paired_gain(reference_N[:2], reference_N[:2], seed=0)


@pytest.mark.parametrize("losses", [[1.0, 1.0, 0.9], [0.9, 0.9], [0.5, 0.9, 0.9, 0.9]])
def test_a_handful_of_records_has_an_interval(losses: list[float]) -> None:
    gain = paired_gain(np.ones(len(losses)), np.array(losses) + 1e-9, seed=0)
    assert gain.low <= gain.percent <= gain.high
