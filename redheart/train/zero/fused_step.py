"""The optimizer step of DeepSpeed's ZeRO-2 offload in one pass instead of three.

DeepSpeed 0.19.8 multiplies the gradient by the clip factor, runs the optimizer, and copies the weights to bf16: each a
pass over host memory. Here the host optimizer does all three as it goes. Gradients come to the host once per
micro-batch: in bf16 where one micro-batch is the whole step, else summed there in float32, so that nothing is pulled
back to the device and the sum is exact to float32. On a CUDA device gradients leave behind the backward pass, and new
weights while the next are computed; DeepSpeed's copy of all new weights on the host is given up.

Written for `deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer` of 0.19.8; `install` refuses another.
"""

import math
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.memory.zero2 import groups_on_card
from redheart.optim.host_adamw8bit import HostAdamW8bit, clip_factor
from redheart.train.device.transfers import ToDevice, ToHost, pieces

WRITTEN_FOR = "0.19.8"


def install(zero: Any, *, accumulates: bool, card_share: float = 0.0) -> None:
    """Replace the gradient hand-over and the step of a ZeRO-2 optimizer under offload by fused ones.

    `zero` is around a `HostAdamW8bit`; `accumulates` says whether a step may have several micro-batches on this rank;
    `card_share` of the optimizer lies and is updated where the weights are.

    Raises:
        BadInput: the installed DeepSpeed is not the one that this was written for.
    """
    require_known_deepspeed(zero)
    zero.param_buffer_of_bit16_for_cpu_offload_groups.clear()
    partitions = zero.single_partition_of_fp32_groups
    if not accumulates:
        for partition in partitions:
            _hold_gradient_in(zero.dtype, partition)
    zero._on_card = groups_on_card([partition.numel() for partition in partitions], card_share)
    for index in zero._on_card:
        zero.optimizer.param_groups[index]["on_card"] = True
        _move(partitions[index], zero.bit16_groups_flat[index].device)
    # It holds views of masters and gradients, which keep the replaced ones alive.
    zero._link_all_hp_params()
    if needs_transfers(zero.bit16_groups_flat[0].device):
        zero._to_host, zero._to_device = ToHost(), ToDevice()
    else:
        zero._to_host = zero._to_device = None
    zero._received = set()
    zero.copy_grads_in_partition = MethodType(_receive_gradient, zero)
    zero.step = MethodType(_step, zero)


def require_known_deepspeed(zero: Any) -> None:
    """Refuse another DeepSpeed than the one whose insides are replaced."""
    from deepspeed import __version__
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if __version__.split("+")[0] != WRITTEN_FOR or type(zero) is not DeepSpeedZeroOptimizer:
        raise BadInput(
            "the fused step does not know this DeepSpeed",
            got=f"{type(zero).__name__} of deepspeed {__version__}",
            expected=f"deepspeed {WRITTEN_FOR}",
            hint=f"pip install deepspeed=={WRITTEN_FOR}, or --train.strategy zero2_offload_adam32",
        )
    assert isinstance(zero.optimizer, HostAdamW8bit)


def needs_transfers(device: torch.device) -> bool:
    """Whether weights and gradients are copied between a device and the host; on the CPU they are there already."""
    return device.type != "cpu"


def _move(partition: Tensor, device: torch.device) -> None:
    """Take masters and the tensor that holds their gradients to a device."""
    grad, partition.grad = partition.grad, None
    partition.data = partition.data.to(device)
    partition.grad = None if grad is None else grad.to(device)


def _hold_gradient_in(dtype: torch.dtype, partition: Tensor) -> None:
    """Change the type that a partition's gradient is held in; its values stay.

    A step that was planned as one micro-batch is summed in float32 all the same where memory made it several.
    """
    grad = partition.grad
    if grad is not None and grad.dtype != dtype:
        partition.grad = None
        partition.grad_dtype = dtype  # type: ignore[attr-defined]
        partition.grad = grad.to(dtype)


def _receive_gradient(zero: Any, param: Tensor, group_idx: int | None = None) -> None:
    """Take a parameter's reduced gradient to the host, adding it to what earlier micro-batches brought."""
    param_id = zero.get_param_id(param)
    group, source_offset, offset, elements = zero.grad_position[param_id]
    source = zero.get_param_gradient_attribute(param).detach().view(-1).narrow(0, source_offset, elements)
    partition = zero.single_partition_of_fp32_groups[group]
    keep = partial(_add, zero.optimizer) if param_id in zero._received else _set
    zero._received.add(param_id)
    if zero._to_host is None or group in zero._on_card:
        keep(partition, offset, source)
    else:
        for piece in pieces(elements):
            zero._to_host.send(source[piece], partial(keep, partition, offset + piece.start))
    zero.clear_grad_attribute(param)


def _set(partition: Tensor, offset: int, arrived: Tensor) -> None:
    assert partition.grad is not None
    partition.grad.narrow(0, offset, arrived.numel()).copy_(arrived)


def _add(optimizer: HostAdamW8bit, partition: Tensor, offset: int, arrived: Tensor) -> None:
    _hold_gradient_in(torch.float32, partition)
    assert partition.grad is not None
    total = partition.grad.narrow(0, offset, arrived.numel())
    optimizer.add(total, arrived)


def _step(zero: Any, closure: None = None) -> None:
    """Norm, then one fused pass per group: clip, update, bf16 copy. A gradient that is not finite changes nothing.

    With weights in float32 there is no copy: they are the masters.
    """
    zero.micro_step_id = -1
    optimizer: HostAdamW8bit = zero.optimizer
    masters = zero.single_partition_of_fp32_groups
    if zero._to_host is not None:
        zero._to_host.wait()
    _clear_what_did_not_come(zero)
    squares = torch.tensor([sum(optimizer.sum_squares(master.grad) for master in masters)], dtype=torch.float64)
    world_size = torch.distributed.get_world_size()
    if world_size > 1:
        shared = squares.to(zero.bit16_groups_flat[0].device)
        torch.distributed.all_reduce(shared, group=zero.dp_process_group)
        squares = shared.cpu()
    norm = math.sqrt(squares.item())
    zero._received = set()
    zero._global_grad_norm = norm
    zero.overflow = not math.isfinite(norm)
    if zero.overflow:
        return
    grad_scale = clip_factor(norm, max(0.0, zero.clip_grad))
    rank = torch.distributed.get_rank()
    to_device: ToDevice | None = zero._to_device
    for index, (group, master) in enumerate(zip(optimizer.param_groups, masters, strict=True)):
        weights = zero.parallel_partitioned_bit16_groups[index][rank].data
        if to_device is None or index in zero._on_card:
            out_bf16 = weights if weights.dtype == torch.bfloat16 else None
            optimizer.update(group, master, master.grad, grad_scale=grad_scale, out_bf16=out_bf16)
            continue
        scalars = optimizer.begin(group, master, grad_scale)
        for part in pieces(master.numel()):
            copy = to_device.slot(part.stop - part.start)
            optimizer.update_part(group, master, master.grad, scalars, part, copy)
            to_device.send(copy, weights[part])
    if world_size > 1:
        for flat, partitions in zip(zero.bit16_groups_flat, zero.parallel_partitioned_bit16_groups, strict=True):
            torch.distributed.all_gather_into_tensor(flat, partitions[rank].clone(), group=zero.dp_process_group)


def _clear_what_did_not_come(zero: Any) -> None:
    """Zero the gradient of parameters that no micro-batch of this step used."""
    for group in zero.params_in_partition:
        for param in group:
            param_id = zero.get_param_id(param)
            if param_id not in zero._received and param_id in zero.grad_position:
                index, _, offset, elements = zero.grad_position[param_id]
                zero.single_partition_of_fp32_groups[index].grad.narrow(0, offset, elements).zero_()
