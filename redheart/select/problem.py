"""What a selection strategy may look at: losses on the select half of the validation records, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redheart.core.errors import BadInput


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

    def mean_losses_E(self, predictor: str) -> np.ndarray:
        """Mean loss of a predictor at every snapshot."""
        means: np.ndarray = np.nanmean(self.losses_EN[predictor], axis=1)
        return means

    def final_losses_E(self) -> np.ndarray:
        """Mean over the final predictors of their mean loss: what a snapshot is worth as a whole."""
        return np.mean([self.mean_losses_E(name) for name in self.measured(self.finals)], axis=0)

    def measured(self, predictors: Sequence[str]) -> list[str]:
        """Those predictors that have a loss: a task without any target has none."""
        return [name for name in predictors if name in self.losses_EN and not np.isnan(self.losses_EN[name]).all()]


@dataclass(frozen=True)
class GroupChoice:
    """What was chosen for a group, and the score of every snapshot for it."""

    epochs: tuple[int, ...]
    scores_E: tuple[float, ...] | None
    """Lower is better; None where the group has no loss of its own and takes the anchor."""
    reason: str


@dataclass(frozen=True)
class Choice:
    """A model to assemble."""

    anchor_epoch: int
    groups: dict[str, GroupChoice]

    def epochs_of_modules(self, problem: SelectionProblem) -> dict[str, list[int]]:
        """Epochs by module, for every module of the model.

        Raises:
            BadInput: a module is in no group.
        """
        chosen = {
            module: list(self.groups[group].epochs) for group, modules in problem.groups.items() for module in modules
        }
        missing = [module for module in problem.modules if module not in chosen]
        if missing:
            raise BadInput("modules without a choice", got=", ".join(missing))
        return {module: chosen[module] for module in problem.modules}
