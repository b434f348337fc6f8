"""The whole study, phase by phase; started again, it goes on where it stopped."""

import time
from pathlib import Path
from typing import TypeVar

from redheart.core.config import StudyConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, shown
from redheart.core.progress import Display
from redheart.data.prepare import Manifest
from redheart.model.dims import preset
from redheart.model.ledger import count
from redheart.model.network import build
from redheart.report.facts import CalibrationFacts
from redheart.report.html import write_html
from redheart.report.latex import write_tables
from redheart.report.report import write_report
from redheart.select.maps import Maps
from redheart.select.sweet_spot import SweetSpot
from redheart.study import run_folder
from redheart.study.calibrating import run_calibration
from redheart.study.crossover import Crossover, run_crossover
from redheart.study.evaluation import EvaluationResult, run_evaluation
from redheart.study.final import model_digest, recommended
from redheart.study.openings import read_openings
from redheart.study.phases import StudyData, open_data, run_training
from redheart.study.run_folder import RunFolder
from redheart.study.say import say
from redheart.study.selection import run_sweet_spot
from redheart.study.selection_text import work_text
from redheart.study.sweep import run_sweep
from redheart.study.trials import Sweep
from redheart.train.events import all_events

T = TypeVar("T")


def run_study(config: StudyConfig) -> Path:
    """Prepare, sweep, train, select, cross over, calibrate, evaluate, report; the path of the report.

    Raises:
        RedHeartError: a phase failed; run the same command again once the cause is mended.
    """
    display = Display(config.train.progress)
    with run_folder.claimed(config) as folder:
        say(config, "prepare", f"records from {config.data}")
        data = open_data(config, folder, display=display)
        manifest = data.prepared.manifest
        say(
            config,
            "prepare",
            f"{manifest.read} read, {manifest.duplicates} near-duplicates; train {manifest.train}, "
            f"val {manifest.val_select} + {manifest.val_confirm}, test {manifest.test}",
        )
        if manifest.best_reachable is not None:
            say(config, "prepare", f"best reachable emotion cross-entropy: {manifest.best_reachable:.4f} nats")
        if config.train.learning_rate is None:
            sweep = run_sweep(config, folder, data)
            say(config, "sweep", f"learning rate {sweep.best_rate}")
        start_s = time.perf_counter()
        say(config, "train", f"preset {config.preset}, {config.epochs} epochs, strategy {config.train.strategy}")
        run_training(config, folder, data, show_progress=True)
        say(config, "train", f"done in {(time.perf_counter() - start_s) / 60:.1f} minutes")
        spot = run_sweet_spot(config, folder, data, settings=config.select, display=display)
        say(config, "sweet-spot", f"best single epoch {spot.best_epoch}; {spot.num_candidates} models compared")
        say(config, "sweet-spot", work_text(spot))
        with display.working("crossover"):
            crossover = run_crossover(config, folder, data)
        say(config, "crossover", crossover.verdict)
        with display.working("calibrate"):
            calibrated = _calibrate(config, folder, data)
        say(config, "calibrate", calibrated)
        with display.working("evaluate"):
            evaluation = run_evaluation(config, folder, data)
        emotion = evaluation.models[evaluation.recommended].tasks.get("emotion", {})
        shown = ", ".join(f"{name} {emotion[name].value:.3f}" for name in ("kl", "accuracy", "accuracy_tie") if emotion)
        say(config, "evaluate", f"{evaluation.recommended}: {shown}")
        path = make_report(config, folder)
        say(config, "report", str(path))
    return path


def _calibrate(config: StudyConfig, folder: RunFolder, data: StudyData) -> str:
    """The calibration's verdict; a run of few records, or without emotions, goes on without one."""
    try:
        return run_calibration(config, folder, data).verdict
    except BadInput as error:
        return f"left out: {error.what} ({error.where}: {error.got}, expected {error.expected})"


def make_report(config: StudyConfig, folder: RunFolder) -> Path:
    """Write the report from the files of the run, whatever phases have run: Markdown, HTML, tables for a paper."""
    manifest = read_sealed(folder.data / "manifest.json", Manifest)
    model = build(preset(config.preset, outputs=manifest.inventory.outputs), seed=config.seed, device="meta")
    sweep = _if_there(folder.sweep / "sweep.json", Sweep)
    ledger_rows = list(count(model).modules.items())
    evaluation = _if_there(folder.evaluation / "evaluation.json", EvaluationResult)
    events = all_events(folder.train / "events.jsonl")
    path = write_report(
        folder.report,
        title=f"Red Heart: {shown(folder.root.resolve().name)}",
        manifest=manifest,
        ledger_rows=ledger_rows,
        trials=sweep.trials if sweep else [],
        epochs=[event for event in events if event["event"] == "epoch"],
        # Logs of old do not name it.
        compute_types=[event["compute_type"] for event in events if "compute_type" in event],
        spot=_if_there(folder.select / "sweet_spot.json", SweetSpot),
        maps=_if_there(folder.select / "maps.json", Maps),
        openings=read_openings(folder),
        crossover=_if_there(folder.select / "crossover.json", Crossover),
        evaluation=evaluation,
        calibration=_calibration(folder),
    )
    write_tables(
        folder.report / "tables",
        manifest=manifest,
        ledger_rows=ledger_rows,
        evaluations={**evaluation.models, **evaluation.baselines} if evaluation else None,
    )
    write_html(path)
    return path


def _calibration(folder: RunFolder) -> CalibrationFacts | None:
    """The calibration, unless it was fitted to another model than the run now recommends."""
    found = _if_there(folder.calibration / "calibration.json", CalibrationFacts)
    return found if found and found.model == model_digest(folder, recommended(folder)) else None


def _if_there(path: Path, kind: type[T]) -> T | None:
    return read_sealed(path, kind) if path.is_file() else None
