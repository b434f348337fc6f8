"""Several real ranks: every way to start them that is documented, another number of them, and ranks that are lost."""

import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from launching import (
    LAUNCHERS,
    PYTHON,
    ROOT,
    SMALL,
    TWO_RANKS,
    Process,
    assert_same_end,
    events,
    free_port,
    start,
    start_by_hand,
)

from redheart.snapshots.states import newest_state
from redheart.train.log.events import read_events, watched_events

PAGE = ROOT / "docs" / "several-devices.md"

EPOCHS = 3
"""The first of those that the unbroken run takes."""
FAILING = "tests/faults/failing_rank.py"
TOLERANCE = 1e-2
"""bf16 gradients are summed in another order, and 8-bit states rounded once more at each change of the ranks."""


def documented() -> list[str]:
    """The command lines of the page."""
    text = PAGE.read_text().replace("\\\n", "")
    return [re.sub(r"\s+", " ", line).strip() for line in re.findall(r"^    (\S.*RUN \.\.\.)$", text, flags=re.M)]


def started_as_documented(line: str, *options: object) -> list[Process]:
    """The processes of a line of the page, with these options: two where it is for each of two hosts or ranks."""
    line = line.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace("HOST", "127.0.0.1")
    port = str(free_port())
    line = line.replace("29500", port).replace("RUN ...", " ".join(map(str, options)))
    # The launchers' usual port may be another run's on this machine.
    line = line.replace("--num_gpus 2", f"--num_gpus 2 --master_port {port}")
    line = line.replace("--num_processes 2 launch", f"--num_processes 2 --main_process_port {port} launch")
    each = [line]
    if "machine_rank 0" in line or line.startswith("RANK=0"):
        each = [re.sub(r"(machine_rank |RANK=)0", rf"\g<1>{number}", line) for number in range(2)]
    return [start(["bash", "-c", f"exec env {item}"]) for item in each]


def losses(run: Path, kind: str) -> list[float]:
    name = "val_loss" if kind == "epoch" else "loss"
    return [float(str(event[name])) for event in events(run) if event["event"] == kind]


def assert_ends_as(run: Path, whole: Path) -> None:
    for kind in ("step", "epoch"):
        found, wanted = losses(run, kind), losses(whole, kind)
        # One of them may have been given more epochs.
        shared = min(len(found), len(wanted))
        assert shared and found[:shared] == pytest.approx(wanted[:shared], rel=TOLERANCE)


def test_four_lines_are_documented() -> None:
    commands = [line.split()[0].rpartition("/")[2] for line in documented()]
    assert commands == ["deepspeed", "accelerate", "accelerate", "RANK=0"]


@pytest.mark.long
def test_documented_lines_start_two_ranks_and_go_on_with_what_one_or_two_have_left(
    unbroken_zero: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, *others = documented()
    for epochs, line in enumerate([first, None, *others], start=1):
        options = (run, *SMALL, "--epochs", epochs)
        processes = [start(PYTHON, "--out", *options)] if line is None else started_as_documented(line, *options)
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()[-3000:]
        assert read_events(run / "train" / "events.jsonl", "start")[-1]["ranks"] == (1 if line is None else 2)
        state = newest_state(run / "train" / "states")
        assert state is not None and len(state.ranks) == (1 if line is None else 2)
    assert_ends_as(run, unbroken_zero)


def end_of(processes: Sequence[Process], *, within_s: float) -> list[tuple[int, str]]:
    """Exit codes and errors of processes that end soon; those that do not are killed."""
    deadline = time.monotonic() + within_s
    try:
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, process.communicate()[1].decode()) for process in processes]


def wait_for_a_step(run: Path, *, starts: int, process: Process) -> None:
    """Return once a run that was started so many times has logged a step since."""
    deadline = time.monotonic() + 180
    kinds: list[str] = []
    while kinds.count("start") < starts or kinds[-1] != "step":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
        kinds = [event["event"] for event in watched_events(run / "train" / "events.jsonl")]


def progress(run: Path) -> tuple[int, int]:
    state = newest_state(run / "train" / "states")
    assert state is not None and not state.refused
    return state.manifest.progress.epoch, state.manifest.progress.step_in_epoch


def test_a_run_that_loses_its_ranks_in_three_ways_comes_to_the_same_end(unbroken_zero: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    by_epoch = ["--train.snapshot-every", 2, "--train.state-every-minutes", 0]
    given = [*SMALL, "--epochs", EPOCHS, *by_epoch, "--out", run]
    steps = len(losses(unbroken_zero, "step")) // 4

    # The first rank fails in the validation, alone: both say why, each in its own terminal, and keep the epoch.
    fault = {"FAULT": "validation_memory", "FAULTY_RANK": "0"}
    ended = end_of(start_by_hand(2, [sys.executable, FAILING], *given, **fault), within_s=180)
    assert [code for code, _ in ended] == [3, 3]
    assert ended[0][1].startswith("error: out of device memory\n  where:    the validation after epoch 1")
    assert ended[1][1].startswith("error: rank 0: out of device memory\n  where:    the validation after epoch 1")
    assert all(text.count("error:") == 1 and "Traceback" not in text for _, text in ended)
    assert progress(run) == (0, steps)

    # The disk is full when the first rank writes a snapshot.
    fault = {"FAULT": "snapshot", "FAULTY_RANK": "0"}
    said = "cannot write: no space left on the disk\n  where:    planted\n"
    assert end_of(start_by_hand(2, [sys.executable, FAILING], *given, **fault), within_s=180) == [
        (74, f"error: {said}"),
        (74, f"error: rank 0: {said}"),
    ]
    assert progress(run) == (1, 0)
    assert [event["what"] for event in read_events(run / "train" / "events.jsonl", "stopped")] == [
        "cannot write: no space left on the disk"
    ]

    # The first rank, through which the others hear of each other, is killed in the middle of the second epoch.
    processes = start_by_hand(2, PYTHON, *given)
    wait_for_a_step(run, starts=3, process=processes[0])
    processes[0].send_signal(signal.SIGKILL)
    killed, other = end_of(processes, within_s=30)
    assert killed[0] == -signal.SIGKILL and other[0] == 75
    assert other[1].startswith("error: rank 0: ended without a word") and other[1].count("error:") == 1
    assert "Traceback" not in other[1]
    assert progress(run) == (1, 0)

    for process in start_by_hand(2, PYTHON, *given):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-3000:]
    assert_ends_as(run, unbroken_zero)


@pytest.mark.long
def test_the_first_ranks_clock_decides_on_states_and_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def started(run: Path) -> list[Process]:
        given = [*SMALL, "--epochs", 3, "--train.state-every-minutes", "0.002", "--out", run]
        return start_by_hand(2, PYTHON, *given)

    run, whole = tmp_path / "run", tmp_path / "whole"
    processes = started(run)
    wait_for_a_step(run, starts=1, process=processes[0])
    while not any((run / "train" / "states").glob("step_*")):
        assert processes[0].poll() is None
        time.sleep(0.02)
    processes[0].send_signal(signal.SIGKILL)
    end_of(processes, within_s=30)
    state = newest_state(run / "train" / "states")
    assert state is not None and len(state.ranks) == 2
    for folder in (run, whole):
        assert [code for code, _ in end_of(started(folder), within_s=240)] == [0, 0]
    assert_same_end(run, whole)


@pytest.mark.long
@pytest.mark.parametrize("way", ["by hand", "deepspeed", "accelerate"])
@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize(
    ("fault", "code", "what"),
    [
        ("data", 74, "cannot write"),
        ("forward", 3, "out of device memory"),
        ("validation", 1, "IndexError: planted"),
        ("killed", 75, "ended without a word"),
        ("suspended", 0, ""),
    ],
)
def test_whatever_befalls_a_rank_all_end_and_one_says_why(
    fault: str, code: int, what: str, faulty: int, way: str, tmp_path: Path
) -> None:
    if (fault, faulty) == ("validation", 1):
        pytest.skip("only the first rank validates")
    run = tmp_path / "run"
    given = [*SMALL, "--epochs", 2, "--out", run]
    variables = {"FAULT": fault, "FAULTY_RANK": str(faulty)}
    port = ["--main_process_port", str(free_port())]
    accelerate = [*LAUNCHERS["accelerate"][:-1], "--multi_gpu", "--num_processes", "2", *port, FAILING]
    if way == "by hand":
        processes = start_by_hand(2, [sys.executable, FAILING], *given, **variables)
    else:
        command = accelerate if way == "accelerate" else [*TWO_RANKS[:-1], FAILING]
        processes = [start(command, *given, **variables)]
    ended = end_of(processes, within_s=240)
    texts = [text for _, text in ended]
    if way == "by hand" and fault != "killed":
        assert [found for found, _ in ended] == [code, code]
    assert all((found == 0) == (code == 0) for found, _ in ended)
    # Python prints the traceback of a bug on its rank, and its launchers have words of their own.
    is_said = [text.count(f"error: {what}") + text.count(f"error: rank {faulty}: {what}") for text in texts]
    if fault == "validation":
        assert sum(text.count(what) for text in texts) == len(texts)
    elif fault == "killed":
        assert sum(is_said) == 1
    elif fault != "suspended":
        assert is_said == [1] * len(texts)
    if fault == "suspended":
        assert not any("error:" in text for text in texts)
