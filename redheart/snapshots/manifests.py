"""What snapshots and resume states say of themselves, read without their tensors."""

import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import read_sealed

MANIFEST = "manifest.json"
_SNAPSHOT_NAME = re.compile(r"epoch_([0-9]{4}|[1-9][0-9]{4,})")
_STEP = f"step_{'[0-9]' * 8}"
_STATE_NAMES = re.compile(r"manifest\.json|rank_\d+\.(?:safetensors|json)")


class Delta(msgspec.Struct, frozen=True):
    """What a file of differences belongs to."""

    base: str
    """Folder of the snapshot that the differences are to."""
    base_sha256: str
    """SHA-256 of that snapshot's own safetensors file of the same module."""
    content_sha256: str
    """SHA-256 of the safetensors file that stands here once the differences are put together."""
    content_bytes: int


class TensorFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a manifest knows of one file of tensors."""

    file: str
    sha256: str
    bytes: int
    num_elements: int
    delta: Delta | None = None

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the tensors as a safetensors file, compressed or not."""
        return self.delta.content_sha256 if self.delta else self.sha256

    @property
    def content_bytes(self) -> int:
        """Size of the tensors as a safetensors file."""
        return self.delta.content_bytes if self.delta else self.bytes


class SnapshotManifest(msgspec.Struct, frozen=True):
    """What a snapshot holds; written last."""

    epoch: int
    step: int
    cycle_position: float
    """How much of its learning-rate cycle lies behind, 0 to 1."""
    val_loss: float
    val_module_loss: dict[str, float]
    train_module_loss: dict[str, float]
    modules: dict[str, TensorFile]
    outputs: TensorFile


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


class ParameterPlace(msgspec.Struct, frozen=True):
    """Where a parameter lies in the flat masters of its group, all ranks' parts one behind the other."""

    group: int
    offset: int
    """Elements before it."""
    shape: list[int]


class StateManifest(msgspec.Struct, frozen=True):
    """What a state holds; written last."""

    progress: Progress
    run_key: str
    """Digest of the settings that decide the run's result."""
    files: list[TensorFile]
    parameters: dict[str, ParameterPlace]
    """By the parameter's name in the model, in its order."""


def snapshot_folders(root: Path) -> list[Path]:
    """Folders of all snapshots below `root`, by epoch."""
    return sorted((item for item in root.glob("epoch_*") if _SNAPSHOT_NAME.fullmatch(item.name)), key=snapshot_epoch)


def snapshot_epoch(folder: Path) -> int:
    """The epoch that a snapshot's folder is named after."""
    return int(folder.name.removeprefix("epoch_"))


def newest_progress(root: Path) -> Progress | None:
    """How far the newest state below `root` says that the run has come; None where no state says it."""
    for folder in reversed(state_folders(root)):
        # What is wrong with a state is for those to say who want to resume from it.
        with suppress(BadInput, CorruptFile):
            return read_sealed(folder / MANIFEST, StateManifest).progress
    return None


def state_folders(root: Path) -> list[Path]:
    """Folders with anything of a state in them, the oldest first; a copy that somebody made has another name."""
    return sorted(folder for folder in root.glob(_STEP) if state_contents(folder))


def state_contents(folder: Path) -> list[str]:
    """Names in a state's folder that a state gives, damaged or not; the manifest first, so that no half is left."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        # A run that trains meanwhile removes its oldest state whenever it has written another.
        return []
    return sorted((name for name in names if _STATE_NAMES.fullmatch(name)), key=lambda name: name != MANIFEST)
