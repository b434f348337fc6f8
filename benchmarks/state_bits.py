"""8-bit beside 32-bit optimizer states: the same training from the same seeds, validation losses side by side.

Usage: python benchmarks/state_bits.py --data FILE [--work DIR] [--seeds 0 1 2] [--epochs 10] [--json] [--write]

Every run is a process of its own and its folder below --work is resumed: started again, finished runs are only read.
Split and features are the same for all; a seed decides the initial weights and the order of the records.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from record import write_result

from redheart.cli import set_environment
from redheart.core.config import StudyConfig, TrainConfig, resolved
from redheart.core.progress import Display

STRATEGIES = {8: "zero2_offload_adam8bit", 32: "zero2_offload_adam32"}


def study(options: argparse.Namespace, *, bits: int, seed: int) -> StudyConfig:
    """The configuration of one run: one cosine cycle over all epochs, so that it ends annealed."""
    train = TrainConfig(
        strategy=STRATEGIES[bits],
        learning_rate=options.learning_rate,
        cycle_epochs=options.epochs,
        snapshot_every=options.epochs,
    )
    return resolved(
        StudyConfig(
            data=str(options.data),
            out=options.work,
            preset=options.preset,
            epochs=options.epochs,
            seed=seed,
            train=train,
        )
    )


def run_one(options: argparse.Namespace, *, bits: int, seed: int) -> None:
    """Train one run to its end, from wherever it stopped."""
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder

    # The data's seed is always the first one's, so that all runs validate on the same records.
    data = phases.open_study(study(options, bits=bits, seed=0), RunFolder(options.work), display=Display("bar"))
    config = study(options, bits=bits, seed=seed)
    folder = RunFolder(run_folder(options, bits, seed))
    phases.run_training(dataclasses.replace(data, config=config, folder=folder))


def run_folder(options: argparse.Namespace, bits: int, seed: int) -> Path:
    """Where a run lies."""
    return Path(options.work) / f"bits{bits}_seed{seed}"


def curves(folder: Path) -> dict[str, list[float]]:
    """Losses of a run, one figure an epoch."""
    from redheart.train.log.events import read_events

    events = read_events(folder / "train" / "events.jsonl", "epoch")
    return {name: [float(str(event[name])) for event in events] for name in ("train_loss", "val_loss", "epoch_s")}


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Last validation losses of all pairs, and the relative difference of their means."""
    runs = {
        f"{bits}-bit, seed {seed}": curves(run_folder(options, bits, seed))
        for seed in options.seeds
        for bits in STRATEGIES
    }
    last = {name: run["val_loss"][-1] for name, run in runs.items()}
    means = {bits: fmean(last[f"{bits}-bit, seed {seed}"] for seed in options.seeds) for bits in STRATEGIES}
    by_seed = [last[f"8-bit, seed {seed}"] / last[f"32-bit, seed {seed}"] - 1 for seed in options.seeds]
    return {
        "val_loss_last": last,
        "val_loss_mean_8bit": means[8],
        "val_loss_mean_32bit": means[32],
        "relative_difference": means[8] / means[32] - 1,
        "relative_difference_by_seed": by_seed,
        "seeds_32bit_spread": max(last[f"32-bit, seed {s}"] for s in options.seeds)
        / min(last[f"32-bit, seed {s}"] for s in options.seeds)
        - 1,
        "curves": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="file of records")
    parser.add_argument("--work", type=Path, default=Path("runs/state_bits"), help="where runs are kept and resumed")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--one", type=int, nargs=2, metavar=("BITS", "SEED"), help="run one in this process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/state_bits.json")
    options = parser.parse_args()
    if options.one:
        set_environment()
        run_one(options, bits=options.one[0], seed=options.one[1])
        return
    for seed in options.seeds:
        for bits in STRATEGIES:
            if len(curves(run_folder(options, bits, seed))["val_loss"]) < options.epochs:
                command = [sys.executable, __file__, *sys.argv[1:], "--one", str(bits), str(seed)]
                subprocess.run(command, check=True)
    result = compare(options)
    if options.write:
        settings = {name: value for name, value in vars(options).items() if name in ("preset", "seeds", "epochs")}
        settings |= {"learning_rate": options.learning_rate, "data": options.data.name}
        write_result("state_bits", result, settings=settings)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
