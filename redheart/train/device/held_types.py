"""The types that an engine holds a module's tensors in, beside what DeepSpeed casts itself."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


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
