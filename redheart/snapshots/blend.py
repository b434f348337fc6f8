"""A module's weights as a weighted mean over snapshots; the mean over one snapshot is that snapshot's own."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import BadInput


class Blend(msgspec.Struct, frozen=True):
    """Which snapshots a module's weights are taken from; equal mixtures are equal objects."""

    epochs: tuple[int, ...]
    """In ascending order."""
    weights: tuple[float, ...]
    """Their shares; they sum to 1."""

    def __str__(self) -> str:
        if not self.epochs:
            return "no snapshot"
        if len(self.epochs) == 1:
            return str(self.epochs[0])
        if len(set(self.weights)) == 1:
            return f"mean of {', '.join(map(str, self.epochs))}"
        return ", ".join(f"{weight:.2f} x {epoch}" for epoch, weight in zip(self.epochs, self.weights, strict=True))


NOTHING = Blend((), ())
"""Of a model that no snapshot stands behind."""


def weighted(weights: Mapping[int, float]) -> Blend:
    """The mixture with these weights by epoch, scaled to sum to 1; epochs of weight zero are left out.

    Raises:
        BadInput: a weight is negative or no number, or all are zero.
    """
    total = math.fsum(weights.values()) if all(map(math.isfinite, weights.values())) else math.nan
    if not total > 0 or min(weights.values()) < 0:
        raise BadInput("weights of snapshots must be numbers of 0 or more, and not all 0", got=dict(weights))
    shares = {epoch: weights[epoch] / total for epoch in sorted(weights) if weights[epoch] / total > 0}
    return Blend(tuple(shares), tuple(shares.values()))


def mean_of(epochs: Iterable[int]) -> Blend:
    """The plain mean over epochs."""
    return weighted(dict.fromkeys(epochs, 1.0))


def single(epoch: int) -> Blend:
    """One snapshot's own weights."""
    return Blend((epoch,), (1.0,))


def blended(readers: Sequence[Mapping[str, Tensor]], weights: Sequence[float], name: str) -> Tensor:
    """One tensor of a mixture, summed in float32 and rounded to the sources' type.

    One source is held at a time, two while they are equal. Whole numbers have no mean: a counter or table of them is
    the last source's. What is the same in all is left as it is: the shares' sum is 1 only but for rounding, by which
    the lowest number of a mask would become infinite.
    """
    first = readers[0][name]
    if len(readers) == 1:
        return first
    dtype = first.dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        return readers[-1][name]
    same: Tensor | None = first
    total = first.to(torch.promote_types(dtype, torch.float32), copy=True).mul_(weights[0])
    del first
    for reader, weight in zip(readers[1:], weights[1:], strict=True):
        source = reader[name]
        same = same if same is not None and torch.equal(same, source) else None
        total.add_(source, alpha=weight)
        del source
    return total.to(dtype) if same is None else same
