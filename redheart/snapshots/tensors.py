"""Tensors by name, of known types and shapes, wherever they are: read, made or held one at a time.

A model's belong to parts of it: a part is a submodule, or what lies outside of all named ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor, nn

from redheart.core.errors import CorruptFile

REST = "_rest"
"""Name of the part that holds what no submodule among the parts does; its keys are the names in the model."""


class TensorSpec(msgspec.Struct, frozen=True):
    """Type and shape of a tensor that need not be there yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def spec_of(tensor: Tensor) -> TensorSpec:
    # The parts of a nested tensor differ in theirs.
    return TensorSpec(tensor.dtype, (0,) if tensor.is_nested else tuple(tensor.shape))


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, of known types and shapes, each made or read when it is asked for."""

    def __init__(self, specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]):
        self.specs = MappingProxyType(dict(specs))
        self._read_one = read

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Tensors":
        """Tensors that are there already."""
        if isinstance(tensors, Tensors):
            return tensors
        return cls({name: spec_of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)

    @classmethod
    def joined(cls, places: Mapping[str, tuple["Tensors", str]]) -> "Tensors":
        """Tensors of several sources under names of their own."""

        def read(name: str) -> Tensor:
            source, key = places[name]
            return source[key]

        return cls({name: source.specs[key] for name, (source, key) in places.items()}, read)

    def __getitem__(self, name: str) -> Tensor:
        return self._read_one(name)

    def __contains__(self, name: object) -> bool:
        # The inherited one would read the tensor.
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def copy_into(target: Mapping[str, Tensor], source: Tensors, *, where: object) -> None:
    """Copy tensors by name into existing ones as `take` does, strictly but for their types; one is read at a time.

    Raises:
        CorruptFile: a tensor is missing, unexpected or of another shape; all are named.
    """
    check_specs(source.specs, Tensors.of(target).specs, where=where, compare_types=False)
    for name, tensor in target.items():
        take(tensor, source[name])


@torch.no_grad()
def take(tensor: Tensor, kept: Tensor) -> None:
    """Give a tensor its kept value, but for a weight that is not trained and is kept rounded: it has its own type."""
    is_frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    if not (is_frozen and torch.equal(tensor.to(kept.dtype), kept.to(tensor.device))):
        tensor.copy_(kept)


def check_specs(
    found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], *, where: object, compare_types: bool = True
) -> None:
    """Hold tensors against what they must be.

    Raises:
        CorruptFile: one is missing, unexpected, of another shape or of another type; all are named.
    """
    if wrong := differences(found, expected, compare_types=compare_types):
        raise CorruptFile(
            "the tensors do not fit the model",
            where=where,
            got="; ".join(wrong),
            hint="the weights must be of this run and preset, or of one checkpoint",
        )


def differences(
    found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], *, compare_types: bool
) -> list[str]:
    """What is missing, unexpected, of another shape or of another type, one line a tensor."""
    wrong = [f"{name}: missing, expected {spec}" for name, spec in expected.items() if name not in found]
    wrong += [f"{name}: not expected, got {spec}" for name, spec in found.items() if name not in expected]
    for name, spec in expected.items():
        other = found.get(name, spec)
        if other.shape != spec.shape or (compare_types and other.dtype != spec.dtype):
            wrong.append(f"{name}: got {other}, expected {spec}")
    return wrong


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

    `names` are dotted ones of submodules, and `REST` where it is wanted.
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
