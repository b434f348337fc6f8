"""What a run's files say, as the report, the model card and the tables need it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from redheart.core.files import read_if_there, read_sealed, sha256_file, shown
from redheart.data.features import known_manifest
from redheart.data.prepare import Manifest
from redheart.evaluate.holdout_log import Opening, read_openings
from redheart.evaluate.results import CalibrationResult, Crossover, EvaluationResult, Sweep
from redheart.select.maps import Maps
from redheart.select.sweet_spot import SweetSpot
from redheart.train.log.events import all_events


class RunFacts(msgspec.Struct, frozen=True):
    """A run as far as it has come; None or empty where a phase has not run."""

    name: str
    config: dict[str, Any]
    manifest: Manifest
    unread: dict[str, int] | None
    """Records by script that the encoder cannot be expected to make sense of; see `FeatureManifest`."""
    sweep: Sweep | None
    events: Sequence[dict[str, Any]]
    """Of the main run."""
    spot: SweetSpot | None
    maps: Maps | None
    crossover: Crossover | None
    evaluation: EvaluationResult | None
    """None as well where it is of other models than those of the crossover."""
    calibration: CalibrationResult | None
    """None as well where it was fitted to another model than the run now recommends."""
    openings: Sequence[Opening]
    """Of the confirm records, the test split and files."""


def read_facts(root: Path) -> RunFacts:
    """Read what lies in a run's folder.

    Raises:
        BadInput: there is no prepared data.
        CorruptFile: a file was changed since it was written.
    """
    crossover = read_if_there(root / "select" / "crossover.json", Crossover)
    calibration = own_calibration(root, crossover.recommended) if crossover else None
    evaluation = read_if_there(root / "evaluation" / "evaluation.json", EvaluationResult)
    if evaluation and (crossover is None or evaluation.digests != crossover.digests):
        evaluation = None
    features = known_manifest(root / "features")
    return RunFacts(
        name=shown(root.resolve().name),
        config=read_sealed(root / "config.json", dict[str, Any])["config"],
        manifest=read_sealed(root / "data" / "manifest.json", Manifest),
        unread=features.unread if features else None,
        sweep=read_if_there(root / "sweep" / "sweep.json", Sweep),
        events=all_events(root / "train" / "events.jsonl"),
        spot=read_if_there(root / "select" / "sweet_spot.json", SweetSpot),
        maps=read_if_there(root / "select" / "maps.json", Maps),
        crossover=crossover,
        evaluation=evaluation,
        calibration=calibration,
        openings=read_openings(root),
    )


def model_digest(root: Path, name: str) -> str:
    """What tells an assembled model from others: the digest of its manifest, which names every file's digest."""
    path = root / "select" / name / "manifest.json"
    return sha256_file(path) if path.is_file() else "no model"


def own_calibration(root: Path, name: str) -> CalibrationResult | None:
    """The calibration of an assembled model; None where there is none, or it is another model's."""
    stored = read_if_there(root / "calibration" / "calibration.json", CalibrationResult)
    return stored if stored and stored.model == model_digest(root, name) else None


def before_calibration(facts: RunFacts) -> str:
    """What the figures of a run's evaluation need said where its predictions are calibrated."""
    is_kept = facts.calibration and facts.calibration.calibration
    return " They are of the model before its calibration." if is_kept else ""
