"""Which epoch is best by which measure, where the two that a run names are not one."""

from pathlib import Path

import msgspec

from redheart.core.files import read_if_there, read_sealed
from redheart.train.log.events import watched_events


class _Spot(msgspec.Struct, frozen=True):
    """What is read of a sweet spot, without what computes one."""

    best_epoch: int
    epochs: list[int]


class _Sizes(msgspec.Struct, frozen=True):
    """What is read of the prepared records: how many there are of each half of the validation records."""

    val_select: int
    val_confirm: int


def best_epochs_text(root: Path) -> str | None:
    """The measure, the records and the epochs behind each epoch of a run that is called best.

    None where there is only one, or no snapshot has been chosen yet.
    """
    spot = read_if_there(root / "select" / "sweet_spot.json", _Spot)
    if spot is None:
        return None
    val_losses = {}
    for event in watched_events(root / "train" / "events.jsonl"):
        match event:
            # A damaged line holds less, or something else.
            case {"event": "epoch", "epoch": int(epoch), "val_loss": float(loss)}:
                val_losses[epoch] = loss
    single = spot.best_epoch
    lowest = min(val_losses, key=val_losses.__getitem__, default=single)
    if lowest == single:
        return None
    manifest = read_sealed(root / "data" / "manifest.json", _Sizes)
    return (
        f"best by two measures: the best single snapshot, epoch {single}, has the lowest mean of the tasks' final "
        f"losses, each above its floor and in units of its best, on {manifest.val_select:,} select records among "
        f"{len(spot.epochs)} snapshots; the lowest validation loss, after epoch {lowest}, is of the loss that is "
        f"trained, over the outputs of all modules, on all {manifest.val_select + manifest.val_confirm:,} "
        f"validation records among {len(val_losses)} epochs"
    )
