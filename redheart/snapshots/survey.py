"""What a run has on disk, and whether every byte of it is still what was written."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput, RedHeartError
from redheart.core.files import read_if_there, read_sealed
from redheart.snapshots.manifests import MANIFEST, StateManifest, TensorFile, snapshot_folders, state_folders
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots, open_snapshot
from redheart.snapshots.states import KEPT_STATES
from redheart.snapshots.tensor_file import verify


class SnapshotRow(msgspec.Struct, frozen=True):
    epoch: int
    step: int
    val_loss: float
    cycle_position: float
    bytes_on_disk: int
    """A file that several snapshots share as hard links counts for the first of them."""
    bytes_uncompressed: int
    is_delta: bool
    """Whether it holds differences to another snapshot."""


class StateRow(msgspec.Struct, frozen=True):
    epoch: int
    step: int
    ranks: int
    bytes_on_disk: int


class Listing(msgspec.Struct, frozen=True):
    """Both products of a run."""

    snapshots: list[SnapshotRow]
    states: list[StateRow]

    @property
    def bytes_on_disk(self) -> int:
        return sum(row.bytes_on_disk for row in self.snapshots) + sum(row.bytes_on_disk for row in self.states)


class Verification(msgspec.Struct, frozen=True):
    """Every file of both products held against its digest."""

    files: int
    bytes: int
    seconds: float
    bad: list[str]
    """What is wrong with each bad file, its path first."""

    @property
    def megabytes_per_s(self) -> float:
        return self.bytes / 1e6 / max(self.seconds, 1e-9)


def list_run(snapshots: Path, states: Path) -> Listing:
    """List what lies in a run's two folders.

    Raises:
        BadInput: a manifest cannot be read, or there is nothing at all.
    """
    seen: set[tuple[int, int]] = set()
    rows = [_snapshot_row(snapshot, seen) for snapshot in list_snapshots(snapshots)]
    # Without a manifest a state is half removed.
    manifests = [read_if_there(folder / MANIFEST, StateManifest) for folder in state_folders(states)]
    state_rows = [
        StateRow(
            epoch=manifest.progress.epoch,
            step=manifest.progress.step,
            ranks=len(manifest.files),
            bytes_on_disk=sum(entry.bytes for entry in manifest.files),
        )
        for manifest in manifests
        if manifest
    ]
    if not rows and not state_rows:
        raise _nothing(snapshots)
    return Listing(rows, state_rows)


def verify_run(snapshots: Path, states: Path, *, on_bytes: Callable[[int], object] = lambda _: None) -> Verification:
    """Hold every file of a run's snapshots and resume states against its digest, and find all that are bad.

    Raises:
        BadInput: there is nothing to verify.
    """
    bad: list[str] = []
    files = size = 0
    checked: set[tuple[str, int, int]] = set()
    start_s = time.perf_counter()
    for folder, entry in _entries(snapshots, states, bad):
        files += 1
        on_bytes(entry.bytes)
        path = folder / entry.file
        try:
            # A file that many snapshots share is read once.
            status = path.stat() if path.is_file() else None
            if not status or (entry.sha256, status.st_dev, status.st_ino) not in checked:
                status = verify(folder, entry).stat()
                size += entry.bytes
                checked.add((entry.sha256, status.st_dev, status.st_ino))
        except (RedHeartError, OSError) as error:
            bad.append(_one_line(path, error))
    if not files and not bad:
        raise _nothing(snapshots)
    return Verification(files, size, round(time.perf_counter() - start_s, 3), bad)


def bytes_to_verify(snapshots: Path, states: Path) -> int:
    """About how much `verify_run` will read; broken manifests are passed over."""
    return sum(entry.bytes for _, entry in _entries(snapshots, states, []))


def _entries(snapshots: Path, states: Path, bad: list[str]) -> Iterator[tuple[Path, TensorFile]]:
    """The folder and entry of every file that a manifest names; what is wrong with manifests goes to `bad`."""
    for folder in snapshot_folders(snapshots):
        try:
            snapshot = open_snapshot(folder)
        except RedHeartError as error:
            bad.append(_one_line(folder / MANIFEST, error))
            continue
        for name, entry in snapshot.manifest.modules.items():
            if entry.delta:
                try:
                    snapshot.base_of(entry.delta, name)
                except RedHeartError as error:
                    bad.append(_one_line(folder / entry.file, error))
        yield from ((folder, entry) for entry in snapshot.files)
    folders = state_folders(states)
    for folder in folders:
        if folder in folders[:-KEPT_STATES] and not (folder / MANIFEST).exists():
            # Its removal was cut off, or goes on: the manifest is what goes first.
            continue
        try:
            files = read_sealed(folder / MANIFEST, StateManifest).files
        except RedHeartError as error:
            bad.append(_one_line(folder / MANIFEST, error))
            continue
        yield from ((folder, entry) for entry in files)


def _snapshot_row(snapshot: Snapshot, seen: set[tuple[int, int]]) -> SnapshotRow:
    on_disk = 0
    for entry in snapshot.files:
        path = snapshot.folder / entry.file
        if path.is_file() and (key := (path.stat().st_dev, path.stat().st_ino)) not in seen:
            seen.add(key)
            on_disk += path.stat().st_size
    manifest = snapshot.manifest
    return SnapshotRow(
        epoch=manifest.epoch,
        step=manifest.step,
        val_loss=manifest.val_loss,
        cycle_position=manifest.cycle_position,
        bytes_on_disk=on_disk,
        bytes_uncompressed=sum(entry.content_bytes for entry in snapshot.files),
        is_delta=not snapshot.is_whole,
    )


def _nothing(folder: Path) -> BadInput:
    return BadInput(
        "the run has neither snapshots nor resume states",
        where=folder.parent,
        hint=f"train first: `redheart train --run {folder.parent.parent}`",
    )


def _one_line(path: Path, error: Exception) -> str:
    if not isinstance(error, RedHeartError):
        return f"{path}: {error}"
    details = "; ".join(
        f"{name} {value}" for name in ("got", "expected") if (value := getattr(error, name)) is not None
    )
    return f"{path}: {error.what}" + (f" ({details})" if details else "")
