"""The types that a run computes in and holds its tensors in: bf16 on a CUDA device, on the CPU what it is fast in.

Without units for it torch multiplies bf16 matrices at 1 to 3 GFLOPS a core, float32 ones at 70 to 100.
"""

import os
import platform
import time
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from redheart.core.config import TrainConfig
from redheart.train.strategy import strategy_named

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}

_UNITS_HIDDEN = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of `ONEDNN_MAX_CPU_ISA` below which oneDNN says itself that it has no bf16."""
_X86 = ("x86_64", "AMD64")


def compute_type(config: TrainConfig) -> torch.dtype:
    """What weights and activations are held in on this machine, by an engine of this configuration.

    Raises:
        BadInput: there is no such strategy.
    """
    if not strategy_named(config.strategy).is_zero:
        return torch.float32
    if torch.cuda.is_available() or config.compute_type == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if config.compute_type == "auto" and has_bf16_units() else torch.float32


def type_name(config: TrainConfig) -> str:
    """The name of `compute_type`, as a setting has it."""
    return NAMES[compute_type(config)]


def has_bf16_units() -> bool:
    """Whether oneDNN, with which torch multiplies on the CPU, has instructions for products of bf16 matrices here.

    It supports bf16 with AVX-512 that lacks them too, at 37 GFLOPS a core against 98 in float32 (200 with them).
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    held_to = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    return platform.machine() not in _X86 or (
        torch.cpu._is_avx512_bf16_supported() and held_to.upper() not in _UNITS_HIDDEN
    )


def product_gflops(dtype: torch.dtype, *, budget_s: float = 0.02, size: int = 192) -> float:
    """Speed of the fastest product of square matrices on one core within a budget of time, GFLOPS.

    One without units for the type is over before the budget and a half, at 1 GFLOPS too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = torch.ones(2, size, size).to(dtype)
        # The first one compiles the kernel.
        left @ right
        best_s, end_s = float("inf"), time.perf_counter() + budget_s
        while (start_s := time.perf_counter()) < end_s:
            left @ right
            best_s = min(best_s, time.perf_counter() - start_s)
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best_s / 1e9


def in_float32(module: nn.Module) -> nn.Module:
    """Hold every parameter in float32, and buffers of fewer bits: trained in less, small updates would be lost.

    A checkpoint in bf16 comes so from `from_pretrained`.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or tensor.itemsize < 4):
            tensor.data = tensor.data.float()
    return module


def let_norms_compute_in_float32(module: nn.Module) -> None:
    """Let norms with running statistics compute in float32 under weights in bf16, as those statistics are kept.

    Torch has no kernel for such a mixture, and statistics in bf16 stand still under a momentum of 0.01.
    """
    for norm in module.modules():
        if isinstance(norm, _NormBase) and norm.running_mean is not None:
            norm.register_forward_pre_hook(_widen)
            norm.register_forward_hook(_narrow, always_call=True)


def _widen(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    norm._held, norm._input_dtype = dict(norm._parameters), inputs[0].dtype  # type: ignore[assignment]
    for name, weight in norm._held.items():  # type: ignore[union-attr, operator]
        norm._parameters[name] = None if weight is None else weight.float()
    return (inputs[0].float(),)


def _narrow(norm: nn.Module, _inputs: object, output: Tensor | None) -> Tensor | None:
    norm._parameters.update(norm.__dict__.pop("_held"))
    dtype: torch.dtype = norm.__dict__.pop("_input_dtype")
    return output if output is None else output.to(dtype)
