"""Train with one share of the optimizer on the card and go on with another, from its state; print what came of it.

Usage: python card_shares.py BEFORE AFTER

On the CPU the card's part is updated by bitsandbytes' CPU functions.
"""

import functools
import json
import sys

import torch
from accelerate.state import AcceleratorState
from fixed_batch import DIMS, RECORDS, fixed_batch

from redheart.core.config import TrainConfig
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.optim.chunked import CardKernel
from redheart.train import engine as engines

STEPS = 3
# Several groups, also of a tiny model.
engines.parameter_groups = functools.partial(engines.parameter_groups, max_elements=65_536)


def start(share: float) -> engines.ZeroEngine:
    AcceleratorState._reset_state(True)
    config = TrainConfig(micro_batch=RECORDS, effective_batch=RECORDS, num_threads=1, card_share=share)
    engine = engines.start_engine(build(DIMS, seed=0), config)
    assert isinstance(engine, engines.ZeroEngine)
    return engine


def steps(engine: engines.ZeroEngine) -> list[list[float]]:
    """Loss and gradient norm of every step."""
    features_BSD, mask_BS, targets_BT, present_BT = fixed_batch()
    counts_K = task_counts(present_BT, DIMS.outputs)
    found = []
    for _ in range(STEPS):
        predictions = engine.module(features_BSD.to(engine.dtype), mask_BS)
        loss = multitask_loss(predictions, targets_BT, present_BT, outputs=DIMS.outputs, step_counts_K=counts_K).total
        engine.backward(loss, last=True)
        found.append([loss.item(), engine.step(1e-3)])
    return found


def main(before: float, after: float) -> None:
    calls = []
    update = CardKernel.update
    CardKernel.update = lambda self, *args, **options: (calls.append(1), update(self, *args, **options))
    first = start(before)
    steps(first)
    saved = {name: tensor.clone() for name, tensor in first.state_tensors()}
    unbroken = steps(first)
    second = start(after)
    second.load_state_tensors([saved])
    same = all(torch.equal(tensor, saved[name]) for name, tensor in second.state_tensors())
    sizes = [item.numel() for item in second._zero.single_partition_of_fp32_groups]
    calls.clear()
    went_on = steps(second)
    on_card = sum(sizes[index] for index in second._zero._on_card) / sum(sizes)
    result = {"same": same, "on_card": on_card, "unbroken": unbroken, "went_on": went_on}
    print("RESULT " + json.dumps(result | {"updated_on_card": bool(calls)}))


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
