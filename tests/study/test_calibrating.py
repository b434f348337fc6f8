"""A calibration is chosen on the select records, believed on the confirm records, and used by what predicts."""

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.special import softmax

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, write_sealed
from redheart.evaluate.calibration import Calibration
from redheart.evaluate.holdout_log import CONFIRM, confirm_place, read_openings
from redheart.evaluate.results import CalibrationResult
from redheart.report.facts import model_digest
from redheart.study import phases, run_folder
from redheart.study.calibrating import SELECT, judge, run_calibration
from redheart.study.final import open_run, read_crossover
from redheart.study.recombining import MODELS


def planted(count: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits_NC = random.normal(0, 1.2, (count, 7))
    return logits_NC * temperature, np.stack([random.dirichlet(10 * row) for row in softmax(logits_NC, axis=1)])


def both(temperature: float, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    pairs = {part: planted(150, temperature, 2 * seed + index) for index, part in enumerate((SELECT, CONFIRM))}
    return {part: pair[0] for part, pair in pairs.items()}, {part: pair[1] for part, pair in pairs.items()}


def test_a_planted_temperature_is_found_and_used() -> None:
    result = judge(*both(3.0, 0), seed=0, model="x")
    assert result.candidate == "temperature" and result.gain_confirm.is_evidence
    assert result.calibration is not None
    assert result.calibration.inverse_temperature == pytest.approx(1 / 3, rel=0.1)
    none, chosen = result.methods["none"].confirm, result.methods["temperature"].confirm
    assert chosen.ece < none.ece and chosen.kl < none.kl and chosen.brier < none.brier
    assert "is better than none" in result.verdict


def test_a_calibrated_model_is_left_alone() -> None:
    left_alone = 0
    for seed in range(4):
        result = judge(*both(1.0, seed), seed=seed, model="x")
        left_alone += result.calibration is None
        assert ("stay as the model makes them" in result.verdict) == (result.calibration is None)
    # Each interval lies above zero by chance in 1 of 40 cases.
    assert left_alone >= 3


def test_calibrate_stores_what_predict_uses(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_copy / "calibration")
    main(["calibrate", str(run_copy), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["methods"]) == {"none", "temperature", "platt", "isotonic"}
    assert (run_copy / "calibration" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    before = open_run(run_copy)
    folder, _ = run_folder.load(run_copy)
    halved = Calibration("temperature", 10, inverse_temperature=0.5)
    path = folder.calibration / "calibration.json"
    stored = read_sealed(path, CalibrationResult)
    assert stored.model == model_digest(folder.root, read_crossover(folder).recommended)
    write_sealed(path, msgspec.structs.replace(stored, calibration=halved))
    after = open_run(run_copy)
    plain, flatter = (
        np.array(list(predictor.predict(["I was furious."])[0].tasks["emotion"].values()))
        for predictor in (dataclasses.replace(before, calibration=None), after)
    )
    expected = np.sqrt(plain) / np.sqrt(plain).sum()
    # Predictions are rounded to six places.
    np.testing.assert_allclose(flatter, expected, atol=5e-6)


def test_a_calibration_of_another_model_is_refused(run_copy: Path) -> None:
    path = run_copy / "calibration" / "calibration.json"
    write_sealed(path, msgspec.structs.replace(read_sealed(path, CalibrationResult), model="other"))
    with pytest.raises(BadInput, match="fitted to another model"):
        open_run(run_copy)


def test_the_test_split_stays_closed_and_few_records_are_refused(run_copy: Path) -> None:
    folder, config = run_folder.load(run_copy)
    study = phases.load_study(config, folder)
    # Records of the select half, so that there are enough in a data set as small as this one.
    split = {SELECT: study.prepared.split["train"][:40], CONFIRM: study.prepared.split["train"][40:60]}
    closed = dataclasses.replace(study, prepared=dataclasses.replace(study.prepared, split=split))
    for _ in range(2):
        assert run_calibration(closed).num_select == 40
    # However often the same weights are calibrated.
    looks = [opening for opening in read_openings(folder.root) if "calibrated" in opening.models]
    assert [look.part for look in looks] == [CONFIRM]
    few_rows = {**split, SELECT: split[SELECT][:9]}
    few = dataclasses.replace(study, prepared=dataclasses.replace(study.prepared, split=few_rows))
    with pytest.raises(BadInput, match="too few records to calibrate"):
        run_calibration(few)


def test_every_further_model_that_the_confirm_records_judge_has_a_wider_interval(run_copy: Path) -> None:
    folder, config = run_folder.load(run_copy)
    study = phases.load_study(config, folder)
    assert run_calibration(study).gain_confirm.level == 0.95
    models, num_records = {"calibrated": "another"}, len(study.prepared.split[CONFIRM])
    assert confirm_place(folder.root, judged="calibrated", models=models, num_records=num_records) == 2
    # One that comes again keeps its place.
    assert run_calibration(study).gain_confirm.level == 0.95
    crossover = read_crossover(folder)
    other = next(name for name in MODELS if name != crossover.recommended)
    write_sealed(folder.select / "crossover.json", msgspec.structs.replace(crossover, recommended=other))
    assert crossover.digests[other] != crossover.digests[crossover.recommended]
    assert run_calibration(study).gain_confirm.level == 0.9875
    assert "at 98.8%" in judge(*both(3.0, 0), seed=0, model="x", level=0.9875).verdict
