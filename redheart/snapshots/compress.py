"""Snapshots in a third of their bytes: all but the newest as differences to an earlier one, losslessly and in place.

The snapshot at position i of a run holds differences to the one at position i & (i - 1): 1 to 0, 2 to 0, 3 to 2, 4 to
0, 5 to 4 and so on. Half of them so lean on their neighbour, where the differences are smallest, and yet none is read
through more than four others. Every sixteenth is kept whole. See `benchmarks/snapshot_io.py` for what that leaves
against a plain chain and against all on the last whole one.

Only earlier snapshots are leaned on: a run that goes on from an older state writes the later ones anew, never those.

Crash safety: a file of differences is written beside the original and read back; the manifest, replaced atomically, is
what makes it count; the original goes last. Whatever lies there unnamed is a leftover and is removed by the next call.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import CorruptFile, RedHeartError
from redheart.core.files import disk_errors, fsync_path, write_sealed
from redheart.core.folders import folder_lock
from redheart.core.folders import remove_leftovers as remove_unfinished
from redheart.snapshots import delta
from redheart.snapshots.manifests import MANIFEST, Delta, TensorFile
from redheart.snapshots.module_snapshots import Snapshot, link_same, list_snapshots
from redheart.snapshots.tensor_file import SUFFIX, content_sha256, write_tensors

WINDOW = 16
"""Every how many snapshots one is kept whole."""
MAX_DEPTH = 4
"""Most differences that are put together for one read; more than WINDOW asks for come about by pruning alone."""
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
    module, once it has its form.

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
            previous = snapshots[position - 1] if position else None
            linked_bytes = link_same(snapshot, previous)
            if linked_bytes:
                done.append(Rewritten(snapshot.epoch, linked_bytes, 0))
            base = _base(snapshots, position)
            if base is None or previous is None:
                on_bytes(sum(entry.content_bytes for entry in snapshot.manifest.modules.values()))
            else:
                found = _compress(snapshot, base, previous, on_bytes=on_bytes)
                snapshots[position] = found
                before, after = _bytes(snapshot), _bytes(found)
                if after < before:
                    done.append(Rewritten(snapshot.epoch, before, after))
    return done


def expand_snapshots(
    snapshots: Sequence[Snapshot], *, on_bytes: Callable[[int], object] = lambda _: None
) -> list[Rewritten]:
    """Make compressed snapshots whole again; the caller holds the lock. Raises as `compress_snapshots`."""
    done = []
    for snapshot in snapshots:
        remove_leftovers(snapshot)
        entries = dict(snapshot.manifest.modules)
        for name, entry in snapshot.manifest.modules.items():
            if entry.delta is not None:
                found = write_tensors(snapshot.folder / f"{name}{SUFFIX}", snapshot.open_module(name))
                if found.sha256 != entry.content_sha256:
                    raise _unlike(snapshot.folder / found.file, found.sha256, entry.content_sha256)
                entries[name] = found
            on_bytes(entry.content_bytes)
        expanded = _switch(snapshot, entries)
        if not snapshot.is_whole:
            done.append(Rewritten(snapshot.epoch, _bytes(snapshot), _bytes(expanded)))
    return done


def remove_leftovers(snapshot: Snapshot) -> None:
    """Remove what a killed rewriting left in a snapshot's folder, and nothing else."""
    remove_unfinished(snapshot.folder)
    named = {entry.file for entry in snapshot.files}
    with disk_errors(snapshot.folder):
        for name in snapshot.forms - named:
            (snapshot.folder / name).unlink(missing_ok=True)


def _base(snapshots: Sequence[Snapshot], position: int) -> Snapshot | None:
    """What the snapshot at a position is compressed against; None for the newest and those that are kept whole."""
    if position == len(snapshots) - 1 or position % WINDOW == 0:
        return None
    base = snapshots[position & (position - 1)]
    return base if _depth(base, {item.folder.name: item for item in snapshots}) < MAX_DEPTH else None


def _depth(snapshot: Snapshot, by_folder: dict[str, Snapshot]) -> int:
    bases = {entry.delta.base for entry in snapshot.files if entry.delta}
    return max((1 + _depth(by_folder[base], by_folder) for base in bases if base in by_folder), default=0)


def _compress(snapshot: Snapshot, base: Snapshot, previous: Snapshot, *, on_bytes: Callable[[int], object]) -> Snapshot:
    entries = dict(snapshot.manifest.modules)
    written: list[Path] = []
    try:
        for name, entry in snapshot.manifest.modules.items():
            if name in base.manifest.modules and entry.delta is None and not snapshot.shares_file(previous, name):
                tensors = snapshot.open_module(name)
                if {spec.dtype for spec in tensors.specs.values()} == {torch.bfloat16}:
                    written.append(snapshot.folder / f"{name}{delta.SUFFIX}")
                    found = _written(written[-1], tensors, entry, base, name)
                    if found.bytes <= WORTH_IT * entry.bytes:
                        entries[name] = found
            on_bytes(entry.content_bytes)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return _switch(snapshot, entries)


def _written(path: Path, tensors: Mapping[str, Tensor], entry: TensorFile, base: Snapshot, name: str) -> TensorFile:
    """The entry of a module's file of differences, written and read back."""
    older = base.open_module(name)
    belongs = Delta(
        base=base.folder.name,
        base_sha256=base.manifest.modules[name].content_sha256,
        content_sha256=entry.sha256,
        content_bytes=entry.bytes,
    )
    found = delta.write_delta(path, tensors, older, delta=belongs)
    digest = content_sha256(delta.read_delta(path, older))
    if digest != entry.sha256:
        raise _unlike(path, digest, entry.sha256)
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


def _unlike(path: Path, got: str, expected: str) -> RedHeartError:
    return CorruptFile(
        "a rewritten file does not give back the original's bytes; nothing was changed",
        where=path,
        got=f"SHA-256 {got}",
        expected=expected,
        hint="test this machine's memory and disk",
    )
