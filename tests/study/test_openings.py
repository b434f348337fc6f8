"""The log of openings says what was called, and nothing of where it lay."""

import sys
from pathlib import Path

import pytest

from redheart.study.openings import record_opening
from redheart.study.run_folder import RunFolder


def test_paths_of_the_machine_are_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    data = tmp_path / "texts" / "records.json"
    monkeypatch.setattr(sys, "argv", ["redheart", "run", "--data", str(data), "--out", str(folder.root), "--seed", "1"])
    opened = record_opening(folder, part="val_confirm", file=folder.data / "records.jsonl.gz", num_records=3, models={})
    assert opened[-1].command == "redheart run --data records.json --out RUN --seed 1"
    assert opened[-1].file == "data/records.jsonl.gz"
