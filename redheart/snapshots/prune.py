"""Remove snapshots that nobody will need, and nothing else: no resume state, and no base of a snapshot that stays."""

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import PARTIAL, disk_errors, fsync_path
from redheart.core.folders import folder_lock, refuse_foreign
from redheart.snapshots.compress import expand, remove_leftovers
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots, snapshot_contents

_REMOVED = f".removed{PARTIAL}"


class Keep(msgspec.Struct, frozen=True):
    """Which snapshots stay: those that any of the rules names. The newest always does."""

    every: int = 0
    """Those whose epoch is a multiple of this."""
    best: int = 0
    """This many of the lowest validation loss; of equal ones the earlier."""
    last: int = 0
    epochs: tuple[int, ...] = ()


class Pruning(msgspec.Struct, frozen=True):
    """What was removed, or would be."""

    kept: list[int]
    removed: list[int]
    rewritten: list[int]
    """Kept ones that held differences to a removed one, and are whole now."""
    bytes_before: int
    bytes_after: int | None
    """None where nothing was done yet."""
    is_done: bool


def prune(root: Path, keep: Keep, *, needed: Callable[[], Collection[int]] = tuple, remove: bool = False) -> Pruning:
    """Remove the snapshots below `root` that no rule keeps; without `remove` only say which.

    A kept snapshot that holds differences to a removed one is made whole first. Killed at any instant, every kept
    snapshot can be read, and the same call again ends where it would have ended. `needed` is asked, under the lock, for
    epochs that stay whatever the rules say.

    Raises:
        BadInput: no rule, one that names no snapshot, or files of other people in a snapshot that would go.
        CorruptFile: a file that must be rewritten does not match its digest; nothing was removed.
    """
    with folder_lock(root.parent, name="snapshots", wait=False):
        snapshots = list_snapshots(root)
        kept = _kept(snapshots, keep, needed(), root)
        staying = [item for item in snapshots if item.epoch in kept]
        going = [item for item in snapshots if item.epoch not in kept]
        names = {item.folder.name for item in going}
        leaning = [item for item in staying if any(entry.delta and entry.delta.base in names for entry in item.files)]
        before = disk_bytes(root)
        for snapshot in going:
            refuse_foreign(snapshot.folder, snapshot_contents)
        if remove:
            for snapshot in staying:
                remove_leftovers(snapshot)
            for snapshot in leaning:
                expand(snapshot)
            # The newest first: what leans on another goes before it.
            for snapshot in reversed(going):
                # It is there whole or not at all, in the middle of its removal too.
                doomed = root / f".{snapshot.folder.name}{_REMOVED}"
                with disk_errors(root):
                    shutil.rmtree(doomed, ignore_errors=True)
                    snapshot.folder.rename(doomed)
                    fsync_path(root)
                    shutil.rmtree(doomed)
            for leftover in root.glob(f".*{_REMOVED}"):
                shutil.rmtree(leftover)
        return Pruning(
            kept=sorted(kept),
            removed=[item.epoch for item in going],
            rewritten=[item.epoch for item in leaning],
            bytes_before=before,
            bytes_after=disk_bytes(root) if remove else None,
            is_done=remove,
        )


def disk_bytes(*folders: Path) -> int:
    """Bytes of all files below folders; one that has several names counts once, one that vanishes meanwhile not."""
    found = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    status = os.stat(os.path.join(parent, name))
                    found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def _kept(snapshots: Sequence[Snapshot], keep: Keep, needed: Collection[int], root: Path) -> set[int]:
    epochs = [item.epoch for item in snapshots]
    if not epochs:
        raise BadInput("there are no snapshots", where=root)
    if keep == Keep():
        expected = "at least one of --keep-every, --keep-best, --keep-last, --keep-epochs"
        raise BadInput("no rule says what to keep", expected=expected)
    if (least := min(keep.every, keep.best, keep.last)) < 0:
        raise BadInput("number out of range", got=least, expected="0 or more")
    if unknown := [epoch for epoch in keep.epochs if epoch not in epochs]:
        expected = ", ".join(map(str, epochs))
        raise BadInput("there is no snapshot of that epoch", where=root, got=unknown[0], expected=expected)
    kept = {epochs[-1], *keep.epochs, *(epoch for epoch in needed if epoch in epochs)}
    if keep.every:
        kept |= {epoch for epoch in epochs if epoch % keep.every == 0}
    if keep.last:
        kept |= set(epochs[-keep.last :])
    by_loss = sorted(snapshots, key=lambda item: (item.manifest.val_loss, item.epoch))
    return kept | {item.epoch for item in by_loss[: keep.best]}
