"""Start an engine on the CPU, run one step of two micro-batches, and print what it holds.

Usage: python engine_tensors.py STRATEGY DIVISOR COMPUTE_TYPE[,CARD_SHARE] ...

One engine after the other for every compute type; the process's peak is that of the first.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from redheart.core.config import TrainConfig
from redheart.model.dims import scaled
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.train import engine as engines

NAMES = (
    "bit16_groups_flat",
    "temp_grad_buffer_for_gpu_offload",
    "temp_grad_buffer_for_cpu_offload",
    "single_partition_of_fp32_groups",
    "param_buffer_of_bit16_for_cpu_offload_groups",
    "accumulated_grads_in_cpu",
)
# Not moments: the step count, and the two maps of 1 KiB that all groups share.
NOT_MOMENTS = ("step", "qmap1", "qmap2")


def size_bytes(value: object, counted: set[int] | None = None) -> int:
    """Bytes of all tensors in there but of those that are counted already; notes them."""
    counted = set() if counted is None else counted
    if isinstance(value, torch.Tensor):
        is_new = value.data_ptr() not in counted
        counted.add(value.data_ptr())
        return value.numel() * value.element_size() if is_new else 0
    if isinstance(value, dict):
        return sum(size_bytes(item, counted) for item in value.values())
    return sum(size_bytes(item, counted) for item in value) if isinstance(value, list | tuple) else 0


def alive_bytes() -> int:
    """Of all tensors of this process, views of one storage counted once."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def status_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main(name: str, divisor: int, compute_type: str, card_share: float) -> None:
    before_bytes = alive_bytes()
    torch.manual_seed(0)
    dims = scaled(divisor)
    config = TrainConfig(
        strategy=name,
        micro_batch=4,
        effective_batch=8,
        num_threads=1,
        compute_type=compute_type,
        card_share=card_share,
    )
    AcceleratorState._reset_state(True)
    model = build(dims, seed=0)
    engine = engines.start_engine(model, config)
    features_BSD = torch.randn(4, 4, 768).to(engine.device, engine.dtype)
    mask_BS = torch.ones(4, 4, dtype=torch.bool, device=engine.device)
    targets_BT = torch.rand(4, 22).to(engine.device)
    present_BT = torch.ones(4, 22, dtype=torch.bool, device=engine.device)
    counts_K = task_counts(present_BT, dims.outputs)
    rss_before_bytes = status_bytes("VmRSS")
    held: dict[str, int] = {}
    for part in range(2):
        predictions = engine.module(features_BSD, mask_BS)
        terms = multitask_loss(predictions, targets_BT, present_BT, outputs=dims.outputs, step_counts_K=counts_K)
        engine.backward(terms.total, last=part == 1)
        if not hasattr(engine, "_zero"):
            held["parameters"] = sum(size_bytes(item) for item in model.parameters())
            held["parameters.grad"] = sum(size_bytes(item.grad) for item in model.parameters())
    zero = getattr(engine, "_zero", None)
    if zero is not None and getattr(zero, "averaged_gradients", None):
        held["averaged_gradients"] = size_bytes(zero.averaged_gradients)
    engine.step(1e-4)
    masters = [] if zero is None else getattr(zero, "single_partition_of_fp32_groups", [])
    grads = sum(size_bytes(item.grad) for item in masters)
    if grads:
        held["single_partition_of_fp32_groups.grad"] = grads
    counted: set[int] = set()
    held |= {key: total for key in NAMES if (total := size_bytes(getattr(zero, key, None), counted))}
    optimizer = engine._optimizer if zero is None else zero.optimizer
    held["state"] = sum(
        size_bytes(value)
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if key not in NOT_MOMENTS
    )
    result = {
        "held": held,
        "alive_bytes": alive_bytes() - before_bytes,
        "rss_before_bytes": rss_before_bytes,
        "rss_peak_bytes": status_bytes("VmHWM"),
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    for way in sys.argv[3:]:
        kind, _, share = way.partition(",")
        main(sys.argv[1], int(sys.argv[2]), kind, float(share or 0))
