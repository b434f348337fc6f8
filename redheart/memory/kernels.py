"""What torch runs on a device behind a function that it runs otherwise on `meta`, as far as its memory goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

AttentionOp = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Query, key, value and mask to the mixed values."""
NormOp = Callable[[Tensor, Tensor], Tensor]
"""States and weight to the normed states."""


@dataclass(frozen=True)
class Kernels:
    """Those of a device."""

    attention: AttentionOp
    rms_norm: NormOp | None = None
    """None where torch spells it out, as on `meta`."""


def cpu_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The fused kernel that torch takes on the CPU, with its mask turned into a bias as torch does it."""
    bias = None if mask is None else _as_bias(mask, query)
    mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias
    )[0]
    return mixed


def cuda_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The kernels that torch takes on CUDA in bf16: flash without a mask, memory-efficient with one.

    Source: `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`; the bias of the efficient kernel is padded
    to rows of a multiple of 16 (`pad_bias` in `attention.cpp`).
    """
    mixed: Tensor
    if mask is None:
        mixed = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]
        return mixed
    bias = _as_bias(mask, query)
    columns = bias.shape[-1]
    if columns % 16:
        bias = nn.functional.pad(bias, (0, 16 - columns % 16))[..., :columns]
    bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    mixed = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
    return mixed


def _as_bias(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    zero = torch.scalar_tensor(0.0, dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.scalar_tensor(-torch.inf, dtype=query.dtype, device=query.device))


class _FusedRMSNorm(torch.autograd.Function):
    """What the fused norm allocates and keeps; nothing is computed."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        reciprocal_root = states.new_empty((*states.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(states, weight, reciprocal_root)
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        states, weight, _ = ctx.saved_tensors
        return torch.empty_like(states), torch.empty_like(weight)


def fused_rms_norm(states: Tensor, weight: Tensor) -> Tensor:
    """The norm in one kernel that keeps its input and a float32 per row, from torch 2.9 on.

    Spelled out in bf16 it keeps two float32 tensors of its input's size: the plan was 14 to 27 % above an H100's
    measured peak with it. Source: `_fused_rms_norm` in `aten/src/ATen/native/native_functions.yaml`.
    """
    normed: Tensor = _FusedRMSNorm.apply(states, weight)
    return normed


CPU = Kernels(cpu_attention)
CUDA = Kernels(cuda_attention, fused_rms_norm)


@contextmanager
def replaced(kernels: Kernels | None) -> Iterator[None]:
    """Put a device's operators in the place of torch's functions, and the functions back afterwards.

    A torch function mode would do it without a replacement, but is off inside `backward`, where checkpointing
    runs the forward pass once more. Libraries that look into their inputs, as transformers does for a mask that is not
    needed, leave it while a graph is traced; on `meta` there is nothing to look at.
    """
    if kernels is None:
        yield
        return
    functional: Any = nn.functional
    attention, rms_norm = functional.scaled_dot_product_attention, functional.rms_norm

    def chosen_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *others: Any, **named: Any
    ) -> Tensor:
        if query.ndim != 4:
            # No fused kernel takes it.
            return attention(query, key, value, attn_mask, *others, **named)  # type: ignore[no-any-return]
        return kernels.attention(query, key, value, attn_mask)

    def chosen_norm(states: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if kernels.rms_norm is None or weight is None:
            return rms_norm(states, shape, weight, eps)  # type: ignore[no-any-return]
        return kernels.rms_norm(states, weight)

    with (
        mock.patch.multiple(functional, scaled_dot_product_attention=chosen_attention, rms_norm=chosen_norm),
        mock.patch.object(torch.compiler, "is_compiling", return_value=True),
    ):
        yield
