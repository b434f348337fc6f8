"""Resume states: everything for a bit-exact continuation; the last two are kept.

Every rank writes a file of its own; rank 0 writes the manifest last and renames the folder. Nothing older is
removed before the new state has been read back and matches its digests.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.core.files import disk_errors, fsync_path, read_json, write_json
from redheart.snapshots.tensor_file import TensorFile, TensorReader, open_tensors, verify, write_tensors

KEPT_STATES = 2


class Progress(msgspec.Struct, frozen=True):
    """How far a run has come."""

    epoch: int
    """Epochs that are complete."""
    step_in_epoch: int
    """Optimizer steps of the next epoch that are done."""
    step: int
    """Optimizer steps in all."""
    sums: dict[str, float]
    """Running sums of the unfinished epoch."""
    counts: dict[str, float]
    bad_steps: int
    """Steps in a row that were skipped for a non-finite loss or gradient."""
    grad_norm: float | None
    """Of the last step, None where it was not finite; the epoch's event repeats it."""
    events_bytes: int
    """Length of the event log; what lies behind was written after this state and is written again."""


class StateManifest(msgspec.Struct, frozen=True):
    """What a state holds; written last."""

    progress: Progress
    run_key: str
    """Digest of the settings that decide the run's result."""
    files: list[TensorFile]


@dataclass(frozen=True)
class State:
    """One resume state on disk."""

    folder: Path
    manifest: StateManifest

    def open_ranks(self) -> list[TensorReader]:
        """Tensors of every rank, verified, to be read one by one.

        Raises:
            CorruptFile: a file does not match its digest.
        """
        return [open_tensors(self.folder, entry) for entry in self.manifest.files]


def write_state(
    root: Path,
    *,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    run_key: str,
    rank: int,
    world_size: int,
    barrier: Callable[[], None],
) -> None:
    """Write this rank's part of a state; every rank calls it.

    Raises:
        DiskError: the disk is full, read-only or over its quota; older states are untouched.
    """
    folder = root / f"step_{progress.step:08d}"
    temporary = root / f".{folder.name}.partial"
    with disk_errors(root):
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        try:
            entry = write_tensors(temporary / f"rank_{rank}.safetensors", tensors)
            write_json(temporary / f"rank_{rank}.json", entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        barrier()
        if rank == 0:
            entries = [read_json(temporary / f"rank_{item}.json", TensorFile) for item in range(world_size)]
            write_json(temporary / "manifest.json", StateManifest(progress, run_key, entries))
            for entry in entries:
                verify(temporary, entry)
            fsync_path(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
            fsync_path(root)
            for old in _folders(root)[:-KEPT_STATES]:
                shutil.rmtree(old)
        barrier()


def newest_state(root: Path) -> State | None:
    """The newest state below `root` that can be read, or None where there is none.

    Raises:
        CorruptFile: there are states, and the newest does not match its digests; the file is named.
    """
    folders = _folders(root)
    if not folders:
        return None
    folder = folders[-1]
    if not (folder / "manifest.json").is_file():
        raise CorruptFile(
            "a resume state has no manifest",
            where=folder,
            mend="remove this folder to resume from the state before it",
        )
    return State(folder, read_json(folder / "manifest.json", StateManifest))


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"))
