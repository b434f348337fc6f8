"""Where a run names two epochs as best, it says by which measure each is."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from redheart.core.files import read_sealed, write_sealed
from redheart.report.best_epochs import best_epochs_text
from redheart.report.selection_section import sweet_spot_section, sweet_spot_text
from redheart.select.sweet_spot import SweetSpot
from redheart.study.outlook.status import read_status, status_lines
from redheart.study.phases import Study, load_study
from redheart.study.run_folder import load
from redheart.train.log.events import read_events


@pytest.fixture
def parts(run_copy: Path) -> tuple[Study, SweetSpot, int]:
    """A run, its choice, and the epoch of its lowest validation loss."""
    folder, config = load(run_copy)
    epochs = read_events(folder.train / "events.jsonl", "epoch")
    lowest = min(epochs, key=lambda event: event["val_loss"])["epoch"]
    spot = read_sealed(folder.select / "sweet_spot.json", SweetSpot)
    return load_study(config, folder), spot, lowest


def test_two_epochs_are_explained_in_terminal_status_and_report(parts: Any, tmp_path: Path) -> None:
    study, spot, lowest = parts
    other = next(epoch for epoch in spot.epochs if epoch != lowest)
    spot = msgspec.structs.replace(spot, best_epoch=other)
    write_sealed(study.folder.select / "sweet_spot.json", spot)
    said = best_epochs_text(study.folder.root)
    manifest = study.prepared.manifest
    for part in (
        f"the best single snapshot, epoch {other},",
        f"on {manifest.val_select} select records among {len(spot.epochs)} snapshots",
        f"after epoch {lowest},",
        f"all {manifest.val_select + manifest.val_confirm} validation records among 4 epochs",
    ):
        assert said and part in said
    assert sweet_spot_text(spot, bests=said).count(said[1:]) == 1
    status = read_status(*load(study.folder.root))
    assert status.best_epoch == lowest and status.best_epochs_text == said
    assert any(line.endswith(said) for line in status_lines(status))
    assert sweet_spot_section(tmp_path, spot, bests=said).count(said[1:]) == 1


def test_one_epoch_needs_no_word(parts: Any) -> None:
    study, spot, lowest = parts
    spot = msgspec.structs.replace(spot, best_epoch=lowest)
    write_sealed(study.folder.select / "sweet_spot.json", spot)
    assert best_epochs_text(study.folder.root) is None
    assert "two measures" not in sweet_spot_text(spot, bests=None)
    assert read_status(*load(study.folder.root)).best_epochs_text is None
    (study.folder.train / "events.jsonl").unlink()
    assert best_epochs_text(study.folder.root) is None
