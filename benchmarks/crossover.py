"""What a search among snapshots costs with cached evaluation, and what assembling a model takes in memory and time.

Each measured part runs in a process of its own; memory is the peak above what the interpreter holds once everything
is imported. The search works on a really trained run of generated records; the assembly on snapshots of `full` with
made-up weights, which need 3 GB of disk (6 GB with mergekit) below --tmp and are removed afterwards.

Usage: python benchmarks/crossover.py [--preset tiny|small] [--epochs N] [--no-full] [--json] [--write]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import assembly
from assembly import WAYS, measured
from record import write_result

from redheart.cli import set_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=["tiny", "small"], help="of the run that is searched")
    parser.add_argument("--epochs", type=int, default=30, help="snapshots of that run")
    parser.add_argument("--records", type=int, default=1000, help="generated records of that run")
    parser.add_argument("--no-full", action="store_true", help="leave the assembly of `full` out")
    parser.add_argument("--repeats", type=int, default=3, help="of every timed assembly; the best one counts")
    parser.add_argument("--tmp", type=Path, default=None, help="where the temporary folders are made")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/crossover.json")
    options = parser.parse_args()
    set_environment()
    if options.part:
        name, *arguments = options.part
        print(json.dumps(PARTS[name](*arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="redheart-", dir=options.tmp) as temporary:
        result = measure(Path(temporary), options)
    if options.write:
        kept = {name: value for name, value in vars(options).items() if name not in ("part", "tmp", "json", "write")}
        write_result("crossover", result, settings=kept)
    print(json.dumps(result, indent=None if options.json else 1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """All parts, one process each."""
    run = folder / "run"
    part("train", run, options.preset, options.epochs, options.records)
    whole_model = part("whole", run)
    searches = {level: part("search", run, level) for level in ("group", "module")}
    for found in searches.values():
        found["naive_s"] = round(found["evaluations_naive"] * whole_model["seconds_each"], 1)
        found["wall_share_of_naive"] = round(found["seconds"] / found["naive_s"], 4)
    result: dict[str, object] = {"one candidate as a whole model": whole_model, "search": searches}
    ways = {name: best(options.repeats, "assemble", run / "train" / "snapshots", options.preset, name) for name in WAYS}
    part("save_checkpoints", run)
    ways["design: all full checkpoints loaded"] = best(options.repeats, "load_checkpoints", run / "checkpoints")
    result[f"assembly of {options.preset}, {options.epochs} snapshots"] = ways
    if not options.no_full:
        result["assembly of full, 2 snapshots"] = measure_full(folder / "full", options.repeats)
    return result


def measure_full(folder: Path, repeats: int) -> dict[str, object]:
    """The assembly of the whole model beside a plain copy of as many bytes, and beside mergekit."""
    part("write_full", folder)
    ways: dict[str, object] = {"plain copy of one snapshot": best(repeats, "copy", folder)}
    ways |= {name: best(repeats, "assemble", folder, "full", name) for name in WAYS}
    if find_spec("mergekit") is None:
        return {**ways, "mergekit-pytorch": "not installed"}
    part("export", folder)
    # The snapshots themselves are no longer needed; mergekit's inputs take as much again.
    return {**ways, "mergekit-pytorch, mean of both": best(1, "mergekit", folder)}


def part(name: str, *arguments: object) -> dict[str, Any]:
    """Run one part in a process of its own; what it prints last."""
    command = [sys.executable, __file__, "--part", name, *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def best(repeats: int, name: str, *arguments: object) -> dict[str, Any]:
    """The quickest of several runs of a part, with the largest of their peaks."""
    found = [part(name, *arguments) for _ in range(repeats)]
    quickest = min(found, key=lambda item: float(item["seconds"]))
    return {**quickest, "peak_mib": max(item["peak_mib"] for item in found)}


def train(run: str, preset: str, epochs: str, records: str) -> dict[str, object]:
    """A run with a snapshot of every epoch."""
    from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
    from redheart.study import phases, run_folder

    config = resolved(
        StudyConfig(
            out=Path(run),
            preset=preset,  # type: ignore[arg-type]
            epochs=int(epochs),
            prepare=PrepareConfig(num_generated=int(records)),
            features=FeatureConfig(encoder="hash"),
            train=TrainConfig(strategy="plain", learning_rate=5e-4, snapshot_every=1, progress="off"),
        )
    )
    folder = run_folder.start(config)
    phases.run_training(phases.open_study(config, folder))
    return {}


def search(run: str, level: str) -> dict[str, object]:
    """The conditional descent on a trained run, without maps."""
    from redheart.study import phases, run_folder, selecting

    folder, config = run_folder.load(Path(run))
    settings = replace(config.select, level=level, map_epochs=0)  # type: ignore[arg-type]
    study = phases.open_study(replace(config, select=settings), folder)
    (folder.select / "evaluated.bin").unlink(missing_ok=True)

    def work() -> Any:
        return selecting.run_sweet_spot(study)

    spot, cost = measured(work)
    return {
        "units": len(spot.groups),
        "snapshots": len(spot.epochs),
        "records": spot.selection.gain.num_records,
        "candidates": spot.num_candidates,
        "evaluations": round(spot.evaluations, 2),
        "evaluations_naive": spot.evaluations_naive,
        "share_of_naive": round(spot.evaluations / spot.evaluations_naive, 4),
        "evaluations_done_with_comparisons": round(spot.work.evaluations, 2),
        **cost,
    }


def whole(run: str) -> dict[str, object]:
    """A few candidates evaluated as whole models, the naive way: assembled, loaded, run."""
    from redheart.evaluate.prediction import predict_rows
    from redheart.snapshots.blend import single
    from redheart.snapshots.consolidate import assemble
    from redheart.study import phases, run_folder, selecting
    from redheart.study.final import load_assembled

    folder, config = run_folder.load(Path(run))
    study = phases.open_study(config, folder)
    snapshots, specs = selecting.open_snapshots(folder), selecting.expected_specs(config, study.prepared)
    rows = study.prepared.split[selecting.SELECT]

    def work() -> int:
        for snapshot in snapshots[:5]:
            choice = dict.fromkeys(specs, single(snapshot.epoch))
            out = folder.select / "whole"
            digest = assemble(out, choice=choice, snapshots=snapshots, expected=specs).digest
            model = load_assembled(config, folder, study.prepared.inventory, out.name, digest=digest)
            model.requires_grad_(False)
            predict_rows(model, study.features, rows, micro_batch=config.train.micro_batch)
        return 5

    number, cost = measured(work)
    return {"seconds_each": round(cost["seconds"] / number, 3), "peak_mib": cost["peak_mib"]}


PARTS: dict[str, Callable[..., dict[str, object]]] = {
    "train": train,
    "search": search,
    "whole": whole,
    "assemble": assembly.assemble_one_way,
    "save_checkpoints": assembly.save_checkpoints,
    "load_checkpoints": assembly.load_checkpoints,
    "write_full": assembly.write_full,
    "copy": assembly.copy,
    "export": assembly.export,
    "mergekit": assembly.mergekit,
}


if __name__ == "__main__":
    main()
