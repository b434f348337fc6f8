"""Resume states: everything for a bit-exact continuation; the last two are kept.

Every rank writes a file of its own; rank 0 writes the manifest last and renames the folder. Nothing older is
removed before the new state has been read back and matches its digests. A state that has been damaged since is passed
over for the one before: training is deterministic, so that the same bytes come out and only time is lost.

The float32 weights (masters) in it lie flat, group by group, divided among the ranks, as ZeRO keeps them.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile, RedHeartError
from redheart.core.files import PARTIAL, disk_errors, fsync_path, read_json, read_sealed, write_json, write_sealed
from redheart.core.folders import refuse_foreign, remove_leftovers, remove_names, take_place
from redheart.snapshots.manifests import (
    MANIFEST,
    ParameterPlace,
    Progress,
    StateManifest,
    TensorFile,
    state_contents,
    state_folders,
)
from redheart.snapshots.tensor_file import TensorReader, open_tensors, verify, write_tensors
from redheart.snapshots.tensors import Tensors, TensorSpec

KEPT_STATES = 2


@dataclass(frozen=True)
class State:
    """One resume state on disk whose files matched their digests when it was opened."""

    folder: Path
    manifest: StateManifest
    ranks: list[TensorReader]
    """Tensors of every rank, to be read one by one."""
    refused: list[RedHeartError]
    """What is wrong with each newer state that was passed over."""


def write_state(
    root: Path,
    *,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    run_key: str,
    rank: int,
    world_size: int,
    barrier: Callable[[], None],
    parameters: dict[str, ParameterPlace],
) -> None:
    """Write this rank's part of a state; every rank calls it.

    Raises:
        BadInput: files of other people lie in the folder of a state of this very step.
        DiskError: the disk is full, read-only or over its quota; older states are untouched.
    """
    folder = root / f"step_{progress.step:08d}"
    temporary = root / f".{folder.name}{PARTIAL}"
    with disk_errors(root):
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        try:
            entry = write_tensors(temporary / f"rank_{rank}.safetensors", tensors)
            write_json(temporary / f"rank_{rank}.json", entry)
            barrier()
            if rank == 0:
                parts = [temporary / f"rank_{item}.json" for item in range(world_size)]
                entries = [read_json(part, TensorFile) for part in parts]
                for part in parts:
                    part.unlink()
                _finish(temporary, folder, StateManifest(progress, run_key, entries, parameters))
        except BaseException:
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                # The others are still writing into the folder, and what became of it is not what ended the run.
                (temporary / f"rank_{rank}.safetensors").unlink(missing_ok=True)
            raise
        barrier()


def _finish(temporary: Path, folder: Path, manifest: StateManifest) -> None:
    write_sealed(temporary / MANIFEST, manifest)
    for entry in manifest.files:
        verify(temporary, entry)
    fsync_path(temporary)
    # The last step of an epoch may have a state already, from before the epoch was counted.
    refuse_foreign(folder, state_contents)
    take_place(temporary, folder)
    remove_newer(folder)
    for old in state_folders(folder.parent)[:-KEPT_STATES]:
        remove_names(old, state_contents(old))


def remove_newer(folder: Path) -> None:
    """Remove the states of later steps, which were damaged when a run went on from before them, and nothing else."""
    for other in state_folders(folder.parent):
        if other > folder:
            remove_names(other, state_contents(other))


def remove_states(root: Path) -> None:
    """Remove all states below `root`, also unfinished ones, and nothing else."""
    remove_leftovers(root)
    for folder in state_folders(root):
        remove_names(folder, state_contents(folder))
    with suppress(OSError):
        root.rmdir()


def newest_state(root: Path) -> State | None:
    """The newest state below `root` that can be read, or None where there is none.

    One with a missing, cut or changed file is passed over and stands among `refused`: the state before it leads to the
    same bytes. Where none is left, starting again from nothing is for the user to decide.

    Raises:
        CorruptFile: there are states, and none matches its digests; the files are named.
    """
    refused: list[RedHeartError] = []
    for folder in reversed(state_folders(root)):
        try:
            manifest = read_sealed(folder / MANIFEST, StateManifest)
            ranks = [open_tensors(folder, entry) for entry in manifest.files]
        except (BadInput, CorruptFile) as error:
            refused.append(error)
        else:
            return State(folder, manifest, ranks, refused)
    if refused:
        raise CorruptFile(
            "no resume state can be read",
            where=root,
            got="; ".join(f"{error.where}: {error.what}" for error in refused),
            hint="restore one from a copy, or remove this folder to train again from the start",
        )
    return None


def open_masters(state: State) -> Tensors:
    """Master weights by the parameter's name, float32; each is put together when it is asked for."""
    places = state.manifest.parameters
    specs = {name: TensorSpec(torch.float32, tuple(place.shape)) for name, place in places.items()}

    def read(name: str) -> Tensor:
        key = f"{places[name].group}.master"
        sizes = [rank.specs[key].num_elements for rank in state.ranks]
        wanted = pieces(sizes, places[name].offset, specs[name].num_elements)
        parts = [state.ranks[rank].part(key, part) for rank, part in wanted]
        flat = parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])
        return flat.reshape(specs[name].shape)

    return Tensors(specs, read)


def pieces(sizes: Sequence[int], offset: int, num_elements: int) -> Iterator[tuple[int, slice]]:
    """Where some elements of a flat tensor lie that is divided into parts of these sizes: part and slice of it."""
    begin = offset
    for index, size in enumerate(sizes):
        part = slice(max(0, min(begin, size)), max(0, min(begin + num_elements, size)))
        if part.stop > part.start:
            yield index, part
        begin -= size
