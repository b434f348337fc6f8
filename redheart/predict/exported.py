"""A model in a folder of its own: weights, configuration, names, calibration, each under its digest.

    config.json         what is needed to rebuild the model around the weights, sealed
    model.safetensors   all tensors, by the name of their module
    summary.safetensors the fit of a narrow encoder's summaries, where it has one
    README.md           the model card
    manifest.json       SHA-256 of all of these, sealed

The encoder is referred to by name and by the digest of its weights; another one is refused.
"""

from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from redheart import __version__
from redheart.core.config import BUILT_IN_ENCODERS, Device, FeatureConfig
from redheart.core.device import chosen_device, weights_type
from redheart.core.errors import BadInput
from redheart.core.files import check_digests, read_sealed, sha256_file, write_bytes, write_sealed
from redheart.core.folders import found_again, new_folder, seen_from
from redheart.data.encoders import open_encoder
from redheart.data.inventory import Inventory
from redheart.data.summary import SummaryFit
from redheart.evaluate.calibration import Calibration
from redheart.model.dims import ModelDims
from redheart.model.network import build
from redheart.predict.predictor import Predictor
from redheart.snapshots.manifests import TensorFile
from redheart.snapshots.tensor_file import TensorReader, write_tensors
from redheart.snapshots.tensors import copy_into

CONFIG, MANIFEST, WEIGHTS, CARD = "config.json", "manifest.json", "model.safetensors", "README.md"
SUMMARY = "summary.safetensors"
FORMAT = 2
_FARTHEST = 2
"""So many folders above the export its encoder is still found by itself, as after both were moved together."""


class ExportConfig(msgspec.Struct, frozen=True):
    """Everything that a prediction needs besides the weights and the encoder's."""

    format: int
    redheart: str
    """Version that wrote it."""
    dims: ModelDims
    features: FeatureConfig
    encoder: str
    """Name and digest of the encoder's weights."""
    encoder_place: str | None
    """Its folder, seen from the export's, where it has one of its own and it lies near by."""
    inventory: Inventory
    trained: dict[str, tuple[str, ...]]
    calibration: Calibration | None
    weights: TensorFile
    summary: TensorFile | None


class ExportManifest(msgspec.Struct, frozen=True):
    """SHA-256 by file name."""

    files: dict[str, str]


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `write_export` wrote."""
    return (folder / MANIFEST).is_file()


def write_export(out: Path, predictor: Predictor, *, card: str) -> ExportManifest:
    """Write a model, its configuration and its card into a new folder.

    Raises:
        BadInput: something lies at `out` already, an earlier export too.
        DiskError: the folder cannot be written.
    """
    with new_folder(out, None) as folder:
        tensors = {name: _narrow(tensor) for name, tensor in predictor.model.state_dict().items()}
        features, place = predictor.features, None
        if features.encoder not in BUILT_IN_ENCODERS and (place := seen_from(out, features.encoder)):
            # Where it lay on this machine is nobody's business; the way to it from far away would tell.
            features = replace(features, encoder=Path(features.encoder).name)
            place = place if Path(place).parts.count("..") <= _FARTHEST else None
        fit = predictor.summary.tensors() if predictor.summary else {}
        summary = {name: torch.from_numpy(values.copy()) for name, values in fit.items()}
        config = ExportConfig(
            format=FORMAT,
            redheart=__version__,
            dims=predictor.model.dims,
            features=features,
            encoder=predictor.encoder.identity,
            encoder_place=place,
            inventory=predictor.inventory,
            trained=predictor.trained,
            calibration=predictor.calibration,
            weights=write_tensors(folder / WEIGHTS, tensors),
            summary=write_tensors(folder / SUMMARY, summary) if summary else None,
        )
        write_sealed(folder / CONFIG, config)
        write_bytes(folder / CARD, card.encode())
        manifest = ExportManifest({item.name: sha256_file(item) for item in sorted(folder.iterdir())})
        write_sealed(folder / MANIFEST, manifest)
    return manifest


def load(folder: str | Path, *, encoder: str | None = None, device: Device = "auto") -> Predictor:
    """Open an exported model; every file is held against its digest first.

    Args:
        folder: of the export.
        encoder: where its encoder lies now, if that is not where it was.
        device: where it predicts: `cpu`, `cuda`, or `auto`, which takes a CUDA device where there is one, in bf16.

    Raises:
        BadInput: there is no exported model, it is of another format, the encoder is not the one it was trained on, or
            there is no such device.
        CorruptFile: a file is missing or was changed.
    """
    folder = Path(folder)
    if not is_export(folder):
        raise BadInput("there is no exported model in this folder", where=folder, hint="make one: `redheart export`")
    place = chosen_device(device)
    files = read_sealed(folder / MANIFEST, ExportManifest).files
    hint = "copy it again, or export the run again"
    check_digests(folder, files, what="a file of the exported model is damaged", hint=hint)
    config = read_sealed(folder / CONFIG, ExportConfig)
    if config.format != FORMAT:
        raise BadInput("the export is of another format", where=folder, got=config.format, expected=FORMAT)
    # Nothing is drawn: every weight comes from the file, or the load fails.
    model = build(config.dims, seed=0, device="meta").to(weights_type(place)).to_empty(device=place)
    copy_into(model.state_dict(), TensorReader(folder / WEIGHTS), where=folder / WEIGHTS)
    summary = TensorReader(folder / SUMMARY) if config.summary else None
    return Predictor(
        model=model.eval(),
        encoder=open_encoder(
            encoder or found_again(config.features.encoder, folder, config.encoder_place),
            identity=config.encoder,
            device=device,
        ),
        features=config.features,
        inventory=config.inventory,
        trained=config.trained,
        summary=SummaryFit.of({name: item.numpy() for name, item in summary.items()}) if summary else None,
        calibration=config.calibration,
    )


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16 where that loses nothing, which is so for all weights of a snapshot."""
    narrow = tensor.detach().to(torch.bfloat16)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
