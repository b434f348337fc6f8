"""How long the phases after training take on a device: sweet spot, maps, crossover, calibration, evaluation, predict.

They work on a finished run, which stays as it is, or on one whose snapshots are made up: one draw of weights, scaled a
little by the epoch. What is found in such a run says nothing; what it costs is what any run of its size costs.
`read_s` is the time in which all snapshots are read and verified once: the search can be no faster than what it reads
of them.

Usage: python benchmarks/after_training.py [RUN] [--device D] [--preset P] [--snapshots N] [--data FILE] [--level L]
       [--write] [--name NAME]
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from record import write_result

from redheart.core.config import FeatureConfig, PrepareConfig, SelectConfig, StudyConfig, TrainConfig, resolved
from redheart.core.device import study_device
from redheart.core.progress import Display
from redheart.evaluate.prediction import predict_rows, predictor_losses
from redheart.model.ledger import module_names
from redheart.snapshots.blend import single
from redheart.snapshots.consolidate import read_module
from redheart.snapshots.module_snapshots import write_snapshot
from redheart.study import evaluating, phases, run_folder
from redheart.study.calibrating import run_calibration
from redheart.study.final import open_run
from redheart.study.learner import VALIDATION_PARTS
from redheart.study.recombining import run_crossover
from redheart.study.selecting import expected_specs, open_snapshots, run_sweet_spot

NUM_RECORDS = 8858
"""That are left of the real records; 886 of them are validated on."""
NUM_TEXTS = 256
MADE_FROM = ("config.json", "data", "features", "train")
"""What the phases after training read of a run."""


def make_run(out: Path, options: argparse.Namespace) -> None:
    """Prepared records, their features, and snapshots that nobody has trained."""
    config = resolved(
        StudyConfig(
            data=str(options.data) if options.data else "generated",
            out=out,
            preset=options.preset,
            epochs=2 * options.snapshots,
            prepare=PrepareConfig(num_generated=options.records),
            features=FeatureConfig(encoder=options.encoder),
            train=TrainConfig(learning_rate=1e-4),
            device=options.device,
        )
    )
    folder = run_folder.start(config)
    study = phases.open_study(config, folder, display=Display("bar"))
    rows = np.concatenate([study.prepared.split[part] for part in VALIDATION_PARTS])
    device = study_device(options.device)
    model = phases.new_model(config, study.prepared).to(torch.bfloat16).to(device).eval().requires_grad_(False)
    for number in range(options.snapshots):
        for parameter in model.parameters():
            parameter.mul_(1.01)
        outputs = predict_rows(model, study.features, rows, micro_batch=config.train.micro_batch)
        losses = predictor_losses(outputs, study.prepared, rows)
        means = {name: float(np.nanmean(losses_N)) for name, losses_N in losses.items()}
        write_snapshot(
            folder.snapshots,
            modules={name: dict(model.get_submodule(name).state_dict()) for name in module_names(model)},
            outputs={name: torch.from_numpy(values) for name, values in outputs.items()},
            epoch=2 * (number + 1),
            step=number + 1,
            cycle_position=0.5,
            val_loss=1.0,
            val_module_loss=means,
            train_module_loss=means,
        )


def measure(run: Path, work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of every phase, in a folder that holds links to what the run's training has left."""
    for name in MADE_FROM:
        (work / name).symlink_to((run / name).resolve())
    device = study_device(options.device)
    # The predictions too, which `auto` would make elsewhere than the rest.
    folder, config = run_folder.load(work, device="cuda" if device.type == "cuda" else "cpu")
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start_s, 2)
        print(f"{name:<12}{seconds[name]:>8.2f} s", flush=True)

    def within(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            with timed(name):
                return work(*arguments, **named)

        return run

    config = dataclasses.replace(config, select=SelectConfig(level=options.level))
    with timed("open"):
        study = phases.load_study(config, folder)
    snapshots, specs = open_snapshots(folder), expected_specs(config, study.prepared)
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    with timed("read"):
        for epoch in by_epoch:
            for name in specs:
                read_module(by_epoch, name, single(epoch), specs[name])
    with timed("sweet-spot"):
        spot = run_sweet_spot(study, display=Display("bar"))
    with timed("crossover"):
        run_crossover(study)
    with timed("calibrate"):
        run_calibration(study)
    baselines = within("baselines", evaluating.fit_baselines)
    with timed("evaluate"), patch.object(evaluating, "fit_baselines", baselines):
        evaluating.run_evaluation(study)
    texts = study.prepared.records[:NUM_TEXTS]
    with timed("load"):
        predictor = open_run(work, device=config.device)
    with timed("predict"):
        predictor.predict(texts)
    is_card = device.type == "cuda"
    # The baselines are a part of the evaluation, and nobody reads everything once beside the search.
    counted = [value for name, value in seconds.items() if name not in ("read", "baselines")]
    return {
        "device": torch.cuda.get_device_name() if is_card else "cpu",
        "device_peak_bytes": torch.cuda.max_memory_reserved() if is_card else None,
        "computed_in": spot.computed_in,
        "preset": config.preset,
        "snapshots": len(snapshots),
        "validation_records": sum(len(study.prepared.split[part]) for part in VALIDATION_PARTS),
        "texts": len(texts),
        "seconds": seconds,
        "total_s": round(sum(counted), 2),
        "models_compared": spot.num_candidates,
        "full_evaluations": round(spot.work.evaluations, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a finished run; without it one is made up")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--preset", choices=("tiny", "small", "full"), default="tiny")
    parser.add_argument("--snapshots", type=int, default=5)
    parser.add_argument("--records", type=int, default=NUM_RECORDS, help="generated where there is no --data")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--data", type=Path, help="a file of records")
    parser.add_argument("--level", choices=("group", "module"), default="group")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/NAME.json")
    parser.add_argument("--name", default="after_training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run, work = options.run or Path(place) / "made", Path(place) / "work"
        work.mkdir()
        if options.run is None:
            make_run(run, options)
        result = measure(run, work, options)
    if options.write:
        # Where things lie is no setting.
        named = {"run": options.run and options.run.name, "data": options.data and options.data.name}
        write_result(options.name, result, settings={**vars(options), **named})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
