"""Runs that really trained, made once for all tests of what a run leaves on disk."""

from pathlib import Path

import pytest
from launching import PYTHON, SMALL, MadeOnce, start_by_hand

WAYS = {
    "plain": (1, [*PYTHON, "--train.strategy", "plain"]),
    "zero2, 1 rank": (1, PYTHON),
    "zero2, 2 ranks": (2, PYTHON),
}
"""Ranks and command of a run."""


def _run_to_its_end(world_size: int, command: list[str], *arguments: object) -> None:
    for process in start_by_hand(world_size, command, *arguments):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-3000:]


@pytest.fixture(scope="session", params=WAYS)
def trained_run(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """Two epochs with a snapshot of each; not to be changed."""

    def make(folder: Path) -> None:
        given = [*SMALL, "--train.snapshot-every", 1, "--epochs", 2, "--out", folder / "run"]
        _run_to_its_end(*WAYS[request.param], *given)

    return made_once(f"trained_{list(WAYS).index(request.param)}", make) / "run"


@pytest.fixture(scope="session", params=[1, 2])
def deepspeed_folder(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """`zero`, made by DeepSpeed's own `save_checkpoint` on so many ranks, and `expected.safetensors` beside it."""

    def make(folder: Path) -> None:
        script = [PYTHON[0], "tests/snapshots/save_foreign.py"]
        _run_to_its_end(request.param, script, folder, "zero2_offload_adam8bit")

    return made_once(f"deepspeed_{request.param}", make)
