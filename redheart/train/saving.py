"""Saving beside training, on copies, where there is memory for them, in line where there is not; and going on."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from redheart.core.errors import BadInput, RedHeartError
from redheart.memory.host import available_host_bytes
from redheart.snapshots.compress import compress_snapshots
from redheart.snapshots.parts import kept_type, parts_of
from redheart.snapshots.states import Progress, newest_state, write_state
from redheart.train.background import BackgroundWriter
from redheart.train.compute_type import NAMES
from redheart.train.engine import Engine
from redheart.train.events import read_events

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


def resume(engine: Engine, *, root: Path, run_key: str) -> Progress | None:
    """Load the newest state below `root` into the engine; how far it had come, None where there is no state.

    Raises:
        BadInput: it belongs to another run.
        CorruptFile: there are states, and none can be read.
    """
    state = newest_state(root)
    if state is None:
        return None
    manifest = state.manifest
    if engine.rank == 0:
        for error in state.refused:
            print(
                f"warning: a damaged resume state is passed over; going on from {state.folder.name}, which leads "
                f"to the same result\n  {error}",
                file=sys.stderr,
                flush=True,
            )
    if manifest.run_key != run_key:
        raise BadInput(
            "the folder holds another run",
            where=state.folder,
            got=f"run {manifest.run_key}",
            expected=f"run {run_key}",
            hint="choose another folder (--out), or go on with the data, weights and settings that it was started with",
        )
    if engine.rank == 0:
        _say_if_type_changed(engine, root.parent / "events.jsonl")
    engine.load_state_tensors(state.ranks)
    return manifest.progress


def _say_if_type_changed(engine: Engine, log: Path) -> None:
    """A state holds the same tensors whatever a run computes in, so that any machine may go on with it."""
    # Logs of old do not name the type.
    types = [start["compute_type"] for start in read_events(log, "start") if "compute_type" in start]
    now = NAMES[engine.dtype]
    if types and types[-1] != now:
        print(
            f"note: started in {types[-1]}, going on in {now}: the bits of an unbroken run are not promised",
            file=sys.stderr,
            flush=True,
        )


def compress_or_warn(snapshots: Path) -> None:
    """Make differences of a run's snapshots. It saves space and nothing else; a run is not ended for it."""
    try:
        compress_snapshots(snapshots, wait=True)
    except RedHeartError as error:
        print(f"warning: snapshots stay uncompressed: {error}", file=sys.stderr, flush=True)


def copies_fit(*groups: Mapping[str, Tensor]) -> bool:
    """Whether there is memory to copy these tensors and let training go on."""
    size = sum(tensor.nbytes for tensors in groups for tensor in tensors.values())
    return ROOM_FOR_COPIES * size < available_host_bytes()


def module_copies(model: nn.Module, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Copies of the parts' tensors on the host, by part and by name in it: weights in bf16, buffers in their types."""
    return {
        name: {
            key: tensor.detach().to("cpu", kept_type(tensor, torch.bfloat16), copy=True) for key, tensor in part.items()
        }
        for name, part in parts_of(model, names).items()
    }
