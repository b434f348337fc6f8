"""Baselines learn from the training records what there is to learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT

from redheart.core.config import FeatureConfig, PrepareConfig
from redheart.data.features import make_features
from redheart.data.prepare import load_prepared, prepare
from redheart.evaluate.baselines import CHECKED, evaluate_on, linear_baselines


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
