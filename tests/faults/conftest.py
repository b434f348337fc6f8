"""Runs that nothing happened to, to compare with."""

from pathlib import Path

import pytest
from launching import FOUR_EPOCHS, PLAIN, PYTHON, MadeOnce, launch


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
