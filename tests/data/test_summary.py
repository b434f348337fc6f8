"""The fit of the pooled half: on training records alone, scaled as it says, never stale."""

from pathlib import Path

import numpy as np
import pytest

from redheart.core.errors import CorruptFile
from redheart.data.summary import POOLED_WIDTH, fit_summary, load_fit, load_or_fit


def summaries(count: int, width: int = 500, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed_NL: np.ndarray = random.normal(size=(count, width)) @ random.normal(size=(width, width)) + 3
    return mixed_NL.astype(np.float32)


def test_components_are_uncorrelated_and_half_whitened() -> None:
    train_NL = summaries(900)
    pooled_NP = fit_summary(train_NL, key="a").apply(train_NL).astype(np.float64)
    assert pooled_NP.shape == (900, POOLED_WIDTH)
    assert np.mean(pooled_NP**2) == pytest.approx(1, rel=1e-3)
    covariance = np.cov(pooled_NP.T)
    off = covariance - np.diag(np.diag(covariance))
    # float16 keeps three digits.
    assert np.abs(off).max() < 2e-3 * covariance.max()
    scaled_NL = (train_NL - train_NL.mean(0)) / train_NL.std(0)
    largest = np.linalg.svd(scaled_NL, compute_uv=False)[:POOLED_WIDTH] ** 0.5
    np.testing.assert_allclose(pooled_NP.std(0), largest / np.sqrt(np.mean(largest**2)), rtol=2e-3)


def test_fewer_records_than_components_leave_zeros() -> None:
    train_NL = summaries(40)
    pooled_NP = fit_summary(train_NL, key="a").apply(np.concatenate((train_NL, summaries(10, seed=1))))
    assert np.isfinite(pooled_NP).all() and (np.abs(pooled_NP).max(0) > 0).sum() == 39


@pytest.mark.parametrize("train_NL", [summaries(1), np.tile(summaries(1), (9, 1))])
def test_records_that_do_not_differ_have_zeros(train_NL: np.ndarray) -> None:
    assert not fit_summary(train_NL, key="a").apply(train_NL).any()


def test_a_fit_is_kept_for_its_key_and_made_anew_for_another(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    train = np.arange(0, 50, 2)
    first_NP = load_or_fit(path, "a", summaries(50), train)
    assert np.array_equal(first_NP, load_fit(path).apply(summaries(50)))
    fit = fit_summary(summaries(50)[train], key="a")
    assert np.array_equal(load_fit(path).projection_LP, fit.projection_LP) and load_fit(path).key == "a"
    # Kept: what is handed over is not even looked at.
    assert np.array_equal(load_or_fit(path, "a", np.zeros((0, 0)), train), first_NP)
    assert not np.array_equal(load_or_fit(path, "b", summaries(50, seed=1), train), first_NP)
    content = path.read_bytes()
    for damaged in (content[:100], content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="missing or was changed"):
            load_fit(path)
        assert np.array_equal(load_or_fit(path, "a", summaries(50), train), first_NP)
