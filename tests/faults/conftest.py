"""Runs that nothing happened to, to compare with."""

from pathlib import Path

import pytest
from launching import FOUR_EPOCHS, PLAIN, PYTHON, SMALL, launch, redheart


@pytest.fixture(scope="session")
def unbroken_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without DeepSpeed."""
    return _train(PLAIN, tmp_path_factory.mktemp("unbroken") / "plain")


@pytest.fixture(scope="session")
def unbroken_zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with DeepSpeed; all launchers give these bytes."""
    return _train(PYTHON, tmp_path_factory.mktemp("unbroken") / "zero")


def _train(command: list[str], run: Path) -> Path:
    done = launch(command, *FOUR_EPOCHS, "--train.state-every-steps", 1, "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study with a sweep of two rates."""
    run = tmp_path_factory.mktemp("finished") / "run"
    given = [*SMALL[: SMALL.index("--train.learning-rate")], *SMALL[SMALL.index("--train.effective-batch") :]]
    sweep = ["--sweep.rates", "1e-3", "2e-3", "--sweep.epochs", "1", "--sweep.score-epochs", "1"]
    done = redheart("run", *given, *sweep, "--epochs", 4, "--train.strategy", "plain", "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run
