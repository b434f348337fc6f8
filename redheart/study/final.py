"""The model that a run recommends, ready to predict."""

from pathlib import Path

import msgspec

from redheart.core.config import StudyConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, sha256_file
from redheart.data.encoders import open_encoder
from redheart.data.features import FeatureManifest, known_manifest
from redheart.data.prepare import Manifest, Prepared, load_prepared
from redheart.data.summary import load_fit
from redheart.evaluate.calibration import Calibration
from redheart.model.dims import preset
from redheart.model.network import RedHeart, build
from redheart.predict.exported import device
from redheart.predict.predictor import Predictor, trained_targets
from redheart.snapshots.consolidate import load_assembly
from redheart.study import run_folder
from redheart.study.run_folder import RunFolder


class Recommended(msgspec.Struct, frozen=True):
    """What the crossover's file says about the model to use."""

    recommended: str
    """Folder of the model below `select/`."""
    verdict: str


class StoredCalibration(msgspec.Struct, frozen=True):
    """What the calibration's file says about the calibrator to use."""

    model: str
    """Digest of the weights that it was fitted to."""
    calibration: Calibration | None


def open_run(root: Path, *, encoder: str | None = None) -> Predictor:
    """The recommended model of a finished run, with the run's encoder, names and calibration.

    Args:
        root: the run's folder.
        encoder: where its encoder lies now, if that is not where it was.

    Raises:
        BadInput: there is no run, it has no crossover yet, or the encoder is not the one it was trained on.
        CorruptFile: a file of the run was changed.
    """
    folder, config = run_folder.load(root, encoder=encoder)
    choice = recommended(folder)
    prepared = load_prepared(folder.data)
    return predictor_of(config, folder, prepared, choice, calibration_of(folder, choice))


def predictor_of(
    config: StudyConfig, folder: RunFolder, prepared: Prepared, choice: Recommended, calibration: Calibration | None
) -> Predictor:
    """The recommended model of a run whose records are loaded."""
    # The encoder first: it is checked in a moment, the weights of `full` are 1.5 GB.
    features = run_features(folder)
    encoder = open_encoder(config.features.encoder, identity=features.encoder)
    return Predictor(
        model=load_recommended(config, folder, prepared.manifest, choice),
        encoder=encoder,
        features=config.features,
        inventory=prepared.inventory,
        trained=trained_targets(prepared.mask_NT[prepared.split["train"]], prepared.inventory),
        summary=load_fit(folder.summary_fit) if features.summary_width else None,
        calibration=calibration,
    )


def recommended(folder: RunFolder) -> Recommended:
    """Which model the run's crossover recommends.

    Raises:
        BadInput: the run has no crossover yet.
    """
    path = folder.select / "crossover.json"
    if not path.is_file():
        raise BadInput("the run has no crossover yet", where=path, hint="run `redheart crossover RUN` first")
    return read_sealed(path, Recommended)


def model_digest(folder: RunFolder, choice: Recommended) -> str:
    """What tells the recommended weights from others: the digest of their manifest, which names every file's digest."""
    return sha256_file(folder.select / choice.recommended / "manifest.json")


def calibration_of(folder: RunFolder, choice: Recommended) -> Calibration | None:
    """The calibration stored with the run; None where there is none, or none was better.

    Raises:
        BadInput: it was fitted to another model.
    """
    path = folder.calibration / "calibration.json"
    if not path.is_file():
        return None
    stored = read_sealed(path, StoredCalibration)
    if stored.model != model_digest(folder, choice):
        raise BadInput(
            "the calibration was fitted to another model than the run now recommends",
            where=path,
            hint="run `redheart calibrate RUN` again, or remove the file",
        )
    return stored.calibration


def run_features(folder: RunFolder) -> FeatureManifest:
    """What the run's features were made with.

    Raises:
        BadInput: there are none, or they are of several encoders.
    """
    found = known_manifest(folder.features)
    if found is None:
        raise BadInput("the run has no features", where=folder.features, hint="`redheart train --run RUN` makes them")
    return found


def load_recommended(config: StudyConfig, folder: RunFolder, manifest: Manifest, choice: Recommended) -> RedHeart:
    """The recommended model, loaded strictly, float32, in evaluation mode."""
    dims = preset(config.preset, outputs=manifest.inventory.outputs)
    model = build(dims, seed=config.seed, device="meta").to_empty(device=device())
    load_assembly(model, folder.select / choice.recommended)
    return model.eval()
