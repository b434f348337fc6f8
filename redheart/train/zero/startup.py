"""What an engine of DeepSpeed's starts with: what that is made to do otherwise, and memory given back before."""

import ctypes
import sys
from itertools import chain
from typing import Any

import torch
from torch import distributed, nn

LARGE_MODEL = 200_000_000
_M_MMAP_THRESHOLD = -3


def start_group_of_one() -> None:
    """One rank has nobody to talk to: it needs no port, and NCCL would hold half a GiB of the card for it."""
    if not distributed.is_initialized():
        store = distributed.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def send_weights(engine: Any) -> None:
    """Give every rank the first one's weights and buffers.

    `DeepSpeedEngine._broadcast_model` sends parameters alone, and none that is a scalar or does not lie in a row.
    """
    if distributed.get_world_size() == 1:
        return
    for tensor in chain(engine.module.parameters(), engine.module.buffers()):
        if tensor.numel():
            values = tensor.data.contiguous().view(-1)
            distributed.broadcast(values.view(torch.uint8), 0)
            tensor.data.copy_(values.view(tensor.shape))


def let_weights_be_masters(zero: Any) -> None:
    """Hold float32 weights on the CPU once: DeepSpeed keeps masters and a copy on their way back to a device too.

    Of 12 bytes per parameter 4 are left, and its copies after a step are of a tensor to itself.
    """
    rank = distributed.get_rank()
    for index, weights in enumerate(zero.parallel_partitioned_bit16_groups):
        zero.single_partition_of_fp32_groups[index].data = weights[rank].data
        zero.param_buffer_of_bit16_for_cpu_offload_groups[index] = weights[rank].data
    # It holds views of the masters for its checkpoints, which would keep the replaced ones alive.
    zero._link_all_hp_params()


def return_freed_memory(module: nn.Module) -> None:
    """Give the operating system what was freed until now, and with a large model on the CPU from now on at once.

    The features of 150 texts of 300 words left 209 MiB behind in glibc. It keeps blocks below 32 MiB for itself, which
    made the peak of 91 million parameters 5 % larger than what was alive. Page faults are the price (a pass of that
    model took 40 % longer), so smaller models keep the default.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    library.malloc_trim(0)
    is_large = sum(parameter.numel() for parameter in module.parameters()) > LARGE_MODEL
    if is_large and not torch.cuda.is_available():
        library.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)
