"""A run that goes on with another number of ranks."""

from pathlib import Path

import pytest
from launching import PYTHON, SMALL, TWO_RANKS, events, launch


def losses(run: Path, kind: str) -> list[float]:
    return [
        float(str(event["val_loss" if kind == "epoch" else "loss"])) for event in events(run) if event["event"] == kind
    ]


def test_two_ranks_to_one_and_back(tmp_path: Path) -> None:
    whole = launch(PYTHON, *SMALL, "--epochs", 3, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    run = tmp_path / "run"
    for command, epochs in ((TWO_RANKS, 1), (PYTHON, 2), (TWO_RANKS, 3)):
        done = launch(command, *SMALL, "--epochs", epochs, "--out", run)
        assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(item.name for item in (run / "train" / "states").glob("*/*.safetensors"))
    assert files == ["rank_0.safetensors", "rank_0.safetensors", "rank_1.safetensors"]
    assert len(losses(run, "step")) == len(losses(tmp_path / "whole", "step"))
    # bf16 gradients are summed in another order, and 8-bit states rounded once more at each change.
    assert losses(run, "step") == pytest.approx(losses(tmp_path / "whole", "step"), rel=5e-3)
    assert losses(run, "epoch") == pytest.approx(losses(tmp_path / "whole", "epoch"), rel=5e-3)
