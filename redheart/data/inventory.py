"""The target inventory of a data set: which tasks it has, how many targets each, and what they are called."""

from typing import Literal

import msgspec
import numpy as np

EMOTIONS = ("joy", "trust", "fear", "surprise", "sadness", "disgust", "anger")
BENTHAM = (
    *("intensity", "duration", "certainty", "propinquity", "purity", "extent", "fecundity", "remoteness"),
    *("succession", "utility"),
)
SURD = ("surprise", "uncertainty", "relevance", "depth")


class Task(msgspec.Struct, frozen=True):
    """One task: a distribution over classes, or independent values in 0-1."""

    name: str
    targets: tuple[str, ...]
    kind: Literal["distribution", "values"]


class Inventory(msgspec.Struct, frozen=True):
    """The tasks in the order in which their targets stand side by side."""

    tasks: tuple[Task, ...]

    @property
    def num_targets(self) -> int:
        """Number of target columns of all tasks."""
        return sum(len(task.targets) for task in self.tasks)

    def task(self, name: str) -> Task:
        """The task called `name`."""
        return next(task for task in self.tasks if task.name == name)

    def columns(self, name: str) -> slice:
        """Where a task's targets lie among the columns."""
        place = [task.name for task in self.tasks].index(name)
        start = sum(len(task.targets) for task in self.tasks[:place])
        return slice(start, start + len(self.tasks[place].targets))

    @property
    def outputs(self) -> tuple[int, int, int, int]:
        """Number of targets of the four tasks."""
        emotion, bentham, regret, surd = (len(task.targets) for task in self.tasks)
        return emotion, bentham, regret, surd


def make_inventory(*, emotions: tuple[str, ...] = EMOTIONS, surd: tuple[str, ...] = SURD) -> Inventory:
    """The four tasks, with the class names and SURD metrics of a data set."""
    return Inventory(
        (
            Task("emotion", emotions, "distribution"),
            Task("bentham", BENTHAM, "values"),
            Task("regret", ("regret_factor",), "values"),
            Task("surd", surd, "values"),
        )
    )


def trained_targets(mask_NT: np.ndarray, inventory: Inventory) -> dict[str, tuple[str, ...]]:
    """The targets by task that at least one of these records has; tasks without any are left out."""
    found = {}
    for task in inventory.tasks:
        counts_O = mask_NT[:, inventory.columns(task.name)].sum(0)
        names = tuple(task.targets[index] for index in np.flatnonzero(counts_O))
        if names:
            found[task.name] = names
    return found
