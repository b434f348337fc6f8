"""One run works in a folder: the second is told which process is there, and a killed one keeps nobody out."""

import os
import signal
from pathlib import Path

from launching import FOUR_EPOCHS, PLAIN, assert_same_end, launch, redheart, start, wait_for_steps

from redheart.core.files import PARTIAL


def test_the_second_of_two_runs_is_refused_and_the_first_goes_on(unbroken_plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*PLAIN, *FOUR_EPOCHS, "--out", str(run)]
    first = start(command)
    wait_for_steps(run, 1, first)
    # It stands still while the others try.
    os.kill(first.pid, signal.SIGSTOP)
    try:
        for second in (launch(command), redheart("sweet-spot", run)):
            assert second.returncode == 2, second.stderr
            assert second.stderr.startswith("error: another process works in this folder")
            assert f"process {first.pid}" in second.stderr and "Traceback" not in second.stderr
        report = redheart("report", run)
        assert report.returncode == 0, report.stderr
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(120) == 0
    assert_same_end(run, unbroken_plain)


def test_a_killed_run_blocks_nobody_and_its_leftovers_go(unbroken_plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*PLAIN, *FOUR_EPOCHS, "--train.state-every-steps", "1", "--out", str(run)]
    first = start(command)
    wait_for_steps(run, 3, first)
    first.kill()
    first.communicate()
    assert (run / ".redheart-run.lock").read_text() == str(first.pid)
    left = [
        run / f".data.0123abcd{PARTIAL}",
        run / "features" / f".key.x{PARTIAL}",
        run / "train" / "states" / f".step_00000002{PARTIAL}",
        run / "train" / "snapshots" / f".epoch_0002.x{PARTIAL}",
        run / "select" / f".crossover.x{PARTIAL}",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half.safetensors").write_bytes(b"half")
    # Neither do what another process number or no text at all in the lock's file say.
    (run / ".redheart-run.lock").write_bytes(b"\xff\xfe not a number")
    finished = launch(command)
    assert finished.returncode == 0, finished.stderr
    assert not [item for item in run.rglob(f".*{PARTIAL}")]
    assert_same_end(run, unbroken_plain)
