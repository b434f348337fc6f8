"""One model from the modules of several snapshots, file by file, with where each came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from redheart.core.errors import BadInput
from redheart.core.files import new_folder, read_sealed, write_sealed
from redheart.snapshots.module_snapshots import Snapshot
from redheart.snapshots.single_file import Tensors, converted
from redheart.snapshots.tensor_file import (
    TensorFile,
    TensorSpec,
    copy_into,
    read_tensors,
    write_stream,
    write_tensors,
)


class Part(msgspec.Struct, frozen=True):
    """One module of an assembled model."""

    epochs: list[int]
    """The snapshot it was taken from, or those it is the mean of."""
    sources: list[str]
    """SHA-256 of their files as safetensors, compressed since or not."""
    weights: TensorFile


class Assembly(msgspec.Struct, frozen=True):
    """An assembled model: its modules and their provenance."""

    modules: dict[str, Part]


def assemble(out: Path, *, choice: Mapping[str, Sequence[int]], snapshots: Sequence[Snapshot]) -> Assembly:
    """Write the model that takes every module from the chosen epochs (their mean, if several).

    One module is held in memory at a time.

    Raises:
        BadInput: a chosen epoch has no snapshot.
        CorruptFile: a file of a snapshot does not match its digest.
        DiskError: the model cannot be written.
    """
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    parts = {}
    with new_folder(out) as folder:
        for name, epochs in choice.items():
            if missing := [epoch for epoch in epochs if epoch not in by_epoch]:
                raise BadInput(
                    "a chosen snapshot is not there",
                    where=name,
                    got=f"epochs {', '.join(map(str, by_epoch))}",
                    expected=f"epoch {missing[0]}",
                    mend="choose again among those that are there: `redheart sweet-spot RUN`",
                )
            chosen = [by_epoch[epoch] for epoch in epochs]
            weights = write_tensors(folder / f"{name}.safetensors", _mean_module(chosen, name))
            sources = [snapshot.manifest.modules[name].content_sha256 for snapshot in chosen]
            parts[name] = Part(list(epochs), sources, weights)
        assembly = Assembly(parts)
        write_sealed(folder / "manifest.json", assembly)
    return assembly


def write_modules(out: Path, tensors: Tensors, modules: Sequence[str], *, dtype: torch.dtype | None) -> Assembly:
    """Write a model that no snapshot stands behind in the form of an assembled one; one tensor is held at a time.

    Args:
        out: folder to write.
        tensors: of the whole model; every name begins with one of `modules`.
        modules: dotted names.
        dtype: type that floating-point tensors are turned into; None leaves them.

    Raises:
        DiskError: the model cannot be written.
    """
    parts = {}
    with new_folder(out) as folder:
        for module in modules:
            names = [name for name in tensors.specs if name.startswith(f"{module}.")]
            keys = {name.removeprefix(f"{module}."): name for name in names}
            specs = {key: converted(tensors.specs[name], dtype) for key, name in keys.items()}

            def read(key: str, specs: Mapping[str, TensorSpec] = specs, keys: Mapping[str, str] = keys) -> Tensor:
                return tensors[keys[key]].to(specs[key].dtype)

            parts[module] = Part([], [], write_stream(folder / f"{module}.safetensors", specs, read))
        assembly = Assembly(parts)
        write_sealed(folder / "manifest.json", assembly)
    return assembly


def load_assembly(model: nn.Module, folder: Path) -> Assembly:
    """Load an assembled model strictly: every tensor of every module, nothing else.

    Raises:
        CorruptFile: a file does not match its digest, or a tensor does not fit; it is named.
    """
    assembly = read_sealed(folder / "manifest.json", Assembly)
    found: dict[str, Tensor] = {}
    for name, part in assembly.modules.items():
        found |= {f"{name}.{key}": tensor for key, tensor in read_tensors(folder, part.weights).items()}
    copy_into(model.state_dict(keep_vars=False), found, where=folder)
    return assembly


def _mean_module(snapshots: Sequence[Snapshot], name: str) -> dict[str, Tensor]:
    first = snapshots[0].load_module(name)
    if len(snapshots) == 1:
        return first
    sums = {key: tensor.float() for key, tensor in first.items()}
    for snapshot in snapshots[1:]:
        for key, tensor in snapshot.load_module(name).items():
            sums[key] += tensor
    return {key: (total / len(snapshots)).to(torch.bfloat16) for key, total in sums.items()}
