"""Buckets: the parts of a model's parameters that cross the bus and are updated as one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

BUCKET_ELEMENTS = 1 << 24
"""Largest bucket: 32 MiB of bf16, .6 ms on PCIe 5; a smaller one pays for its launch, a larger one is late."""
WIRE_BYTES = 2
"""Of an element on the bus: gradients leave and weights return in bf16."""


@dataclass(frozen=True)
class Bucket:
    """Parameters of one module, or a part of them, in the order in which the forward pass needs them."""

    index: int
    module: str
    elements: int

    @property
    def wire_bytes(self) -> int:
        """Bytes that cross the bus each way."""
        return WIRE_BYTES * self.elements


def cut(modules: Mapping[str, int], *, largest: int = BUCKET_ELEMENTS) -> list[Bucket]:
    """Buckets of modules by their elements, in the order of the forward pass, in parts as even as can be."""
    buckets: list[Bucket] = []
    for name, elements in modules.items():
        count = -(-elements // largest)
        for part in range(count):
            buckets.append(Bucket(len(buckets), name, elements // count + (part < elements % count)))
    return buckets


def bounded(parameters: Iterable[nn.Parameter], max_elements: int = BUCKET_ELEMENTS) -> Iterator[list[nn.Parameter]]:
    """The parameters in their order, in lists of at most so many elements; a larger one has a list of its own."""
    current: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        if current and elements + parameter.numel() > max_elements:
            yield current
            current, elements = [], 0
        current.append(parameter)
        elements += parameter.numel()
    if current:
        yield current
