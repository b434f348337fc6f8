"""Module snapshots: bf16 weights of every module in a file of its own, and its outputs on the validation records."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from torch import Tensor

from redheart.core.files import new_folder, read_sealed, write_sealed
from redheart.snapshots.tensor_file import TensorFile, read_tensors, write_tensors

_OUTPUTS = "outputs"


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


@dataclass(frozen=True)
class Snapshot:
    """One snapshot on disk."""

    folder: Path
    manifest: SnapshotManifest

    @property
    def epoch(self) -> int:
        return self.manifest.epoch

    def load_module(self, name: str) -> dict[str, Tensor]:
        """Weights of one module, by name within it, verified.

        Raises:
            CorruptFile: the file does not match its digest.
        """
        return read_tensors(self.folder, self.manifest.modules[name])

    def load_outputs(self) -> dict[str, Tensor]:
        """Outputs of every predictor on the validation records, float32, verified."""
        return read_tensors(self.folder, self.manifest.outputs)


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
    with new_folder(folder) as temporary:
        manifest = SnapshotManifest(
            epoch=epoch,
            step=step,
            cycle_position=cycle_position,
            val_loss=val_loss,
            val_module_loss=val_module_loss,
            train_module_loss=train_module_loss,
            modules={
                name: write_tensors(temporary / f"{name}.safetensors", tensors) for name, tensors in modules.items()
            },
            outputs=write_tensors(temporary / f"{_OUTPUTS}.safetensors", outputs),
        )
        write_sealed(temporary / "manifest.json", manifest)
    return Snapshot(folder, manifest)


def list_snapshots(root: Path) -> list[Snapshot]:
    """All snapshots below `root`, by epoch."""
    folders = sorted(root.glob(f"epoch_{'[0-9]' * 4}"))
    return [Snapshot(folder, read_sealed(folder / "manifest.json", SnapshotManifest)) for folder in folders]
