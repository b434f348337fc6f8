"""Correlations by subject: by hand, against scipy, and with nothing there."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from redheart.evaluate.rank_correlation import correlate
from redheart.study.ratings import predicted_affect


def test_one_subject_is_scipy_s_correlation() -> None:
    random = np.random.default_rng(0)
    predicted, rated = random.normal(size=(2, 30))
    found = correlate(predicted, rated, ["a"] * 30)
    assert found is not None and found.rho == pytest.approx(spearmanr(predicted, rated).statistic)
    half_width = 1.959964 * math.sqrt(1.06 / 27)
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(2 * half_width, rel=1e-6)


def test_subjects_are_combined_as_fisher_s_z_not_pooled() -> None:
    # Each subject follows the prediction perfectly but for one swap, on a scale of their own: pooled, it would vanish.
    predicted = [1.0, 2, 3, 4, 5] * 2
    rated = [1, 2, 3, 5, 4, 101, 102, 104, 103, 105]
    found = correlate(predicted, rated, ["a"] * 5 + ["b"] * 5)
    assert found is not None and found.rho == pytest.approx(0.9) and found.num_subjects == 2
    assert found.by_subject == {"a": pytest.approx(0.9), "b": pytest.approx(0.9)}


def test_no_correlation_is_found_as_often_as_it_may_be() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        predicted = np.tile(random.normal(size=12), 8)
        found = correlate(predicted, random.normal(size=96), np.repeat([f"s{index}" for index in range(8)], 12))
        assert found is not None
        hits += found.p_value < 0.05
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    # 15 expected; 27 is more than three standard errors above.
    assert hits <= 27


def test_few_texts_that_happen_to_agree_are_no_certainty() -> None:
    random, hits = np.random.default_rng(3), 0
    for _ in range(300):
        found = correlate(random.normal(size=8), random.normal(size=8), ["a"] * 4 + ["b"] * 4)
        assert found is not None
        hits += found.p_value < 0.05
    # Four texts allow few correlations: two subjects share one in every tenth case.
    assert hits <= 27
    found = correlate([1, 2, 3, 4] * 2, [1, 3, 4, 2, 11, 13, 14, 12], ["a"] * 4 + ["b"] * 4)
    assert found is not None and found.low < 0.4 < found.high and found.p_value > 0.05


def test_the_stated_power_is_what_comes_out() -> None:
    random = np.random.default_rng(2)
    # Known for Pearson's correlation: 20 pairs show .591 or more, 40 .430; Spearman's variance is 1.06 times as large.
    for num, pearson in ((20, 0.591), (40, 0.430)):
        expected = math.tanh(math.sqrt(1.06) * math.atanh(pearson))
        subjects = [f"s{index}" for index in range(num)]
        result = correlate(random.normal(size=num), random.normal(size=num), subjects)
        assert result is not None and result.detectable_rho == pytest.approx(expected, abs=0.001)
        rho = result.detectable_rho
    found = 0
    for _ in range(300):
        x = random.normal(size=40)
        y = rho * x + math.sqrt(1 - rho**2) * random.normal(size=40)
        result = correlate(x, y, subjects)
        assert result is not None and result.design == "across subjects"
        found += result.p_value < 0.05
    # 80 % for Pearson's correlation; Spearman's loses about a tenth of the information in normal data.
    assert 0.65 < found / 300 < 0.86


def test_what_cannot_be_correlated_is_left_out_or_refused() -> None:
    assert correlate([1, 2, 3], [1, 2, 3], ["a"] * 3) is None
    assert correlate([1, 2, 3, 4], [5, 5, 5, 5], ["a"] * 4) is None
    found = correlate([1, 2, 3, 4] * 2, [1, 2, 4, 3, 5, 5, 5, 5], ["a"] * 4 + ["b"] * 4)
    assert found is not None and (found.num_subjects, found.num_left_out) == (1, 1)


def test_valence_is_pleasant_less_unpleasant() -> None:
    emotion = {"joy": 0.4, "trust": 0.1, "fear": 0.1, "surprise": 0.2, "sadness": 0.1, "disgust": 0.05, "anger": 0.05}
    found = predicted_affect({"emotion": emotion, "bentham": {"intensity": 0.7}, "surd": {"surprise": 0.9}})
    assert found["valence"] == found["faa"] == pytest.approx(0.2)
    assert found["arousal"] == 0.7 and found["surprise"] == 0.2 and found["surd.surprise"] == 0.9
    assert "valence" not in predicted_affect({"emotion": {"yes": 0.5, "no": 0.5}})


def test_raters_who_agree_with_each_other_are_not_so_many_witnesses() -> None:
    """What a prediction shares by chance with a consensus on twelve texts, every rater repeats: .4 were "found"."""
    random, hits = np.random.default_rng(4), 0
    subjects, texts = np.repeat([f"s{index}" for index in range(10)], 12), np.tile(np.arange(12).astype(str), 10)
    for _ in range(60):
        consensus, noise = random.normal(size=12), random.normal(size=(10, 12))
        hits += (
            correlate(  # type: ignore[union-attr]
                np.tile(random.normal(size=12), 10), (consensus + noise).ravel(), subjects, texts
            ).p_value
            < 0.05
        )
    # 3 expected; 9 is more than three standard errors above.
    assert hits <= 9
    consensus = np.arange(12.0)
    followed = correlate(np.tile(consensus, 10), (consensus + random.normal(size=(10, 12))).ravel(), subjects, texts)
    assert followed is not None and followed.p_value < 0.01


@pytest.mark.parametrize(("num_subjects", "num_texts", "each"), [(60, 6, 1), (60, 6, 3), (40, 30, 1), (20, 20, 3)])
def test_subjects_who_share_a_few_texts_are_not_so_many_witnesses(num_subjects: int, num_texts: int, each: int) -> None:
    """Six texts, sixty subjects with one each: .45 were "found" where nothing was."""
    random = np.random.default_rng(5)

    def share_found(effect: float) -> float:
        hits = 0
        for _ in range(100):
            predicted, noise = random.normal(size=num_texts), random.normal(size=num_texts)
            texts = np.concatenate([random.choice(num_texts, each, replace=False) for _ in range(num_subjects)])
            rated = (effect * predicted + noise)[texts] + random.normal(size=len(texts))
            subjects = np.repeat([f"s{index}" for index in range(num_subjects)], each)
            found = correlate(predicted[texts], rated, subjects, texts.astype(str))
            assert found is not None and found.design == "across texts"
            hits += found.p_value < 0.05
        return hits / 100

    # 5 % expected; 12 % is more than three standard errors above.
    assert share_found(0) <= 0.12
    assert share_found(5) > 0.8


def test_few_shared_texts_are_too_little_to_correlate() -> None:
    subjects, texts = [f"s{index}" for index in range(12)], ["a", "b", "c"] * 4
    assert correlate([1, 2, 3] * 4, list(range(12)), subjects, texts) is None
    # Each of their own: subjects are what is compared.
    own = [f"t{index}" for index in range(6)]
    found = correlate([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5], subjects[:6], own)
    assert found is not None and found.rho == pytest.approx(1 - 6 * 2 / 210)
    # Of so few a perfect order is no rarity.
    assert correlate([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], subjects[:5], own[:5]) is None
