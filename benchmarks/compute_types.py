"""A training step in bf16, in what a run takes by itself, and in a float32 loop of thirty lines, in one run.

Usage: python benchmarks/compute_types.py --data FILE [--isa AVX2] [--preset small] [--json] [--write]

`--isa AVX2` holds oneDNN and torch to a processor without units for bf16; in bf16 alone nothing else is computed than
before there was a choice. Each way trains the same model on the same records in a process of its own; rounds of all
ways follow each other, so that a busy machine hits all alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from full_steps import first_records
from record import write_result
from training_loops import WAYS, one_epoch

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, TrainConfig

WARM_UP = 1
"""Steps that are not counted: caches fill, threads start."""
STRATEGY = TrainConfig().strategy
LOOPS = {
    "bf16": ("Red Heart", TrainConfig(strategy=STRATEGY, compute_type="bf16")),
    "auto": ("Red Heart", TrainConfig(strategy=STRATEGY)),
    "float32 loop": ("raw loop", TrainConfig(strategy="plain")),
}
"""By name, the way to train and its settings."""


def measure_one(options: argparse.Namespace, name: str) -> dict[str, object]:
    """One way in this process."""
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.train.device.compute_type import type_name
    from redheart.train.engine import set_threads

    way, train = LOOPS[name]
    config = one_epoch(options, train)
    study = phases.open_study(config, RunFolder(config.out))
    set_threads(phases.new_model(config, study.prepared, device="meta"), config.train, 1)
    steps_s = WAYS[way](study, options.steps + WARM_UP)[WARM_UP:]
    return {"compute_type": type_name(config.train), "step_s": statistics.median(steps_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON array of records, plain or .gz")
    parser.add_argument("--work", type=Path, default=Path("runs/compute_types"), help="where features are kept")
    parser.add_argument("--records", type=int, default=700)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seq-len-tokens", type=int, default=FeatureConfig().seq_len_tokens)
    parser.add_argument("--isa", help="what oneDNN and torch are held to, for example AVX2")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=LOOPS, help="measure one in this process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/compute_types.json")
    options = parser.parse_args()
    set_environment()
    if options.isa:
        os.environ.update(ONEDNN_MAX_CPU_ISA=options.isa, ATEN_CPU_CAPABILITY=options.isa.lower())
    if options.one:
        print(json.dumps(measure_one(options, options.one)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "records.json").is_file():
        first_records(options.data, options.records, options.work)
    rounds: dict[str, list[dict[str, object]]] = {name: [] for name in LOOPS}
    for _ in range(options.rounds):
        for name, found in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {found[-1]}", file=sys.stderr, flush=True)
    steps_s = {name: [float(str(item["step_s"])) for item in found] for name, found in rounds.items()}
    result = {
        "rounds": rounds,
        "step_s_median": {name: round(statistics.median(values), 4) for name, values in steps_s.items()},
        "auto_over": {
            name: round(statistics.median(a / b for a, b in zip(steps_s["auto"], values, strict=True)), 3)
            for name, values in steps_s.items()
        },
    }
    if options.write:
        names = ("preset", "records", "seq_len_tokens", "isa", "steps", "rounds")
        write_result("compute_types", result, settings={name: getattr(options, name) for name in names})
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
