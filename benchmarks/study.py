"""What finished studies found, taken from the files of their runs: no figure is computed a second time.

Usage: python benchmarks/study.py RUN [RUN ...] [--json] [--so-far] [--write | --trial NAME]

One file a seed, `benchmarks/results/study/seed_N.json`: settings, data, sweep, curves of the whole model and of every
module, what was logged beside them, selection, crossover, test metrics with intervals, baselines. With --write the
run's report goes beside it. With --so-far a run need not be finished: phases that have not run are null. With --trial a
run is one that stands beside the study's, of other settings: its curves alone are written, to
`benchmarks/results/study/trials`.
"""

import argparse
import json
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import RESULTS, write_result

from redheart.cli import set_environment

if TYPE_CHECKING:
    from redheart.study.run_folder import RunFolder

STUDY = RESULTS / "study"
TRIALS = STUDY / "trials"
EPOCH_FIGURES = (
    *("epoch", "train_loss", "val_loss", "val_task_loss", "train_module_loss", "val_module_loss", "val_metrics"),
    *("learning_rate", "grad_norm", "samples_per_s", "epoch_s", "validation_s", "host_rss_peak_bytes"),
)
TRIAL_FIGURES = ("epoch", "train_loss", "val_loss", "val_task_loss", "val_metrics")


def found_by(folder: "RunFolder", *, so_far: bool = False) -> dict[str, Any]:
    """All that a finished run has to tell, in plain JSON; `so_far` of one that may not be, phases that miss as None.

    Raises:
        BadInput: a phase of the run is missing; it is named.
    """
    import msgspec

    from redheart.core.errors import BadInput
    from redheart.core.files import read_sealed
    from redheart.data.prepare import Manifest
    from redheart.evaluate.holdout_log import read_openings
    from redheart.evaluate.results import CalibrationResult, Crossover, EvaluationResult, Sweep
    from redheart.select.sweet_spot import SweetSpot
    from redheart.train.log.events import all_events, watched_events

    def part(path: Path, kind: type, *, needed: bool = True) -> Any:
        if path.is_file():
            return read_sealed(path, kind)
        if needed:
            raise BadInput("the run is not finished", where=path, hint="run `redheart run` or launch/pipeline.sh again")
        return None

    manifest = part(folder.data / "manifest.json", Manifest)
    # A run whose learning rate was given has none.
    sweep = part(folder.sweep / "sweep.json", Sweep, needed=False)
    spot = part(folder.select / "sweet_spot.json", SweetSpot, needed=not so_far)
    crossover = part(folder.select / "crossover.json", Crossover, needed=not so_far)
    evaluation = part(folder.evaluation / "evaluation.json", EvaluationResult, needed=not so_far)
    events = all_events(folder.train / "events.jsonl")
    samples = watched_events(folder.train / "samples.jsonl")
    trials = sweep.trials if sweep else []
    trial_logs = [all_events(folder.trial(trial.rate) / "events.jsonl") for trial in trials]
    plain = msgspec.to_builtins(
        {
            "records": {
                name: getattr(manifest, name)
                for name in ("read", "invalid", "duplicates", "train", "val_select", "val_confirm", "test")
            },
            "sweep": sweep
            and {
                "trials": sweep.trials,
                "best_rate": sweep.best_rate,
                "seconds": sum(map(_seconds, trial_logs)),
            },
            "epochs": [{name: event[name] for name in EPOCH_FIGURES} for event in events if event["event"] == "epoch"],
            "events": {
                "counts": Counter(event["event"] for event in events),
                "steps_not_applied": sum(event["event"] == "step" and not event["applied"] for event in events),
                "seconds": _seconds(events),
                "host_rss_peak_bytes": max((sample["host_rss_bytes"] for sample in samples), default=None),
                "snapshots": sum(event["event"] == "epoch" and event["snapshot"] for event in events),
            },
            "sweet_spot": spot
            and {
                name: getattr(spot, name)
                for name in (
                    *("strategy", "level", "best_epoch", "groups", "curves", "num_candidates", "evaluations"),
                    *("evaluations_naive", "selection", "swaps", "baselines"),
                )
            },
            "crossover": crossover,
            "evaluation": evaluation,
            "calibration": part(folder.calibration / "calibration.json", CalibrationResult, needed=False),
            "openings": read_openings(folder.root),
        }
    )
    return dict(plain)


def _seconds(events: list[dict[str, Any]]) -> float:
    """From the first event to the last, by their clock; pauses between a stop and its resumption are in it."""
    times = [datetime.fromisoformat(event["time_utc"]) for event in events]
    return round((times[-1] - times[0]).total_seconds(), 1) if times else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one a seed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--so-far", action="store_true", help="of runs that may not be finished")
    parser.add_argument("--write", action="store_true", help="write seed_N.json and the report below results/study")
    parser.add_argument("--trial", metavar="NAME", help="write the curves alone, to stand beside the study's")
    options = parser.parse_args()
    set_environment()
    from redheart.study.run_folder import load

    results = {}
    for run in options.runs:
        folder, config = load(run)
        results[f"seed_{config.seed}"] = found = found_by(folder, so_far=options.so_far or bool(options.trial))
        settings = {
            **{name: getattr(config, name) for name in ("preset", "epochs", "seed", "features", "train", "sweep")},
            "select": config.select,
            "data": Path(config.data).name,
        }
        if options.trial:
            curves = [{name: epoch[name] for name in TRIAL_FIGURES} for epoch in found["epochs"]]
            write_result(f"{options.trial}_seed_{config.seed}", curves, settings=settings, folder=TRIALS)
        elif options.write:
            write_result(f"seed_{config.seed}", found, settings=settings, folder=STUDY)
            report = STUDY / f"seed_{config.seed}_report"
            shutil.rmtree(report, ignore_errors=True)
            shutil.copytree(folder.report, report, ignore=shutil.ignore_patterns("*.html", "tables"))
    print(json.dumps(results, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
