"""Which epoch is best by which measure, where the two that a run names are not one."""

from collections.abc import Iterable, Mapping
from typing import Any

from redheart.data.prepare import Manifest
from redheart.select.sweet_spot import SweetSpot


def spot_text(spot: SweetSpot, events: Iterable[Mapping[str, Any]], manifest: Manifest) -> str | None:
    """`best_epochs_text` of a sweet spot beside the log of the training that it chose from."""
    return best_epochs_text(
        single=spot.best_epoch,
        num_snapshots=len(spot.epochs),
        val_losses={event["epoch"]: event["val_loss"] for event in events if event["event"] == "epoch"},
        manifest=manifest,
    )


def best_epochs_text(
    *, single: int, num_snapshots: int, val_losses: Mapping[int, float], manifest: Manifest
) -> str | None:
    """The measure, the records and the epochs behind each epoch that is called best; None where there is only one.

    Args:
        single: epoch of the best single snapshot.
        num_snapshots: that it was chosen among.
        val_losses: validation loss by epoch.
        manifest: of the records that both are of.
    """
    lowest = min(val_losses, key=val_losses.__getitem__, default=single)
    if lowest == single:
        return None
    return (
        f"best by two measures: the best single snapshot, epoch {single}, has the lowest mean of the tasks' final "
        f"losses, each above its floor and in units of its best, on {manifest.val_select:,} select records among "
        f"{num_snapshots} snapshots; the lowest validation loss, after epoch {lowest}, is of the loss that is trained, "
        f"over the outputs of all modules, on all {manifest.val_select + manifest.val_confirm:,} validation records "
        f"among {len(val_losses)} epochs"
    )
