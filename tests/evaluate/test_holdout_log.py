"""The log of openings says what was called, and nothing of where it lay."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from redheart.evaluate.holdout_log import CONFIRM, confirm_place, read_openings, record_opening


def test_paths_of_the_machine_are_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"
    root.mkdir()
    data = tmp_path / "texts" / "records.json"
    monkeypatch.setattr(sys, "argv", ["redheart", "run", "--data", str(data), "--out", str(root), "--seed", "1"])
    opened = record_opening(root, part="val_confirm", file=root / "data" / "records.jsonl.gz", num_records=3, models={})
    assert opened[-1].command == "redheart run --data records.json --out RUN --seed 1"
    assert opened[-1].file == "data/records.jsonl.gz"


def test_two_who_open_at_once_are_both_in_the_log(tmp_path: Path) -> None:
    def open_ten(part: str) -> None:
        for _ in range(10):
            record_opening(tmp_path, part=part, file=tmp_path / "records", num_records=1, models={})

    both = [multiprocessing.get_context("fork").Process(target=open_ten, args=(part,)) for part in ("file", "test")]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert sorted(opening.part for opening in read_openings(tmp_path)) == ["file"] * 10 + ["test"] * 10


def test_a_file_from_elsewhere_is_logged_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, data = tmp_path / "run", tmp_path / "texts" / "records.json"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["redheart", "evaluate", str(root), f"--data={data}", "--seed=1", "--json"])
    opened = record_opening(root, part="file", file=data, num_records=3, models={})
    assert opened[-1].command == "redheart evaluate RUN --data=records.json --seed=1 --json"
    assert opened[-1].file == "records.json"


def test_what_is_no_utf_8_is_logged_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9.toml")
    monkeypatch.setattr(sys, "argv", ["redheart", "run", "--config", name])
    record_opening(tmp_path, part="file", file=tmp_path.parent / name, num_records=3, models={})
    (opened,) = read_openings(tmp_path)
    assert (opened.file, opened.command) == (r"caf\xe9.toml", r"redheart run --config 'caf\xe9.toml'")


def test_one_model_under_two_names_takes_no_place_among_choices(tmp_path: Path) -> None:
    """As a labelled file with confirm records is shown to a choice that is the best single snapshot."""
    record_opening(tmp_path, part=CONFIRM, file=tmp_path / "a.json", num_records=3, models={"one": "S", "two": "S"})
    assert confirm_place(tmp_path, judged="one", models={"one": "C", "two": "S"}, num_records=3) == 1
