"""Baselines learn from the training records what there is to learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT

from redheart.core.config import FeatureConfig, PrepareConfig
from redheart.data.features import make_features
from redheart.data.prepare import load_prepared, prepare
from redheart.evaluate.baselines import CHECKED, _linear, evaluate_on, linear_baselines


def test_baselines_beat_the_constant_and_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import network_baselines

    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=300), seed=0)
    closed = load_prepared(tmp_path / "data")
    prepared = replace(closed, split=closed.split.opened())
    config = FeatureConfig(encoder="hash", seq_len_tokens=8)
    features = make_features(prepared.records, config=config, root=tmp_path / "features", fit=tmp_path / "fit")
    found = linear_baselines(prepared, features, text_chars=1500)
    assert set(found) == {"constant", "TF-IDF + linear", "linear probe"}
    found["MLP"] = network_baselines.mlp(prepared, features, seeds=(0,))
    again = network_baselines.mlp(prepared, features, seeds=(0,))
    kl = {}
    for name, parts in found.items():
        assert set(parts) == set(CHECKED)
        assert all(len(values) == len(prepared.split["test"]) for values in parts["test"].values())
        kl[name] = evaluate_on(prepared, parts["test"], "test").tasks["emotion"]["kl"].value
    assert all(kl[name] < kl["constant"] for name in found if name != "constant"), kl
    assert np.array_equal(again["test"]["emotion"], found["MLP"]["test"]["emotion"])


def test_what_is_masked_is_not_read(tmp_path: Path) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=300), seed=0)
    closed = load_prepared(tmp_path / "data")
    random, mask_NT = np.random.default_rng(0), closed.mask_NT.copy()
    regret, select = closed.inventory.columns("regret"), closed.split["val_select"]
    # The training records have this column as they have the others, the select records do not.
    mask_NT[select[: len(select) // 2], regret] = False
    noise_ND = random.normal(size=(len(mask_NT), 40))
    inputs_ND = np.hstack([closed.values_NT[:, regret] + 0.1 * noise_ND[:, :1], noise_ND])
    found = []
    for filler in (0.0, 1.0):
        values_NT = np.where(mask_NT, closed.values_NT, filler)
        prepared = replace(closed, split=closed.split.opened(), values_NT=values_NT, mask_NT=mask_NT)
        found.append(_linear(prepared, inputs_ND)["test"])
    for task, values_NO in found[0].items():
        np.testing.assert_array_equal(values_NO, found[1][task])
