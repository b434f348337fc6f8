"""The verdict follows from the interval; having searched is corrected for; noise alone is no evidence."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import FINAL, Additive

from redheart.core.errors import BadInput
from redheart.select.statistics import holm, one_sided_p, out_of_bag_gain, paired_gain, verdict
from redheart.select.strategies import STRATEGIES


@pytest.mark.parametrize("name", ["coordinate", pytest.param("window", marks=pytest.mark.long), "design"])
def test_snapshots_that_differ_by_noise_alone_are_no_evidence_in_95_percent_of_200_seeds(name: str) -> None:
    epochs, modules = tuple(range(2, 26, 2)), ("m0", "m1", "m2", "m3", FINAL)
    false_alarms, promised = 0, []
    for seed in range(200):
        evaluator = Additive(modules, epochs, num_records=150, noise=0.1, seed=seed)
        search = evaluator.search()
        choice = STRATEGIES[name](search)
        reference = search.best_single
        gain = paired_gain(
            evaluator.confirm_N(reference), evaluator.confirm_N(choice.modules), seed=seed, resamples=500
        )
        false_alarms += gain.is_evidence
        promised.append((search.scores_N(reference) - search.scores_N(choice.modules)).mean())
    assert false_alarms <= 10
    # What searches does "find" gains on the records that it searches on: the control is a real one.
    if name in ("coordinate", "window"):
        assert min(promised) > 0


def test_a_planted_gain_is_found_and_said() -> None:
    random = np.random.default_rng(0)
    base_N = random.gamma(2.0, 0.5, 300)
    gain = paired_gain(base_N, base_N - 0.05 + random.normal(0, 0.05, 300), seed=0)
    assert gain.is_evidence and gain.low < gain.percent < gain.high
    assert "is better than" in verdict(gain, candidate="crossover", reference="best single snapshot")
    wider = paired_gain(base_N, base_N - 0.05 + random.normal(0, 0.05, 300), seed=0, level=0.99)
    assert wider.high - wider.low > gain.high - gain.low and "at 99.0%" in str(wider)
    same = paired_gain(base_N, base_N, seed=0)
    assert same.percent == 0 and "No evidence of gain" in verdict(same, candidate="a", reference="b")


def test_records_without_a_target_are_left_out_of_the_comparison() -> None:
    reference_N = np.array([1.0, np.nan, 2.0, 1.5])
    gain = paired_gain(reference_N, reference_N * 0.9, seed=0)
    assert gain.num_records == 3 and gain.percent == pytest.approx(10)
    with pytest.raises(BadInput, match="too few"):
        paired_gain(reference_N[:2], reference_N[:2], seed=0)


def test_holm_against_its_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]


# A busy machine is no fault of the property.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_p_values_are_one_sided() -> None:
    assert one_sided_p(0.0) == 0.5 and one_sided_p(1.6449) == pytest.approx(0.05, abs=1e-4)


def test_bootstrapping_the_choice_takes_most_of_its_optimism_away() -> None:
    errors, optimism = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        # Thirty candidates that are all worth the same; the best one only looks better.
        scores_CN = 1.0 + random.normal(0, 0.3, (30, 400))
        reference_N = 1.0 + random.normal(0, 0.3, 400)
        outside, _ = out_of_bag_gain(scores_CN, reference_N, seed=seed, rounds=100)
        promised = 100 * (1 - scores_CN.mean(1).min() / reference_N.mean())
        errors.append(outside)
        optimism.append(promised)
    assert np.mean(optimism) > 2.0
    assert abs(np.mean(errors)) < 0.3 * np.mean(optimism)


def test_a_real_difference_survives_the_bootstrap_of_the_choice() -> None:
    random = np.random.default_rng(0)
    scores_CN = 1.0 + random.normal(0, 0.1, (10, 400))
    scores_CN[3] -= 0.2
    outside, inside = out_of_bag_gain(scores_CN, 1.0 + random.normal(0, 0.1, 400), seed=0)
    assert outside == pytest.approx(20, abs=2) and inside == pytest.approx(outside, abs=0.5)
