"""The whole study, phase by phase; started again, it goes on where it stopped."""

import time
from pathlib import Path

from redheart.core.config import StudyConfig
from redheart.core.device import chosen_device
from redheart.core.errors import BadInput
from redheart.core.progress import Display
from redheart.report.best_epochs import best_epochs_text
from redheart.report.limitations import better_text
from redheart.report.report import make_report
from redheart.report.selection_section import work_text
from redheart.study import run_folder
from redheart.study.calibrating import run_calibration
from redheart.study.evaluating import run_evaluation
from redheart.study.phases import Study, open_study, run_training, say
from redheart.study.recombining import run_crossover
from redheart.study.selecting import run_sweet_spot
from redheart.study.sweep import run_sweep
from redheart.train.settings import Chosen


def run_study(config: StudyConfig, chosen: Chosen | None = None) -> Path:
    """Prepare, sweep, train, select, cross over, calibrate, evaluate, report; the path of the report.

    `chosen` is what the planner says of the way to train.
    """
    display = Display(config.train.progress)
    # Asked for in vain, it is found out here and not after the training.
    chosen_device(config.device)
    with run_folder.claimed(config) as folder:
        say(config, "prepare", f"records from {config.data}")
        study = open_study(config, folder, display=display)
        manifest = study.prepared.manifest
        say(config, "prepare", manifest.text)
        if manifest.best_reachable is not None:
            say(config, "prepare", f"best reachable emotion cross-entropy: {manifest.best_reachable:.4f} nats")
        if config.train.learning_rate is None:
            sweep = run_sweep(study)
            say(config, "sweep", f"learning rate {sweep.best_rate}")
        start_s = time.perf_counter()
        say(config, "train", f"preset {config.preset}, {config.epochs} epochs, strategy {config.train.strategy}")
        run_training(study, chosen=chosen)
        say(config, "train", f"done in {(time.perf_counter() - start_s) / 60:.1f} minutes")
        with run_folder.reading_snapshots(folder):
            spot = run_sweet_spot(study, display=display)
            say(config, "sweet-spot", f"best single epoch {spot.best_epoch}; {spot.num_candidates} models compared")
            say(config, "sweet-spot", work_text(spot))
            if bests := best_epochs_text(folder.root):
                say(config, "sweet-spot", bests)
            with display.working("crossover"):
                crossover = run_crossover(study)
        say(config, "crossover", crossover.verdict)
        with display.working("calibrate"):
            calibrated = _calibrate(study)
        say(config, "calibrate", calibrated)
        with display.working("evaluate"):
            evaluation = run_evaluation(study)
        emotion = evaluation.models[evaluation.recommended].tasks.get("emotion", {})
        shown = ", ".join(f"{name} {emotion[name].value:.3f}" for name in ("kl", "accuracy", "accuracy_tie") if emotion)
        say(config, "evaluate", f"{evaluation.recommended}: {shown}")
        if better := better_text(evaluation):
            say(config, "evaluate", better)
        with run_folder.reporting(folder):
            path = make_report(folder.root)
        say(config, "report", f"{path.with_suffix('.html')}, {path.name} beside it")
    return path


def _calibrate(study: Study) -> str:
    """The calibration's verdict; a run of few records, or without emotions, goes on without one."""
    try:
        return run_calibration(study).verdict
    except BadInput as error:
        return f"left out: {error.what} ({error.where}: {error.got}, expected {error.expected})"
