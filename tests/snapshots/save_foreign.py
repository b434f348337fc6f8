"""Train a few steps and save with DeepSpeed's and accelerate's own savers; rank 0 writes what must be read back.

Usage: deepspeed --num_gpus N save_foreign.py FOLDER STRATEGY    (or plain python for one rank)

FOLDER/zero is `engine.save_checkpoint`, FOLDER/expected.safetensors the float32 masters by name as DeepSpeed itself
gathers them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from redheart.core.config import TrainConfig
from redheart.model.dims import preset
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.train.engine import ZeroEngine, start_engine

RECORDS = 8
DIMS = preset("tiny")


def main(folder: Path, strategy: str) -> None:
    # In bf16 on any processor: DeepSpeed keeps its masters apart then.
    config = TrainConfig(strategy=strategy, micro_batch=RECORDS, num_threads=1, compute_type="bf16")
    engine = start_engine(build(DIMS, seed=0), config)
    assert isinstance(engine, ZeroEngine)
    generator = torch.Generator().manual_seed(engine.rank)
    features_BSD = torch.randn(RECORDS, 12, 768, generator=generator).bfloat16()
    mask_BS = torch.ones(RECORDS, 12, dtype=torch.bool)
    targets_BT = torch.rand(RECORDS, 22, generator=generator)
    targets_BT[:, :7] /= targets_BT[:, :7].sum(1, keepdim=True)
    present_BT = torch.ones(RECORDS, 22, dtype=torch.bool)
    for _ in range(2):
        predictions = engine.module(features_BSD, mask_BS)
        counts_K = task_counts(present_BT, DIMS.outputs)
        loss = multitask_loss(predictions, targets_BT, present_BT, outputs=DIMS.outputs, step_counts_K=counts_K)
        engine.backward(loss.total / engine.world_size, last=True)
        engine.step(1e-3)
    deepspeed_engine = engine._engine
    deepspeed_engine.save_checkpoint(str(folder / "zero"))
    from deepspeed.utils import safe_get_full_fp32_param

    masters = {}
    for name, parameter in deepspeed_engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        if engine.rank == 0:
            masters[name] = master.clone().contiguous()
    if engine.rank == 0:
        save_file(masters, folder / "expected.safetensors")
    engine.barrier()


if __name__ == "__main__":
    arguments = [item for item in sys.argv[1:] if not item.startswith("--local_rank")]
    main(Path(arguments[0]), arguments[1])
