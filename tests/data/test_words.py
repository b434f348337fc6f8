"""What the words say: scikit-learn's figures, of training records by fits that have not seen them, never more."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from redheart.data.words import WORDS_WIDTH, Labels, WordFit, fit_words

WORDS = ("anger", "brother", "Calm", "dinner", "éclair", "forgive", "guilt", "집에서", "he", "İstanbul", "a", "x1")
random = np.random.default_rng(0)
TEXTS = [" ".join(random.choice(WORDS, size=random.integers(3, 30))) for _ in range(400)]
TRAIN = np.arange(0, 300)
COPIES = WORDS_WIDTH // 3


def labels(texts: list[str], train: np.ndarray = TRAIN, *, noise: float = 0.1) -> Labels:
    """Three targets: a word's share, noise, and one that is absent."""
    share_N = np.array([text.split().count("anger") / max(1, len(text.split())) for text in texts])
    values_NT = np.stack([share_N, random.normal(size=len(texts)), np.zeros(len(texts))], axis=1)
    values_NT[:, 0] += noise * share_N.std() * random.normal(size=len(texts))
    mask_NT = np.ones_like(values_NT, dtype=bool)
    mask_NT[:, 2] = False
    return Labels(train, values_NT.astype(np.float32), mask_NT, np.arange(len(texts)))


LABELS = labels(TEXTS)
FIT, UNSEEN_MK = fit_words(TEXTS, LABELS)


def by_scikit_learn(fit: WordFit, texts: list[str]) -> np.ndarray:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), vocabulary=list(fit.terms))
    vectorizer.idf_ = fit.idf_V
    numbers_NT: np.ndarray = vectorizer.transform(texts) @ fit.weights_VT.astype(np.float64) + fit.offset_T
    return numbers_NT


def test_a_training_record_s_numbers_are_of_fits_that_have_not_seen_it() -> None:
    wanted_NT = LABELS.values_NT
    numbers_NK = FIT.apply(TEXTS)
    assert numbers_NK.shape == (400, WORDS_WIDTH) and numbers_NK.dtype == np.float16
    told = (
        np.corrcoef(UNSEEN_MK[:, 0], wanted_NT[TRAIN, 0])[0, 1],
        np.corrcoef(numbers_NK[300:, 0], wanted_NT[300:, 0])[0, 1],
    )
    assert min(told) > 0.8 and abs(told[0] - told[1]) < 0.1
    # Noise is fitted well where it was seen, and not where it was not.
    assert np.corrcoef(numbers_NK[TRAIN, 1], wanted_NT[TRAIN, 1])[0, 1] > 0.3
    assert abs(np.corrcoef(UNSEEN_MK[:, 1], wanted_NT[TRAIN, 1])[0, 1]) < 0.2


def test_training_records_numbers_are_standardised_and_repeated() -> None:
    numbers_MK = UNSEEN_MK.astype(np.float64)
    # Two of three targets are there.
    assert np.array_equal(numbers_MK[:, :2], numbers_MK[:, 2:4]) and (numbers_MK.std(0) > 0).all()
    np.testing.assert_allclose(numbers_MK.mean(0), 0, atol=2e-3)
    np.testing.assert_allclose(numbers_MK.std(0), 1, atol=2e-3)


def test_the_fit_is_ridge_s_on_all_training_records() -> None:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    inputs_MV = vectorizer.fit_transform(TEXTS[:300])
    found_N = FIT.apply(TEXTS[300:])[:, 0].astype(np.float64)
    likeness = []
    for strength in (1.0, 3.0, 10.0, 30.0):
        ridge = Ridge(strength).fit(inputs_MV, LABELS.values_NT[TRAIN, 0])
        likeness.append(np.corrcoef(ridge.predict(vectorizer.transform(TEXTS[300:])), found_N)[0, 1])
    assert max(likeness) > 0.9999


@given(st.text(st.sampled_from("ab é집İẞ.,-_1\n"), max_size=40) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_other_texts_have_the_numbers_that_scikit_learn_gives(text: str) -> None:
    # float16 keeps three digits of numbers up to 16.
    np.testing.assert_allclose(FIT.apply([text])[:, :2], by_scikit_learn(FIT, [text]), atol=1e-2)


def test_a_text_s_numbers_do_not_depend_on_the_others() -> None:
    assert np.array_equal(FIT.apply(TEXTS[:7])[3], FIT.apply([TEXTS[3]])[0])


@pytest.mark.parametrize("texts", [["one text"], ["no two", "share any", "such word"], [""]])
def test_texts_without_a_word_in_common_have_zeros(texts: list[str]) -> None:
    fit, unseen_MK = fit_words(texts, labels(texts, np.arange(len(texts))))
    assert not unseen_MK.any() and unseen_MK.shape == (len(texts), WORDS_WIDTH)
    assert not fit.apply([*texts, "something else"]).any()


def test_more_targets_than_columns_are_cut() -> None:
    values_NT = np.random.default_rng(3).random((400, 70)).astype(np.float32)
    fit, unseen_MK = fit_words(TEXTS, Labels(TRAIN, values_NT, np.ones_like(values_NT, dtype=bool), np.arange(400)))
    assert unseen_MK.shape == (300, WORDS_WIDTH) and fit.apply(TEXTS[:3]).shape == (3, WORDS_WIDTH)


def test_no_record_is_predicted_by_a_fit_on_its_near_duplicate() -> None:
    texts, noise_N = TEXTS[:200] * 2, np.tile(random.normal(size=200), 2)
    values_NT, row_N = noise_N[:, None].astype(np.float32), np.arange(400)
    for group_N, told in ((row_N, True), (row_N % 200, False)):
        _, unseen_MK = fit_words(texts, Labels(row_N, values_NT, np.ones((400, 1), dtype=bool), group_N))
        assert (np.corrcoef(unseen_MK[:, 0], noise_N)[0, 1] > 0.3) == told


def test_the_digest_is_of_the_training_records() -> None:
    other = LABELS.values_NT.copy()
    other[350] += 1
    assert replace(LABELS, values_NT=other).digest == LABELS.digest
    other[0] += 1
    assert replace(LABELS, values_NT=other).digest != LABELS.digest
    # The numbers of groups are nothing but names.
    assert replace(LABELS, group_N=7 * LABELS.group_N[::-1]).digest == LABELS.digest
    assert replace(LABELS, group_N=LABELS.group_N // 2).digest != LABELS.digest


@pytest.mark.parametrize("groups", range(1, 7))
def test_a_target_of_near_duplicates_of_few_texts_has_no_fold_without_a_record(groups: int) -> None:
    """Of one text alone nothing is left to fit on, and it is not predicted."""
    mask_NT = LABELS.mask_NT.copy()
    mask_NT[12:, 1] = False
    group_N = np.where(np.arange(len(TEXTS)) < 12, np.arange(len(TEXTS)) % groups, np.arange(len(TEXTS)))
    fit, _ = fit_words(TEXTS, replace(LABELS, mask_NT=mask_NT, group_N=group_N))
    without, _ = fit_words(TEXTS, replace(LABELS, mask_NT=mask_NT & [True, False, False], group_N=group_N))
    assert (fit.weights_VT.shape == without.weights_VT.shape) == (groups == 1)
