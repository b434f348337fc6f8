"""How long a run still takes: from the steps and ends of epochs that this process has measured, before that from a
figure of earlier runs."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median

from redheart.core.progress import duration_text

MIN_STEPS = 5
"""Steps that an estimate needs, beside the first of the process, which warms up caches and compiles."""
WINDOW_STEPS = 200
"""Steps that are averaged: enough for batches of every length, few enough to follow a machine that slows down."""
FEW_STEPS, WARM_UP_FACTOR = 20, 4
"""Of so few steps those that took so many medians are left out: on a device kernels are loaded when first called."""
NEWS_SHARE = 0.25
CHECK_STEPS = 20
"""Steps after which an estimate from before the run is held against the clock."""


@dataclass(frozen=True)
class Expected:
    """What earlier runs on this machine took."""

    step_s: float
    epoch_end_s: float | None
    """Validation, snapshot and state at the end of an epoch; None where unknown."""
    basis: str
    """Where the figures come from, for people."""


@dataclass(frozen=True)
class Estimate:
    """How long what is left will take, and of what that is made."""

    seconds: float
    steps: int
    step_s: float
    epochs: int
    epoch_end_s: float | None
    basis: str

    def __str__(self) -> str:
        ends = (
            "validation and saving not counted yet"
            if self.epoch_end_s is None
            else f"{self.epochs} x {self.epoch_end_s:.2f} s at the end of an epoch"
        )
        return (
            f"about {duration_text(self.seconds)}: {self.steps:,} steps of {self.step_s:.2f} s, {ends} ({self.basis})"
        )


@dataclass(frozen=True)
class Outcome:
    """How long a process trained, and how far its estimate was off; None where there was none."""

    seconds: float
    step_s: float | None
    epoch_end_s: float | None
    estimated_s: float | None = None
    took_s: float | None = None
    """From the estimate to the end."""
    estimate_error_percent: float | None = None

    def __str__(self) -> str:
        if self.estimated_s is None or self.took_s is None:
            return f"took {duration_text(self.seconds)}"
        return (
            f"took {duration_text(self.took_s)} after an estimate of {duration_text(self.estimated_s)} "
            f"({self.estimate_error_percent:+.1f} %)"
        )


@dataclass(frozen=True)
class Check:
    """An estimate from before the run beside what its first steps took."""

    expected_step_s: float
    step_s: float
    error_percent: float
    basis: str


class Pace:
    """Means over what this process has done. The time of a step is that from one step's end to the next."""

    def __init__(self, *, expected: Expected | None, clock_s: Callable[[], float] = time.perf_counter):
        self._expected, self._clock_s = expected, clock_s
        self._steps: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._ends: list[float] = []
        self._is_warm = False
        self._start_s = self._mark_s = clock_s()
        self._said: tuple[Estimate, float] | None = None
        self._is_settled = self._is_checked = False

    def step_done(self) -> None:
        seconds = self._lap()
        if self._is_warm:
            self._steps.append(seconds)
        self._is_warm = True

    def epoch_end_done(self) -> None:
        """Everything that follows an epoch's last step has ended."""
        self._ends.append(self._lap())

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, None where neither measured nor expected."""
        if len(self._steps) >= MIN_STEPS:
            few = len(self._steps) < FEW_STEPS
            longest_s = WARM_UP_FACTOR * median(self._steps) if few else math.inf
            return mean(step_s for step_s in self._steps if step_s <= longest_s)
        return self._expected.step_s if self._expected else None

    @property
    def epoch_end_s(self) -> float | None:
        """Seconds of an epoch's end, None where neither measured nor expected."""
        if self._ends:
            return sum(self._ends) / len(self._ends)
        return self._expected.epoch_end_s if self._expected else None

    def estimate(self, *, steps: int, epochs: int) -> Estimate | None:
        """Of this many steps and ends of epochs; None before anything is known."""
        step_s, end_s = self.step_s, self.epoch_end_s
        if step_s is None:
            return None
        measured = len(self._steps)
        basis = self._expected.basis if self._expected and measured < MIN_STEPS else f"measured over {measured} steps"
        return Estimate(steps * step_s + epochs * (end_s or 0.0), steps, step_s, epochs, end_s, basis)

    def news(self, *, steps: int, epochs: int) -> Estimate | None:
        """The estimate when there is something to say, else None.

        That is when it is known for the first time, and once more where this run's first steps show that the earlier
        runs' figure was off by more than `NEWS_SHARE`. The outcome is held against what was said last.
        """
        found = None if self._is_settled or steps == 0 else self.estimate(steps=steps, epochs=epochs)
        if found is None:
            return None
        self._is_settled = len(self._steps) >= MIN_STEPS
        if self._said and abs(found.step_s / self._said[0].step_s - 1) <= NEWS_SHARE:
            return None
        self._said = found, self._clock_s()
        return found

    def check(self) -> Check | None:
        """What earlier runs or a plan said of a step, held against the median of this run's first; once."""
        expected = self._expected
        if expected is None or self._is_checked or len(self._steps) < CHECK_STEPS:
            return None
        self._is_checked = True
        step_s = median(self._steps)
        return Check(expected.step_s, step_s, round(100 * (expected.step_s / step_s - 1), 1), expected.basis)

    def outcome(self) -> Outcome:
        now_s = self._clock_s()
        seconds = round(now_s - self._start_s, 2)
        if self._said is None:
            return Outcome(seconds, self.step_s, self.epoch_end_s)
        estimate, since_s = self._said
        took_s = now_s - since_s
        error_percent = round(100 * (estimate.seconds / took_s - 1), 1) if took_s > 0 else None
        return Outcome(
            seconds, self.step_s, self.epoch_end_s, round(estimate.seconds, 2), round(took_s, 2), error_percent
        )

    def _lap(self) -> float:
        now_s = self._clock_s()
        seconds, self._mark_s = now_s - self._mark_s, now_s
        return seconds
