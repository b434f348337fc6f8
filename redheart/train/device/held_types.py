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


def hold_beside_bf16(module: nn.Module) -> None:
    """Hold buffers as weights in bf16 need them, which DeepSpeed casts alone.

    Tables in float32 become bf16, as by `module.bfloat16()`: torch multiplies no mixture. Those that no checkpoint
    holds stay, such as rotary frequencies, which their modules cast themselves. So do the running statistics of norms,
    which stand still in bf16 under a momentum of 0.01: these norms compute in float32.
    """
    for item in module.modules():
        for buffer in tables(item):
            buffer.data = buffer.data.bfloat16()
        if isinstance(item, _NormBase) and item.running_mean is not None:
            item.register_forward_pre_hook(_widen)
            item.register_forward_hook(_narrow, always_call=True)


def tables(module: nn.Module) -> list[Tensor]:
    """A module's own buffers, no norm's, that are held in the type of its weights."""
    own = {name: item for name, item in module.named_buffers(recurse=False) if item.dtype == torch.float32}
    kept = module._non_persistent_buffers_set
    return [] if isinstance(module, _NormBase) else [item for name, item in own.items() if name not in kept]


def _widen(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    norm._held, norm._input_dtype = dict(norm._parameters), inputs[0].dtype  # type: ignore[assignment]
    for name, weight in norm._held.items():  # type: ignore[union-attr, operator]
        norm._parameters[name] = None if weight is None else weight.float()
    return (inputs[0].float(),)


def _narrow(norm: nn.Module, _inputs: object, output: Tensor | None) -> Tensor | None:
    norm._parameters.update(norm.__dict__.pop("_held"))
    dtype: torch.dtype = norm.__dict__.pop("_input_dtype")
    return output if output is None else output.to(dtype)
