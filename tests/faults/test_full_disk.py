"""A disk that fills up or turns read-only under a run: one error, no loss, the same bytes once it is mended."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import FOUR_EPOCHS, PLAIN, assert_same_end, launch

from redheart.snapshots.survey import verify_run

FORCED = ["--train.state-every-steps", "1", "--force"]
"""States at every step, and no question before the start whether the disk is large enough."""


def mount(*options: str) -> bool:
    return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; its size is changed by mounting it again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def assert_one_error(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 74, done.stderr[-3000:]
    assert "error: cannot write" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "kilobytes", [pytest.param(700, marks=pytest.mark.long), 2500, pytest.param(4200, marks=pytest.mark.long), 5600]
)
def test_a_disk_that_fills_up_loses_nothing(kilobytes: int, small_disk: Path, unbroken_plain: Path) -> None:
    command = [*PLAIN, *FOUR_EPOCHS, *FORCED, "--out", str(small_disk / "run")]
    assert mount("-o", f"remount,size={kilobytes}k", str(small_disk))
    assert_one_error(launch(command))
    train = small_disk / "run" / "train"
    if any(train.glob("states/step_*")):
        assert verify_run(train / "snapshots", train / "states").bad == []
    assert mount("-o", "remount,size=100m", str(small_disk))
    done = launch(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_end(small_disk / "run", unbroken_plain)


def test_a_disk_that_turns_read_only_loses_nothing(small_disk: Path, unbroken_plain: Path) -> None:
    assert mount("-o", "remount,size=100m", str(small_disk))
    command = [*PLAIN, *FOUR_EPOCHS, *FORCED, "--out", str(small_disk / "run")]
    # As many epochs as a first sitting took.
    first = [*command[: command.index("--epochs")], "--epochs", "2", *command[command.index("--epochs") + 2 :]]
    assert launch(first).returncode == 0
    before = {path: path.read_bytes() for path in (small_disk / "run").rglob("*") if path.is_file()}
    assert mount("-o", "remount,ro", str(small_disk))
    assert_one_error(launch(command))
    assert {path: path.read_bytes() for path in (small_disk / "run").rglob("*") if path.is_file()} == before
    assert mount("-o", "remount,rw", str(small_disk))
    done = launch(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_end(small_disk / "run", unbroken_plain)
