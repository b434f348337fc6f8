"""Run a few optimizer steps with one strategy and print what happened as JSON: one engine a process.

Usage: python engine_steps.py STRATEGY MICRO_BATCHES [through-slots | pipeline | deferred | halves]

`through-slots` sends gradients and weights on the CPU the way they take to a device and back; `pipeline` is the switch
of that name, and `deferred` has it on streams that are threads, as on a device. With `halves` two threads compute one.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from fixed_batch import DIMS, RECORDS, fixed_batch
from torch import nn

from redheart.core.config import TrainConfig
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.optim import offloaded
from redheart.pipeline import lanes
from redheart.train.device import transfers
from redheart.train.engine import start_engine
from redheart.train.halves import Halves
from redheart.train.learner import MicroLoss
from redheart.train.zero import fused_step, pipelined_step

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
from deferred import DeferredCuda


def main(strategy: str, num_micro_batches: int, way: str) -> None:
    features_BSD, mask_BS, targets_BT, present_BT = fixed_batch()
    features_BSD = features_BSD.bfloat16()
    config = TrainConfig(
        strategy=strategy,
        micro_batch=RECORDS // num_micro_batches,
        effective_batch=RECORDS,
        num_threads=1,
        compute_type="bf16",
        pipeline=way in ("pipeline", "deferred"),
    )
    model = build(DIMS, seed=0)
    engine = start_engine(model, config)
    features_BSD, mask_BS = features_BSD.to(engine.device), mask_BS.to(engine.device)
    targets_BT, present_BT = targets_BT.to(engine.device), present_BT.to(engine.device)
    counts_K = task_counts(present_BT, DIMS.outputs)
    share = RECORDS // num_micro_batches

    def loss_of(network: nn.Module, rows: slice | np.ndarray) -> MicroLoss:
        predictions = network(features_BSD[rows].to(engine.dtype), mask_BS[rows])
        terms = multitask_loss(
            predictions, targets_BT[rows], present_BT[rows], outputs=DIMS.outputs, step_counts_K=counts_K
        )
        return MicroLoss(terms.total, terms.sums, {})

    steps = []
    for _ in range(3):
        total = 0.0
        for part in range(num_micro_batches):
            rows = slice(part * share, (part + 1) * share)
            if way == "halves":
                two = np.array_split(np.arange(RECORDS), 2)
                loss = (
                    Halves().loss(lambda half: loss_of(model, half), (two[0], two[1]), list(model.parameters())).total
                )
            else:
                loss = loss_of(engine.module, rows).total
            engine.backward(loss, last=part == num_micro_batches - 1)
            total += loss.item()
        norm = engine.step(1e-3)
        steps.append({"loss": total, "grad_norm": norm, "applied": math.isfinite(norm)})
    engine.finish()
    before = [item.detach().clone() for item in engine.module.parameters()]
    predictions = engine.module(features_BSD[:share].to(engine.dtype), mask_BS[:share])
    engine.backward(torch.nan * sum(item.sum() for item in predictions.values()), last=True)
    left_alone = not math.isfinite(engine.step(1e-3))
    engine.finish()
    left_alone &= all(torch.equal(*pair) for pair in zip(before, engine.module.parameters(), strict=True))
    saved = {name: tensor.clone() for name, tensor in engine.state_tensors()}
    engine.load_state_tensors([saved])
    restored = all(torch.equal(tensor, saved[name]) for name, tensor in engine.state_tensors())
    digest = hashlib.sha256()
    for name, tensor in sorted(saved.items()):
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    weights = torch.cat([item.detach().float().flatten() for item in engine.module.parameters()]).cpu().numpy()
    digest.update(weights)
    result = {"steps": steps, "restored": restored, "nan_left_all_alone": left_alone, "digest": digest.hexdigest()}
    print("RESULT " + json.dumps(result | {"weights": hashlib.sha256(weights).hexdigest()}))


if __name__ == "__main__":
    way = (sys.argv[3:] or ["direct"])[0]
    if way == "through-slots":
        fused_step.needs_transfers = lambda device: True
        transfers.SLOT_ELEMENTS = 1024
    if way == "deferred":
        lanes.Cuda = DeferredCuda(0)
        pipelined_step.needs_transfers = lambda device: True
        offloaded.RING_BYTES = 1
    main(sys.argv[1], int(sys.argv[2]), way)
