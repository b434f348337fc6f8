"""What a run takes beside the card: host memory and disk, by part."""

from collections.abc import Sequence

import torch

from redheart.core.units import MIB
from redheart.memory.ledger import SLOTS, Entry, StrategySizes, held_bytes
from redheart.memory.trace import Workload

HOST_BASE_BYTES = 630 * MIB
"""A process with torch, DeepSpeed, accelerate and bitsandbytes at work, CPU builds: measured 540 (0.3M parameters)
to 640 MiB (30M and 55M) beside the ledger's entries."""
HOST_BASE_FLOAT32_BYTES = 500 * MIB
"""The same in float32, for which oneDNN keeps no kernels of its own: measured 397 (0.3M) to 513 MiB (58M)."""
HOST_BASE_CUDA_BYTES = 2020 * MIB
"""The same with a CUDA device: measured on an H100's host with torch 2.11 for CUDA 13, the full model."""

COMPRESSION_WINDOW = 16
"""As in `snapshots/compress.py`."""
COMPRESSED_SHARE = 0.7
"""Of a snapshot's bytes once it is compressed: measured 0.48 to 0.62 two epochs of real records apart (`small`), and
0.33 where they are 12 steps apart. More is kept free than that, since what training does to weights is not known."""
NAMED_TENSOR_BYTES = 160
"""Of a tensor's name, shape and place in a file's header or a state's manifest: measured 106 and 125."""


def host_parts(work: Workload, entries: Sequence[Entry], *, has_device: bool = True) -> dict[str, int]:
    """Resident host memory of a rank by part, at the larger of initialisation and training."""
    return _larger(*_host_moments(work, entries, has_device=has_device))


def cpu_host_parts(work: Workload, entries: Sequence[Entry], *, pass_bytes: int) -> dict[str, int]:
    """As `host_parts` where there is no card: weights, buffers and activations lie in host memory as well.

    `pass_bytes` is the peak of a micro-batch's pass.
    """
    device = [entry for entry in entries if entry.where == "device"]
    buffers = {"weights and buffers": sum(entry.total_bytes for entry in device if entry.life == "always")}
    bucket = sum(entry.total_bytes for entry in device if entry.life == "backward")
    initialisation, training = _host_moments(work, entries, has_device=False)
    # The pass is over when the optimizer's temporaries come.
    temporaries = training.pop("temporaries of the host optimizer", 0)
    largest = {"the larger of a pass and the update": max(pass_bytes + bucket, temporaries)}
    return _larger(initialisation | buffers, training | buffers | largest)


def _host_moments(
    work: Workload, entries: Sequence[Entry], *, has_device: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """What the host holds when the engine is built, and while it steps."""
    host = [entry for entry in entries if entry.where == "host" and (has_device or entry.name != SLOTS)]
    is_float32 = next(work.module.parameters()).dtype == torch.float32
    on_cpu = HOST_BASE_FLOAT32_BYTES if is_float32 else HOST_BASE_BYTES
    process = {"process": HOST_BASE_CUDA_BYTES if has_device else on_cpu}
    kept = {entry.name: entry.total_bytes for entry in host if entry.life == "always" and entry.total_bytes}
    # The optimizer's states come with the first step.
    start = {entry.name: entry.total_bytes for entry in host if entry.life == "always" and entry.attribute != "state"}
    start |= {entry.name: entry.total_bytes for entry in host if entry.life == "init_all" and entry.total_bytes}
    # The float32 weights of the module are gone before the first master exists.
    start = _larger(
        start, {"weights at the start": 4 * work.sizes.total + (sum(work.sizes.buffers) if has_device else 0)}
    )
    step = {entry.name: max(entry.each_bytes, default=0) for entry in host if entry.life == "step"}
    return process | start, process | kept | step


def _larger(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda parts: sum(parts.values()))


def disk_parts(
    work: Workload, strategy: StrategySizes, entries: Sequence[Entry], *, compressed: bool = False
) -> dict[str, int]:
    """Most that a run has on the disk, by part, features included; only a share of `compressed` snapshots is a guess.

    Two resume states and one being written; the module snapshots and one being written again, after a kill, or being
    compressed beside itself.
    """
    named = held_bytes(entries)
    masters = strategy.ranks * named.get("single_partition_of_fp32_groups", 0) or 4 * work.sizes.trained
    state = masters + strategy.ranks * (named.get("state", 0) + sum(work.sizes.buffers))
    snapshot = 2 * work.sizes.total + work.sizes.kept_buffer_bytes + work.snapshot_output_bytes
    # Every WINDOW-th stays whole, the newest, and the one before it until it is compressed.
    whole = min(work.snapshots, -(-work.snapshots // COMPRESSION_WINDOW) + 2) if compressed else work.snapshots
    headers = NAMED_TENSOR_BYTES * len(list(work.module.parameters()))
    return {
        "resume states": 3 * state,
        "module snapshots": whole * snapshot + int((work.snapshots - whole) * COMPRESSED_SHARE * snapshot),
        "a snapshot being written": snapshot if work.snapshots else 0,
        "features": work.feature_bytes,
        "headers and logs": (3 + work.snapshots + 1) * headers + work.log_bytes,
    }
