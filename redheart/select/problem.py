"""What a selection strategy may look at: losses on the select half of the validation records, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from redheart.select.scoring import score_N, size_of
from redheart.snapshots.blend import Blend

Level = Literal["group", "module"]
_BROKEN = 1e6
"""Score of a model without a finite loss where there is a target; the best snapshot's is about 1, or -1."""


@dataclass(frozen=True)
class SelectionProblem:
    """Snapshots to choose from. E snapshots, N select records."""

    epochs: tuple[int, ...]
    modules: tuple[str, ...]
    """Every module of the model; a choice must cover them all."""
    groups: dict[str, tuple[str, ...]]
    """Modules by group; together they are all modules."""
    losses_EN: dict[str, np.ndarray]
    """By predictor, the loss of every record at every snapshot; NaN where it has no target."""
    train_losses_E: dict[str, np.ndarray]
    """By predictor, the mean training loss of the epoch."""
    finals: tuple[str, ...]
    """The predictors whose predictions are the model's."""
    floors_N: dict[str, np.ndarray] = field(default_factory=dict)
    """By final predictor, the part of every record's loss that no model can remove; zero where absent."""

    @cached_property
    def scales(self) -> dict[str, float]:
        """By final predictor, its lowest mean loss above the floor over the snapshots; one without any is left out."""
        above_EN = {name: self.losses_EN[name] - self.floors_N.get(name, 0.0) for name in self.measured(self.finals)}
        return {name: size_of(np.nanmean(losses_EN, axis=1).min()) for name, losses_EN in above_EN.items()}

    @cached_property
    def scores_EN(self) -> np.ndarray:
        """Score of every snapshot as a whole on every record, from its stored outputs."""
        of_epochs = range(len(self.epochs))
        return np.stack([self.score_N({name: self.losses_EN[name][e] for name in self.scales}) for e in of_epochs])

    @cached_property
    def labelled_TN(self) -> np.ndarray:
        """Whether a record has a target of a task that is scored."""
        return ~np.stack([np.isnan(self.losses_EN[name]).all(0) for name in self.scales])

    def score_N(self, losses: Mapping[str, np.ndarray]) -> np.ndarray:
        """Score of a model on every record, from its (N,) losses by predictor; the worst where it is broken."""
        found_TN = np.stack([losses[name] for name in self.scales])
        if not np.isfinite(found_TN[self.labelled_TN]).all():
            return np.full(found_TN.shape[1], _BROKEN)
        return score_N(losses, scales=self.scales, floors=self.floors_N)

    @property
    def best_epoch(self) -> int:
        """The best single snapshot."""
        return self.epochs[int(np.argmin(self.scores_EN.mean(1)))]

    def mean_losses_E(self, predictor: str) -> np.ndarray:
        """Mean loss of a predictor at every snapshot."""
        return np.nanmean(self.losses_EN[predictor], axis=1)

    def measured(self, predictors: Sequence[str]) -> list[str]:
        """Those predictors that have a loss: a task without any target has none."""
        return [name for name in predictors if name in self.losses_EN and not np.isnan(self.losses_EN[name]).all()]

    def units(self, level: Level) -> dict[str, tuple[str, ...]]:
        """What is chosen as one: the groups, or every module alone."""
        return {module: (module,) for module in self.modules} if level == "module" else self.groups


class Score(msgspec.Struct, frozen=True):
    """One mixture that was compared for a group; lower is better."""

    blend: Blend
    score: float


class GroupSpot(msgspec.Struct, frozen=True):
    """What was chosen for one group, or for one module alone."""

    modules: tuple[str, ...]
    blend: Blend
    reason: str
    scores: list[Score] = []
    """What was compared for it; empty where it has no score of its own."""


Choice = dict[str, GroupSpot]
"""A model to assemble, by group."""


def blends_of(choice: Choice) -> dict[str, Blend]:
    """The mixture of every module."""
    return {module: spot.blend for spot in choice.values() for module in spot.modules}
