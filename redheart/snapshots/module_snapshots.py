"""Module snapshots: bf16 weights of every module in a file of its own, and its outputs on the validation records.

A module's file is a safetensors file, or holds differences to an earlier snapshot's (see `compress.py`); readers need
not know which. A file that is the same as the snapshot before's is a hard link to it.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile, RedHeartError, names_text
from redheart.core.files import read_sealed, temporary_path, write_sealed
from redheart.core.folders import folder_lock, new_folder, remove_leftovers
from redheart.snapshots.delta import SUFFIX as DELTA_SUFFIX
from redheart.snapshots.delta import read_delta
from redheart.snapshots.manifests import (
    MANIFEST,
    Delta,
    SnapshotManifest,
    TensorFile,
    snapshot_epoch,
    snapshot_folders,
)
from redheart.snapshots.tensor_file import SUFFIX, open_tensors, verify, write_tensors
from redheart.snapshots.tensors import Tensors, whole

_OUTPUTS = "outputs"


@dataclass(frozen=True)
class Snapshot:
    """One snapshot on disk."""

    folder: Path
    manifest: SnapshotManifest

    @property
    def epoch(self) -> int:
        return self.manifest.epoch

    @property
    def files(self) -> list[TensorFile]:
        """What the manifest knows of every file of the snapshot."""
        return [*self.manifest.modules.values(), self.manifest.outputs]

    @property
    def forms(self) -> set[str]:
        """Names of the files that its modules may be in, whole or as differences; a killed rewriting leaves both."""
        return {f"{name}{suffix}" for name in self.manifest.modules for suffix in (SUFFIX, DELTA_SUFFIX)}

    @property
    def is_whole(self) -> bool:
        """Whether it can be read without another snapshot."""
        return not any(entry.delta for entry in self.files)

    def open_module(self, name: str) -> Tensors:
        """Weights of one module, by name within it, verified; each is read when it is asked for.

        Who reads where another process may rewrite snapshots holds the lock `snapshots` of the folder above them.

        Raises:
            CorruptFile: the file, or one that it holds differences to, does not match its digest.
        """
        entry = self.manifest.modules[name]
        if entry.delta is None:
            return open_tensors(self.folder, entry)
        path = verify(self.folder, entry)
        return read_delta(path, self.base_of(entry.delta, name).open_module(name))

    def open_model(self) -> Tensors:
        """All tensors by their names in the model."""
        return whole({name: self.open_module(name) for name in self.manifest.modules})

    def base_of(self, delta: Delta, name: str) -> "Snapshot":
        """The snapshot that one module's differences belong to.

        Raises:
            CorruptFile: it is not there, or holds other weights than those that the differences were taken to.
        """
        folder = self.folder.parent / delta.base
        if not (folder / MANIFEST).is_file():
            raise CorruptFile(
                "the snapshot that another one holds differences to is missing",
                where=f"{self.folder}, {name}",
                expected=folder,
                hint="restore it; without it this snapshot cannot be read",
            )
        base = open_snapshot(folder)
        found = base.manifest.modules.get(name)
        if found is None or found.content_sha256 != delta.base_sha256:
            raise CorruptFile(
                "a snapshot holds differences to other weights than those that are there",
                where=f"{self.folder}, {name}",
                got=f"SHA-256 {found.content_sha256 if found else 'none'} in {folder}",
                expected=delta.base_sha256,
                hint="restore that snapshot, or train on: a resumed run writes both anew",
            )
        return base

    def load_outputs(self) -> dict[str, Tensor]:
        """Outputs of every predictor on the validation records, float32, verified."""
        return dict(open_tensors(self.folder, self.manifest.outputs))


def write_snapshot(
    root: Path,
    *,
    modules: Mapping[str, Mapping[str, Tensor]],
    outputs: Mapping[str, Tensor],
    epoch: int,
    step: int,
    cycle_position: float,
    val_loss: float,
    val_module_loss: dict[str, float],
    train_module_loss: dict[str, float],
) -> Snapshot:
    """Write the snapshot of an epoch below `root`; it appears whole or not at all.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    folder = root / f"epoch_{epoch:04d}"
    # Of a run that was killed while it wrote this very snapshot.
    remove_leftovers(root, (folder.name,))
    outputs_name = _OUTPUTS
    while outputs_name in modules:
        outputs_name += "_"
    with ExitStack() as until_it_is_there, new_folder(folder, snapshot_contents) as temporary:
        manifest = SnapshotManifest(
            epoch=epoch,
            step=step,
            cycle_position=cycle_position,
            val_loss=val_loss,
            val_module_loss=val_module_loss,
            train_module_loss=train_module_loss,
            modules={name: write_tensors(temporary / f"{name}{SUFFIX}", tensors) for name, tensors in modules.items()},
            outputs=write_tensors(temporary / f"{outputs_name}{SUFFIX}", outputs),
        )
        # Another process may be rewriting the one that this takes the place of.
        until_it_is_there.enter_context(folder_lock(root.parent, name="snapshots", wait=True))
        earlier = [item for item in snapshot_folders(root) if snapshot_epoch(item) < epoch]
        # A broken manifest of old must not end a run.
        with suppress(RedHeartError):
            for folder_before in earlier[-1:]:
                _link_same(Snapshot(temporary, manifest), open_snapshot(folder_before))
        write_sealed(temporary / MANIFEST, manifest)
    return Snapshot(folder, manifest)


def _link_same(snapshot: Snapshot, other: Snapshot) -> None:
    """Turn files that are the same as `other`'s into hard links to them, as those of a frozen module.

    A file system without links keeps two files.
    """
    for name, entry in snapshot.manifest.modules.items():
        twin = other.manifest.modules.get(name)
        if twin is None or twin.delta or twin.sha256 != entry.sha256:
            continue
        target = snapshot.folder / entry.file
        temporary = temporary_path(target)
        try:
            # What has rotted since it was written must not take the place of what was not.
            os.link(verify(other.folder, twin), temporary)
        except (OSError, CorruptFile):
            continue
        temporary.replace(target)


def check_modules(snapshot: Snapshot, modules: Collection[str]) -> None:
    """Raise a `BadInput` where a snapshot is of other modules than these."""
    if set(snapshot.manifest.modules) != set(modules):
        raise BadInput(
            "the model is divided into other modules than the run's snapshots",
            where=snapshot.folder,
            got=names_text(sorted(modules)),
            expected=names_text(sorted(snapshot.manifest.modules)),
            hint="give the modules that the run was started with, or take another folder",
        )


def snapshot_contents(folder: Path) -> set[str]:
    """Names of what a snapshot's folder holds, whole or as differences; raises as `open_snapshot`."""
    snapshot = open_snapshot(folder)
    return {MANIFEST, *snapshot.forms, *(entry.file for entry in snapshot.files)}


def open_snapshot(folder: Path) -> Snapshot:
    """One snapshot by its folder; raises as `read_sealed`."""
    return Snapshot(folder, read_sealed(folder / MANIFEST, SnapshotManifest))


def list_snapshots(root: Path) -> list[Snapshot]:
    """All snapshots below `root`, by epoch."""
    return [open_snapshot(folder) for folder in snapshot_folders(root)]
