"""Data sets at the edge of what is legal: few records, few labels, one task, no word twice: a study, or one error."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed
from redheart.data.generator import generate
from redheart.evaluate.results import Crossover, EvaluationResult
from redheart.study.evaluating import evaluate_file
from redheart.study.pipeline import run_study
from redheart.study.run_folder import RunFolder

TARGETS = ("label", "regret_factor", "bentham_scores", "surd_metrics")
Change = Callable[[int, dict[str, Any]], object]


def without(row: dict[str, Any], *names: str) -> None:
    for name in names:
        row.pop(name, None)


def only(name: str) -> Change:
    return lambda index, row: without(row, *[item for item in TARGETS if item != name])


def rare(index: int, row: dict[str, Any]) -> None:
    chosen = random.Random(index)
    without(row, *[name for name in TARGETS if chosen.random() < 0.8])


def retold(text: Callable[[int], str]) -> Change:
    return lambda index, row: row.update(text=text(index), title="", action="")


def records(folder: Path, number: int, change: Change) -> Path:
    rows, _ = generate(number, seed=0)
    for index, row in enumerate(rows):
        without(row, "emotions")
        change(index, row)
    path = folder / "records.json"
    path.write_text(json.dumps(rows))
    return path


def study(path: Path) -> StudyConfig:
    train = TrainConfig(strategy="plain", learning_rate=1e-3, effective_batch=16)
    features = FeatureConfig(encoder="hash", seq_len_tokens=16)
    out = path.with_name("run")
    return resolved(StudyConfig(data=str(path), out=out, epochs=2, features=features, train=train))


LEGAL: dict[str, tuple[int, Change]] = {
    "few records of one class": (45, lambda index, row: row.update(label=3)),
    "few labels, each of another task": (120, rare),
    "no word in two texts": (60, retold(lambda index: f"q{index}x{index}" * 5)),
}
MORE_LEGAL: dict[str, tuple[int, Change]] = {
    "few records": (60, lambda index, row: None),
    "constant values": (60, lambda index, row: row.update(regret_factor=0.5, surd_metrics={"depth": 0.5})),
    "an emotion in one of ten": (240, lambda index, row: without(row, "label") if index % 10 else None),
    **{f"only {name}": (60, only(name)) for name in TARGETS},
}


@pytest.mark.parametrize("name", [*LEGAL, *[pytest.param(name, marks=pytest.mark.long) for name in MORE_LEGAL]])
def test_a_legal_data_set_goes_from_records_to_report(name: str, tmp_path: Path) -> None:
    path = records(tmp_path, *(LEGAL | MORE_LEGAL)[name])
    config = study(path)
    report = run_study(config).read_text()
    assert "This phase has not run" not in report.split("## Training")[1] and "nan" not in report
    run = tmp_path / "run"
    crossover = read_sealed(run / "select" / "crossover.json", Crossover)
    assert crossover.gain_confirm.low <= crossover.gain_confirm.percent <= crossover.gain_confirm.high
    assert read_sealed(run / "evaluation" / "evaluation.json", EvaluationResult).models["crossover"].tasks
    # One record of the same kind, seen for the first time.
    unseen = records(tmp_path, 1, lambda index, row: row.update(id="unseen"))
    folder = RunFolder(run)
    assert evaluate_file(config, folder, unseen).num_records == 1


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (30, lambda index, row: None, "too few records to split"),
        (200, lambda index, row: without(row, *TARGETS) if index else None, "too few records to split"),
        (60, lambda index, row: without(row, *TARGETS), "no known schema"),
        (60, retold(lambda index: "the same words"), "too few records to split"),
    ],
)
def test_what_no_study_can_be_made_of_is_refused_before_anything_is_trained(
    number: int, change: Change, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        run_study(study(records(tmp_path, number, change)))
    assert not (tmp_path / "run" / "train").exists()
