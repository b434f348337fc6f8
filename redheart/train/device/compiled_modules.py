"""RMS norms and GELUs on the CPU by the compiled kernel: torch spells norms out there, in a dozen operators a pass, and
computes the error function of a GELU in both passes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from redheart.kernel.bindings import Kernel, fastest


class CompiledRMSNorm(nn.RMSNorm):
    """Torch's but for rounding, of the last dimension, in float32 on the CPU; anything else is torch's own."""

    def forward(self, states: Tensor) -> Tensor:
        kernel, _ = fastest()
        is_read = states.dtype == self.weight.dtype == torch.float32 and states.shape[-1:] == self.weight.shape
        if kernel is None or not is_read or states.device.type != "cpu":
            return super().forward(states)
        normed: Tensor = _Norm.apply(states, self.weight, self.eps, kernel)
        return normed


class CompiledGELU(nn.GELU):
    """As `CompiledRMSNorm`: torch's but for rounding, its slope known from the forward pass."""

    def forward(self, states: Tensor) -> Tensor:
        kernel, _ = fastest()
        if kernel is None or states.dtype != torch.float32 or states.device.type != "cpu":
            return super().forward(states)
        found: Tensor = _GELU.apply(states, kernel)
        return found


def compile_modules(module: nn.Module) -> None:
    """Let the RMS norms and GELUs of a module be compiled ones, with their own parameters, where there is a kernel."""
    # Not at the first pass, in which two threads would compile it at once. `redheart doctor` says why there is none.
    kernel, _ = fastest()
    if kernel is None:
        return
    for item in module.modules():
        if type(item) is nn.GELU and item.approximate == "none":
            item.__class__ = CompiledGELU
        # Without an epsilon of its own it is that of the states' type.
        if type(item) is not nn.RMSNorm or not item.elementwise_affine or item.eps is None:
            continue
        if len(item.normalized_shape) == 1:
            item.__class__ = CompiledRMSNorm


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float, kernel: Kernel) -> Tensor:
        rows = states.contiguous().view(-1, len(weight))
        normed, inverse = kernel.rms_norm(rows, weight, eps)
        ctx.kernel = kernel
        ctx.save_for_backward(rows, weight, inverse)
        return normed.view_as(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        grad_rows, grad_weight = ctx.kernel.rms_norm_gradients(grad.contiguous(), *ctx.saved_tensors)
        return grad_rows.view_as(grad), grad_weight, None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, kernel: Kernel) -> Tensor:
        found, slope = kernel.gelu(states.contiguous())
        ctx.save_for_backward(slope)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        # In its own memory, which nothing needs any more: a second backward pass is an error of autograd's.
        return slope.mul_(grad), None
