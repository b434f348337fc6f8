"""DeepSpeed's ZeRO-2 offload on one rank with its step as the pipeline: the switch `--train.pipeline`.

Gradients are taken where the backward pass has made them, before DeepSpeed gathers them for a sum over ranks that are
not there; the rest is `redheart.optim.offloaded`, on a CUDA device beside the passes. The bits are those of
`fused_step`, but for the norm on a CUDA device, which is summed there.
"""

import math
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from redheart.optim.offloaded import Flat, Offloaded
from redheart.pipeline.bucket import Bucket
from redheart.train.zero.fused_step import needs_transfers, require_known_deepspeed


def install(zero: Any, module: nn.Module, *, accumulates: bool) -> Offloaded:
    """Replace the gradient hand-over and the step of a module's ZeRO-2 optimizer on one rank by the pipeline's.

    `zero` is around a `HostAdamW8bit`; `accumulates` says whether a step is known to have several micro-batches.

    Raises:
        BadInput: the installed DeepSpeed is not the one that this was written for.
    """
    require_known_deepspeed(zero)
    zero.param_buffer_of_bit16_for_cpu_offload_groups.clear()
    flats = []
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        parameters, weights = list(zero.round_robin_bit16_groups[index]), zero.bit16_groups_flat[index]
        behind = master.numel() - sum(parameter.numel() for parameter in parameters)
        padding = [weights.new_zeros(behind)] if behind else []
        flats.append(Flat(Bucket(index, f"group {index}", master.numel()), parameters, master, [weights], padding))
        # Gradients lie in slots, and in sums where these do not do; what is held of DeepSpeed's would be 4 bytes each.
        master.grad = None
    zero.offload_gradient_dict.clear()
    work = Offloaded(
        flats,
        zero.optimizer,
        max_grad_norm=max(0.0, zero.clip_grad),
        accumulates=accumulates,
        overlap=module if needs_transfers(zero.bit16_groups_flat[0].device) else None,
    )
    zero.process_gradients = partial(_receive_gradient, work)
    # What it would gather is empty.
    zero.reduce_ipg_grads = lambda comm_dtype=None: None
    zero.step = MethodType(partial(_step, work=work), zero)
    return work


def _receive_gradient(work: Offloaded, parameter: nn.Parameter, group: int) -> None:
    grad, parameter.grad = parameter.grad, None
    assert isinstance(grad, Tensor)
    work.arrived(parameter, grad.detach())


def _step(zero: Any, closure: None = None, *, work: Offloaded) -> None:
    zero.micro_step_id = -1
    with torch.no_grad():
        work.step([{}] * len(work.flats))
    zero._global_grad_norm = work.grad_norm
    zero.overflow = not math.isfinite(work.grad_norm)
