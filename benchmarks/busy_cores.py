"""A training step alone and beside two other busy processes, on two cores, in one run.

Usage: python benchmarks/busy_cores.py [--preset tiny] [--strategies NAME ...] [--json] [--write]

One process trains; the load is two processes that count for ever. They are stopped and let go on every few steps, so
that steps alone and steps beside them follow each other and whatever else the machine does hits both alike. A scheduler
that is fair gives one thread of three on two cores two thirds of a core, and two threads of four a half each.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from record import write_result

from redheart.cli import set_environment
from redheart.core.config import GENERATED, FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved

WARM_UP = 3
"""Steps that are not counted: caches fill, threads start."""
SETTLING = 1
"""Steps after every change of the load that are not counted."""


class Load:
    """Processes that do nothing but keep a core busy."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]):
        self._processes = processes

    def switch(self, on: bool) -> None:
        """Let them run or stop them."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)


@contextmanager
def load(count: int) -> Iterator[Load]:
    """Start that many, stopped."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        found = Load(processes)
        found.switch(False)
        yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Alternation:
    """An event sink that switches the load every few steps and keeps what steps of either kind take."""

    wants_past = False

    def __init__(self, others: Load, *, steps: int):
        self._others, self._steps = others, steps
        self._count = -WARM_UP
        self.seconds: dict[str, list[float]] = {"alone": [], "beside": []}

    def write(self, event: Mapping[str, object]) -> None:
        if event["event"] != "step":
            return
        block, position = divmod(self._count, self._steps + SETTLING)
        if self._count >= 0 and position >= SETTLING:
            self.seconds["beside" if block % 2 else "alone"].append(float(str(event["step_s"])))
        self._count += 1
        self._others.switch(self._count >= 0 and self._count // (self._steps + SETTLING) % 2 == 1)

    def close(self, *, exit_code: int) -> None:
        pass


def study(options: argparse.Namespace, folder: Path, strategy: str) -> StudyConfig:
    """A run with more steps than are timed."""
    return resolved(
        StudyConfig(
            data=str(options.data or GENERATED),
            out=folder / "run",
            preset=options.preset,
            epochs=10**6,
            prepare=PrepareConfig(skip_invalid=True),
            features=FeatureConfig(encoder=options.encoder),
            train=TrainConfig(strategy=strategy, num_threads=options.num_threads, sample_every_s=0.0),
        )
    )


def measure_one(options: argparse.Namespace, strategy: str) -> dict[str, object]:
    """One strategy in this process: the seconds of steps alone and beside the load, in turn."""
    import dataclasses

    import torch
    from training_loops import RATE

    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.train.loop import train

    with tempfile.TemporaryDirectory(prefix="redheart-") as temporary, load(options.busy) as others:
        folder = Path(temporary)
        config = study(options, folder, strategy)
        opened = phases.open_study(config, RunFolder(config.out))
        clock = Alternation(others, steps=options.steps)
        blocks = 2 * options.rounds
        settings = dataclasses.replace(
            phases.run_settings(opened, RATE, epochs=config.epochs),
            max_steps=WARM_UP + blocks * (options.steps + SETTLING),
            snapshots=False,
        )
        train(phases.new_learner(opened), settings, folder=folder / "train", sinks=[clock])
    medians = {name: statistics.median(seconds) for name, seconds in clock.seconds.items()}
    return {
        "alone_s": round(medians["alone"], 4),
        "beside_s": round(medians["beside"], 4),
        "ratio": round(medians["beside"] / medians["alone"], 2),
        "threads": torch.get_num_threads(),
        "steps_s": {name: [round(item, 4) for item in seconds] for name, seconds in clock.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="JSON array of records; none takes generated ones")
    parser.add_argument("--encoder", default="hash")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--strategies", nargs="*", default=["plain", "zero2_offload_adam8bit"])
    parser.add_argument("--num-threads", type=int, default=0, help="0: as a run chooses them")
    parser.add_argument("--cores", type=int, default=2, help="cores that everything is held to")
    parser.add_argument("--busy", type=int, default=2, help="processes of the load")
    parser.add_argument("--steps", type=int, default=6, help="timed steps before the load changes")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--one", metavar="STRATEGY", help="measure one in this process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/busy_cores.json")
    options = parser.parse_args()
    set_environment()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.one:
        print(json.dumps(measure_one(options, options.one)))
        return
    result = {}
    for strategy in options.strategies:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", strategy]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result[strategy] = json.loads(done.stdout.splitlines()[-1])
    if options.write:
        names = ("preset", "encoder", "num_threads", "cores", "busy", "steps", "rounds")
        write_result("busy_cores", result, settings={name: getattr(options, name) for name in names})
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
