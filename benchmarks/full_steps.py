"""Real optimizer steps of the whole 730,466,848-parameter model on real records, wherever it is run.

On a machine without a GPU the same engine runs on the CPU: what is measured there is the loss, the time of a step
and the host memory, not VRAM. Every step is appended to the run's event log; the run itself is thrown away.
"""

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import probe
import psutil
from record import write_result

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, Preset, StudyConfig, TrainConfig, resolved
from redheart.core.progress import Display
from redheart.core.units import GIB


def first_records(source: Path, number: int, folder: Path) -> Path:
    """A file of the first records of `source`, a JSON array, plain or gzipped."""
    raw = source.read_bytes()
    rows = json.loads(gzip.decompress(raw) if source.suffix == ".gz" else raw)[:number]
    path = folder / "records.json"
    path.write_text(json.dumps(rows))
    return path


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(config: StudyConfig, *, steps: int | None) -> dict[str, object]:
    """Prepare, build, start the engine and take `steps` optimizer steps, or a whole epoch with what it writes."""
    from redheart.study import phases, run_folder
    from redheart.train.log.events import read_events

    folder = run_folder.start(config)
    study = phases.open_study(config, folder, display=Display("bar"))
    before_bytes = psutil.Process().memory_info().rss
    start_s = time.perf_counter()
    phases.run_training(study, max_steps=steps)
    peak_bytes = probe.measure().host_rss_bytes or 0
    log = read_events(folder.train / "events.jsonl", "step")
    parameters = sum(
        parameter.numel() for parameter in phases.new_model(config, study.prepared, device="meta").parameters()
    )
    optimizer_bytes = read_events(folder.train / "events.jsonl", "host_memory")[0]["optimizer_bytes"]
    return {
        "parameters": parameters,
        "optimizer_bytes": optimizer_bytes,
        "optimizer_bytes_per_parameter": {
            name: round(value / parameters, 3) for name, value in optimizer_bytes.items()
        },
        "optimizer_bytes_per_parameter_total": round(sum(optimizer_bytes.values()) / parameters, 3),
        "records_in_split": study.prepared.manifest.train,
        "steps": log,
        "loss_first": log[0]["loss"],
        "loss_last": log[-1]["loss"],
        "wall_s": round(time.perf_counter() - start_s, 1),
        "rss_before_training_bytes": before_bytes,
        "rss_peak_bytes": peak_bytes,
        "rss_peak_gib": round(peak_bytes / GIB, 2),
        "disk_bytes": {
            "features": folder_bytes(folder.features),
            "states": folder_bytes(folder.train / "states"),
            "snapshots": folder_bytes(folder.snapshots),
        },
    }


def _fast_type() -> str:
    """What a run on this processor computes in."""
    from redheart.train.device.compute_type import type_name

    return type_name(TrainConfig())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON array of records, plain or .gz")
    parser.add_argument("--records", type=int, default=320)
    parser.add_argument("--steps", type=int, default=3, help="0: a whole epoch, its validation, snapshot and state")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--strategy", default="zero2_offload_adam8bit")
    parser.add_argument("--compute-type", choices=("bf16", "fp32"), help="by default what the processor is fast in")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--name", default="full_steps", help="name of the result file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    set_environment()
    options.compute_type = options.compute_type or _fast_type()
    preset: Preset = options.preset
    with tempfile.TemporaryDirectory(prefix="redheart-") as temporary:
        folder = Path(temporary)
        config = StudyConfig(
            data=str(first_records(options.data, options.records, folder)),
            out=folder / "run",
            preset=preset,
            epochs=1,
            features=FeatureConfig(seq_len_tokens=options.seq_len),
            train=TrainConfig(
                strategy=options.strategy,
                learning_rate=options.learning_rate,
                micro_batch=options.micro_batch,
                compute_type=options.compute_type,
            ),
        )
        result = measure(resolved(config), steps=options.steps or None)
    if options.write:
        settings = {name: value for name, value in vars(options).items() if name not in ("data", "json", "write")}
        write_result(options.name, result, settings={**settings, "data": options.data.name})
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
