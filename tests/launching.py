"""Processes of small runs: how they are started, watched and compared.

What `python` would run is forked from a process that has the libraries imported already (see `forked`), unless a test
is about the start itself and asks for it to be `real`. Launchers and other programs are always started for real.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Process = subprocess.Popen[bytes] | forked.Forked
MadeOnce = Callable[[str, Callable[[Path], None]], Path]
"""The fixture `made_once`: a folder by a name, filled by a function."""
ROOT = Path(__file__).parents[1]
SMALL = [
    "--prepare.num-generated",
    "100",
    "--features.encoder",
    "hash",
    "--train.learning-rate",
    "1e-3",
    "--train.effective-batch",
    "16",
]
FOUR_EPOCHS = [*SMALL, "--epochs", "4"]
WHOLE_STUDY = [
    *("run", *SMALL[: SMALL.index("--train.learning-rate")], *SMALL[SMALL.index("--train.effective-batch") :]),
    *("--sweep.rates", "1e-3", "--sweep.epochs", "3", "--sweep.score-epochs", "1"),
    *("--epochs", "4", "--train.strategy", "plain"),
]
PYTHON = [sys.executable, "launch/train.py"]
PLAIN = [*PYTHON, "--train.strategy", "plain"]
LAUNCHERS = {
    "accelerate": ["accelerate", "launch", "--config_file", "launch/accelerate.yaml", "launch/train.py"],
    "deepspeed": ["deepspeed", "--num_gpus", "1", "launch/train.py"],
}
# Runs of others on this machine may have DeepSpeed's usual port.
TWO_RANKS = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launch/train.py"]
MEASURED = (
    "forward_backward_s",
    "step_s",
    "samples_per_s",
    "epoch_s",
    "validation_s",
    "time_left_s",
    "time_utc",
    "host_rss_peak_bytes",
    "device_peak_bytes",
    "chain",
)
"""Fields of events that no two runs share."""


def environment() -> dict[str, str]:
    """This process's environment without what a launcher sets, and with this interpreter's launchers first."""
    others = ("WANDB_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    kept["PYTHONPATH"] = str(ROOT)
    return kept


def start_by_hand(world_size: int, command: list[str], *arguments: object, **variables: str) -> list[Process]:
    """Start a process for every rank as one does without a launcher; each has its errors for itself."""
    address = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [address | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return [start(command, *arguments, **variables, **rank) for rank in ranks]


def launch(
    command: list[str], *arguments: object, real: bool = False, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end from the root of the checkout."""
    words = [*command, *map(str, arguments)]
    if not real and _is_for_python(words) and options.keys() <= {"env", "cwd"}:
        given: dict[str, Any] = {"env": environment(), "cwd": ROOT, **options}
        return forked.run(words[1:], environment=given["env"], cwd=given["cwd"], timeout=600)
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=600,
        **{"env": environment(), "cwd": ROOT, **options},  # type: ignore[call-overload]
    )


def start(command: list[str], *arguments: object, real: bool = False, **variables: str) -> Process:
    """Start a command in a process group of its own."""
    words = [*command, *map(str, arguments)]
    if not real and _is_for_python(words):
        return forked.Forked(words[1:], environment=environment() | variables, cwd=ROOT)
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment() | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _is_for_python(words: list[str]) -> bool:
    return words[0] == sys.executable and not words[1].startswith("-c")


def redheart(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return launch([sys.executable, "-m", "redheart"], *arguments, **options)  # type: ignore[arg-type]


def weights_digest(run: Path) -> dict[str, str]:
    """Digests of every weight and resume state of a run."""
    files = sorted((run / "train").rglob("*.safetensors"))
    assert files
    return {str(item.relative_to(run)): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}


def assert_same_end(run: Path, unbroken: Path) -> None:
    """The same snapshots, last state and event log, bit by bit."""
    assert ends(run) == ends(unbroken)
    assert events(run) == events(unbroken)


def ends(run: Path) -> dict[str, str]:
    """Digests of a run's snapshots and of its last state; the one before depends on where a run stopped."""
    digests = weights_digest(run)
    last = max(name for name in digests if "/states/" in name).rpartition("/")[0]
    return {name: digest for name, digest in digests.items() if "/snapshots/" in name or name.startswith(last)}


def events(run: Path, part: str = "train") -> list[dict[str, object]]:
    """The event log of a training in a run's folder, without what is measured, which no two runs share."""
    return events_of(run / part / "events.jsonl")


def events_of(path: Path) -> list[dict[str, object]]:
    """As `events`, of one log."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{name: value for name, value in entry.items() if name not in MEASURED} for entry in entries]
    return [entry for entry in kept if entry["event"] in ("step", "epoch")]


def wait_for_steps(run: Path, steps: int, process: Process, part: str = "train") -> None:
    """Return once the event log of a training in a run's folder holds that many optimizer steps."""
    path = run / part / "events.jsonl"
    deadline = time.monotonic() + 180
    while not path.exists() or path.read_text().count('"step", "epoch"') < steps:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
