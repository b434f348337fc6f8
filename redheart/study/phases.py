"""Preparing, training and sweeping: the phases that make snapshots. Each can be started again where it stopped."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from redheart.core.config import StudyConfig, digest
from redheart.core.errors import BadInput, DiskError, Diverged, DoesNotFit, Interrupted, RedHeartError
from redheart.core.files import read_sealed, remove_leftovers, write_bytes, write_sealed
from redheart.core.lock import folder_lock
from redheart.data.features import FeatureCache, make_features
from redheart.data.prepare import Prepared, load_prepared, prepare
from redheart.model.blocks import set_checkpointing
from redheart.model.dims import preset
from redheart.model.network import RedHeart, build
from redheart.study import timings
from redheart.study.learner import EmotionLearner
from redheart.study.run_folder import RunFolder, source_path
from redheart.train.events import read_events
from redheart.train.loop import RunSettings, train

_TRIAL_ERRORS = {kind.exit_code: kind for kind in (DoesNotFit, DiskError, Interrupted)}


class Trial(msgspec.Struct, frozen=True):
    """One learning rate of the sweep."""

    rate: float
    status: str
    """`done`, or why it failed."""
    score: float | None
    val_loss: list[float]
    train_loss: list[float]


class Sweep(msgspec.Struct, frozen=True):
    """All trials and the rate with the lowest score."""

    key: str
    trials: list[Trial]
    best_rate: float


@dataclass(frozen=True)
class StudyData:
    """The prepared records and their features."""

    prepared: Prepared
    features: FeatureCache


def open_data(config: StudyConfig, folder: RunFolder, *, show_progress: bool) -> StudyData:
    """Prepare the records and compute the features, or open what is there."""
    # The ranks of one host meet here: the first one works, the others then find it done.
    with folder_lock(folder.root, name="data", wait=True):
        if os.environ.get("RANK", "0") == "0":
            # The other ranks write nothing here without this lock.
            remove_leftovers(folder.root)
        prepare(source_path(config), out=folder.data, config=config.prepare, seed=config.seed, replace=False)
    return load_data(config, folder, show_progress=show_progress)


def load_data(config: StudyConfig, folder: RunFolder, *, show_progress: bool) -> StudyData:
    """The prepared records of a run and their features, without the file that they came from."""
    prepared = load_prepared(folder.data)
    features = make_features(
        prepared.records,
        config=config.features,
        root=folder.features,
        fit=folder.summary_fit,
        train=prepared.split["train"],
        show_progress=show_progress,
    )
    return StudyData(prepared, features)


def new_model(config: StudyConfig, prepared: Prepared, *, device: str = "cpu") -> RedHeart:
    """The preset's model for this data set's inventory, with initial weights from the seed."""
    dims = preset(config.preset, outputs=prepared.inventory.outputs, dropout=config.train.dropout)
    model = build(dims, seed=config.seed, device=device)
    set_checkpointing(model, config.train.checkpointing)
    return model


def run_training(
    config: StudyConfig,
    folder: RunFolder,
    data: StudyData,
    *,
    show_progress: bool,
    max_steps: int | None = None,
) -> None:
    """The main run, at the configured learning rate or else the sweep's."""
    rate = config.train.learning_rate
    if rate is None:
        rate = _sweep_result(folder).best_rate
    _train_at(config, data, rate, config.epochs, folder.train, show_progress=show_progress, max_steps=max_steps)
    if os.environ.get("RANK", "0") == "0":
        steps = read_events(folder.train / "events.jsonl", "step")
        found = timings.measured_step(config, steps, ranks=int(os.environ.get("WORLD_SIZE", "1")))
        if found:
            timings.remember(found)


def run_trial(config: StudyConfig, folder: RunFolder, data: StudyData, rate: float) -> None:
    """One trial of the sweep: same initial weights, data order, batch and precision as the main run."""
    out = trial_folder(folder, rate)
    # A trial whose sweep was killed stops soon: it is waited for.
    with folder_lock(out, name="trial", wait=True):
        _train_at(config, data, rate, config.sweep.epochs, out, snapshots=False)


def trial_folder(folder: RunFolder, rate: float) -> Path:
    """Where a trial lies."""
    return folder.sweep / f"rate_{rate!r}"


def run_sweep(config: StudyConfig, folder: RunFolder) -> Sweep:
    """Try every rate in a process of its own and write the result; finished trials are not repeated.

    Raises:
        Diverged: no rate has a finite score.
        RedHeartError: a trial failed for another reason; its error is said.
    """
    path = folder.sweep / "sweep.json"
    key = digest({"sweep": config.sweep, "train": config.train, "seed": config.seed, "dims": preset(config.preset)})
    if path.is_file():
        old = read_sealed(path, Sweep)
        if old.key == key:
            return old
    trials = []
    for rate in config.sweep.rates:
        trial = _run_trial_process(config, folder, rate)
        trials.append(trial)
        _write_csv(folder.sweep / f"rate_{rate!r}.csv", trial)
        score = f"score {trial.score:.5f}" if trial.score is not None else trial.status
        print(f"sweep: rate {rate:g}: {score}", flush=True)
    scored = {trial.rate: trial.score for trial in trials if trial.score is not None}
    if not scored:
        raise Diverged("every learning rate of the sweep failed", where=folder.sweep, got=trials[0].status)
    sweep = Sweep(key, trials, min(scored, key=lambda rate: scored[rate]))
    write_sealed(path, sweep)
    return sweep


def _train_at(
    config: StudyConfig,
    data: StudyData,
    rate: float,
    epochs: int,
    out: Path,
    *,
    snapshots: bool = True,
    show_progress: bool = False,
    max_steps: int | None = None,
) -> None:
    key = digest(
        {
            "data": data.prepared.manifest.key,
            "features": data.features.key,
            "dims": preset(config.preset, outputs=data.prepared.inventory.outputs),
            "seed": config.seed,
            "rate": rate,
            "train": dataclasses.replace(
                config.train,
                state_every_steps=0,
                num_threads=0,
                checkpointing=False,
                snapshot_every=1,
                compress_snapshots=False,
                # Another micro-batch changes sums in the last bits, and may be the only way to go on.
                micro_batch=0,
            ),
        }
    )
    settings = RunSettings(config.train, epochs, rate, key, snapshots=snapshots, max_steps=max_steps)
    learner = EmotionLearner(
        new_model(config, data.prepared),
        data.prepared,
        data.features,
        seed=config.seed,
        micro_batch=config.train.micro_batch,
        value_weight=config.train.value_weight,
    )
    if os.environ.get("RANK", "0") == "0":
        for part in (out, out / "states", out / "snapshots"):
            remove_leftovers(part)
    train(learner, settings, folder=out, show_progress=show_progress)


def _run_trial_process(config: StudyConfig, folder: RunFolder, rate: float) -> Trial:
    out = trial_folder(folder, rate)
    if len(read_events(out / "events.jsonl", "epoch")) < config.sweep.epochs:
        code, text = _trial_process([sys.executable, "-m", "redheart.cli", "trial", str(folder.root), repr(rate)])
        said = text.rpartition("error: ")[2].strip() or f"the process ended with code {code}"
        if code == Diverged.exit_code:
            return Trial(rate, f"error: {said.splitlines()[0]}", None, [], [])
        if code != 0:
            # A full disk or a stop says nothing about the rate.
            raise _TRIAL_ERRORS.get(code, RedHeartError)(
                "a trial of the sweep failed",
                where=f"learning rate {rate!r}",
                got=said,
                mend="run the same command again once that is mended; it goes on where it stopped",
            )
    epochs = read_events(out / "events.jsonl", "epoch")
    val = [float(str(event["val_loss"])) for event in epochs]
    training = [float(str(event["train_loss"])) for event in epochs]
    return Trial(rate, "done", _score(config, val, training), val, training)


def _trial_process(command: list[str]) -> tuple[int, str]:
    """Exit code and error output of a trial; asked to stop, it is asked too, and may save."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, text = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.communicate()
            raise
    return process.returncode, text


def _score(config: StudyConfig, val: Sequence[float], training: Sequence[float]) -> float | None:
    sweep = config.sweep
    pairs = list(zip(val, training, strict=True))[-sweep.score_epochs :]
    score = sum(loss + sweep.gap_weight * abs(fit - loss) for loss, fit in pairs) / len(pairs)
    return score if math.isfinite(score) else None


def _write_csv(path: Path, trial: Trial) -> None:
    rows = [f"{n},{a!r},{b!r}" for n, (a, b) in enumerate(zip(trial.train_loss, trial.val_loss, strict=True), start=1)]
    write_bytes(path, "\n".join(["epoch,train_loss,val_loss", *rows, ""]).encode())


def _sweep_result(folder: RunFolder) -> Sweep:
    path = folder.sweep / "sweep.json"
    if not path.is_file():
        raise BadInput(
            "no learning rate",
            where="--train.learning-rate",
            expected="a number, or the result of a sweep in the run's folder",
            mend="give --train.learning-rate 1e-4, or run `redheart sweep` first",
        )
    return read_sealed(path, Sweep)
