"""Runs that nothing happened to, to compare with."""

from pathlib import Path

import pytest
from launching import FOUR_EPOCHS, PLAIN, PYTHON, SMALL, MadeOnce, launch, redheart


@pytest.fixture(scope="session")
def unbroken_plain(made_once: MadeOnce) -> Path:
    """A run without DeepSpeed."""
    return made_once("unbroken_plain", lambda folder: _train(PLAIN, folder / "run")) / "run"


@pytest.fixture(scope="session")
def unbroken_zero(made_once: MadeOnce) -> Path:
    """A run with DeepSpeed; all launchers give these bytes."""
    return made_once("unbroken_zero", lambda folder: _train(PYTHON, folder / "run")) / "run"


def _train(command: list[str], run: Path) -> None:
    done = launch(command, *FOUR_EPOCHS, "--train.state-every-steps", 1, "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def finished(made_once: MadeOnce) -> Path:
    """A whole study with a sweep of one rate."""
    return made_once("finished_study", lambda folder: _study(folder / "run")) / "run"


def _study(run: Path) -> None:
    given = [*SMALL[: SMALL.index("--train.learning-rate")], *SMALL[SMALL.index("--train.effective-batch") :]]
    sweep = ["--sweep.rates", "1e-3", "--sweep.epochs", "1", "--sweep.score-epochs", "1"]
    done = redheart("run", *given, *sweep, "--epochs", 4, "--train.strategy", "plain", "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
