"""Where a run stands, from its files alone; the run may be going on, have ended or have been killed."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from redheart.core.config import StudyConfig, SweepConfig
from redheart.core.files import is_sealed
from redheart.core.progress import duration_text
from redheart.core.units import GIB
from redheart.report.best_epochs import best_epochs_text
from redheart.study.run_folder import RunFolder, load
from redheart.train.log.events import watched_events

SILENT_S = 120.0
"""A run that has written nothing for this long, or for ten of its steps, is not called running."""
NUM_RECENT_STEPS = 20
FILES = {
    "prepare": "data/manifest.json",
    "sweep": "sweep/sweep.json",
    # Told by its events.
    "train": "",
    "sweet-spot": "select/sweet_spot.json",
    "crossover": "select/crossover.json",
    "calibrate": "calibration/calibration.json",
    "evaluate": "evaluation/evaluation.json",
    "report": "report/report.md",
}
"""What a phase has left when it is done."""


class _Entry(msgspec.Struct, frozen=True):
    """What is read of an event or a sample, whatever its kind; the logs hold more."""

    event: str
    time_utc: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    epochs: int = 0
    steps_per_epoch: int = 0
    steps: int = 0
    effective_batch: int = 0
    step: int = 0
    step_s: float = 0.0
    loss: float | None = None
    epoch: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    time_left_s: float | None = None
    seconds: float | None = None
    host_rss_bytes: int | None = None
    host_rss_peak_bytes: int | None = None
    device_used_bytes: int | None = None
    device_peak_bytes: int | None = None
    what: str = ""
    text: str = ""
    exit_code: int = 0


class TrialStatus(msgspec.Struct, frozen=True):
    """A learning rate of the sweep."""

    rate: float
    epochs: int
    val_loss: float | None
    stopped: str | None


class RunStatus(msgspec.Struct, frozen=True):
    """A run at one moment. What is not known is None or empty."""

    state: str
    """`waiting`, `running`, `finished`, `stopped` or `silent`."""
    why: str
    """Why it stopped, since when it is silent, or what of a study is not done behind the training."""
    phases: dict[str, bool]
    """Which phases have left their files."""
    trials: list[TrialStatus]
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    losses: dict[str, float] = {}
    """Of the last step, and of the last epoch in training and validation."""
    chosen: str = ""
    """The way to train on a card, and why."""
    best_epoch: int | None = None
    """With the lowest validation loss."""
    best_epochs_text: str | None = None
    """What that is of, and the best single snapshot of, where it has been chosen and is of another epoch."""
    step_s: float | None = None
    samples_per_s: float | None = None
    time_left_s: float | None = None
    memory_bytes: dict[str, int] = {}
    """Of host and device, now and at their peak."""


def read_status(folder: RunFolder, config: StudyConfig, *, now: datetime | None = None) -> RunStatus:
    """Read the files of a run; a line that is being written, or is damaged, is passed over."""
    now = now or datetime.now(UTC)
    entries, samples = (_entries(folder.train / name) for name in ("events.jsonl", "samples.jsonl"))
    trials: list[TrialStatus] = []
    of_trial: list[_Entry] = []
    for rate in config.sweep.rates:
        found = _entries(folder.trial(rate) / "events.jsonl")
        losses = [entry.val_loss for entry in found if entry.event == "epoch"]
        stopped = [entry.what for entry in found if entry.event == "stopped"]
        if folder.trial(rate).exists():
            # The next trial begins where one has ended.
            of_trial = [entry for entry in found if entry.event != "end"]
            trials.append(TrialStatus(rate, len(losses), [None, *losses][-1], [None, *stopped][-1]))
    phases = {name: (folder.root / path).is_file() for name, path in FILES.items()}
    starts = [entry for entry in entries if entry.event == "start" and entry.epochs]
    if not starts:
        state, why = "waiting", "no training yet"
        if of_trial and not phases["sweep"]:
            state, why = _state(of_trial, [], is_complete=False, step_s=0.0, now=now)
            why = "; ".join(filter(None, [f"trial {len(trials)} of {len(config.sweep.rates)} of the sweep", why]))
        return RunStatus(state, why, phases, trials)
    start, sample = starts[-1], (samples or [_Entry("sample")])[-1]
    # Logs of before do not say it.
    num_steps = start.steps or start.epochs * start.steps_per_epoch
    steps = [entry for entry in entries if entry.event == "step" and entry.step]
    epochs = [entry for entry in entries if entry.event == "epoch" and entry.epoch]
    recent_s = [step.step_s for step in steps[-NUM_RECENT_STEPS:]]
    step_s = sum(recent_s) / len(recent_s) if recent_s else 0.0
    state, why = _state(entries, samples, is_complete=len(epochs) >= start.epochs, step_s=step_s, now=now)
    if state == "finished" and folder.train != folder.root:
        # A calibration may be left out.
        behind = [name for name in list(phases)[list(phases).index("train") + 1 :] if name != "calibrate"]
        missing = [name for name in behind if not phases[name]]
        why = f"the training; not done: {', '.join(missing)}" if missing else ""
    measured = [(entry.val_loss, entry.epoch) for entry in epochs if entry.val_loss is not None]
    step, epoch = (steps or [_Entry("step")])[-1], (epochs or [_Entry("epoch")])[-1]
    by_kind = {"last step": step.loss, "training": epoch.train_loss, "validation": epoch.val_loss}
    sizes = {
        "host": sample.host_rss_bytes,
        "host peak": max((entry.host_rss_peak_bytes or 0 for entry in epochs), default=0),
        "device": sample.device_used_bytes,
        "device peak": max((entry.device_peak_bytes or 0 for entry in epochs), default=0),
    }
    return RunStatus(
        state,
        why,
        phases | {"train": state == "finished"},
        trials,
        epoch=len(epochs),
        epochs=start.epochs,
        step=step.step,
        steps=num_steps,
        losses={name: loss for name, loss in by_kind.items() if loss is not None},
        chosen=next((entry.text for entry in reversed(entries) if entry.event == "chosen"), ""),
        best_epoch=min(measured)[1] if measured else None,
        best_epochs_text=best_epochs_text(folder.root),
        step_s=step_s or None,
        samples_per_s=start.effective_batch / step_s if step_s else None,
        time_left_s=_time_left(entries, now, least_s=step_s * (num_steps - step.step)) if state == "running" else None,
        memory_bytes={name: size for name, size in sizes.items() if size},
    )


def status_of(root: Path) -> RunStatus:
    """Of a study, or of a run of one's own model: its log lies in the folder itself, and it has no other phases.

    Raises as `load`.
    """
    folder = RunFolder(root)
    if is_sealed(folder.config) or not (root / "events.jsonl").is_file():
        return read_status(*load(root))
    folder.train = root
    return read_status(folder, StudyConfig(sweep=SweepConfig(rates=())))


def status_lines(status: RunStatus) -> list[str]:
    """What a person is told of a run."""
    left = "" if status.time_left_s is None else f", {duration_text(status.time_left_s)} left"
    rows = {
        "state": f"{status.state}{': ' if status.why else ''}{status.why}{left}",
        "done": ", ".join(name for name, is_done in status.phases.items() if is_done),
    }
    if not status.epochs:
        for trial in status.trials:
            loss = "" if trial.val_loss is None else f", validation loss {trial.val_loss:.4f}"
            rows[f"rate {trial.rate}"] = (
                f"{trial.epochs} epochs{loss}{' ' if trial.stopped else ''}{trial.stopped or ''}"
            )
    else:
        rows["at"] = f"epoch {status.epoch}/{status.epochs}, step {status.step:,}/{status.steps:,}"
        rows["way"] = status.chosen
        rows["loss"] = ", ".join(f"{name} {loss:.4f}" for name, loss in status.losses.items())
        if status.best_epoch:
            rows["loss"] += f", best epoch {status.best_epoch}"
        rows["epochs"] = status.best_epochs_text or ""
        if status.step_s:
            rows["speed"] = f"{status.step_s:.2f} s a step, {status.samples_per_s:.1f} records a second"
        rows["memory"] = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in status.memory_bytes.items())
    width = max(map(len, rows)) + 2
    return [f"{name:<{width}}{text}" for name, text in rows.items() if text]


def _state(
    entries: Sequence[_Entry], samples: Sequence[_Entry], *, is_complete: bool, step_s: float, now: datetime
) -> tuple[str, str]:
    if is_complete:
        return "finished", ""
    last = entries[-1]
    if last.event == "stopped":
        return "stopped", f"{last.what} (exit code {last.exit_code})"
    if last.event == "end":
        return "stopped", "the number of steps asked for is reached"
    signs = [entry.time_utc for entry in (*entries[-2:], *samples[-2:]) if entry.time_utc]
    if not signs:
        return "silent", "its log says no time"
    if (now - max(signs)).total_seconds() > max(SILENT_S, 10 * step_s):
        return "silent", f"nothing written since {max(signs):%Y-%m-%d %H:%M:%S} UTC: killed, or suspended"
    return "running", ""


def _time_left(entries: Sequence[_Entry], now: datetime, *, least_s: float) -> float | None:
    """What the newest estimate said, less the time since; not less than the steps that are left take."""
    for entry in reversed(entries):
        left_s = {"epoch": entry.time_left_s, "estimate": entry.seconds}.get(entry.event)
        if left_s is not None and entry.time_utc:
            return max(least_s, left_s - (now - entry.time_utc).total_seconds())
    return None


def _entries(path: Path) -> list[_Entry]:
    """The events of a log that hold what is read of them."""
    found = []
    for event in watched_events(path):
        with suppress(msgspec.ValidationError):
            found.append(msgspec.convert(event, _Entry))
    return found
