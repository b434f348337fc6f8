"""Saving beside training, on copies, where there is memory for them; in line where there is not."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from redheart.memory.host import available_host_bytes
from redheart.snapshots.states import Progress, write_state
from redheart.train.background import BackgroundWriter
from redheart.train.engine import Engine

ROOM_FOR_COPIES = 3
"""Saving goes on beside training where this many times the copies' size is free, so that it never takes the last of a
machine's memory; what was planned for the run is held by then."""


def save_state(
    engine: Engine,
    writer: BackgroundWriter,
    *,
    root: Path,
    progress: Progress,
    run_key: str,
    first: Callable[[], object],
) -> None:
    """Write a resume state, beside the next steps where there is memory for a copy; all ranks together.

    `first` is done before it, beside training too: what the state counts must be there when the state is.
    """
    writer.wait()
    tensors = dict(engine.state_tensors())
    # Ranks wait for each other while they write, which a thread must not do while another trains.
    is_beside = engine.world_size == 1 and copies_fit(tensors)
    if is_beside:
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    def write() -> None:
        first()
        write_state(
            root,
            tensors=tensors,
            progress=progress,
            run_key=run_key,
            rank=engine.rank,
            world_size=engine.world_size,
            barrier=engine.barrier,
            parameters=engine.places,
        )

    if is_beside:
        writer.submit(write)
    else:
        write()


def copies_fit(*groups: Mapping[str, Tensor]) -> bool:
    """Whether there is memory to copy these tensors and let training go on."""
    size = sum(tensor.nbytes for tensors in groups for tensor in tensors.values())
    return ROOM_FOR_COPIES * size < available_host_bytes()


def module_copies(model: nn.Module, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Copies of the submodules' tensors in bf16 on the host, by submodule and by name in it."""
    weights = model.state_dict()
    return {
        name: {
            key.removeprefix(f"{name}."): tensor.to("cpu", torch.bfloat16, copy=True)
            for key, tensor in weights.items()
            if key.startswith(f"{name}.")
        }
        for name in names
    }
