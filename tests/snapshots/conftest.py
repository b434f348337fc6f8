"""Runs that really trained, made once for all tests of what a run leaves on disk."""

import subprocess
from pathlib import Path

import pytest
from launching import PYTHON, SMALL, TWO_RANKS, launch

WAYS = {"plain": [*PYTHON, "--train.strategy", "plain"], "zero2, 1 rank": PYTHON, "zero2, 2 ranks": TWO_RANKS}


def _trained(command: list[str], folder: Path, *arguments: object) -> Path:
    done: subprocess.CompletedProcess[str] = launch(
        command, *SMALL, "--train.snapshot-every", 1, "--epochs", 2, *arguments, "--out", folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session", params=WAYS)
def trained_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs with a snapshot of each; not to be changed."""
    return _trained(WAYS[request.param], tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session", params=[1, 2])
def deepspeed_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`zero`, made by DeepSpeed's own `save_checkpoint` on so many ranks, and `expected.safetensors` beside it."""
    folder = tmp_path_factory.mktemp("deepspeed")
    command = ["deepspeed", "--num_gpus", str(request.param), "tests/snapshots/save_foreign.py"]
    done = launch(command, folder, "zero2_offload_adam8bit")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder
