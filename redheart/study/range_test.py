"""The learning-rate range test before a sweep: a hundred steps with a rising rate (Smith, 2017).

It says where the candidates stand, and drops none of them: a rate that diverges is an explicit failure of its trial.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from redheart.core.config import digest
from redheart.core.files import read_if_there, write_bytes, write_sealed
from redheart.core.folders import folder_lock
from redheart.core.ranks import launched
from redheart.core.text import csv_table
from redheart.snapshots.states import remove_states
from redheart.study.phases import Study, run_settings, train_at
from redheart.study.run_folder import RunFolder
from redheart.train.log.events import read_events
from redheart.train.settings import RunSettings

BELOW, ABOVE = 10.0, 100.0
"""The ramp begins this much below the smallest candidate and ends this much above the largest."""
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss: single batches differ by more than neighbouring rates."""


class RangeTest(msgspec.Struct, frozen=True):
    """What a range test found. Losses are smoothed training losses."""

    key: str
    rates: list[float]
    losses: list[float | None]
    """Of every step; None where it was no number."""
    steepest: float
    """Rate at which the loss fell fastest."""
    lowest: float
    """Rate at which the loss was lowest."""
    diverges: float | None
    """First rate behind the lowest at which the loss was above its start or no number; None if there was none."""
    beyond: list[float]
    """Candidates at or beyond that rate."""

    def __str__(self) -> str:
        limit = "no divergence" if self.diverges is None else f"divergence from {self.diverges:.2g}"
        beyond = f"; candidates beyond: {', '.join(map(str, self.beyond))}" if self.beyond else ""
        return f"range test: steepest at {self.steepest:.2g}, lowest at {self.lowest:.2g}, {limit}{beyond}"


def run(study: Study, *, start_trial: Callable[[RunFolder, Sequence[str]], None]) -> RangeTest:
    """Make the test in a process of its own, write JSON, CSV and figure; a finished one is not repeated."""
    from redheart.report.figures import draw_lines

    folder, settings = study.folder, _settings(study)
    path = folder.sweep / "range_test.json"
    if (old := read_if_there(path, RangeTest)) and old.key == settings.key:
        return old
    start_trial(folder, ["--range-test"])
    remove_states(folder.range_test / "states")
    steps = read_events(folder.range_test / "events.jsonl", "step")
    rates, losses = [event["learning_rate"] for event in steps], [event["loss"] for event in steps]
    found = judge(settings.key, rates, losses, candidates=study.config.sweep.rates)
    write_sealed(path, found)
    table = csv_table(("learning_rate", "loss"), zip(found.rates, found.losses, strict=True))
    write_bytes(folder.sweep / "range_test.csv", table.encode())
    finite = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if loss is not None]
    draw_lines(
        folder.sweep / "range_test.png",
        {
            "loss": ([rate for rate, _ in finite], [loss for _, loss in finite]),
            "smoothed": (rates[: len(smoothed(losses))], smoothed(losses)),
        },
        title="Learning-rate range test",
        xlabel="learning rate",
        ylabel="training loss",
        log_x=True,
    )
    return found


def train_ramp(study: Study) -> None:
    """The steps of the test, in this process, from the initial weights."""
    out, name = study.folder.range_test, f"{study.folder.root.name} range test"
    with trial_lock(out):
        if launched().is_first:
            remove_states(out / "states")
            (out / "events.jsonl").unlink(missing_ok=True)
        train_at(study, _settings(study), out, name=name)


def trial_lock(out: Path) -> AbstractContextManager[None]:
    """For one trial at a time in its folder; one whose sweep was killed stops soon and is waited for.

    Only the first rank holds it: the others of its launcher must not be locked out.
    """
    return folder_lock(out, name="trial", wait=True) if launched().is_first else nullcontext()


def judge(
    key: str, rates: Sequence[float], losses: Sequence[float | None], *, candidates: Sequence[float]
) -> RangeTest:
    """Read the curve of a test, whose rates rise step by step; a loss is None where it was no number."""
    curve = smoothed(losses)
    lowest = min(range(len(curve)), key=lambda step: curve[step], default=0)
    slopes = [curve[step + 1] - curve[step] for step in range(lowest)]
    steepest = min(range(len(slopes)), key=lambda step: slopes[step], default=lowest)
    above = [step for step in range(lowest, len(curve)) if curve[step] > curve[0]]
    # The curve ends before the first step without a number.
    first_bad = above[0] if above else (len(curve) if len(curve) < len(rates) else None)
    diverges = None if first_bad is None else rates[first_bad]
    beyond = [] if diverges is None else [rate for rate in candidates if rate >= diverges]
    return RangeTest(key, list(rates), list(losses), rates[steepest], rates[lowest], diverges, beyond)


def smoothed(losses: Sequence[float | None]) -> list[float]:
    """Exponential mean with its bias corrected, up to the first step without a number."""
    mean, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        if loss is None or not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        curve.append(mean / (1 - SMOOTHING**step))
    return curve


def _settings(study: Study) -> RunSettings:
    config = study.config
    low, high = min(config.sweep.rates) / BELOW, max(config.sweep.rates) * ABOVE
    steps = config.sweep.range_test_steps
    steps_per_epoch = -(-len(study.prepared.split["train"]) // config.train.effective_batch)
    settings = run_settings(study, high, epochs=-(-steps // steps_per_epoch))
    key = digest({"run": settings.key, "low": low, "steps": steps, "candidates": config.sweep.rates})
    return dataclasses.replace(settings, key=key, snapshots=False, max_steps=steps, ramp_from=low)
