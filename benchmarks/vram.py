"""Memory of real steps beside the planner's prediction, each configuration in a fresh process.

Usage: python benchmarks/vram.py [--data FILE] [--preset P] [--strategies A B] [--micro-batches N M]
       [--cap 8GiB] [--json] [--write]

Batches are of the records of --data, else of generated ones, padded to the full length: the most that a step takes.

With `--cap` on a CUDA device every process is held to that budget, context and workspaces subtracted, and the exit
code is the verdict: 0 all fit, 3 one did not. Without CUDA the same engine runs on the CPU: host memory and times are
measured, device memory is predicted and marked so.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import probe
from record import write_result

from redheart.cli import set_environment
from redheart.core.config import GENERATED, FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved

STEPS = 2


def study(options: argparse.Namespace, folder: Path) -> StudyConfig:
    """The study whose records and shapes are run."""
    return resolved(
        StudyConfig(
            data=str(options.data) if options.data else GENERATED,
            out=folder,
            preset=options.preset,
            prepare=PrepareConfig(num_generated=2 * options.effective_batch),
            features=FeatureConfig(seq_len_tokens=options.seq_len_tokens, encoder="minilm" if options.data else "hash"),
            train=TrainConfig(effective_batch=options.effective_batch, checkpointing=options.checkpointing),
        )
    )


def run_one(options: argparse.Namespace, strategy: str, micro_batch: int, checkpointing: bool, folder: Path) -> None:
    """Run a few optimizer steps in this process and print what they took."""
    import msgspec
    import torch
    from torch.nn.functional import pad

    from redheart.data.loader import load_features
    from redheart.model.blocks import set_checkpointing
    from redheart.model.dims import preset
    from redheart.model.losses import multitask_loss, task_counts
    from redheart.model.network import build
    from redheart.study import phases
    from redheart.study.outlook import planning
    from redheart.study.run_folder import RunFolder
    from redheart.train.engine import start_engine

    cap = planning.parse_bytes(options.cap) if options.cap else 0
    length, effective_batch = options.seq_len_tokens, options.effective_batch

    overhead = hold(cap)
    config = study(options, folder)
    data = phases.open_study(config, RunFolder(folder))
    prepared = data.prepared
    dims = preset(options.preset, outputs=prepared.inventory.outputs)
    model = build(dims, seed=0)
    set_checkpointing(model, checkpointing)
    engine = start_engine(model, dataclasses.replace(config.train, strategy=strategy, micro_batch=micro_batch))
    steps = []
    for _ in range(STEPS):
        seconds = {"forward_s": 0.0, "backward_s": 0.0, "step_s": 0.0}
        parts = effective_batch // micro_batch
        for part in range(parts):
            rows = prepared.split["train"][part * micro_batch : (part + 1) * micro_batch]
            features_BSD, mask_BS = load_features(data.features, rows)
            room = length - mask_BS.shape[1]
            features = pad(features_BSD, (0, 0, 0, room)).to(engine.device, engine.dtype)
            mask_BS = pad(mask_BS, (0, room)).to(engine.device)
            targets = torch.from_numpy(prepared.values_NT[rows]).to(engine.device)
            present_BT = torch.from_numpy(prepared.mask_NT[rows]).to(engine.device)
            counts_K = task_counts(present_BT, dims.outputs) * parts
            start = _now(torch)
            predictions = engine.module(features, mask_BS)
            loss = multitask_loss(predictions, targets, present_BT, outputs=dims.outputs, step_counts_K=counts_K).total
            middle = _now(torch)
            engine.backward(loss, last=part == parts - 1)
            seconds["forward_s"] += middle - start
            seconds["backward_s"] += _now(torch) - middle
        start = _now(torch)
        engine.step(1e-5)
        seconds["step_s"] = _now(torch) - start
        steps.append({name: round(value, 4) for name, value in seconds.items()})
    result = {"measured": msgspec.to_builtins(probe.measure()), "steps": steps}
    if overhead is not None:
        result |= {"overhead_bytes": overhead[0], "overhead_source": overhead[1]}
    print("RESULT " + json.dumps(result))


def hold(cap_bytes: int) -> tuple[int, str] | None:
    """Let this process take no more of the card, 0 for no limit; what `measure_overhead` finds, None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    overhead = measure_overhead()
    if cap_bytes:
        total_bytes = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.0, (cap_bytes - overhead[0]) / total_bytes))
    return overhead


def measure_overhead() -> tuple[int, str]:
    """Bytes beside what torch's allocator holds, the CUDA context's above all, and how they were found."""
    import torch

    from redheart.memory.plan import CONTEXT_BYTES, WORKSPACE_BYTES

    # The first product makes the context, and cuBLAS's workspace within the allocator.
    _ = torch.zeros(1, 1, device="cuda") @ torch.zeros(1, 1, device="cuda")
    process = probe.measure().device_process_bytes
    if process is None:
        return CONTEXT_BYTES + WORKSPACE_BYTES, "assumed"
    return process - torch.cuda.memory_reserved(), "measured"


def _now(torch: object) -> float:
    if torch.cuda.is_available():  # type: ignore[attr-defined]
        torch.cuda.synchronize()  # type: ignore[attr-defined]
    return time.perf_counter()


def row(
    options: argparse.Namespace, strategy: str, micro_batch: int | None, cap: int, folder: Path
) -> dict[str, object]:
    """Prediction and measurement of one strategy and micro-batch."""
    import torch

    from redheart.study.outlook import planning

    config = study(options, folder)
    plan = planning.answer(
        config, vram_bytes=cap or planning.parse_bytes("8GiB"), strategy=strategy, micro_batch=micro_batch
    ).plan
    found: dict[str, object] = {
        "strategy": strategy,
        "micro_batch": plan.micro_batch,
        "checkpointing": plan.checkpointing,
        "device": "measured" if torch.cuda.is_available() else "predicted",
        "predicted": {
            "fits": plan.fits,
            "peak_bytes": plan.peak_bytes,
            "upper_bytes": plan.upper_bytes,
            "allocated_bytes": max(moment.allocated_bytes for moment in plan.moments.values()),
            "host_bytes": plan.host_bytes,
            "pcie_bytes_a_step": _bus_bytes(config, strategy, plan.accumulation_steps),
        },
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--one", strategy, str(plan.micro_batch)]
    command += [str(int(plan.checkpointing)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        kind = "out of memory" if "out of memory" in done.stderr.lower() else "failed"
        return found | {"verdict": kind, "reason": reason[-300:]}
    measured = json.loads(lines[0].removeprefix("RESULT "))
    found |= measured
    process = measured["measured"]["device_process_bytes"]
    if process:
        found["error"] = plan.peak_bytes / process - 1
    return found | {"verdict": "ran" if not (cap and process and process > cap) else "over the cap"}


def _bus_bytes(config: "StudyConfig", name: str, steps: int) -> int:
    """Bytes over PCIe in one optimizer step, as DeepSpeed's ZeRO-2 offload moves them; 0 without offload."""
    from redheart.model.dims import preset
    from redheart.model.network import build
    from redheart.pipeline.clock import traffic_bytes
    from redheart.train.strategy import strategy_named

    strategy = strategy_named(name)
    if strategy.home == "device":
        return 0
    parameters = sum(item.numel() for item in build(preset(config.preset), seed=0, device="meta").parameters())
    return parameters * traffic_bytes(steps, state_bits=strategy.state_bits)


def main() -> None:
    set_environment()
    import torch

    from redheart.study import phases
    from redheart.study.outlook import planning
    from redheart.study.run_folder import RunFolder
    from redheart.train.strategy import all_strategies

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    has_cuda = torch.cuda.is_available()
    parser.add_argument("--data", type=Path, default=None, help="file of records; empty: generated ones")
    parser.add_argument("--preset", default="full" if has_cuda else "small", choices=("tiny", "small", "full"))
    parser.add_argument("--strategies", nargs="+", default=None)
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[None], help="empty: what the planner picks")
    parser.add_argument("--checkpointing", action="store_true", help="also where a micro-batch is given")
    parser.add_argument("--name", default="vram", help="of the result's file")
    parser.add_argument("--effective-batch", type=int, default=64)
    parser.add_argument("--seq-len-tokens", type=int, default=128)
    parser.add_argument("--cap", default=None, help="hold every process to this budget, e.g. 8GiB")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/vram.json")
    parser.add_argument(
        "--one", nargs=4, metavar=("STRATEGY", "MICRO_BATCH", "CHECKPOINTING", "FOLDER"), help="run one in this process"
    )
    options = parser.parse_args()
    if options.one:
        strategy, micro_batch, checkpointing, folder = options.one
        run_one(options, strategy, int(micro_batch), bool(int(checkpointing)), Path(folder))
        return
    cap = planning.parse_bytes(options.cap) if options.cap else 0
    names = options.strategies or [item.name for item in all_strategies() if item.configuration]
    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        # The records are prepared before the first measurement, not within it.
        phases.open_study(study(options, Path(folder)), RunFolder(Path(folder)))
        result: dict[str, object] = {
            "device": "cuda" if has_cuda else "none: device memory is predicted, host and times are measured",
            "preset": options.preset,
        }
        rows: list[dict[str, object]] = []
        for name, micro_batch in product(names, options.micro_batches):
            rows.append(row(options, name, micro_batch, cap, Path(folder)))
            result["rows"] = rows
            if options.write:
                write_result(
                    options.name, result, settings={**vars(options), "data": options.data and options.data.name}
                )
    print(json.dumps(result, indent=None if options.json else 1))
    # The negative control is there to be refused.
    if cap and has_cuda and any(item["verdict"] != "ran" for item in rows if item["strategy"] != "fp32_adamw"):
        sys.exit(3)


if __name__ == "__main__":
    main()
