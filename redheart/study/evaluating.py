"""Evaluation of what a run has chosen: on its test split, once, and on labelled files from outside."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.config import StudyConfig
from redheart.core.errors import BadInput, listed
from redheart.core.files import read_if_there, read_sealed, write_sealed
from redheart.core.progress import SILENT, Display
from redheart.data.features import forget_others, make_features
from redheart.data.input_text import folded, input_text, read_forms
from redheart.data.inventory import Inventory, trained_targets
from redheart.data.prepare import Manifest, Prepared, load_prepared, target_arrays
from redheart.data.records import Record, read_rows
from redheart.data.schemas import parse_rows
from redheart.data.split import PARTS, TEST
from redheart.evaluate.baselines import fit_baselines
from redheart.evaluate.evaluation import Estimate, evaluate_predictions
from redheart.evaluate.holdout_log import CONFIRM, open_test, record_opening, rows_by_part
from redheart.evaluate.prediction import predictor_losses
from redheart.evaluate.results import EvaluationResult
from redheart.model.dims import TASKS
from redheart.report.facts import own_calibration
from redheart.study.final import outputs_of, read_crossover, run_features
from redheart.study.phases import Study
from redheart.study.recombining import FINAL, MODELS, gain_on
from redheart.study.run_folder import RunFolder


class FileEvaluation(msgspec.Struct, frozen=True):
    """Evaluation on a labelled file from outside; see `Evaluation`."""

    num_records: int
    tasks: dict[str, dict[str, Estimate]]
    seen: dict[str, int]
    """Records of the file that the encoder cannot tell from one of the run, by part."""
    is_before_calibration: bool
    """Whether the run's predictions are calibrated; these figures are of the model without."""


def run_evaluation(study: Study) -> EvaluationResult:
    """Evaluate both models and the baselines on the test split and write `evaluation/evaluation.json`.

    If these very models have been evaluated before, the answer of then is returned and the split stays closed.
    """
    config, folder = study.config, study.folder
    crossover = read_crossover(folder)
    path = folder.evaluation / "evaluation.json"
    old = read_if_there(path, EvaluationResult)
    if old and old.digests == crossover.digests:
        result = msgspec.structs.replace(old, recommended=crossover.recommended)
        if result != old:
            write_sealed(path, result)
        return result
    prepared = open_test(folder.root, study.prepared, models=crossover.digests)
    rows = prepared.split[TEST]
    told = replace(prepared, mask_NT=prepared.mask_NT & _trained_T(prepared))
    models, losses = {}, {}
    for name in MODELS:
        outputs = outputs_of(study, name, rows, digest=crossover.digests[name])
        heads = {task: outputs[f"heads.{task}"] for task in TASKS}
        models[name] = evaluate_predictions(
            heads, prepared.values_NT[rows], told.mask_NT[rows], prepared.inventory, seed=config.seed
        )
        losses[name] = predictor_losses(outputs, prepared, rows)
    baselines = fit_baselines(told, study.features, text_chars=config.features.text_chars)
    gain = gain_on(TEST, replace(study, prepared=prepared), crossover.scales, losses)
    result = EvaluationResult(crossover.recommended, models, baselines, gain, crossover.digests)
    write_sealed(path, result)
    return result


def evaluate_file(config: StudyConfig, folder: RunFolder, path: Path, *, display: Display = SILENT) -> FileEvaluation:
    """Evaluate the run's recommended model on a labelled file that it has never seen; how far it has, is counted.

    Raises:
        BadInput: the file is malformed, its emotion classes are not the run's, or it has no target that was trained.
    """
    inventory = inventory_of(folder)
    kind, rows = read_rows(path)
    parsed = parse_rows(path, kind, rows)
    if parsed.problems:
        what = f"{len(parsed.problems)} problems in {parsed.num_invalid} records{listed(parsed.problems)}"
        raise BadInput(what, where=path)
    records = [_renamed(record, parsed.inventory, inventory, path) for record in parsed.records]
    prepared = load_prepared(folder.data)
    values_NT, mask_NT = target_arrays(records, inventory)
    mask_NT &= _trained_T(prepared)
    if not mask_NT.any():
        trained = trained_targets(prepared.mask_NT[prepared.split["train"]], inventory)
        raise BadInput(
            "no record has a target that the run was trained on",
            where=path,
            expected="one of " + ", ".join(f"{task}: {name}" for task, names in trained.items() for name in names),
        )
    # Before the file is encoded, which may take hours; a run that goes on may choose anew meanwhile.
    read_crossover(folder)
    features = make_features(
        records,
        config=config.features,
        root=folder.evaluation / "features",
        fit=folder.summary_fit,
        identity=run_features(folder).encoder,
        device=config.device,
        display=display,
    )
    # One file's are kept, for another look at it.
    forget_others(folder.evaluation / "features", features.manifest.key)
    crossover = read_crossover(folder)
    calibration = own_calibration(folder.root, crossover.recommended)
    is_calibrated = calibration is not None and calibration.calibration is not None
    digests = {FINAL: crossover.digests[crossover.recommended]}
    record_opening(folder.root, part="file", file=path, num_records=len(records), models=digests)
    seen = seen_records(prepared, records, text_chars=config.features.text_chars)
    # With their labels in hand, both models of this choice could be judged by them.
    for part in (CONFIRM, TEST):
        if part in seen:
            record_opening(folder.root, part=part, file=path, num_records=seen[part], models=crossover.digests)
    study = Study(config, folder, prepared, features)
    outputs = outputs_of(study, FINAL, np.arange(len(records)), digest=digests[FINAL])
    heads = {task: outputs[f"heads.{task}"] for task in TASKS}
    found = evaluate_predictions(heads, values_NT, mask_NT, inventory, seed=config.seed)
    return FileEvaluation(found.num_records, found.tasks, seen, is_calibrated)


def _trained_T(prepared: Prepared) -> np.ndarray:
    """Whether a training record has the target; the output of another was never trained and says nothing."""
    trained_T: np.ndarray = prepared.mask_NT[prepared.split["train"]].any(0)
    return trained_T


def seen_records(prepared: Prepared, records: Sequence[Record], *, text_chars: int) -> dict[str, int]:
    """How many of these records are the same to an encoder as one of a run's, by part; parts without any left out."""
    part_of: dict[str, str] = {}
    for part, rows in rows_by_part(prepared).items():
        for row in rows:
            for form in read_forms(prepared.records[row], text_chars=text_chars):
                # What was trained on was trained on, wherever else it is.
                part_of.setdefault(form, part)
    found = Counter(part_of.get(folded(input_text(record, text_chars=text_chars))) for record in records)
    return {part: found[part] for part in PARTS if found[part]}


def seen_text(seen: Mapping[str, int], *, num_records: int) -> str | None:
    """The warning that figures on records of the run itself need; None where there are none."""
    own = {part: count for part, count in seen.items() if part != TEST}
    found = []
    if own:
        parts = ", ".join(f"{count:,} in {part}" for part, count in own.items())
        found.append(
            f"{sum(own.values()):,} of {num_records:,} records of the file were trained or chosen on ({parts}): on "
            "these the figures say nothing about others"
        )
    if TEST in seen:
        found.append(f"{seen[TEST]:,} records of the file are of the run's test split, which this opened")
    return "; ".join(found) or None


def _renamed(record: Record, found: Inventory, expected: Inventory, path: Path) -> Record:
    """The record with its targets in the run's order; targets that the run does not know are left out."""
    targets = {}
    for task in expected.tasks:
        names = found.task(task.name).targets
        if task.kind == "distribution" and names != task.targets:
            raise BadInput(
                "the file's emotion classes are not the run's",
                where=path,
                got=", ".join(names),
                expected=", ".join(task.targets),
            )
        by_name = dict(zip(names, record.targets[task.name], strict=True))
        targets[task.name] = tuple(by_name.get(name) for name in task.targets)
    return msgspec.structs.replace(record, targets=targets)


def inventory_of(folder: RunFolder) -> Inventory:
    """The target inventory that a run was made with."""
    return read_sealed(folder.data / "manifest.json", Manifest).inventory
