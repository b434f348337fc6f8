"""Steps of the same training, as this checkout and as an earlier commit take them, in turn: seconds and losses.

Usage: python benchmarks/against_commit.py COMMIT --data FILE [--presets small tiny] [--rounds 2] [--write]

Each run is `launch/train.py` of its own tree (`git worktree`) on the same records, with every setting spelled out whose
default has changed since: no words in the features, no feature dropout, value weight 1. Losses are those of the runs'
logs, step by step.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from full_steps import first_records
from record import ROOT, write_result

WARM_UP = 3
"""Steps that are not counted: caches fill, threads start."""
SAME_WORK = {
    "features.encoder": "hash",
    "features.words": "False",
    "train.learning-rate": "1e-4",
    "train.weight-decay": "0.01",
    "train.feature-dropout": "0",
    "train.value-weight": "1",
    "train.cycle-epochs": "20",
    "train.cycle-growth": "2",
    "train.micro-batch": "64",
    "train.sample-every-s": "0",
    "train.wandb": "off",
    "train.progress": "off",
}


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of the commit, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def without_leading_blanks(path: Path) -> Path:
    """The same file, its texts stripped: with blanks in front earlier commits cut a long text at another word."""
    rows = [
        {key: value.strip() if isinstance(value, str) else value for key, value in row.items()}
        for row in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(rows))
    return path


def steps_of(tree: Path, records: Path, preset: str, strategy: str, *, steps: int) -> list[dict[str, float]]:
    """The log's entries of the first steps of a run of this tree."""
    settings = {"data": str(records), "preset": preset, "train.strategy": strategy} | SAME_WORK
    if "words" not in (tree / "redheart/core/config.py").read_text():
        del settings["features.words"]
    # Four fifths of the records are trained on, in batches of 64; an epoch more than that many hold.
    settings["epochs"] = str(1 + steps * 64 // int(0.75 * len(json.loads(records.read_text()))))
    with tempfile.TemporaryDirectory(prefix="redheart-") as out:
        options = itertools.chain.from_iterable((f"--{name}", value) for name, value in settings.items())
        command = [sys.executable, str(tree / "launch/train.py"), *options, "--out", str(Path(out) / "run")]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        lines = (Path(out) / "run/train/events.jsonl").read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["event"] == "step"]
    return entries[:steps]


def compare(trees: dict[str, Path], records: Path, preset: str, strategy: str, *, rounds: int, steps: int) -> dict:
    """Rounds of both trees: the median second of a step, their ratio, and how far the losses are apart."""
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    losses: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, tree in trees.items():
            entries = steps_of(tree, records, preset, strategy, steps=steps)
            losses[name] = [entry["loss"] for entry in entries]
            seconds[name].append(statistics.median(entry["step_s"] for entry in entries[WARM_UP:]))
            print(f"{preset} {strategy}: {name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    ratios = [before / now for before, now in zip(*seconds.values(), strict=True)]
    before, now = losses.values()
    return {
        "median_step_s": {name: [round(value, 4) for value in found] for name, found in seconds.items()},
        "times_as_fast": [round(ratio, 3) for ratio in ratios],
        "times_as_fast_median": round(statistics.median(ratios), 3),
        "steps_compared": len(now),
        "loss_difference_relative_max": max(abs(a - b) / abs(a) for a, b in zip(before, now, strict=True)),
        "loss_last": {name: found[-1] for name, found in losses.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("--data", type=Path, required=True, help="JSON array of records, plain or .gz")
    parser.add_argument("--records", type=int, default=1500)
    parser.add_argument("--presets", nargs="*", default=["small", "tiny"])
    parser.add_argument("--strategies", nargs="*", default=["plain", "zero2_offload_adam8bit"])
    parser.add_argument("--steps", type=int, default=200, help="of a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/against_commit.json")
    options = parser.parse_args()
    with worktree(options.commit) as tree, tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        records = without_leading_blanks(first_records(options.data, options.records, Path(folder)))
        trees = {options.commit: tree, "now": ROOT}
        result = {
            f"{preset} {strategy}": compare(
                trees, records, preset, strategy, rounds=options.rounds, steps=options.steps
            )
            for preset, strategy in itertools.product(options.presets, options.strategies)
        }
    if options.write:
        names = ("commit", "records", "steps", "rounds")
        write_result("against_commit", result, settings={name: getattr(options, name) for name in names} | SAME_WORK)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
