"""The fit of the pooled half: on training records alone, scaled as it says, never stale."""

from pathlib import Path

import numpy as np
import pytest

from redheart.core.errors import CorruptFile
from redheart.data.summary import POOLED_WIDTH, SummaryFit, fit_projection, load_fit, load_or_fit
from redheart.data.words import WORDS_WIDTH, Labels, fit_words

WIDTH = POOLED_WIDTH - WORDS_WIDTH


def summaries(count: int, width: int = 500, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed_NL: np.ndarray = random.normal(size=(count, width)) @ random.normal(size=(width, width)) + 3
    return mixed_NL.astype(np.float32)


def texts(count: int) -> list[str]:
    return [f"text {index % 7} of {index % 3} and more" for index in range(count)]


def labels(count: int, train: np.ndarray) -> Labels:
    values_NT = np.random.default_rng(2).random((count, 3)).astype(np.float32)
    return Labels(train, values_NT, np.ones_like(values_NT, dtype=bool), np.arange(count))


def projected(train_NL: np.ndarray, *others: np.ndarray) -> np.ndarray:
    mean_L, projection_LP = fit_projection(train_NL, np.arange(len(train_NL)), width=WIDTH)
    return SummaryFit("a", mean_L, projection_LP).apply(np.concatenate([train_NL, *others]), [])


def test_components_are_uncorrelated_and_half_whitened() -> None:
    train_NL = summaries(900)
    pooled_NP = projected(train_NL).astype(np.float64)
    assert pooled_NP.shape == (900, WIDTH)
    assert np.mean(pooled_NP**2) == pytest.approx(1, rel=1e-3)
    covariance = np.cov(pooled_NP.T)
    off = covariance - np.diag(np.diag(covariance))
    # float16 keeps three digits.
    assert np.abs(off).max() < 2e-3 * covariance.max()
    scaled_NL = (train_NL - train_NL.mean(0)) / train_NL.std(0)
    largest = np.linalg.svd(scaled_NL, compute_uv=False)[:WIDTH] ** 0.5
    np.testing.assert_allclose(pooled_NP.std(0), largest / np.sqrt(np.mean(largest**2)), rtol=2e-3)


def test_fewer_records_than_components_leave_zeros() -> None:
    train_NL = summaries(40)
    pooled_NP = projected(train_NL, summaries(10, seed=1))
    assert np.isfinite(pooled_NP).all() and (np.abs(pooled_NP).max(0) > 0).sum() == 39


@pytest.mark.parametrize("train_NL", [summaries(1), np.tile(summaries(1), (9, 1))])
def test_records_that_do_not_differ_have_zeros(train_NL: np.ndarray) -> None:
    assert not projected(train_NL).any()


def test_a_fit_is_kept_for_its_key_and_made_anew_for_another(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    train, others = np.arange(0, 50, 2), np.arange(1, 50, 2)
    fitted_on = labels(50, train)

    def fitted(summaries_NL: np.ndarray, key: str, source: str = "records") -> tuple[str, np.ndarray]:
        return load_or_fit(path, key, summaries_NL, texts(50), fitted_on, reads_words=True, source=source)

    _, first_NP = fitted(summaries(50), "a")
    assert first_NP.shape == (50, POOLED_WIDTH)
    found_NP = load_fit(path).apply(summaries(50), texts(50))
    assert np.array_equal(first_NP[others], found_NP[others])
    # A training record's words are read by a fit that has not seen it.
    assert np.array_equal(first_NP[train, :WIDTH], found_NP[train, :WIDTH])
    assert np.array_equal(first_NP[train, WIDTH:], fit_words(texts(50), fitted_on)[1])
    assert not np.array_equal(first_NP[train, WIDTH:], found_NP[train, WIDTH:])
    mean_L, projection_LP = fit_projection(summaries(50), train, width=WIDTH)
    fit = load_fit(path)
    assert np.array_equal(fit.mean_L, mean_L) and np.array_equal(fit.projection_LP, projection_LP) and fit.key == "a"
    # Kept: what is handed over is not even looked at.
    assert np.array_equal(fitted(np.zeros((0, 0)), "a")[1], first_NP)
    # As are the summaries that another machine makes of the same records: models rest on the first.
    key, found_NP = fitted(summaries(50, seed=1), "b")
    assert key == "a" and np.array_equal(found_NP, first_NP) and load_fit(path).key == "a"
    key, other_NP = fitted(summaries(50, seed=1), "b", source="others")
    assert key == load_fit(path).key == "b" and not np.array_equal(other_NP, first_NP)
    content = path.read_bytes()
    for damaged in (content[:100], content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="missing or was changed"):
            load_fit(path)
        assert np.array_equal(fitted(summaries(50), "a")[1], first_NP)


def test_without_words_all_pooled_numbers_are_the_layers(tmp_path: Path) -> None:
    path, train = tmp_path / "fit.safetensors", np.arange(0, 50, 2)
    _, found_NP = load_or_fit(
        path, "a", summaries(50), texts(50), labels(50, train), reads_words=False, source="records"
    )
    fit = load_fit(path)
    assert fit.words is None and np.array_equal(found_NP, fit.apply(summaries(50), []))
    mean_L, projection_LP = fit_projection(summaries(50), train, width=POOLED_WIDTH)
    assert np.array_equal(fit.mean_L, mean_L) and np.array_equal(fit.projection_LP, projection_LP)


def test_a_fit_from_before_words_were_read_gives_what_it_gave() -> None:
    random = np.random.default_rng(0)
    mean_L, projection_LP = (random.normal(size=shape).astype(np.float32) for shape in (12, (12, POOLED_WIDTH)))
    fit = SummaryFit.of({"mean_L": mean_L, "projection_LP": projection_LP, "key": np.frombuffer(b"old", np.uint8)})
    summaries_NL = summaries(3, width=12)
    expected = ((summaries_NL - mean_L) @ projection_LP).astype(np.float16)
    assert fit.key == "old" and np.array_equal(fit.apply(summaries_NL, texts(3)), expected)
    assert set(fit.tensors()) == {"mean_L", "projection_LP", "key"}
