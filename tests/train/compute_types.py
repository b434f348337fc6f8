"""What a run computes in on a processor without bf16 units, and engines of both types: many checks, one process.

Usage: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python compute_types.py FOLDER
or, for the steps with DeepSpeed's own optimizer alone: the same with --32-bits instead of the folder.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from fixed_batch import DIMS, RECORDS, fixed_batch

from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.study import phases, run_folder
from redheart.study.outlook.doctor import examine
from redheart.train.device.compute_type import has_bf16_units, type_name
from redheart.train.engine import Engine, start_engine

STEPS = 3
EIGHT_BIT, THIRTY_TWO_BIT = "zero2_offload_adam8bit", "zero2_offload_adam32"


def engine_of(strategy: str, compute_type: str, parts: int = 1) -> Engine:
    """Another engine in this process; accelerate wants to know of one alone."""
    AcceleratorState._reset_state(True)
    config = TrainConfig(
        strategy=strategy,
        micro_batch=RECORDS // parts,
        effective_batch=RECORDS,
        num_threads=1,
        compute_type=compute_type,  # type: ignore[arg-type]
    )
    return start_engine(build(DIMS, seed=0), config)


def take_step(engine: Engine, parts: int = 1, *, scale: float = 1.0) -> dict[str, object]:
    """One optimizer step on the fixed batch in as many micro-batches."""
    features_BSD, mask_BS, targets_BT, present_BT = fixed_batch()
    counts_K, total, share = task_counts(present_BT, DIMS.outputs), 0.0, RECORDS // parts
    for part in range(parts):
        rows = slice(part * share, (part + 1) * share)
        predictions = engine.module((scale * features_BSD[rows]).to(engine.dtype), mask_BS[rows])
        loss = multitask_loss(
            predictions, targets_BT[rows], present_BT[rows], outputs=DIMS.outputs, step_counts_K=counts_K
        ).total
        engine.backward(loss, last=part == parts - 1)
        total += loss.item()
    norm = engine.step(1e-3)
    return {"loss": total, "grad_norm": norm, "applied": math.isfinite(norm)}


def copied(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state_tensors()}


def weights(engine: Engine) -> torch.Tensor:
    return torch.cat([item.detach().float().flatten() for item in engine.module.parameters()])


def steps_of(strategy: str, compute_type: str, parts: int = 1) -> dict[str, object]:
    """A few steps of a new engine, then a step whose gradient is not finite."""
    engine = engine_of(strategy, compute_type, parts)
    steps = [take_step(engine, parts) for _ in range(STEPS)]
    before, before_weights = copied(engine), weights(engine)
    diverged = take_step(engine, parts, scale=float("nan"))
    found: dict[str, object] = {
        "dtype": str(engine.dtype),
        "steps": steps,
        "weights": before_weights.double().norm().item(),
        "skips": diverged["applied"] is False and torch.equal(weights(engine), before_weights),
        "skipped_state_stays": all(torch.equal(value, before[name]) for name, value in copied(engine).items()),
        "host_bytes": engine.host_bytes(),
    }
    engine.load_state_tensors([{name: value for name, value in before.items()}])
    found["restored"] = torch.equal(weights(engine), before_weights)
    return found


def crossing(first: str, second: str) -> dict[str, object]:
    """Two steps in one type and one more in it; the same third step in the other type, from the state of the first."""
    engine = engine_of(EIGHT_BIT, first)
    take_step(engine), take_step(engine)
    state, names = copied(engine), list(engine.places)
    unbroken = take_step(engine)
    other = engine_of(EIGHT_BIT, second)
    other.load_state_tensors([state])
    same = {name: torch.equal(value, state[name]) for name, value in copied(other).items()}
    return {"unbroken": unbroken, "crossed": take_step(other), "same": same, "places": list(other.places) == names}


def study(folder: Path) -> Iterator[tuple[str, int]]:
    """A training of two epochs: started in bf16, stopped after a step, ended as this processor wants it."""
    config = resolved(
        StudyConfig(
            out=folder / "run",
            prepare=PrepareConfig(num_generated=90),
            features=FeatureConfig(encoder="hash", seq_len_tokens=24),
            epochs=2,
            train=TrainConfig(learning_rate=1e-3, effective_batch=16, state_every_steps=1, sample_every_s=0.0),
        )
    )
    run = run_folder.start(config)
    study = phases.open_study(config, run)
    for compute_type, steps in (("bf16", 1), ("auto", None)):
        AcceleratorState._reset_state(True)
        train = dataclasses.replace(config.train, compute_type=compute_type)
        again = dataclasses.replace(config, train=train)
        run_folder.start(again)
        phases.run_training(dataclasses.replace(study, config=again), max_steps=steps)
        yield compute_type, steps or 0


def main(folder: Path) -> None:
    finding = next(item for item in examine(folder) if item.name == "CPU arithmetic")
    found: dict[str, object] = {
        "bf16_units": has_bf16_units(),
        "auto": type_name(TrainConfig()),
        "finding": [finding.verdict, finding.found, finding.hint],
        "plain": steps_of("plain", "auto"),
        "fp32": steps_of(EIGHT_BIT, "auto"),
        "fp32 in two": steps_of(EIGHT_BIT, "auto", 2),
        "bf16": steps_of(EIGHT_BIT, "bf16"),
        "bf16 to fp32": crossing("bf16", "fp32"),
        "fp32 to bf16": crossing("fp32", "bf16"),
        "starts": list(study(folder)),
    }
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "--32-bits":
        print(
            "RESULT "
            + json.dumps({"plain": steps_of("plain", "auto"), "fp32, 32 bits": steps_of(THIRTY_TWO_BIT, "auto")})
        )
    else:
        main(Path(sys.argv[1]))
