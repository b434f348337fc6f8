"""Train as `launch/train.py` does, with one fault planted on one rank.

Usage: FAULT=... FAULTY_RANK=... python failing_rank.py [OPTIONS of `redheart train`], or a launcher instead of python
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from redheart.cli import main
from redheart.core.errors import DiskError
from redheart.study import learner, phases
from redheart.train import epoch_end

SUSPENDED_S = 20


def disk(*_: object, **__: object) -> None:
    raise DiskError("cannot write: no space left on the disk", where=Path("planted"))


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("planted")


def bug(*_: object, **__: object) -> None:
    raise IndexError("planted")


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def suspend(*_: object, **__: object) -> None:
    """Stand still for longer than any patience of the others, as a laptop that is closed."""
    subprocess.Popen(["bash", "-c", f"sleep {SUSPENDED_S}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def in_the_third_step(fault: Callable[[], None]) -> None:
    loss, calls = learner.EmotionLearner.loss, iter(range(1, 1000))

    def broken(*given: object, **named: object) -> object:
        if next(calls) == 3:
            fault()
        return loss(*given, **named)  # type: ignore[arg-type]

    learner.EmotionLearner.loss = broken  # type: ignore[assignment, method-assign]


def plant(fault: str) -> None:
    if fault == "snapshot":
        epoch_end.write_snapshot = disk
    elif fault == "data":
        phases.load_study = disk
    elif fault == "validation":
        learner.EmotionLearner.validate = bug
    elif fault == "validation_memory":
        learner.EmotionLearner.validate = out_of_memory
    else:
        in_the_third_step({"forward": out_of_memory, "killed": kill, "suspended": suspend}[fault])


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ["FAULTY_RANK"]:
        plant(os.environ["FAULT"])
    main(["train", *sys.argv[1:]])
