"""Every kind of model lives a whole life: planned, trained, stopped, resumed to the same bits, chosen, reloaded."""

import signal
import subprocess
import sys
from pathlib import Path

import kinds
import pytest
from launching import launch


def live(folder: Path, mode: str, *names: str) -> "subprocess.CompletedProcess[str]":
    return launch([sys.executable, str(Path(kinds.__file__)), str(folder), mode, *names])


def test_four_kinds_live_in_one_process(tmp_path: Path) -> None:
    names = ["qwen3_tied", "bert_dropout", "batch_norm", "low_rank"]
    done = live(tmp_path, "rest", *names)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in names for word in ("lived", name)]


@pytest.mark.long
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_killed_run_of_every_kind_goes_on(name: str, tmp_path: Path) -> None:
    assert live(tmp_path, "killed", name).returncode == -signal.SIGKILL
    done = live(tmp_path, "rest", name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"lived {name}\n"
