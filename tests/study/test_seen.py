"""A labelled file from outside is held against what the run was trained and chosen on."""

import json
import unicodedata
from pathlib import Path

import msgspec
import pytest

from redheart.cli import main
from redheart.data.prepare import load_prepared
from redheart.predict.predictor import as_record
from redheart.study.evaluating import seen_records, seen_text


def test_records_are_recognised_by_what_the_encoder_reads_and_the_test_split_stays_closed(finished_run: Path) -> None:
    prepared = load_prepared(finished_run / "data")
    first, second = (prepared.records[row] for row in prepared.split["train"][:2])
    chosen = prepared.records[prepared.split["val_select"][0]]
    tested = prepared.records[prepared.split.opened()["test"][0]]
    changed = msgspec.structs.replace(first, id="other", text=unicodedata.normalize("NFD", first.text).upper() + "  ")
    other = msgspec.structs.replace(second, title="A title of its own")
    records = [changed, other, chosen, tested, as_record("Nothing like it was seen.", "new")]
    assert seen_records(prepared, records, text_chars=1500) == {"train": 1, "val_select": 1}
    assert seen_records(prepared, records[3:], text_chars=1500) == {}


def test_the_warning_has_the_numbers_and_nothing_seen_has_none() -> None:
    assert seen_text({}, num_records=30) is None
    text = seen_text({"train": 1200, "val_confirm": 3}, num_records=8858)
    assert text is not None and text.startswith("1,203 of 8,858 records")
    assert "(1,200 in train, 3 in val_confirm)" in text


def test_the_training_file_itself_is_evaluated_with_a_warning(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = load_prepared(finished_run / "data")
    rows = [
        {"id": record.id, "text": record.text, "title": record.title, "action": record.action, "regret_factor": 0.5}
        for record in prepared.records
    ]
    (tmp_path / "same.json").write_text(json.dumps(rows))
    main(["evaluate", str(finished_run), "--data", str(tmp_path / "same.json"), "--json"])
    captured = capsys.readouterr()
    counts = {part: len(rows_of_part) for part, rows_of_part in prepared.split.items()}
    found = json.loads(captured.out)
    assert found["num_records"] == len(rows) and found["seen"] == counts
    assert captured.err.startswith(f"warning: {sum(counts.values()):,} of {len(rows):,} records of the file")
