"""The search for the learning rate: every rate in a process of its own, from the same weights and data order."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from redheart.core.config import SweepConfig, digest
from redheart.core.errors import BadInput, DiskError, Diverged, DoesNotFit, Interrupted, RedHeartError
from redheart.core.files import read_if_there, write_bytes, write_sealed
from redheart.core.ranks import launched
from redheart.core.text import csv_table
from redheart.evaluate.results import Sweep, Trial
from redheart.snapshots.states import remove_states
from redheart.study import range_test
from redheart.study.phases import Study, event_sinks, run_settings, say, train_at
from redheart.study.run_folder import RunFolder
from redheart.train.interrupt import StopRequest
from redheart.train.log.events import Event, EventLog, all_events, events_behind

POLL_S = 0.2
start = subprocess.Popen
"""How the process of a trial is started."""


def run_sweep(study: Study) -> Sweep:
    """Try every rate and write the result; finished trials are not repeated, whoever ran them.

    Raises:
        Diverged: every trial did.
        RedHeartError: one ended for a reason that is not its rate.
        Interrupted: SIGTERM or Ctrl-C; the running trial has saved its state.
    """
    config, folder = study.config, study.folder
    path = folder.sweep / "sweep.json"
    keys = [run_settings(study, rate, epochs=config.sweep.epochs).key for rate in config.sweep.rates]
    key = digest({"sweep": config.sweep, "trials": keys})
    if (old := read_if_there(path, Sweep)) and old.key == key:
        return old
    if config.sweep.range_test_steps:
        say(config, "sweep", str(range_test.run(study, start_trial=_run_process)))
    trials = []
    for rate, trial_key in zip(config.sweep.rates, keys, strict=True):
        out = folder.trial(rate)
        trial = finished_trial(config.sweep, rate, out, key=trial_key)
        if trial is None:
            _run_process(folder, ["--train.learning-rate", repr(rate)])
            trial = finished_trial(config.sweep, rate, out, key=trial_key) or _diverged(rate, out)
        # A diverged one's, and those of one that was killed behind its last epoch.
        remove_states(out / "states")
        trials.append(trial)
        rows = [(n, *pair) for n, pair in enumerate(zip(trial.train_loss, trial.val_loss, strict=True), start=1)]
        table = csv_table(("epoch", "train_loss", "val_loss"), rows)
        write_bytes(folder.sweep / f"rate_{rate}.csv", table.encode())
        say(config, "sweep", f"rate {rate}: " + (trial.status if trial.score is None else f"score {trial.score:.5f}"))
    _draw(folder.sweep / "sweep.png", trials)
    scored = {trial.rate: trial.score for trial in trials if trial.score is not None}
    if not scored:
        raise Diverged(
            "every learning rate of the sweep failed",
            where=folder.sweep,
            got=trials[0].status,
            hint="give smaller ones with --sweep.rates",
        )
    sweep = Sweep(key, trials, min(scored, key=lambda rate: scored[rate]))
    write_sealed(path, sweep)
    return sweep


def run_trial(study: Study, rate: float) -> None:
    """One trial, in this process: weights, order, batch and precision of the main run; nothing of it goes there."""
    config, out = study.config, study.folder.trial(rate)
    settings = dataclasses.replace(run_settings(study, rate, epochs=config.sweep.epochs), snapshots=False)
    name = f"{study.folder.root.name} {out.name}"
    with range_test.trial_lock(out):
        if finished_trial(config.sweep, rate, out, key=settings.key):
            # Another W&B sweep over this folder asks for the same trial: it is told what came out.
            sinks = event_sinks(config, settings, out, name=name)
            EventLog(out / "events.jsonl", length_bytes=0, keeps_rest=True, sinks=sinks).close()
        else:
            train_at(study, settings, out, name=name)
        if launched().is_first:
            # Two states of every trial would take more disk than the main run is planned with; nobody resumes them.
            remove_states(out / "states")


def score(sweep: SweepConfig, val_loss: Sequence[float], train_loss: Sequence[float]) -> float:
    """Mean validation loss of the last epochs, plus the weighted gap to training if asked for."""
    pairs = list(zip(val_loss, train_loss, strict=True))[-sweep.score_epochs :]
    return sum(loss + sweep.gap_weight * abs(fit - loss) for loss, fit in pairs) / len(pairs)


def finished_trial(sweep: SweepConfig, rate: float, out: Path, *, key: str) -> Trial | None:
    """The trial in a folder, None where it has not come to its end, its log is torn or it is of other settings."""
    events = events_behind(out / "events.jsonl")
    keys = {event["key"] for event in events if event["event"] == "start"}
    val_loss, train_loss = _losses(events)
    if keys != {key} or len(val_loss) < sweep.epochs:
        return None
    val_loss, train_loss = val_loss[: sweep.epochs], train_loss[: sweep.epochs]
    return Trial(rate, "done", score(sweep, val_loss, train_loss), val_loss, train_loss)


def _diverged(rate: float, out: Path) -> Trial:
    events = all_events(out / "events.jsonl")
    stops = [str(event["what"]) for event in events if event["event"] == "stopped"]
    return Trial(rate, f"failed: {stops[-1] if stops else 'diverged'}", None, *_losses(events))


def _losses(events: Sequence[Event]) -> tuple[list[float], list[float]]:
    epochs = [event for event in events if event["event"] == "epoch"]
    return [event["val_loss"] for event in epochs], [event["train_loss"] for event in epochs]


def _run_process(folder: RunFolder, arguments: Sequence[str]) -> None:
    """Run `redheart trial` until it has finished or diverged; asked to stop, it stops the trial and waits for it."""
    # `-m` finds what lies in the current folder before libraries: a user's random.py is for it only if it is for us.
    safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safe, "-m", "redheart", "trial", "--run", str(folder.root), *arguments]
    with StopRequest() as stop:
        process, is_told = start(command), False
        code = None
        while code is None:
            try:
                code = process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                if stop.pending and not is_told:
                    process.terminate()
                    is_told = True
    if stop.pending:
        raise Interrupted(
            "the sweep was stopped on request; nothing is lost",
            where=folder.sweep,
            hint="run the same command again to go on",
        )
    if code not in (0, Diverged.exit_code):
        kinds = {kind.exit_code: kind for kind in (BadInput, DoesNotFit, DiskError, Interrupted)}
        raise kinds.get(code, RedHeartError)(
            "a trial of the sweep did not come to its end",
            where=folder.sweep,
            got=f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}",
            hint="its own message stands above; run the same command again to go on",
        )


def _draw(path: Path, trials: Sequence[Trial]) -> None:
    from redheart.report.figures import draw_lines

    series = {
        f"{trial.rate}": ([float(n) for n in range(1, len(trial.val_loss) + 1)], trial.val_loss)
        for trial in trials
        if trial.val_loss
    }
    draw_lines(path, series, title="Validation loss of every learning rate", xlabel="epoch", ylabel="validation loss")
