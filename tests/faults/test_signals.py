"""SIGTERM and Ctrl-C: the step is finished and saved, and what is resumed ends with the same bytes."""

import os
import signal
import time
from pathlib import Path

import pytest
from forked import REAL_TRIALS
from launching import (
    FOUR_EPOCHS,
    LAUNCHERS,
    PLAIN,
    PYTHON,
    WHOLE_STUDY,
    Process,
    assert_same_end,
    events,
    launch,
    redheart,
    start,
    start_by_hand,
    wait_for_steps,
)

from redheart.core.folders import folder_lock
from redheart.snapshots.states import newest_state
from redheart.train.log.events import all_events

MESSAGE = "stopped on request; nothing is lost"
WAYS = {
    "python": (PYTHON, (signal.SIGTERM, signal.SIGINT)),
    "accelerate": (LAUNCHERS["accelerate"], (signal.SIGTERM,)),
    "deepspeed": (LAUNCHERS["deepspeed"], (signal.SIGINT,)),
}


def stop(process: Process, number: int) -> tuple[int, str]:
    """Signal a process and all that it started, as a terminal or a scheduler does; its exit code and errors."""
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors.decode()


def assert_saved(run: Path, part: str = "train") -> int:
    """A state holds every step that was logged; how many."""
    state = newest_state(run / part / "states")
    assert state is not None and not state.refused
    steps = [event for event in events(run, part) if event["event"] == "step"]
    assert state.manifest.progress.step == len(steps)
    return len(steps)


@pytest.mark.parametrize("way", ["python", *(pytest.param(name, marks=pytest.mark.long) for name in LAUNCHERS)])
def test_a_run_that_is_asked_to_stop_saves_and_ends_with_the_same_bytes(
    way: str, unbroken_zero: Path, tmp_path: Path
) -> None:
    launcher, numbers = WAYS[way]
    command = [*launcher, *FOUR_EPOCHS, "--out", str(tmp_path / "run")]
    done = 0
    for number in numbers:
        process = start(command)
        wait_for_steps(tmp_path / "run", done + 3, process)
        code, text = stop(process, number)
        assert MESSAGE in text
        done = assert_saved(tmp_path / "run")
        if way == "python":
            # The launchers end in their own way, accelerate with a traceback of its own.
            assert code == 75 and "Traceback" not in text
    # Whatever the run was started with.
    finished = launch([*PYTHON, *FOUR_EPOCHS, "--out", str(tmp_path / "run")])
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert_same_end(tmp_path / "run", unbroken_zero)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_training_is_one_line(number: int, tmp_path: Path) -> None:
    process = start(PLAIN, *FOUR_EPOCHS, "--out", tmp_path / "run")
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    code, text = stop(process, number)
    assert code == 75, text
    assert text == "error: interrupted; run the same command again to go on\n"


def test_ranks_stop_in_the_same_step_when_one_of_them_is_asked(tmp_path: Path) -> None:
    given = [*FOUR_EPOCHS, "--out", str(tmp_path / "run")]
    ranks = start_by_hand(2, PYTHON, *given)
    wait_for_steps(tmp_path / "run", 3, ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 75 and MESSAGE in errors.decode()
    done = assert_saved(tmp_path / "run")
    # One rank goes on with what two have left.
    finished = launch([*PYTHON, *given])
    assert finished.returncode == 0, finished.stderr[-3000:]
    steps = [event["step"] for event in events(tmp_path / "run") if event["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > done


SWEEP = ["sweep", *WHOLE_STUDY[1 : WHOLE_STUDY.index("--epochs")], "--train.strategy", "plain"]


def test_a_sweep_that_is_stopped_or_killed_stops_its_trial_too(whole_study: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*PYTHON[:1], "-m", "redheart", *SWEEP, "--out", str(run)]
    trial = "sweep/rate_0.001"
    done = 0
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        process = start(command, **{REAL_TRIALS: "1"})
        wait_for_steps(run, done + 3, process, trial)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == expected
        assert number == signal.SIGKILL or b"the sweep was stopped on request" in errors
        with folder_lock(run / trial, name="trial", wait=True):
            done = assert_saved(run, trial)
        assert all_events(run / trial / "events.jsonl")[-1]["event"] == "stopped"
    assert not (run / "sweep" / "sweep.json").exists()
    finished = redheart(*SWEEP, "--out", run)
    assert finished.returncode == 0, finished.stderr
    ends = [folder / "sweep" / "sweep.json" for folder in (run, whole_study / "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
