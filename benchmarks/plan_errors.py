"""What the planner predicts beside what is measured: activations, ledgers, host memory, disk; the error of each.

Usage: python benchmarks/plan_errors.py [--json] [--write]

Measurements of the full model are read from `benchmarks/results/full_steps*.json`, as `full_steps.py` wrote them, and
those of a card from `vram_8gib*.json`, as `vram.py --cap 8GiB` wrote them there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, ROOT, write_result

from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved
from redheart.data.features import make_features, record_bytes
from redheart.data.records import Record
from redheart.data.summary import POOLED_WIDTH
from redheart.data.words import Labels
from redheart.memory.host_disk import cpu_host_parts, disk_parts
from redheart.memory.kernels import CPU
from redheart.memory.ledger import ledger, model_sizes
from redheart.memory.plan import Planner
from redheart.memory.trace import Workload, trace_pass
from redheart.model.blocks import set_checkpointing
from redheart.model.dims import scaled
from redheart.model.losses import multitask_loss
from redheart.model.network import build
from redheart.study.outlook import planning
from redheart.train.device.compute_type import compute_type
from redheart.train.strategy import all_strategies, strategy_sizes
from redheart.train.zero.groups import parameter_groups

FULL_STEPS = ("full_steps", "full_steps_20", "full_steps_accumulated", "full_steps_adam32", "full_steps_float32")
DEVICE_RUNS = ("vram_8gib", "vram_8gib_gpu_adam8bit")
FULL_EPOCH = "full_steps_20"
"""The run that wrote a state and a snapshot."""
ENGINE_SCRIPT = ROOT / "tests" / "memory" / "engine_tensors.py"
HOST_CASES = (
    ("zero2_offload_adam8bit", 8, "bf16"),
    ("zero2_offload_adam8bit", 4, "bf16"),
    ("zero2_offload_adam32", 3, "bf16"),
    ("zero2_offload_adam8bit", 3, "fp32"),
)
ENGINE_BATCH, ENGINE_LENGTH = 4, 4
"""What `engine_tensors.py` runs."""


def activation_rows() -> list[dict[str, object]]:
    """Traced peak on `meta` beside the peak of live storages of the same pass on the CPU."""
    rows = []
    torch.set_num_threads(1)
    for name, batch, length, checkpointing in product(("tiny", "small"), (1, 2, 5), (4, 9), (False, True)):
        peaks = {}
        for device in ("meta", "cpu"):
            config = StudyConfig(preset=name, features=FeatureConfig(seq_len_tokens=length))
            work = planning.workload(config, dtype=torch.float32, device=device)
            set_checkpointing(work.module, checkpointing)
            chosen = CPU if device == "meta" else None
            peaks[device] = trace_pass(work.module, work.batch(batch), work.loss, kernels=chosen).peak_bytes
        rows.append(
            {"preset": name, "batch": batch, "length": length, "checkpointing": checkpointing}
            | {"predicted_bytes": peaks["meta"], "measured_bytes": peaks["cpu"]}
            | {"error": peaks["meta"] / peaks["cpu"] - 1}
        )
    return rows


def engine_tensors(strategy: str, divisor: int, compute_type: str) -> dict[str, object]:
    """What a real engine on the CPU holds, and its process's peak, from a process of its own."""
    command = [sys.executable, str(ENGINE_SCRIPT), strategy, str(divisor), compute_type]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


def host_row(strategy: str, divisor: int, compute_type: str, measured_bytes: int) -> dict[str, object]:
    """Predicted resident peak of an engine's process on the CPU beside the measured one."""
    dims = scaled(divisor)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[compute_type]
    module = build(dims, seed=0, device="meta").to(dtype)
    sizes = model_sizes(module, parameter_groups(module, weight_decay=0.01))

    def batch(size: int) -> tuple[torch.Tensor, ...]:
        shape = (size, ENGINE_LENGTH)
        return (
            torch.empty(*shape, 768, dtype=dtype, device="meta"),
            torch.ones(*shape, dtype=torch.bool, device="meta"),
            torch.empty(size, 22, device="meta"),
            torch.ones(size, 22, dtype=torch.bool, device="meta"),
        )

    def loss(network: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        counts_K = torch.empty(4, device="meta")
        predictions = network(given[0], given[1])
        return multitask_loss(predictions, given[2], given[3], outputs=dims.outputs, step_counts_K=counts_K).total

    work = Workload(module, sizes, batch, loss, set_checkpointing, 2 * ENGINE_BATCH, 0, 0, 0)
    config = StudyConfig(train=TrainConfig(strategy=strategy, compute_type=compute_type))
    entries = ledger(sizes, planning.cpu_sizes(config), accumulates=True)
    parts = cpu_host_parts(work, entries, pass_bytes=Planner(work).pass_bytes(ENGINE_BATCH, checkpointing=False))
    predicted = sum(parts.values())
    return {
        "strategy": strategy,
        "compute_type": compute_type,
        "parameters": sizes.total,
        "predicted_bytes": predicted,
        "measured_bytes": measured_bytes,
        "error": predicted / measured_bytes - 1,
    }


def full_config(settings: dict[str, Any]) -> StudyConfig:
    """The configuration that `full_steps.py` ran with."""
    # Before there was a choice everything was computed in bf16.
    compute_type = settings.get("compute_type", "bf16")
    train = TrainConfig(strategy=settings["strategy"], micro_batch=settings["micro_batch"], compute_type=compute_type)
    features = FeatureConfig(seq_len_tokens=settings["seq_len"])
    return resolved(StudyConfig(preset=settings["preset"], epochs=1, features=features, train=train))


def recorded(names: Sequence[str]) -> list[dict[str, Any]]:
    """The committed results of these names, those that are there."""
    paths = [RESULTS / f"{name}.json" for name in names]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def full_rows() -> list[dict[str, object]]:
    """The full model's measured host peaks beside their predictions."""
    rows = []
    for record in recorded(FULL_STEPS):
        config = full_config(record["settings"])
        micro_batch, strategy = config.train.micro_batch, config.train.strategy
        planner = cpu_planner(config)
        accumulates = micro_batch < config.train.effective_batch
        entries = ledger(planner.workload.sizes, planning.cpu_sizes(config), accumulates=accumulates)
        pass_bytes = planner.pass_bytes(micro_batch, checkpointing=False)
        parts = cpu_host_parts(planner.workload, entries, pass_bytes=pass_bytes)
        # Features that the same process made before left more behind than the planner's process has.
        parts["process"] = max(parts["process"], record["result"]["rss_before_training_bytes"])
        predicted, measured = sum(parts.values()), record["result"]["rss_peak_bytes"]
        rows.append(
            {"strategy": strategy, "micro_batch": micro_batch, "parameters": planner.workload.sizes.total}
            | {"predicted_bytes": predicted, "measured_bytes": measured, "error": predicted / measured - 1}
            | {"parts": parts}
        )
    return rows


_cpu_planners: dict[tuple[str, int, int, torch.dtype], Planner] = {}


def cpu_planner(config: StudyConfig) -> Planner:
    """A planner of what this CPU computes, which keeps its traces for the next row with this workload."""
    key = (config.preset, config.features.seq_len_tokens, config.train.effective_batch, compute_type(config.train))
    if key not in _cpu_planners:
        _cpu_planners[key] = Planner(planning.cpu_workload(config))
    return _cpu_planners[key]


def device_rows() -> list[dict[str, object]]:
    """Measured peaks of the full model on a card, as `vram.py` recorded them, beside what is predicted now."""
    rows = []
    for record in recorded(DEVICE_RUNS):
        settings = record["settings"]
        vram_bytes = planning.parse_bytes(settings["cap"])
        features = FeatureConfig(seq_len_tokens=settings["seq_len_tokens"])
        train = TrainConfig(effective_batch=settings["effective_batch"])
        config = StudyConfig(preset=settings["preset"], features=features, train=train)
        for row in record["result"]["rows"]:
            name, micro_batch = row["strategy"], row["micro_batch"]
            sizes = strategy_sizes(name)
            planner = planning.planner_of(config, dtype=sizes.kind.card_dtype)
            plan, _ = planner.plan(sizes, micro_batch=micro_batch, checkpointing=False, vram_bytes=vram_bytes)
            measured = row.get("measured", {}).get("device_process_bytes")
            rows.append(
                {"card": record["machine"]["gpu"], "strategy": name, "micro_batch": micro_batch}
                | {"budget_bytes": vram_bytes, "verdict": row["verdict"], "predicted_fits": plan.fits}
                | {"predicted_bytes": plan.peak_bytes, "upper_bytes": plan.upper_bytes, "measured_bytes": measured}
                | {"error": plan.peak_bytes / measured - 1 if measured else None}
                | {"host_predicted_bytes": plan.host_bytes}
                | {"host_measured_bytes": row.get("measured", {}).get("host_rss_bytes")}
            )
    return rows


def disk_rows() -> list[dict[str, object]]:
    """A resume state and a snapshot of the full model's epoch, and features made now, beside their predictions."""
    rows = [feature_row()]
    for record in recorded([FULL_EPOCH]):
        config = full_config(record["settings"])
        work = planning.workload(config)
        sizes = strategy_sizes(config.train.strategy)
        parts = disk_parts(work, sizes, ledger(work.sizes, sizes, accumulates=False))
        # A plan keeps room for three states.
        predicted = {
            "states": parts["resume states"] / 3,
            "snapshots": parts["module snapshots"],
        }
        for name, size in predicted.items():
            measured = record["result"]["disk_bytes"][name]
            rows.append(
                {"what": name, "predicted_bytes": int(size), "measured_bytes": measured, "error": size / measured - 1}
            )
    return rows


def feature_row(count: int = 24, seq_len_tokens: int = 32) -> dict[str, object]:
    """Features of texts longer than they are kept, by the default encoder, beside their prediction."""
    config = FeatureConfig(seq_len_tokens=seq_len_tokens)
    records = [Record(f"{index}", "word " * 2 * seq_len_tokens, "", "", {}) for index in range(count)]
    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        root, fit = Path(folder) / "features", Path(folder) / "fit"
        labels = Labels(np.arange(count), np.zeros((count, 1)), np.zeros((count, 1), dtype=bool), np.arange(count))
        make_features(records, config=config, root=root, fit=fit, labels=labels)
        # The projection is the same for any number of records and is left aside.
        measured = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        measured += count * 2 * POOLED_WIDTH
    predicted = count * record_bytes(config)
    return {
        "what": "features",
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "error": predicted / measured - 1,
    }


def ledger_rows() -> list[dict[str, object]]:
    """Every named buffer of every strategy beside the tensors of a real engine, the tiny model."""
    rows = []
    module = build(scaled(32), seed=0, device="meta")
    sizes = model_sizes(module, parameter_groups(module, weight_decay=0.01))
    for strategy in (item.name for item in all_strategies() if item.configuration):
        held = dict(engine_tensors(strategy, 32, "bf16")["held"])  # type: ignore[call-overload]
        for entry in ledger(sizes, strategy_sizes(strategy), accumulates=True):
            if entry.attribute in held:
                measured = held[entry.attribute]
                rows.append(
                    {"strategy": strategy, "buffer": entry.name, "predicted_bytes": entry.total_bytes}
                    | {"measured_bytes": measured, "error": entry.total_bytes / measured - 1}
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/plan_errors.json")
    options = parser.parse_args()
    host = [host_row(*case, int(str(engine_tensors(*case)["rss_peak_bytes"]))) for case in HOST_CASES]
    result = {
        "activations": activation_rows(),
        "ledger": ledger_rows(),
        "host": host,
        "host_full": full_rows(),
        "disk_full": disk_rows(),
        "device_full": device_rows(),
    }
    tables = {name: rows for name, rows in result.items() if rows and isinstance(rows, list)}
    result["largest_error"] = {name: max(abs(row["error"] or 0.0) for row in rows) for name, rows in tables.items()}
    if options.write:
        write_result("plan_errors", result, settings=vars(options))
    print(json.dumps(result if options.json else result["largest_error"], indent=None if options.json else 1))


if __name__ == "__main__":
    main()
