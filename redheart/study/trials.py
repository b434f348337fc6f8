"""The sweep's files: its trials, its result, and where they lie."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, write_bytes
from redheart.core.lock import folder_lock
from redheart.core.ranks import launched
from redheart.study.run_folder import RunFolder


class Trial(msgspec.Struct, frozen=True):
    """One learning rate of the sweep."""

    rate: float
    status: str
    """`done`, or why it failed."""
    score: float | None
    """None where it failed."""
    val_loss: list[float]
    train_loss: list[float]


class Sweep(msgspec.Struct, frozen=True):
    """All trials and the rate with the lowest score."""

    key: str
    trials: list[Trial]
    best_rate: float


def trial_folder(folder: RunFolder, rate: float) -> Path:
    """Where a trial lies."""
    return folder.sweep / f"rate_{rate}"


def trial_lock(out: Path) -> AbstractContextManager[None]:
    """For one trial at a time in its folder; one whose sweep was killed stops soon and is waited for.

    Only the first rank holds it: the others of its launcher must not be locked out.
    """
    return folder_lock(out, name="trial", wait=True) if launched().is_first else nullcontext()


def write_csv(path: Path, trial: Trial) -> None:
    """The losses of a trial, one row an epoch."""
    pairs = zip(trial.train_loss, trial.val_loss, strict=True)
    rows = [f"{n},{fit!r},{loss!r}" for n, (fit, loss) in enumerate(pairs, start=1)]
    write_bytes(path, "\n".join(["epoch,train_loss,val_loss", *rows, ""]).encode())


def best_rate(folder: RunFolder) -> float:
    """The rate that the sweep of this run chose.

    Raises:
        BadInput: there was no sweep.
    """
    path = folder.sweep / "sweep.json"
    if not path.is_file():
        raise BadInput(
            "no learning rate",
            where="--train.learning-rate",
            expected="a number, or the result of a sweep in the run's folder",
            hint="give --train.learning-rate 1e-4, or run `redheart sweep` first",
        )
    return read_sealed(path, Sweep).best_rate
