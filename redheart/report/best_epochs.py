"""Which epoch is best by which measure, where the two that a run names are not one."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class ChosenEpoch(Protocol):
    """What is read of a sweet spot."""

    @property
    def best_epoch(self) -> int: ...
    @property
    def epochs(self) -> Sequence[int]: ...


class ValidationSizes(Protocol):
    """What is read of prepared records: how many there are of each half of the validation records."""

    @property
    def val_select(self) -> int: ...
    @property
    def val_confirm(self) -> int: ...


def best_epochs_text(spot: ChosenEpoch, *, val_losses: Mapping[int, float], manifest: ValidationSizes) -> str | None:
    """The measure, the records and the epochs behind each epoch that is called best; None where there is only one.

    `val_losses` are by epoch.
    """
    single = spot.best_epoch
    lowest = min(val_losses, key=val_losses.__getitem__, default=single)
    if lowest == single:
        return None
    return (
        f"best by two measures: the best single snapshot, epoch {single}, has the lowest mean of the tasks' final "
        f"losses, each above its floor and in units of its best, on {manifest.val_select:,} select records among "
        f"{len(spot.epochs)} snapshots; the lowest validation loss, after epoch {lowest}, is of the loss that is "
        f"trained, over the outputs of all modules, on all {manifest.val_select + manifest.val_confirm:,} validation "
        f"records among {len(val_losses)} epochs"
    )
