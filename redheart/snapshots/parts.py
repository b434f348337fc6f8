"""Which tensors of a model every part of it holds: a part is a submodule, or what lies outside of all named ones."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from redheart.snapshots.tensors import Tensors

REST = "_rest"
"""Name of the part that holds what no submodule among the parts does; its keys are the names in the model."""


def full_name(part: str, key: str) -> str:
    """A tensor's name in the model, from its part's and its name within it."""
    return key if part == REST else f"{part}.{key}"


def whole(parts: Mapping[str, Tensors]) -> Tensors:
    """All parts' tensors by their names in the model."""
    return Tensors.joined({full_name(part, key): (own, key) for part, own in parts.items() for key in own})


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` holds, as it lies in the model: parameters are parameters, tied ones the same object."""
    return {name: item for name, item in model.state_dict(keep_vars=True).items() if isinstance(item, Tensor)}


def parts_of(model: nn.Module, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Every part's tensors by name within it. What has several names (tied weights) is in the first part that has it.

    Args:
        model: on any device.
        names: dotted names of submodules, and `REST` where it is wanted.
    """
    tensors, seen = model_tensors(model), set()
    found: dict[str, dict[str, Tensor]] = {}
    for part in names:
        start = "" if part == REST else f"{part}."
        found[part] = own = {}
        for name, tensor in tensors.items():
            is_other = part == REST and any(name.startswith(f"{other}.") for other in names)
            if name.startswith(start) and not is_other and id(tensor) not in seen:
                seen.add(id(tensor))
                own[name.removeprefix(start)] = tensor
    return found


def kept_type(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type that a part's file holds a tensor in: parameters in `dtype`, buffers in their own, with 32 bits or more.

    A running mean in bf16 is another one; whole numbers stay whole.
    """
    if not tensor.is_floating_point():
        return tensor.dtype
    if isinstance(tensor, nn.Parameter):
        return dtype
    # torch promotes no type of 8 bits.
    return tensor.dtype if tensor.dtype.itemsize >= torch.float32.itemsize else torch.float32
