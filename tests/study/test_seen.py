"""A labelled file from outside is held against what the run was trained and chosen on."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from redheart.cli import main
from redheart.core.files import read_sealed, write_sealed
from redheart.data.prepare import load_prepared
from redheart.data.records import Record
from redheart.evaluate.holdout_log import _Openings, read_openings
from redheart.evaluate.results import Crossover, EvaluationResult
from redheart.report.report import make_report
from redheart.study import evaluating, run_folder
from redheart.study.evaluating import run_evaluation, seen_records, seen_text
from redheart.study.phases import load_study


def test_records_are_recognised_by_what_the_encoder_reads(finished_run: Path) -> None:
    prepared = load_prepared(finished_run / "data")
    first, second = (prepared.records[row] for row in prepared.split["train"][:2])
    chosen = prepared.records[prepared.split["val_select"][0]]
    tested = prepared.records[prepared.split.opened()["test"][0]]
    changed = msgspec.structs.replace(first, id="other", text=unicodedata.normalize("NFD", first.text).upper() + "  ")
    other = msgspec.structs.replace(second, title="A title of its own")
    records = [changed, other, chosen, tested, Record("new", "Nothing like it was seen.")]
    assert seen_records(prepared, records, text_chars=1500) == {"train": 1, "val_select": 1, "test": 1}
    assert seen_records(prepared, records[4:], text_chars=1500) == {}
    alone = msgspec.structs.replace(second, title="", action="")
    assert seen_records(prepared, [alone], text_chars=1500) == {"train": 1}
    # One text in two parts, as without the search for near-duplicates: it was trained on.
    twice = [*prepared.records]
    twice[prepared.split.opened()["test"][0]] = first
    assert seen_records(replace(prepared, records=twice), [first], text_chars=1500) == {"train": 1}


def test_the_warning_has_the_numbers_and_nothing_seen_has_none() -> None:
    assert seen_text({}, num_records=30) is None
    text = seen_text({"train": 1200, "val_confirm": 3}, num_records=8858)
    assert text is not None and text.startswith("1,203 of 8,858 records")
    assert "(1,200 in train, 3 in val_confirm)" in text and "test" not in text
    tested = seen_text({"test": 2}, num_records=30)
    assert tested == "2 records of the file are of the run's test split, which this opened"


def evaluate_file_of(root: Path, out: Path, rows: list[int]) -> None:
    records = load_prepared(root / "data").records
    found = [
        {"id": record.id, "text": record.text, "title": record.title, "action": record.action, "regret_factor": 0.5}
        for record in (records[row] for row in rows)
    ]
    out.write_text(json.dumps(found))
    main(["evaluate", str(root), "--data", str(out), "--json"])


def test_the_training_file_itself_is_evaluated_with_a_warning(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = load_prepared(run_copy / "data")
    evaluate_file_of(run_copy, tmp_path / "same.json", list(range(len(prepared.records))))
    captured = capsys.readouterr()
    counts = {part: len(rows_of_part) for part, rows_of_part in prepared.split.opened().items()}
    found = json.loads(captured.out)
    assert found["num_records"] == len(prepared.records) and found["seen"] == counts
    seen = len(prepared.records) - counts["test"]
    assert captured.err.startswith(f"warning: {seen:,} of {len(prepared.records):,} records of the file")
    assert f"{counts['test']} records of the file are of the run's test split" in captured.err


def test_a_look_by_a_file_at_records_that_are_kept_for_a_verdict_is_logged(run_copy: Path, tmp_path: Path) -> None:
    split = load_prepared(run_copy / "data").split.opened()
    before = read_openings(run_copy)
    for parts, logged in (
        (("train", "val_select"), ["file"]),
        (("train", "val_confirm", "test"), ["file", "val_confirm", "test"]),
    ):
        evaluate_file_of(run_copy, tmp_path / "a.json", [int(row) for part in parts for row in split[part][:3]])
        added = read_openings(run_copy)[len(before) :]
        assert [opening.part for opening in added] == logged
        before += added
    assert {(opening.file, opening.num_records) for opening in added[1:]} == {("a.json", 3)}
    # The choice whose recommended model was shown: another one that comes after it has been made with the look.
    crossover = read_sealed(run_copy / "select" / "crossover.json", Crossover)
    assert added[-1].models == crossover.digests
    assert "before this split was opened" in make_report(run_copy).read_text()
    other = {**crossover.digests, "crossover": "of a later choice"}
    write_sealed(run_copy / "select" / "crossover.json", msgspec.structs.replace(crossover, digests=other))
    evaluation = read_sealed(run_copy / "evaluation" / "evaluation.json", EvaluationResult)
    write_sealed(run_copy / "evaluation" / "evaluation.json", msgspec.structs.replace(evaluation, digests=other))
    openings = [opening for opening in before if opening.part != "test" or opening.file == "a.json"]
    write_sealed(run_copy / "openings.json", _Openings(openings))
    assert "after this split had been opened for another choice" in make_report(run_copy).read_text()


def test_a_run_without_a_choice_says_so_before_a_file_is_encoded(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / "select" / "crossover.json").unlink()
    monkeypatch.setattr(evaluating, "make_features", lambda *_, **__: pytest.fail("the file is encoded"))
    with pytest.raises(SystemExit):
        evaluate_file_of(run_copy, tmp_path / "a.json", [0, 1])
    assert "the run has no crossover yet" in capsys.readouterr().err


def test_an_output_that_was_never_trained_is_not_evaluated(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = load_prepared(run_copy / "data")
    regret = prepared.inventory.columns("regret").start
    assert prepared.mask_NT.all()

    def evaluate(untrained: int, targets: dict[str, object]) -> dict[str, object]:
        mask_NT = prepared.mask_NT.copy()
        mask_NT[prepared.split["train"], untrained] = False
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(evaluating, "load_prepared", lambda _: replace(prepared, mask_NT=mask_NT))
            rows = [{"text": f"I was glad {index} times", **targets, "regret_factor": index / 9} for index in range(9)]
            (tmp_path / "a.json").write_text(json.dumps(rows))
            main(["evaluate", str(run_copy), "--data", str(tmp_path / "a.json"), "--json"])
        return dict(json.loads(capsys.readouterr().out)["tasks"])

    assert set(evaluate(regret, {"label": 3})) == {"emotion"}
    main(["evaluate", str(run_copy), "--data", str(tmp_path / "a.json")])
    assert "| emotion: kl " in capsys.readouterr().out
    assert set(evaluate(regret - 1, {"label": 3})) == {"emotion", "regret"}
    num_openings = len(read_openings(run_copy))
    with pytest.raises(SystemExit) as ended:
        evaluate(regret, {})
    assert ended.value.code == 2 and "no record has a target" in capsys.readouterr().err
    assert len(read_openings(run_copy)) == num_openings
    # Of the test split, the baselines' too.
    folder, config = run_folder.load(run_copy)
    study = load_study(config, folder)
    (folder.evaluation / "evaluation.json").unlink()
    mask_NT = prepared.mask_NT.copy()
    mask_NT[prepared.split["train"], regret] = False
    found = run_evaluation(replace(study, prepared=replace(study.prepared, mask_NT=mask_NT)))
    for evaluation in (*found.models.values(), *found.baselines.values()):
        assert "regret" not in evaluation.tasks and "bentham" in evaluation.tasks
