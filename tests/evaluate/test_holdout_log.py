"""The log of openings says what was called, and nothing of where it lay."""

import sys
from pathlib import Path

import pytest

from redheart.evaluate.holdout_log import record_opening


def test_paths_of_the_machine_are_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"
    root.mkdir()
    data = tmp_path / "texts" / "records.json"
    monkeypatch.setattr(sys, "argv", ["redheart", "run", "--data", str(data), "--out", str(root), "--seed", "1"])
    opened = record_opening(root, part="val_confirm", file=root / "data" / "records.jsonl.gz", num_records=3, models={})
    assert opened[-1].command == "redheart run --data records.json --out RUN --seed 1"
    assert opened[-1].file == "data/records.jsonl.gz"
