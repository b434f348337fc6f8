"""Learning rates by optimizer step: cosine cycles with warm restarts (Loshchilov and Hutter, 2017), or one decay."""

import math

from redheart.train.settings import RunSettings


def cycle_position(step: int, *, first_cycle_steps: int, growth: int) -> float:
    """How much of its cycle is behind optimizer step `step` (from 0): 0 at the start, below 1 at the last step.

    Every cycle is `growth` times the one before.
    """
    length = first_cycle_steps
    while step >= length:
        step -= length
        length *= growth
    return step / length


def rate_of(step: int, settings: RunSettings, *, steps_per_epoch: int) -> float:
    """Learning rate of step `step` (from 0) of a run: of its cycles or its one decay, or of a range test."""
    train, peak = settings.train, settings.peak_learning_rate
    if settings.ramp_from is not None and settings.max_steps is not None:
        # Exponential (Smith, 2017).
        return settings.ramp_from * (peak / settings.ramp_from) ** (step / max(1, settings.max_steps - 1))
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    fraction = position_of(step, settings, steps_per_epoch=steps_per_epoch)
    height = 1 - fraction if settings.decay == "linear" else 0.5 * (1 + math.cos(math.pi * fraction))
    low = min(train.eta_min, peak)
    return low + height * (peak - low)


def position_of(step: int, settings: RunSettings, *, steps_per_epoch: int) -> float:
    """How much of its cycle is behind step `step` (from 0) of a run; of one decay, after the warm-up, all is one."""
    if settings.decay == "restarts":
        cycle_steps = settings.train.cycle_epochs * steps_per_epoch
        return cycle_position(step, first_cycle_steps=cycle_steps, growth=settings.train.cycle_growth)
    behind = max(0, step - settings.warmup_steps)
    return behind / max(1, settings.num_steps - settings.warmup_steps)
