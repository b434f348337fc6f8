"""The float32 weights of a resume state by parameter: ZeRO keeps them flat, group by group, divided among the ranks."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.states import ParameterPlace, State
from redheart.snapshots.tensor_file import TensorReader, TensorSpec


class Masters(Mapping[str, Tensor]):
    """Master weights by the parameter's name, float32; each is put together when it is asked for.

    Raises:
        BadInput: the state is of a version that did not note where its parameters lie.
        CorruptFile: a file does not match its digest, or the masters are not those of these parameters.
    """

    def __init__(self, state: State):
        self._places = state.manifest.parameters
        if not self._places:
            raise BadInput(
                "this resume state does not say where its parameters lie",
                where=state.folder,
                hint="resume the run for one step, which writes a new state, or consolidate a snapshot with --epoch",
            )
        self._folder = state.folder
        self._ranks = state.ranks
        self._sizes: dict[int, list[int]] = {}
        for name, place in self._places.items():
            self._check(name, place)
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(torch.float32, tuple(place.shape)) for name, place in self._places.items()
        }
        """Types and shapes of all parameters."""

    def _check(self, name: str, place: ParameterPlace) -> None:
        if place.group not in self._sizes:
            self._sizes[place.group] = [_master_size(rank, place.group, self._folder) for rank in self._ranks]
        end = place.offset + TensorSpec(torch.float32, tuple(place.shape)).num_elements
        if place.offset < 0 or min(place.shape, default=0) < 0 or end > sum(self._sizes[place.group]):
            raise CorruptFile(
                "a parameter lies outside of the state's masters",
                where=f"{self._folder}, {name}",
                got=f"elements {place.offset} to {end} of group {place.group}",
                expected=f"at most {sum(self._sizes[place.group])}",
            )

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        wanted = pieces(self._sizes[place.group], place.offset, self.specs[name].num_elements)
        parts = [self._ranks[rank].part(f"{place.group}.master", part) for rank, part in wanted]
        flat = parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])
        return flat.reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def pieces(sizes: Sequence[int], offset: int, num_elements: int) -> Iterator[tuple[int, slice]]:
    """Where some elements of a flat tensor lie that is divided into parts of these sizes: part and slice of it."""
    begin = offset
    for index, size in enumerate(sizes):
        part = slice(max(0, min(begin, size)), max(0, min(begin + num_elements, size)))
        if part.stop > part.start:
            yield index, part
        begin -= size


def _master_size(rank: TensorReader, group: int, where: object) -> int:
    spec = rank.specs.get(f"{group}.master")
    if spec is None or spec.dtype != torch.float32:
        raise CorruptFile("a resume state lacks the masters of a group", where=where, got=spec, expected=group)
    return spec.num_elements
