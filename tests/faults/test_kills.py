"""SIGKILL at random instants: what is resumed ends with the same bytes as what was never broken."""

import math
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launching import FOUR_EPOCHS, LAUNCHERS, PLAIN, PYTHON, ends, events, launch, start

from redheart.core.files import write_json

WAYS = {"python, plain": PLAIN, "python": PYTHON, **LAUNCHERS}
LONGEST_TRAINING_S = 1.2
SHARE_AT_START = 0.2
"""Share of the kills that come at any time after the start; the others come once training is under way."""


@dataclass
class Tally:
    """What a way to launch went through."""

    kills: int = 0
    kills_while_saving: int = 0
    resumes: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


EVERY_STEP = ("--train.state-every-steps", "1")
BY_TIME = ("--train.state-every-minutes", "0.002")
AT_THE_END: tuple[str, ...] = ()
"""By the default's clock: so short a run has no other state, and starts again when it is killed."""


def kill_and_resume(
    way: str, *, kills: int, folder: Path, unbroken: Path, seed: int, states: tuple[str, ...] = EVERY_STEP
) -> Tally:
    """Kill runs until `kills` are reached, each run resumed until it ends, and compare every end."""
    tally, random_ = Tally(), random.Random(seed)
    begin_s = time.monotonic()
    while tally.kills < kills:
        run = folder / f"run_{tally.runs}"
        tally.runs += 1
        command = [*WAYS[way], *FOUR_EPOCHS, *states, "--out", str(run)]
        while tally.kills < kills and _killed(command, run, random_):
            tally.kills += 1
            tally.kills_while_saving += any((run / "train").glob("*/.*"))
            tally.resumes += 1
        # To its end in the way that costs least; all of them give the same bytes.
        rest = PLAIN if "plain" in way else PYTHON
        done = launch([*rest, *FOUR_EPOCHS, *states, "--out", str(run)])
        assert done.returncode == 0, done.stderr[-3000:]
        if ends(run) != ends(unbroken) or events(run) != events(unbroken):
            tally.lost.append(run.name)
    tally.seconds = round(time.monotonic() - begin_s, 1)
    return tally


def _killed(command: list[str], run: Path, random_: random.Random) -> bool:
    """Start the run and kill it at a random instant; False if it came to its end before."""
    before = _newest_change(run)
    process = start(command)
    deadline = time.monotonic() + 120
    if random_.random() >= SHARE_AT_START:
        while process.poll() is None and _newest_change(run) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        delay_s = random_.uniform(0, LONGEST_TRAINING_S)
    else:
        delay_s = random_.uniform(0, 6)
    try:
        code = process.wait(delay_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        return True
    assert code == 0, process.stderr.read().decode()[-3000:] if process.stderr else ""
    return False


def _newest_change(run: Path) -> int:
    path = run / "train" / "events.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.fixture
def unbroken(unbroken_plain: Path, unbroken_zero: Path) -> dict[str, Path]:
    """What every way to launch is compared with."""
    return {way: unbroken_plain if "plain" in way else unbroken_zero for way in WAYS}


@pytest.mark.parametrize(
    ("way", "kills", "states"),
    [
        ("python, plain", 2, BY_TIME),
        ("python", 2, EVERY_STEP),
        pytest.param("python", 5, BY_TIME, marks=pytest.mark.long),
        pytest.param("python", 5, AT_THE_END, marks=pytest.mark.long),
        pytest.param("accelerate", 1, EVERY_STEP, marks=pytest.mark.long),
        pytest.param("deepspeed", 1, EVERY_STEP, marks=pytest.mark.long),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    way: str, kills: int, states: tuple[str, ...], unbroken: dict[str, Path], tmp_path: Path
) -> None:
    tally = kill_and_resume(way, kills=kills, folder=tmp_path, unbroken=unbroken[way], seed=kills, states=states)
    assert tally.kills == kills and not tally.lost


@pytest.mark.long
def test_many_kills_lose_nothing(unbroken: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    wanted: int = request.config.getoption("--kills")
    shares = {"python, plain": 0.4, "python": 0.3, "accelerate": 0.15, "deepspeed": 0.15}
    tallies = {}
    for way, share in shares.items():
        kills = math.ceil(wanted * share)
        tallies[way] = kill_and_resume(way, kills=kills, folder=tmp_path / way, unbroken=unbroken[way], seed=wanted)
        print(way, tallies[way], flush=True)
        _write_summary(request.config.getoption("--summary"), tallies)
    assert sum(tally.kills for tally in tallies.values()) >= wanted
    assert not any(tally.lost for tally in tallies.values())


def _write_summary(path: Path | None, tallies: dict[str, Tally]) -> None:
    if path is None:
        return
    import sys

    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from record import result_record

    total = {
        "kills": sum(tally.kills for tally in tallies.values()),
        "kills_while_saving": sum(tally.kills_while_saving for tally in tallies.values()),
        "resumes": sum(tally.resumes for tally in tallies.values()),
        "losses": sum(len(tally.lost) for tally in tallies.values()),
    }
    by_way = {way: vars(tally) for way, tally in tallies.items()}
    write_json(path, result_record("faults", {**total, "ways": by_way}, settings={"epochs": 4, "state_every_steps": 1}))
