"""Samples a second and peak memory of training: Red Heart, a raw loop and the Hugging Face Trainer, in one run.

Usage: python benchmarks/train_step.py --data FILE [--preset small] [--strategies NAME ...] [--json] [--write]

Each way trains the same model on the same records in the same order, with the same batch, precision, clipping and
optimizer states, in a process of its own; rounds of all ways follow each other, so that a busy machine hits all alike.
With `plain` the three run torch's AdamW; with a ZeRO-2 strategy the other two run DeepSpeed with the same configuration
and, where the strategy's states have 8 bits, bitsandbytes' AdamW8bit, which is what a user has without this project.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from full_steps import first_records
from record import write_result
from training_loops import WAYS, one_epoch

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, TrainConfig

WARM_UP = 3
"""Steps that are not counted: caches fill, threads start."""


def settings_of(options: argparse.Namespace, strategy: str) -> TrainConfig:
    """What the options say of the training."""
    return TrainConfig(strategy=strategy, effective_batch=options.effective_batch, micro_batch=options.micro_batch)


def measure_one(options: argparse.Namespace, way: str, strategy: str) -> dict[str, object]:
    """One way in this process."""
    import torch

    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.train.engine import set_threads

    config = one_epoch(options, settings_of(options, strategy))
    if strategy != "plain":
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"})
    study = phases.open_study(config, RunFolder(config.out))
    set_threads(phases.new_model(config, study.prepared, device="meta"), config.train, 1)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps_s = WAYS[way](study, options.steps + WARM_UP)[WARM_UP:]
    return {
        "median_step_s": statistics.median(steps_s),
        "samples_per_s": config.train.effective_batch / statistics.median(steps_s),
        "rss_before_mib": round(before_kib / 1024, 1),
        "rss_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def compare(options: argparse.Namespace, strategy: str) -> dict[str, object]:
    """Rounds of all ways with one strategy."""
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, found in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way, strategy]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{strategy}: {way}: {found[-1]['samples_per_s']:.1f} samples/s", file=sys.stderr, flush=True)
    best = {way: max(item["samples_per_s"] for item in found) for way, found in rounds.items()}
    result = {
        way: {
            "samples_per_s_median": round(statistics.median(item["samples_per_s"] for item in found), 2),
            "samples_per_s_best": round(best[way], 2),
            "rss_peak_mib": max(item["rss_peak_mib"] for item in found),
            "rounds": found,
        }
        for way, found in rounds.items()
    }
    ours = rounds["Red Heart"]
    ratios = {
        way: round(
            statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in zip(ours, found, strict=True)), 3
        )
        for way, found in rounds.items()
    }
    return {"ways": result, "red_heart_over": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON array of records, plain or .gz")
    parser.add_argument("--work", type=Path, default=Path("runs/train_step"), help="where features are kept")
    parser.add_argument("--records", type=int, default=1500)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--strategies", nargs="*", default=["plain", "zero2_offload_adam8bit"])
    parser.add_argument("--seq-len-tokens", type=int, default=FeatureConfig().seq_len_tokens)
    parser.add_argument("--effective-batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="train_step", help="of the result's file")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "STRATEGY"), help="measure one in this process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/train_step.json")
    options = parser.parse_args()
    set_environment()
    if options.one:
        print(json.dumps(measure_one(options, *options.one)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "records.json").is_file():
        first_records(options.data, options.records, options.work)
    result = {strategy: compare(options, strategy) for strategy in options.strategies}
    if options.write:
        names = ("preset", "records", "seq_len_tokens", "effective_batch", "micro_batch", "steps", "rounds")
        write_result(options.name, result, settings={name: getattr(options, name) for name in names})
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
