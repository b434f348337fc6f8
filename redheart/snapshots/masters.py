"""The float32 weights of a resume state by parameter: ZeRO keeps them flat, group by group, divided among the ranks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.states import State
from redheart.snapshots.tensor_file import TensorReader, Tensors, TensorSpec


def open_masters(state: State) -> Tensors:
    """Master weights by the parameter's name, float32; each is put together when it is asked for.

    Raises:
        BadInput: the state is of a version that did not note where its parameters lie.
        CorruptFile: a file does not match its digest, or the masters are not those of these parameters.
    """
    places = state.manifest.parameters
    if not places:
        raise BadInput(
            "this resume state does not say where its parameters lie",
            where=state.folder,
            hint="resume the run for one step, which writes a new state, or consolidate a snapshot with --epoch",
        )
    sizes = {
        group: [_master_size(rank, group, state.folder) for rank in state.ranks]
        for group in dict.fromkeys(place.group for place in places.values())
    }
    specs = {name: TensorSpec(torch.float32, tuple(place.shape)) for name, place in places.items()}
    for name, place in places.items():
        end, held = place.offset + specs[name].num_elements, sum(sizes[place.group])
        if place.offset < 0 or min(place.shape, default=0) < 0 or end > held:
            raise CorruptFile(
                "a parameter lies outside of the state's masters",
                where=f"{state.folder}, {name}",
                got=f"elements {place.offset} to {end} of group {place.group}",
                expected=f"at most {held}",
            )

    def read(name: str) -> Tensor:
        place = places[name]
        wanted = pieces(sizes[place.group], place.offset, specs[name].num_elements)
        parts = [state.ranks[rank].part(f"{place.group}.master", part) for rank, part in wanted]
        flat = parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])
        return flat.reshape(place.shape)

    return Tensors(specs, read)


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
