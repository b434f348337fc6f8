"""The crossover of a run: the chosen model and the best single snapshot assembled, and compared on unseen records."""

from pathlib import Path

import numpy as np

from redheart.core.device import study_device, weights_type
from redheart.core.errors import BadInput, RedHeartError
from redheart.core.files import read_sealed, write_sealed
from redheart.core.seeds import stream_seed
from redheart.evaluate.holdout_log import CONFIRM, SELECT, confirm_place
from redheart.evaluate.prediction import loss_floors, predictor_losses
from redheart.evaluate.results import Crossover
from redheart.model.network import task_of
from redheart.select.scoring import score_N
from redheart.select.statistics import LEVEL, Gain, level_of, paired_gain, scored_gain, verdict
from redheart.select.sweet_spot import SweetSpot
from redheart.snapshots.blend import single
from redheart.snapshots.consolidate import assemble, link_folder
from redheart.snapshots.mergekit import export_mergekit
from redheart.study.final import outputs_of
from redheart.study.phases import Study
from redheart.study.selecting import expected_specs, open_snapshots
from redheart.train.device.compute_type import NAMES

MODELS = ("crossover", "best_single")
FINAL = "final"
# Percent of the loss by which the assembled model may differ from what the search's cache said of it, by the type that
# either was computed in.
_TOLERANCE_PERCENT = {"fp32": 0.01, "bf16": 0.5}

Losses = dict[str, dict[str, np.ndarray]]
"""By model and predictor, (N,)."""


def run_crossover(study: Study) -> Crossover:
    """Assemble both models, compare them on the confirm half, and make the better founded one the final model.

    With every further choice that the same records judge, the interval's level rises; see `level_of`.

    Raises:
        BadInput: the run has no sweet spot yet.
        RedHeartError: the assembled model is not what the search has evaluated.
    """
    folder = study.folder
    path = folder.select / "sweet_spot.json"
    if not path.is_file():
        raise BadInput("the run has no sweet spot yet", where=path, hint="run `redheart sweet-spot RUN` first")
    spot = read_sealed(path, SweetSpot)
    snapshots, specs = open_snapshots(folder), expected_specs(study.config, study.prepared)
    choices = {"crossover": spot.modules, "best_single": dict.fromkeys(spot.modules, single(spot.best_epoch))}
    digests = {
        name: assemble(folder.select / name, choice=choices[name], snapshots=snapshots, expected=specs).digest
        for name in MODELS
    }
    gain_select = gain_on(SELECT, study, spot.scales, _losses(study, SELECT, digests))
    computed_in = NAMES[weights_type(study_device(study.config.device))]
    tolerance = max(_TOLERANCE_PERCENT[name] for name in (computed_in, spot.computed_in))
    if abs(gain_select.percent - spot.selection.gain.percent) > tolerance:
        raise RedHeartError(
            "the assembled model is not the one that was chosen",
            where=folder.select / "crossover",
            got=f"gain {gain_select.percent:+.4f} % on the select records",
            expected=f"{spot.selection.gain.percent:+.4f} %",
            hint="snapshots or features have changed since; run `redheart sweet-spot RUN` again",
        )
    num_records = len(study.prepared.split[CONFIRM])
    num_judged = confirm_place(folder.root, judged="crossover", models=digests, num_records=num_records)
    confirm = _losses(study, CONFIRM, digests)
    level = level_of(num_judged)
    gain_confirm = gain_on(CONFIRM, study, spot.scales, confirm, level=level)
    crossover = Crossover(
        strategy=spot.strategy,
        best_epoch=spot.best_epoch,
        modules=spot.modules,
        scales=spot.scales,
        num_candidates=spot.num_candidates,
        gain_select=gain_select,
        gain_confirm=gain_confirm,
        shrinkage=gain_confirm.percent / gain_select.percent if gain_select.percent > 0 else None,
        tasks=_task_gains(study, spot, confirm, level=level),
        num_judged=num_judged,
        digests=digests,
        verdict=verdict(gain_confirm, candidate="crossover", reference="best single snapshot"),
        recommended="crossover" if gain_confirm.is_evidence else "best_single",
    )
    link_folder(folder.select / crossover.recommended, folder.select / FINAL)
    write_sealed(folder.select / "crossover.json", crossover)
    return crossover


def write_mergekit(study: Study, crossover: Crossover, path: Path) -> None:
    """Write the crossover as a merge of mergekit's, with the tensors that it needs beside it."""
    snapshots, specs = open_snapshots(study.folder), expected_specs(study.config, study.prepared)
    export_mergekit(path, choice=crossover.modules, snapshots=snapshots, expected=specs)


def _losses(study: Study, part: str, digests: dict[str, str]) -> Losses:
    rows = study.prepared.split[part]
    outputs = {name: outputs_of(study, name, rows, digest=digests[name]) for name in MODELS}
    return {name: predictor_losses(found, study.prepared, rows) for name, found in outputs.items()}


def gain_on(part: str, study: Study, scales: dict[str, float], losses: Losses, *, level: float = LEVEL) -> Gain:
    """Gain of the crossover over the best single snapshot on a part of the records; those without a target are none."""
    floors = loss_floors(study.prepared, study.prepared.split[part])
    scores = {name: score_N(losses[name], scales=scales, floors=floors) for name in MODELS}
    return scored_gain(
        scores["best_single"],
        scores["crossover"],
        np.stack([~np.isnan(losses["crossover"][name]) for name in scales]),
        seed=stream_seed(study.config.seed, "gain", part),
        level=level,
    )


def _task_gains(study: Study, spot: SweetSpot, losses: Losses, *, level: float) -> dict[str, Gain]:
    floors = loss_floors(study.prepared, study.prepared.split[CONFIRM])
    gains = {}
    for name in spot.scales:
        above = {model: losses[model][name] - floors.get(name, 0.0) for model in MODELS}
        if (~np.isnan(above["crossover"])).sum() > 1:
            seed = stream_seed(study.config.seed, "gain", CONFIRM, name)
            gains[task_of(name)] = paired_gain(above["best_single"], above["crossover"], seed=seed, level=level)
    return gains
