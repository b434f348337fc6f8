"""Run a few optimizer steps with one strategy and print what happened as JSON: one engine a process.

Usage: python engine_steps.py STRATEGY MICRO_BATCHES
"""

import json
import sys

import torch

from redheart.core.config import TrainConfig
from redheart.model.dims import preset
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.train.engine import start_engine

RECORDS = 8
DIMS = preset("tiny")


def main(strategy: str, num_micro_batches: int) -> None:
    torch.manual_seed(0)
    features_BSD = torch.randn(RECORDS, 12, 768).bfloat16()
    mask_BS = torch.ones(RECORDS, 12, dtype=torch.bool)
    targets_BT = torch.rand(RECORDS, 22)
    targets_BT[:, :7] /= targets_BT[:, :7].sum(1, keepdim=True)
    present_BT = torch.ones(RECORDS, 22, dtype=torch.bool)
    counts_K = task_counts(present_BT, DIMS.outputs)

    engine = start_engine(build(DIMS, seed=0), TrainConfig(strategy=strategy, micro_batch=RECORDS // num_micro_batches))
    share = RECORDS // num_micro_batches
    steps = []
    for _ in range(3):
        total = 0.0
        for part in range(num_micro_batches):
            rows = slice(part * share, (part + 1) * share)
            predictions = engine.module(features_BSD[rows].to(engine.dtype), mask_BS[rows])
            loss = multitask_loss(
                predictions, targets_BT[rows], present_BT[rows], outputs=DIMS.outputs, step_counts_K=counts_K
            ).total
            engine.backward(loss, last=part == num_micro_batches - 1)
            total += loss.item()
        result = engine.step(1e-3)
        steps.append({"loss": total, "grad_norm": result.grad_norm, "applied": result.applied})
    saved = {name: tensor.clone() for name, tensor in engine.state_tensors()}
    engine.load_state_tensors([saved])
    restored = all(torch.equal(tensor, saved[name]) for name, tensor in engine.state_tensors())
    print("RESULT " + json.dumps({"steps": steps, "restored": restored}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
