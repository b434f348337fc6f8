"""What saving costs: bytes, stall of the training, rates and memory, beside `torch.save` and DeepSpeed's own saver.

Usage: python benchmarks/snapshot_io.py [--data FILE] [--preset small] [--epochs 6] [--json] [--write]

Each part is a process of its own: a training with a state every few steps and a snapshot an epoch; one engine's state
saved by all three ways in turn; a fresh start and a resume, of which the peaks of resident memory are compared. The
training's stall is the time between two optimizer steps with a save, less that without one and less the validation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import RESULTS, write_result

from redheart.cli import set_environment
from redheart.core.config import GENERATED, FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
from redheart.core.units import GIB

STATE_EVERY = 4
STEPS_PER_EPOCH = 12
ROUNDS = 5
RATE = 5e-4
DESIGN_SNAPSHOTS = 30


def study(options: argparse.Namespace, *, epochs: int, out: Path) -> StudyConfig:
    """The study whose run is saved."""
    return resolved(
        StudyConfig(
            data=str(options.data) if options.data else GENERATED,
            out=out,
            preset=options.preset,
            epochs=epochs,
            prepare=PrepareConfig(num_generated=64 * STEPS_PER_EPOCH * 10 // 8),
            features=FeatureConfig(encoder="minilm" if options.data else "hash"),
            train=TrainConfig(
                progress="off",
                learning_rate=RATE,
                snapshot_every=1,
                state_every_minutes=0.0,
                state_every_steps=STATE_EVERY,
            ),
        )
    )


def train_part(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, and time every step from outside: from one call of the learner's loss to the next."""
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder

    config = study(options, epochs=options.epochs, out=folder)
    data = phases.open_study(config, RunFolder(folder))
    marks: list[float] = []
    validations: list[tuple[float, float]] = []
    loss, validate = phases.EmotionLearner.loss, phases.EmotionLearner.validate

    def timed_loss(*args: Any, **kwargs: Any) -> Any:
        marks.append(time.perf_counter())
        return loss(*args, **kwargs)

    def timed_validate(*args: Any, **kwargs: Any) -> Any:
        start_s = time.perf_counter()
        found = validate(*args, **kwargs)
        validations.append((start_s, time.perf_counter() - start_s))
        return found

    phases.EmotionLearner.loss, phases.EmotionLearner.validate = timed_loss, timed_validate  # type: ignore[method-assign]
    phases.run_training(data)
    steps: dict[str, list[float]] = {"plain": [], "state": [], "epoch": []}
    per_epoch = len(marks) // options.epochs
    for index, (start_s, end_s) in enumerate(pairwise(marks)):
        checked_s = sum(seconds for at, seconds in validations if start_s <= at < end_s)
        kind = "epoch" if (index + 1) % per_epoch == 0 else "state" if (index + 1) % STATE_EVERY == 0 else "plain"
        # The first steps warm up caches and compile.
        if index > 1:
            steps[kind].append(end_s - start_s - checked_s)
    step_s = statistics.median(steps["plain"])
    return {
        "step_s": step_s,
        "stall_of_a_state_s": statistics.median(steps["state"]) - step_s,
        "stall_of_an_epoch_end_s": statistics.median(steps["epoch"]) - step_s,
        "longest_stall_in_steps": max(max(steps["state"]), max(steps["epoch"])) / step_s - 1,
        "steps_timed": {name: len(found) for name, found in steps.items()},
    }


def save_part(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One engine after a step, saved by all ways in turn; times include bringing the bytes to the disk."""
    import torch

    from redheart.snapshots.manifests import Progress
    from redheart.snapshots.states import newest_state, write_state
    from redheart.study import phases
    from redheart.study.learner import EmotionLearner
    from redheart.study.run_folder import RunFolder
    from redheart.train.engine import start_engine

    config = study(options, epochs=1, out=folder / "save")
    data = phases.open_study(config, RunFolder(folder))
    model = phases.new_model(config, data.prepared)
    learner = EmotionLearner(model, data.prepared, data.features, config.train, seed=0)
    engine = start_engine(model, config.train)
    rows = learner.epoch_rows(0)[: config.train.effective_batch]
    engine.backward(learner.loss(engine.module, rows, step_rows=rows).total, last=True)
    engine.step(RATE)
    count = sum(parameter.numel() for parameter in model.parameters())
    deepspeed: Any = engine.module

    def ours(target: Path) -> None:
        write_state(
            target,
            tensors=dict(engine.state_tensors()),
            progress=Progress(0, 1, 1, {}, {}, 0, None, 0),
            run_key="benchmark",
            rank=0,
            world_size=1,
            barrier=lambda: None,
            parameters=engine.places,
        )

    def torch_save(target: Path) -> None:
        target.mkdir()
        content = {"model": deepspeed.module.state_dict(), "states": dict(engine.state_tensors())}
        torch.save(content, target / "checkpoint.pt")
        os.sync()

    def deepspeed_save(target: Path) -> None:
        deepspeed.save_checkpoint(str(target), tag="step")
        os.sync()

    ways = {"ours": ours, "torch.save": torch_save, "DeepSpeed save_checkpoint": deepspeed_save}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sizes = {}
    for number in range(ROUNDS):
        for name, save in ways.items():
            target = folder / f"{name.split()[0]}_{number}"
            start_s = time.perf_counter()
            save(target)
            seconds[name].append(time.perf_counter() - start_s)
            sizes[name] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    start_s = time.perf_counter()
    assert newest_state(folder / f"ours_{ROUNDS - 1}") is not None
    read_s = time.perf_counter() - start_s
    return {
        "parameters": count,
        "verify_of_a_state_mb_per_s": sizes["ours"] / read_s / 1e6,
        "ways": {
            name: {
                "bytes_per_parameter": sizes[name] / count,
                "seconds": statistics.median(seconds[name]),
                "mb_per_s": sizes[name] / statistics.median(seconds[name]) / 1e6,
                "times_ours": statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)),
                "is_verified_and_flushed": name == "ours",
            }
            for name in ways
        },
    }


def one_epoch_part(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one more epoch than lies there; the peak of resident memory."""
    import resource

    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.train.log.events import read_events

    run = RunFolder(folder)
    done = len(read_events(run.train / "events.jsonl", "epoch"))
    config = study(options, epochs=done + 1, out=folder)
    phases.run_training(phases.open_study(config, run))
    return {"epochs": done + 1, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def files_part(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sizes of what the training left, its verification, and its compression."""
    from redheart.snapshots.compress import compress_snapshots
    from redheart.snapshots.module_snapshots import list_snapshots
    from redheart.snapshots.survey import list_run, verify_run
    from redheart.study.run_folder import RunFolder

    run = RunFolder(folder)
    listing = list_run(run.snapshots, run.states)
    verification = verify_run(run.snapshots, run.states)
    modules = [list(item.manifest.modules.values()) for item in list_snapshots(run.snapshots)]
    count = sum(entry.num_elements for entry in modules[0])
    weights = sum(entry.content_bytes for entry in modules[0]) / count
    start_s = time.perf_counter()
    rewritten = compress_snapshots(run.snapshots)
    compress_s = time.perf_counter() - start_s
    before, after = sum(r.bytes_before for r in rewritten), sum(r.bytes_after for r in rewritten)
    assert verify_run(run.snapshots, run.states).bad == []
    start_s = time.perf_counter()
    for snapshot in list_snapshots(run.snapshots):
        for name in snapshot.manifest.modules:
            dict(snapshot.open_module(name))
    read_s = time.perf_counter() - start_s
    content = sum(entry.content_bytes for entries in modules for entry in entries)
    return {
        "state_bytes_per_parameter": listing.states[-1].bytes_on_disk / count,
        "snapshot_bytes_per_parameter": weights,
        "verify_mb_per_s": verification.megabytes_per_s,
        "compressed_snapshots": len(rewritten),
        "compressed_share_of_bytes": after / before,
        "compress_mb_per_s": before / compress_s / 1e6,
        "read_compressed_mb_per_s": content / read_s / 1e6,
    }


def full_figures() -> dict[str, float]:
    """What `full` wrote in its committed run of twenty steps, by parameter, and what 30 snapshots of it take.

    A preset as small as those that can be trained here in a minute has a larger share of headers and of tensors that
    keep 32-bit states.
    """
    found = json.loads((RESULTS / "full_steps_20.json").read_text())["result"]
    count, disk = found["parameters"], found["disk_bytes"]
    return {
        "state_bytes_per_parameter": disk["states"] / count,
        "snapshot_bytes_per_parameter": disk["snapshots"] / count,
        "thirty_snapshots_gib": DESIGN_SNAPSHOTS * disk["snapshots"] / GIB,
    }


PARTS = {"train": train_part, "files": files_part, "save": save_part, "one-epoch": one_epoch_part}


def in_process(part: str, folder: Path) -> dict[str, Any]:
    """Run a part in a process of its own and read its result."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"part {part} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found


def measure(folder: Path) -> dict[str, Any]:
    """All parts, one after the other."""
    result: dict[str, Any] = {"training": in_process("train", folder / "run")}
    result["files"] = in_process("files", folder / "run")
    result["full"] = full_figures()
    result["saving"] = in_process("save", folder / "run")
    # Prepared first, so that both processes only open the data.
    fresh = [in_process("one-epoch", folder / "resumed") for _ in range(2)][-1:]
    peaks = {"resumed": fresh[0]["peak_bytes"], "fresh": 0}
    for path in (folder / "resumed" / "train").iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    peaks["fresh"] = in_process("one-epoch", folder / "resumed")["peak_bytes"]
    result["peak_memory"] = {**peaks, "resumed_over_fresh": peaks["resumed"] / peaks["fresh"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="file of records; empty: generated ones")
    parser.add_argument("--preset", default="small", choices=("tiny", "small"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/snapshot_io.json")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help="run one part in this process")
    options = parser.parse_args()
    set_environment()
    if options.part:
        print("RESULT " + json.dumps(PARTS[options.part[0]](options, Path(options.part[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        result = measure(Path(folder))
    if options.write:
        settings = {"data": options.data and options.data.name, "preset": options.preset, "epochs": options.epochs}
        write_result("snapshot_io", result, settings=settings)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
