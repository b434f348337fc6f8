"""Calibrating a run's recommended model: fitted and chosen on the select records, judged on the confirm records."""

from collections.abc import Mapping

import numpy as np

from redheart.core.device import records_at_once
from redheart.core.errors import BadInput
from redheart.core.files import write_sealed
from redheart.core.seeds import stream_seed
from redheart.data.prepare import Prepared
from redheart.evaluate.calibration import METHODS, Calibration, Method, calibrated
from redheart.evaluate.calibration_fit import fit
from redheart.evaluate.holdout_log import CONFIRM, SELECT, confirm_place
from redheart.evaluate.prediction import predict_rows
from redheart.evaluate.reliability import calibration_scores, reliability_bins, share_losses
from redheart.evaluate.results import CalibrationResult, MethodResult
from redheart.report.calibration_section import draw_reliability
from redheart.report.facts import model_digest
from redheart.select.statistics import LEVEL, Gain, level_of, paired_gain
from redheart.study.final import load_assembled, read_crossover
from redheart.study.phases import Study

_FOLDS = 5
_LEAST_RECORDS = 10
"""Of the select records; a fold must leave scikit-learn's own five something to fit."""


def run_calibration(study: Study) -> CalibrationResult:
    """Try every method, judge the best, and write `calibration/calibration.json` and `calibration/reliability.png`.

    Only the emotion distribution is calibrated. The test split is not opened.

    Raises:
        BadInput: too few records have an emotion, or there are fewer than three classes.
    """
    config, folder, prepared = study.config, study.folder, study.prepared
    crossover = read_crossover(folder)
    name = crossover.recommended
    model = load_assembled(config, folder, prepared.inventory, name, digest=crossover.digests[name])
    labelled = {part: _labelled(prepared, part) for part in (SELECT, CONFIRM)}
    digest = model_digest(folder.root, name)
    num_records = len(prepared.split[CONFIRM])
    level = level_of(
        confirm_place(folder.root, judged="calibrated", models={"calibrated": digest}, num_records=num_records)
    )
    logits, targets = {}, {}
    for part, (rows, targets[part]) in labelled.items():
        outputs = predict_rows(model, study.features, rows, micro_batch=records_at_once(config))
        logits[part] = outputs["heads.emotion"].astype(np.float64)
    result = judge(logits, targets, seed=config.seed, model=digest, level=level)
    write_sealed(folder.calibration / "calibration.json", result)
    draw_reliability(folder.calibration / "reliability.png", result)
    return result


def judge(
    logits: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    *,
    seed: int,
    model: str,
    level: float = LEVEL,
) -> CalibrationResult:
    """Choose a calibration on the select records and compare it with none on the confirm records.

    Logits and soft targets are by part, (N, C) each; `model` is the digest of the weights; see `level_of` for the level
    of the interval.
    """
    fitted: dict[str, Calibration | None] = {"none": None}
    fitted |= {method: fit(method, logits[SELECT], targets[SELECT]) for method in METHODS}
    shares = {name: calibrated(logits[CONFIRM], calibration) for name, calibration in fitted.items()}
    methods = {
        name: MethodResult(
            _select_loss(None if name == "none" else name, logits[SELECT], targets[SELECT], seed=seed),
            calibration_scores(shares[name], targets[CONFIRM], seed=stream_seed(seed, "calibration floor")),
            reliability_bins(shares[name], targets[CONFIRM]),
        )
        for name in fitted
    }
    candidate = min(methods, key=lambda name: methods[name].select_cross_entropy)
    losses = {name: share_losses(shares[name], targets[CONFIRM]) for name in ("none", candidate)}
    gain = paired_gain(losses["none"], losses[candidate], seed=stream_seed(seed, "calibration gain"), level=level)
    return CalibrationResult(
        model=model,
        num_select=len(targets[SELECT]),
        num_confirm=len(targets[CONFIRM]),
        methods=methods,
        candidate=candidate,
        gain_confirm=gain,
        verdict=_verdict(candidate, gain),
        calibration=fitted[candidate] if gain.is_evidence else None,
    )


def _verdict(candidate: str, gain: Gain) -> str:
    if candidate == "none":
        return "No calibration lowers the loss on the select records: predictions stay as the model makes them."
    if gain.is_evidence:
        return f"Calibration ({candidate}) is better than none: loss lower by {gain}; predictions use it."
    return (
        f"No evidence that a calibration is better than none ({candidate}, the best on the select records: gain "
        f"{gain}): predictions stay as the model makes them."
    )


def _labelled(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    columns = prepared.inventory.columns("emotion")
    rows = prepared.split[part]
    rows = rows[prepared.mask_NT[rows][:, columns].all(1)]
    targets_NC = prepared.values_NT[rows][:, columns].astype(np.float64)
    least = _LEAST_RECORDS if part == SELECT else 2
    if len(rows) < least:
        raise BadInput(
            "too few records to calibrate",
            where=part,
            got=f"{len(rows)} with an emotion",
            expected=f"{least} or more",
            hint="calibrate a run of more records",
        )
    if targets_NC.shape[1] < 3:
        raise BadInput("calibration is for three classes or more", where=part, got=targets_NC.shape[1], expected="3")
    # Labels are rounded to two decimals: their sums miss 1 by a little.
    return rows, targets_NC / targets_NC.sum(1, keepdims=True)


def _select_loss(method: Method | str | None, logits_NC: np.ndarray, targets_NC: np.ndarray, *, seed: int) -> float:
    """Mean loss over folds that the fit has not seen."""
    if method is None:
        return float(share_losses(calibrated(logits_NC, None), targets_NC).mean())
    order = np.random.default_rng(stream_seed(seed, "calibration folds")).permutation(len(logits_NC))
    losses = []
    for fold in range(_FOLDS):
        held = order[fold::_FOLDS]
        others = np.setdiff1d(order, held)
        calibration = fit(method, logits_NC[others], targets_NC[others])  # type: ignore[arg-type]
        losses.append(share_losses(calibrated(logits_NC[held], calibration), targets_NC[held]))
    return float(np.concatenate(losses).mean())
