"""Snapshots in a third of their bytes: all but the newest as differences to an earlier one, losslessly and in place.

The snapshot at position i of a run holds differences to the one at position i & (i - 1): 1 to 0, 2 to 0, 3 to 2, 4 to
0, 5 to 4 and so on. Half of them so lean on their neighbour, where the differences are smallest, and yet none is read
through more than four others, or a few more in a run that was pruned. Every sixteenth is kept whole. See
`benchmarks/snapshot_io.py` for what that leaves against a plain chain and against all on the last whole one.

Only earlier snapshots are leaned on: a run that goes on from an older state writes the later ones anew, never those.

Crash safety: a file of differences is written beside the original and read back; the manifest, replaced atomically, is
what makes it count; the original goes last. Whatever lies there unnamed is a leftover and is removed by the next call.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.core.files import disk_errors, fsync_path, write_sealed
from redheart.core.folders import folder_lock
from redheart.core.folders import remove_leftovers as remove_unfinished
from redheart.snapshots import delta
from redheart.snapshots.manifests import MANIFEST, Delta, TensorFile
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots
from redheart.snapshots.tensor_file import SUFFIX, content_sha256, write_tensors

WINDOW = 16
"""Every how many snapshots one is kept whole."""
WORTH_IT = 0.9
"""Differences that take a larger share of the original's bytes are not kept."""


class Rewritten(msgspec.Struct, frozen=True):
    epoch: int
    bytes_before: int
    bytes_after: int


def compress_snapshots(
    root: Path, *, wait: bool = False, on_bytes: Callable[[int], object] = lambda _: None
) -> list[Rewritten]:
    """Compress every snapshot below `root` but the newest and the whole ones; what is compressed already stays.

    With `wait` another process that rewrites them is waited for. `on_bytes` is told the uncompressed bytes of every
    snapshot, once it has its form.

    Raises:
        BadInput: another process rewrites them, or a manifest cannot be read.
        CorruptFile: a file does not match its digest; nothing of its snapshot was changed.
        DiskError: the disk is full; what was not yet rewritten is as it was.
    """
    done = []
    with folder_lock(root.parent, name="snapshots", wait=wait):
        snapshots = list_snapshots(root)
        for position, snapshot in enumerate(snapshots):
            remove_leftovers(snapshot)
            if position % WINDOW and position < len(snapshots) - 1:
                found = _compress(snapshot, snapshots[position & (position - 1)], snapshots[position - 1])
                snapshots[position] = found
                before, after = _bytes(snapshot), _bytes(found)
                if after < before:
                    done.append(Rewritten(snapshot.epoch, before, after))
            on_bytes(sum(entry.content_bytes for entry in snapshot.manifest.modules.values()))
    return done


def expand(snapshot: Snapshot) -> None:
    """Make a compressed snapshot whole again; the caller holds the lock. Raises as `compress_snapshots`."""
    entries = dict(snapshot.manifest.modules)
    for name, entry in snapshot.manifest.modules.items():
        if entry.delta is not None:
            entries[name] = write_tensors(snapshot.folder / f"{name}{SUFFIX}", snapshot.open_module(name))
            _check_same(snapshot.folder / entries[name].file, entries[name].sha256, entry.content_sha256)
    _switch(snapshot, entries)


def remove_leftovers(snapshot: Snapshot) -> None:
    """Remove what a killed rewriting left in a snapshot's folder, and nothing else."""
    remove_unfinished(snapshot.folder)
    named = {entry.file for entry in snapshot.files}
    with disk_errors(snapshot.folder):
        for name in snapshot.forms - named:
            (snapshot.folder / name).unlink(missing_ok=True)


def _compress(snapshot: Snapshot, base: Snapshot, previous: Snapshot) -> Snapshot:
    entries = dict(snapshot.manifest.modules)
    written: list[Path] = []
    try:
        for name, entry in snapshot.manifest.modules.items():
            # What is the same as before is a link to that file, and takes no room.
            if entry.delta is None and entry != previous.manifest.modules.get(name):
                tensors = snapshot.open_module(name)
                if {spec.dtype for spec in tensors.specs.values()} == {torch.bfloat16}:
                    written.append(snapshot.folder / f"{name}{delta.SUFFIX}")
                    found = _written(written[-1], tensors, entry, base, name)
                    if found.bytes <= WORTH_IT * entry.bytes:
                        entries[name] = found
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return _switch(snapshot, entries)


def _written(path: Path, tensors: Mapping[str, Tensor], entry: TensorFile, base: Snapshot, name: str) -> TensorFile:
    """The entry of a module's file of differences, written and read back."""
    older = base.open_module(name)
    belongs = Delta(base.folder.name, base.manifest.modules[name].content_sha256, entry.sha256, entry.bytes)
    found = delta.write_delta(path, tensors, older, delta=belongs)
    _check_same(path, content_sha256(delta.read_delta(path, older)), entry.sha256)
    return found


def _switch(snapshot: Snapshot, entries: dict[str, TensorFile]) -> Snapshot:
    """Let the manifest name other files of the same content, then remove those that it named before."""
    rewritten = Snapshot(snapshot.folder, msgspec.structs.replace(snapshot.manifest, modules=entries))
    if rewritten.manifest != snapshot.manifest:
        with disk_errors(snapshot.folder):
            fsync_path(snapshot.folder)
            write_sealed(snapshot.folder / MANIFEST, rewritten.manifest)
    remove_leftovers(rewritten)
    return rewritten


def _bytes(snapshot: Snapshot) -> int:
    return sum(entry.bytes for entry in snapshot.files)


def _check_same(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise CorruptFile(
            "a rewritten file does not give back the original's bytes; nothing was changed",
            where=path,
            got=f"SHA-256 {got}",
            expected=expected,
            hint="test this machine's memory and disk",
        )
