"""Cosine learning-rate cycles with warm restarts, counted in optimizer steps (Loshchilov and Hutter, 2017)."""

import math
from dataclasses import dataclass

from redheart.train.settings import RunSettings


@dataclass(frozen=True)
class CyclePosition:
    """Where a step lies in the cycles."""

    cycle: int
    """Number of the cycle, from 0."""
    fraction: float
    """How much of the cycle is behind, 0 at its start and below 1 at its last step."""


def cycle_position(step: int, *, first_cycle_steps: int, growth: int) -> CyclePosition:
    """The cycle that optimizer step `step` (from 0) belongs to; every cycle is `growth` times the one before."""
    cycle, length = 0, first_cycle_steps
    while step >= length:
        step -= length
        length *= growth
        cycle += 1
    return CyclePosition(cycle, step / length)


def learning_rate(step: int, *, peak: float, eta_min: float, first_cycle_steps: int, growth: int) -> float:
    """Learning rate used by optimizer step `step` (from 0)."""
    fraction = cycle_position(step, first_cycle_steps=first_cycle_steps, growth=growth).fraction
    return eta_min + 0.5 * (peak - eta_min) * (1 + math.cos(math.pi * fraction))


def rate_of(step: int, settings: RunSettings, *, steps_per_epoch: int) -> float:
    """Learning rate of step `step` (from 0) of a run: of its cycles, or of a range test."""
    train, peak = settings.train, settings.peak_learning_rate
    if settings.ramp_from is not None and settings.max_steps is not None:
        return ramped_rate(step, low=settings.ramp_from, high=peak, steps=settings.max_steps)
    cycle_steps = train.cycle_epochs * steps_per_epoch
    return learning_rate(
        step, peak=peak, eta_min=train.eta_min, first_cycle_steps=cycle_steps, growth=train.cycle_growth
    )


def ramped_rate(step: int, *, low: float, high: float, steps: int) -> float:
    """Learning rate of step `step` (from 0) of a range test: exponential from `low` to `high` (Smith, 2017)."""
    return low * (high / low) ** (step / max(1, steps - 1))
