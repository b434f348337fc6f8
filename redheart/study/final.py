"""A run's assembled models: loaded, ready to predict, exported."""

from pathlib import Path

import numpy as np

from redheart.core.config import Device, StudyConfig
from redheart.core.device import chosen_device, records_at_once, study_device, weights_type
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, shown
from redheart.core.folders import refuse_foreign
from redheart.data.encoders import open_encoder
from redheart.data.features import FeatureManifest, known_manifest
from redheart.data.inventory import Inventory, trained_targets
from redheart.data.prepare import load_prepared
from redheart.data.summary import load_fit
from redheart.evaluate.prediction import predict_rows
from redheart.evaluate.results import Crossover
from redheart.model.dims import preset
from redheart.model.network import RedHeart, build
from redheart.predict.exported import ExportManifest, write_export
from redheart.predict.predictor import Predictor
from redheart.report.card import model_card
from redheart.report.facts import own_calibration, read_facts
from redheart.snapshots.consolidate import load_assembly
from redheart.study import run_folder
from redheart.study.phases import Study
from redheart.study.run_folder import RunFolder


def open_run(root: Path, *, encoder: str | None = None, device: Device = "auto") -> Predictor:
    """The recommended model of a finished run, with its names, calibration and encoder, by where that lies now.

    Raises:
        BadInput: there is no run, it has no crossover yet, its calibration is another model's, the encoder is not the
            one it was trained on, or there is no such device.
        CorruptFile: a file of the run was changed.
    """
    # Predictions have always been made on a card where there is one.
    place: Device = "cuda" if chosen_device(device).type == "cuda" else "cpu"
    folder, config = run_folder.load(root, encoder=encoder, device=place)
    crossover = read_crossover(folder)
    name = crossover.recommended
    prepared = load_prepared(folder.data)
    path = folder.calibration / "calibration.json"
    fitted = own_calibration(root, name)
    if fitted is None and path.is_file():
        raise BadInput(
            "the calibration was fitted to another model than the run now recommends",
            where=path,
            hint="run `redheart calibrate RUN` again, or remove the file",
        )
    # The encoder first: it is checked in a moment, the weights of `full` are 1.5 GB.
    features = run_features(folder)
    found = open_encoder(config.features.encoder, identity=features.encoder, device=device)
    return Predictor(
        model=load_assembled(config, folder, prepared.inventory, name, digest=crossover.digests[name]),
        encoder=found,
        features=config.features,
        inventory=prepared.inventory,
        trained=trained_targets(prepared.mask_NT[prepared.split["train"]], prepared.inventory),
        summary=load_fit(folder.summary_fit) if features.summary_width else None,
        calibration=fitted.calibration if fitted else None,
    )


def run_export(root: Path, out: Path, *, encoder: str | None = None) -> ExportManifest:
    """Export the recommended model of the run in `root` to the new folder `out`; `encoder` says where its encoder is.

    Raises:
        BadInput: there is no finished run, or something lies at `out` already.
    """
    # Before the weights are read, which takes a while.
    refuse_foreign(out, None)
    # Nothing is predicted, and the weights are on their way to a file.
    predictor = open_run(root, encoder=encoder, device="cpu")
    card = model_card(
        read_facts(root),
        folder=shown(out.resolve().name),
        encoder=predictor.encoder.identity,
        trained=predictor.trained,
        num_parameters=sum(parameter.numel() for parameter in predictor.model.parameters()),
    )
    return write_export(out, predictor, card=card)


def read_crossover(folder: RunFolder) -> Crossover:
    """The run's crossover; `BadInput` where there is none yet."""
    path = folder.select / "crossover.json"
    if not path.is_file():
        raise BadInput("the run has no crossover yet", where=path, hint="run `redheart crossover RUN` first")
    return read_sealed(path, Crossover)


def load_assembled(config: StudyConfig, folder: RunFolder, inventory: Inventory, name: str, *, digest: str) -> RedHeart:
    """An assembled model of the run by its folder below `select/`, loaded strictly, in evaluation mode, on its device.

    Raises:
        BadInput: there is no such device, or the folder's weights are not those with this digest.
    """
    dims, device = preset(config.preset, outputs=inventory.outputs), study_device(config.device)
    # Nothing is drawn: every weight comes from the files, or the load fails.
    model = build(dims, seed=config.seed, device="meta").to(weights_type(device)).to_empty(device=device)
    found = load_assembly(model, folder.select / name).digest
    if found != digest:
        raise BadInput(
            "an assembled model is not the one that was judged",
            where=folder.select / name,
            got=found[:12],
            expected=digest[:12],
            hint="a crossover was cut off before its end: run `redheart crossover RUN` again",
        )
    return model.eval()


def outputs_of(study: Study, name: str, rows: np.ndarray, *, digest: str) -> dict[str, np.ndarray]:
    """Outputs of the assembled model with this digest on rows of the features, as `predict_rows` gives them."""
    config = study.config
    # As in the search: torch folds products of weights that require gradients in another way, with other last bits.
    model = load_assembled(config, study.folder, study.prepared.inventory, name, digest=digest).requires_grad_(False)
    return predict_rows(model, study.features, rows, micro_batch=records_at_once(config))


def run_features(folder: RunFolder) -> FeatureManifest:
    """What the run's features were made with; `BadInput` where there are none, or they are of several encoders."""
    found = known_manifest(folder.features)
    if found is None:
        raise BadInput("the run has no features", where=folder.features, hint="`redheart train --run RUN` makes them")
    return found
