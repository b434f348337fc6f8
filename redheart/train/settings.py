"""What the loop is told beside its learner, and the learning rate by optimizer step that follows from it.

Cosine cycles with warm restarts (Loshchilov and Hutter, 2017), or one decay.
"""

import math
from dataclasses import dataclass
from typing import Literal

from redheart.core.config import TrainConfig
from redheart.train.log.pace import Expected

Decay = Literal["restarts", "cosine", "linear"]


@dataclass(frozen=True)
class Chosen:
    """The way to train that the planner found for a card, or that was asked for, and what it says of it."""

    setting: str
    """Strategy, micro-batch, checkpointing and the optimizer's share on the card, in a few words."""
    by: Literal["planner", "settings"]
    text: str
    """What and why, for people; the figures in it are those below."""
    others: list[str]
    """The next configurations, and what they would save or cost."""
    device: str
    constants: str
    """Where those of the simulation are from."""
    predicted_step_s: float | None
    """Simulated, with its interval; None for a card that is not in the table."""
    low_s: float | None
    high_s: float | None
    bound_by: str | None
    upper_bytes: int
    vram_bytes: int


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of one training run, beside its learner."""

    train: TrainConfig
    epochs: int
    peak_learning_rate: float
    key: str
    """Digest of the data, model and settings; a state of another key is refused."""
    snapshots: bool = True
    max_steps: int | None = None
    """Stop after this many optimizer steps; for measurements."""
    ramp_from: float | None = None
    """For a range test: the rate rises exponentially from here to the peak over `max_steps` steps, without cycles."""
    decay: Decay = "restarts"
    """From the peak on: in the cycles of `train`, or once over `num_steps` to `train.eta_min`."""
    warmup_steps: int = 0
    """Over which the rate rises evenly to its peak."""
    num_steps: int = 0
    """Optimizer steps of the whole run, for a decay over it; 0 where its epochs say it."""
    steps_per_epoch: int | None = None
    """Of a whole epoch, where the learner's first one may be cut short; None counts those of that one."""
    expected: Expected | None = None
    """What earlier runs took; without it the time left is known after a few steps."""
    chosen: Chosen | None = None
    """What the log is told of it."""


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
    """How much of its cycle is behind step `step` (from 0) of a run: 0 at the start, below 1 at the last step.

    Of one decay, after the warm-up, all is one cycle.
    """
    if settings.decay == "restarts":
        length = settings.train.cycle_epochs * steps_per_epoch
        while step >= length:
            step -= length
            length *= settings.train.cycle_growth
        return step / length
    behind = max(0, step - settings.warmup_steps)
    return behind / max(1, settings.num_steps - settings.warmup_steps)
