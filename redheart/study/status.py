"""Where a run stands, from its files alone; the run may be going on, have ended or have been killed."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from redheart.core.config import StudyConfig
from redheart.study.run_folder import RunFolder
from redheart.study.trials import trial_folder
from redheart.train.events import Event, watched_events

T = TypeVar("T")

SILENT_S = 120.0
"""A run that has written nothing for this long, or for ten of its steps, is not called running."""
NUM_RECENT_STEPS = 20


class StartEvent(msgspec.Struct, frozen=True):
    """The fields that are read of an event; the log holds more."""

    epochs: int
    steps_per_epoch: int
    effective_batch: int


class StepEvent(msgspec.Struct, frozen=True):
    """As `StartEvent`."""

    step: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float
    step_s: float


class EpochEvent(msgspec.Struct, frozen=True):
    """As `StartEvent`."""

    epoch: int
    train_loss: float | None
    val_loss: float
    val_module_loss: dict[str, float]
    val_metrics: dict[str, float]
    host_rss_peak_bytes: int
    device_peak_bytes: int | None


class StopEvent(msgspec.Struct, frozen=True):
    """As `StartEvent`."""

    what: str
    exit_code: int


class Sample(msgspec.Struct, frozen=True):
    """As `StartEvent`."""

    host_rss_bytes: int | None = None
    device_used_bytes: int | None = None
    device_busy_percent: float | None = None


class Sign(msgspec.Struct, frozen=True):
    """Any event: when it was, and how long the run takes from there if it says so."""

    event: str
    time_utc: datetime
    time_left_s: float | None = None
    seconds: float | None = None


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
    """Why it stopped, or since when it is silent."""
    phases: dict[str, bool]
    """Which phases have left their files."""
    trials: list[TrialStatus]
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None
    step_s: float | None = None
    samples_per_s: float | None = None
    time_left_s: float | None = None
    host_rss_bytes: int | None = None
    host_peak_bytes: int | None = None
    device_used_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_busy_percent: float | None = None
    val_metrics: dict[str, float] = {}
    best_epoch: int | None = None
    """With the lowest validation loss."""
    step_loss: list[float | None] = []
    """Of every step."""
    train_loss: list[float | None] = []
    """Of every epoch."""
    val_loss: list[float] = []
    val_module_loss: dict[str, list[float | None]] = {}
    last_events: list[str] = []


def read_status(folder: RunFolder, config: StudyConfig, *, now: datetime | None = None) -> RunStatus:
    """Read the files of a run; a line that is being written, or is damaged, is passed over."""
    now = now or datetime.now(UTC)
    events = watched_events(folder.train / "events.jsonl")
    samples = watched_events(folder.train / "samples.jsonl")
    trials = [_trial(folder, config, rate) for rate in config.sweep.rates if trial_folder(folder, rate).exists()]
    phases = _phases(folder)
    starts = _of(events, "start", StartEvent)
    if not starts:
        return RunStatus("waiting", "no training yet", phases, trials)
    start, steps, epochs = starts[-1], _of(events, "step", StepEvent), _of(events, "epoch", EpochEvent)
    recent_s = [step.step_s for step in steps[-NUM_RECENT_STEPS:]]
    step_s = sum(recent_s) / len(recent_s) if recent_s else None
    state, why = _state(events, samples, is_complete=len(epochs) >= start.epochs, step_s=step_s, now=now)
    sample = (_of(samples, "sample", Sample) or [Sample()])[-1]
    modules = epochs[-1].val_module_loss if epochs else {}
    return RunStatus(
        state,
        why,
        phases | {"train": state == "finished"},
        trials,
        epoch=len(epochs),
        epochs=start.epochs,
        step=steps[-1].step if steps else 0,
        steps=start.epochs * start.steps_per_epoch,
        learning_rate=steps[-1].learning_rate if steps else None,
        grad_norm=steps[-1].grad_norm if steps else None,
        step_s=step_s,
        samples_per_s=start.effective_batch / step_s if step_s else None,
        time_left_s=_time_left(events, now) if state == "running" else None,
        host_rss_bytes=sample.host_rss_bytes,
        host_peak_bytes=max((epoch.host_rss_peak_bytes for epoch in epochs), default=None),
        device_used_bytes=sample.device_used_bytes,
        device_peak_bytes=max((epoch.device_peak_bytes or 0 for epoch in epochs), default=0) or None,
        device_busy_percent=sample.device_busy_percent,
        val_metrics=epochs[-1].val_metrics if epochs else {},
        best_epoch=min(epochs, key=lambda epoch: epoch.val_loss).epoch if epochs else None,
        step_loss=[step.loss for step in steps],
        train_loss=[epoch.train_loss for epoch in epochs],
        val_loss=[epoch.val_loss for epoch in epochs],
        val_module_loss={name: [epoch.val_module_loss.get(name) for epoch in epochs] for name in modules},
        last_events=[_line(event) for event in events if event["event"] not in ("step", "epoch")][-5:],
    )


def _phases(folder: RunFolder) -> dict[str, bool]:
    files = {
        "prepare": folder.data / "manifest.json",
        "sweep": folder.sweep / "sweep.json",
        "train": None,
        "sweet-spot": folder.select / "sweet_spot.json",
        "crossover": folder.select / "crossover.json",
        "calibrate": folder.calibration / "calibration.json",
        "evaluate": folder.evaluation / "evaluation.json",
        "report": folder.report / "report.md",
    }
    return {name: path is not None and path.is_file() for name, path in files.items()}


def _trial(folder: RunFolder, config: StudyConfig, rate: float) -> TrialStatus:
    events = watched_events(trial_folder(folder, rate) / "events.jsonl")
    epochs, stops = _of(events, "epoch", EpochEvent), _of(events, "stopped", StopEvent)
    return TrialStatus(rate, len(epochs), epochs[-1].val_loss if epochs else None, stops[-1].what if stops else None)


def _state(
    events: Sequence[Event], samples: Sequence[Event], *, is_complete: bool, step_s: float | None, now: datetime
) -> tuple[str, str]:
    if is_complete:
        return "finished", ""
    last = events[-1:]
    for stop in _of(last, "stopped", StopEvent):
        return "stopped", f"{stop.what} (exit code {stop.exit_code})"
    if last[0]["event"] == "end":
        return "stopped", "the number of steps asked for is reached"
    signs = [sign.time_utc for sign in (*_signs(events[-2:]), *_signs(samples[-2:]))]
    if not signs:
        return "silent", "its log says no time"
    silent_s = (now - max(signs)).total_seconds()
    if silent_s > max(SILENT_S, 10 * (step_s or 0.0)):
        return "silent", f"nothing written since {max(signs):%Y-%m-%d %H:%M:%S} UTC: killed, or suspended"
    return "running", ""


def _time_left(events: Sequence[Event], now: datetime) -> float | None:
    """What the newest estimate said, less the time since."""
    for sign in reversed(_signs(events)):
        left_s = sign.time_left_s if sign.event == "epoch" else sign.seconds if sign.event == "estimate" else None
        if left_s is not None:
            return max(0.0, left_s - (now - sign.time_utc).total_seconds())
    return None


def _of(events: Sequence[Event], name: str, kind: type[T]) -> list[T]:
    """The events of a name that hold what is read of them."""
    found = []
    for event in events:
        if event["event"] == name:
            with suppress(msgspec.ValidationError):
                found.append(msgspec.convert(event, kind))
    return found


def _signs(events: Sequence[Event]) -> list[Sign]:
    found = []
    for event in events:
        with suppress(msgspec.ValidationError):
            found.append(msgspec.convert(event, Sign))
    return [sign for sign in found if sign.time_utc.tzinfo]


def _line(event: Event) -> str:
    fields = {name: value for name, value in event.items() if name not in ("event", "time_utc", "key")}
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()]
    return "  ".join([str(event.get("time_utc", ""))[11:19], str(event["event"]), *shown])
