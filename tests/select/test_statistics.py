"""The verdict follows from the interval; having searched is corrected for; noise alone is no evidence."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from synthetic import FINAL, Additive

from redheart.core.errors import BadInput
from redheart.select.problem import SelectionProblem, blends_of
from redheart.select.statistics import (
    LEVEL,
    bca_interval,
    holm,
    level_of,
    level_text,
    one_sided_p,
    out_of_bag_gain,
    paired_gain,
    verdict,
)
from redheart.select.strategies import STRATEGIES


@pytest.mark.parametrize("name", ["coordinate", pytest.param("window", marks=pytest.mark.long), "design"])
def test_snapshots_that_differ_by_noise_alone_are_no_evidence_in_95_percent_of_200_seeds(name: str) -> None:
    epochs, modules = tuple(range(2, 26, 2)), ("m0", "m1", "m2", "m3", FINAL)
    false_alarms, promised = 0, []
    for seed in range(200):
        evaluator = Additive(modules, epochs, num_records=150, noise=0.1, seed=seed)
        search = evaluator.search()
        choice = blends_of(STRATEGIES[name](search))
        reference = search.best_single
        gain = paired_gain(evaluator.confirm_N(reference), evaluator.confirm_N(choice), seed=seed, resamples=500)
        false_alarms += gain.is_evidence
        promised.append((search.scores_N(reference) - search.scores_N(choice)).mean())
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
    worse = paired_gain(base_N, 1.1 * base_N, seed=0)
    assert verdict(worse, candidate="a", reference="b").startswith("The a is worse than the b (-10.00 %")


@pytest.mark.parametrize("number", [30, 31, 500, 3000])
def test_the_interval_is_that_of_scipys_bootstrap(number: int) -> None:
    random = np.random.default_rng(number)
    differences_N = random.gamma(0.7, 1.0, number) - 0.5
    gain = paired_gain(100 + differences_N, np.full(number, 100.0), seed=3, resamples=2000)
    own_random = np.random.default_rng(3)
    found = bootstrap((differences_N,), np.mean, method="BCa", n_resamples=2000, rng=own_random, vectorized=True)
    ends = np.array([found.confidence_interval.low, found.confidence_interval.high])
    assert [gain.low, gain.high] == pytest.approx(100 * ends / (100 + differences_N.mean()), rel=1e-9)


def test_the_price_of_an_interval_goes_with_the_records() -> None:
    """A jackknife that is written out holds the square of their number."""
    random = np.random.default_rng(0)
    losses_N = random.random(10_000)
    tracemalloc.start()
    paired_gain(losses_N, losses_N + random.normal(0, 0.1, 10_000), seed=0, resamples=500)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_a_correction_for_skew_does_not_turn_an_end_round() -> None:
    """Beyond 1 / acceleration the correction of the lower end has a pole."""
    means_B = np.linspace(-1.0, 1.0, 1001)
    assert bca_interval(means_B, 0.0, -1 / 6, level=1 - 1e-12)[0] == -1.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_record_that_one_model_fails_on_counts_against_it(wrong: float) -> None:
    random = np.random.default_rng(0)
    reference_N = random.gamma(2.0, 0.5, 40) + 1
    candidate_N = reference_N * 0.5
    candidate_N[3] = wrong
    gain = paired_gain(reference_N, candidate_N, seed=0)
    assert gain.num_records == 40 and gain.percent < -100 and not gain.is_evidence
    assert paired_gain(candidate_N, reference_N, seed=0).percent > 0


def test_losses_below_zero_turn_no_verdict_round() -> None:
    random = np.random.default_rng(0)
    base_N = random.normal(-2.0, 0.3, 300)
    better = paired_gain(base_N, base_N - 0.2 + random.normal(0, 0.05, 300), seed=0)
    worse = paired_gain(base_N, base_N + 0.2 + random.normal(0, 0.05, 300), seed=0)
    assert better.is_evidence and better.low < better.percent < better.high and better.percent == pytest.approx(10, 0.1)
    assert worse.high < 0 and worse.low < worse.percent < worse.high
    outside, inside = out_of_bag_gain(np.stack([base_N - 0.2, base_N]), base_N, seed=0, rounds=20)
    assert outside == pytest.approx(10, 0.1) and inside == pytest.approx(10, 0.1)
    losses_EN = {"loss": np.stack([base_N, base_N - 0.2])}
    problem = SelectionProblem((1, 2), ("m",), {"m": ("m",)}, losses_EN, {}, ("loss",))
    scores = problem.scores_EN.mean(1)
    assert scores[1] == pytest.approx(-1) and scores[1] < scores[0] < -0.8


@pytest.mark.parametrize("number", [2, 3, 4, 6, 10, 20, 29])
def test_a_handful_of_records_is_evidence_no_more_often_than_it_may_be(number: int) -> None:
    random, found = np.random.default_rng(number), 0
    for seed in range(200):
        base_N = random.gamma(2.0, 0.5, number) + 5
        found += paired_gain(base_N, base_N + random.normal(0, 0.1, number), seed=seed, resamples=300).is_evidence
    # 5 expected of 200 on one side; 12 is more than three standard errors above.
    assert found <= 12


def test_all_choices_that_the_same_records_judge_err_at_most_twice_as_often_as_one() -> None:
    assert level_of(1) == LEVEL and level_of(2) == pytest.approx(0.975)
    assert sum(1 - level_of(number) for number in range(1, 40)) <= 2 * (1 - LEVEL) + 1e-9


def test_the_interval_of_a_later_choice_is_wider_without_end_and_said_so() -> None:
    random = np.random.default_rng(0)
    for number in (5, 40):
        reference_N, candidate_N = random.random((2, number))
        gains = [paired_gain(reference_N, candidate_N, seed=0, level=level_of(place)) for place in range(1, 37)]
        assert all(later.low < gain.low for gain, later in itertools.pairwise(gains))
        assert all(later.high > gain.high for gain, later in itertools.pairwise(gains))
        last = paired_gain(reference_N, candidate_N, seed=0, level=level_of(5000))
        assert last.level < 1 and math.isfinite(last.low) and math.isfinite(last.high)
    texts = [level_text(level_of(place)) for place in (1, 2, 8, 10, 5000)]
    assert texts == ["95.0%", "97.5%", "99.961%", "99.9902%", "99.999999999900%"]


@pytest.mark.parametrize(("place", "enough"), [(1, 6), (2, 7), (8, 13)])
def test_a_few_differences_that_are_the_same_are_no_evidence(place: int, enough: int) -> None:
    """Errors are 0 or 1: as often as not both of two records say the same."""
    for number in (enough - 1, enough):
        better = paired_gain(np.full(number, 1.1), np.full(number, 1.1) - 1, seed=0, level=level_of(place))
        assert better.is_evidence == (number == enough) and better.low == (0 if number < enough else better.percent)
        worse = paired_gain(np.ones(number), np.full(number, 2.0), seed=0, level=level_of(place))
        assert worse.high == (0 if number < enough else worse.percent)


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
    assert one_sided_p(0.0, 4) == 0.5 and one_sided_p(1.6449, 10**6) == pytest.approx(0.05, abs=1e-4)
    # Student's table: 2.353 with three degrees of freedom.
    assert one_sided_p(2.353, 4) == pytest.approx(0.05, abs=1e-4)


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


@pytest.mark.parametrize("labelled", [2, 3, 4, 6, 12])
def test_a_task_with_few_targets_is_evidence_no_more_often_than_it_may_be(labelled: int) -> None:
    """One task is on all of 60 records and another on few, whose weight is then large."""
    random, found = np.random.default_rng(labelled), 0
    for seed in range(200):
        base_N, noise_N = random.gamma(2.0, 0.5, 60) + 5, random.normal(0, 0.1, 60)
        noise_N[:labelled] += random.normal(0, 0.1, labelled) * 60 / labelled
        found += paired_gain(base_N, base_N + noise_N, seed=seed, resamples=300, least_labelled=labelled).is_evidence
    assert found <= 12
