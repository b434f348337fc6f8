"""Whole models, tensor by tensor: from the modules of several snapshots with where each came from, or as one file."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from redheart.core.errors import BadInput
from redheart.core.files import canonical_json, new_file, read_sealed, write_sealed
from redheart.core.folders import new_folder
from redheart.snapshots.blend import NOTHING, Blend, blended
from redheart.snapshots.manifests import MANIFEST, TensorFile
from redheart.snapshots.module_snapshots import Snapshot
from redheart.snapshots.states import State, open_masters
from redheart.snapshots.tensor_file import SUFFIX, open_tensors, write_tensors
from redheart.snapshots.tensors import (
    Tensors,
    TensorSpec,
    check_specs,
    copy_into,
    full_name,
    kept_type,
    model_tensors,
    parts_of,
    whole,
)

DtypeName = Literal["fp32", "bf16"]
DTYPES: Mapping[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
Specs = Mapping[str, Mapping[str, TensorSpec]]


class Part(msgspec.Struct, frozen=True):
    """One module of an assembled model."""

    blend: Blend
    """The snapshot it was taken from, or those it is a mean of."""
    sources: tuple[str, ...]
    """SHA-256 of their safetensors files."""
    weights: TensorFile


class SingleFile(msgspec.Struct, frozen=True):
    file: str
    sha256: str
    bytes: int
    num_tensors: int
    num_elements: int
    dtype: str
    source: str
    """The folder or file that it was made from."""


class Assembly(msgspec.Struct, frozen=True):
    """An assembled model: its modules and their provenance."""

    modules: dict[str, Part]

    @property
    def digest(self) -> str:
        """One SHA-256 for all its weights."""
        files = {name: part.weights.content_sha256 for name, part in self.modules.items()}
        return hashlib.sha256(canonical_json(files)).hexdigest()


def module_specs(model: nn.Module, modules: Sequence[str]) -> Specs:
    """What the snapshots of a model must hold, from the model on any device."""
    return {
        name: {key: TensorSpec(kept_type(tensor, torch.bfloat16), tuple(tensor.shape)) for key, tensor in part.items()}
        for name, part in parts_of(model, modules).items()
    }


def assemble(out: Path, *, choice: Mapping[str, Blend], snapshots: Sequence[Snapshot], expected: Specs) -> Assembly:
    """Write the model that takes every module from its mixture of snapshots.

    A mixture is summed tensor by tensor. A module of one snapshot is a hard link to that snapshot's file where the
    file system allows it, once the file has been verified: it takes no room, and both names keep the bytes.

    `choice` has a mixture for every module of `expected`, which says what each must hold.

    Raises:
        BadInput: an epoch has no snapshot.
        CorruptFile: a file does not match its digest, or holds other tensors than expected; all are named.
        DiskError: the model cannot be written.
    """
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    missing = [(name, epoch) for name, blend in choice.items() for epoch in blend.epochs if epoch not in by_epoch]
    if missing:
        raise BadInput(
            "a chosen snapshot is not there",
            where=missing[0][0],
            got=f"epochs {', '.join(map(str, by_epoch))}",
            expected=f"epoch {missing[0][1]}",
            hint="choose again among those that are there: `redheart sweet-spot RUN`",
        )
    modules = {}
    with new_folder(out, assembly_contents) as folder:
        for name, specs in expected.items():
            chosen = [by_epoch[epoch] for epoch in choice[name].epochs]
            sources = tuple(snapshot.manifest.modules[name].content_sha256 for snapshot in chosen)
            modules[name] = Part(choice[name], sources, _write_module(folder, name, choice[name], chosen, specs))
        write_sealed(folder / MANIFEST, Assembly(modules))
    return Assembly(modules)


def write_modules(out: Path, tensors: Tensors, modules: Sequence[str]) -> Assembly:
    """Write a model that no snapshot stands behind in the form of an assembled one; one tensor is held at a time.

    Every name in the model begins with one of `modules`.
    """
    parts = {}
    with new_folder(out, assembly_contents) as folder:
        for module in modules:
            start = f"{module}."
            own = {name.removeprefix(start): (tensors, name) for name in tensors.specs if name.startswith(start)}
            parts[module] = Part(NOTHING, (), write_tensors(folder / f"{module}{SUFFIX}", Tensors.joined(own)))
        write_sealed(folder / MANIFEST, Assembly(parts))
    return Assembly(parts)


def consolidated(
    source: Snapshot | State, out: Path, *, dtype: DtypeName | None, on_tensor: Callable[[int], object] = lambda _: None
) -> SingleFile:
    """Write a snapshot's model, or the float32 masters of a resume state of any number of ranks, as one file.

    A snapshot may be compressed. Raises as `write_model`, and where a file of the source does not match its digest. See
    `in_type` for the rest.
    """
    if isinstance(source, Snapshot):
        kind, epoch, step, tensors = "snapshot", source.epoch, source.manifest.step, source.open_model()
    else:
        progress = source.manifest.progress
        kind, epoch, step, tensors = "resume state", progress.epoch, progress.step, open_masters(source)
    provenance = {"epoch": str(epoch), "step": str(step), "from": kind}
    converted = in_type(tensors, DTYPES[dtype] if dtype else None, on_tensor)
    return write_model(out, converted, source=source.folder, provenance=provenance)


def write_model(out: Path, tensors: Tensors, *, source: Path, provenance: Mapping[str, str]) -> SingleFile:
    """Write tensors as one file, which appears whole or not at all.

    Raises:
        BadInput: `out` is no `.safetensors` file.
        DiskError: the file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise BadInput("not the name of a safetensors file", where=out, expected=f"a name that ends in {SUFFIX}")
    with new_file(out) as temporary:
        entry = write_tensors(temporary, tensors, metadata={"format": "pt", **provenance})
    found = sorted({str(spec.dtype).removeprefix("torch.") for spec in tensors.specs.values()})
    return SingleFile(
        str(out), entry.sha256, entry.bytes, len(tensors), entry.num_elements, ", ".join(found), str(source)
    )


def in_type(tensors: Tensors, dtype: torch.dtype | None, on_tensor: Callable[[int], object]) -> Tensors:
    """Floating-point numbers turned into `dtype`, None leaves them; `on_tensor` is told each tensor's bytes before."""
    specs = {
        name: TensorSpec(dtype, spec.shape) if dtype and spec.dtype.is_floating_point else spec
        for name, spec in tensors.specs.items()
    }

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        on_tensor(tensor.nbytes)
        return tensor.to(specs[name].dtype)

    return Tensors(specs, read)


def read_module(
    snapshots: Mapping[int, Snapshot], name: str, blend: Blend, specs: Mapping[str, TensorSpec]
) -> dict[str, Tensor]:
    """The weights of one module's mixture, with the bits that `assemble` would write; `snapshots` by epoch.

    Raises as `checked_module`.
    """
    readers = [checked_module(snapshots[epoch], name, specs) for epoch in blend.epochs]
    return {key: blended(readers, blend.weights, key) for key in specs}


def link_folder(source: Path, out: Path) -> None:
    """Give a folder's files a second place, as hard links where the file system allows it."""
    with new_folder(out, assembly_contents) as folder:
        for path in sorted(source.iterdir()):
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def assembly_contents(folder: Path) -> set[str]:
    """Names of the files of an assembled model, by its manifest; raises as `read_assembly`."""
    return {MANIFEST, *(part.weights.file for part in read_assembly(folder).modules.values())}


def read_assembly(folder: Path) -> Assembly:
    """The manifest of an assembled model; raises as `read_sealed`."""
    return read_sealed(folder / MANIFEST, Assembly)


def load_assembly(model: nn.Module, folder: Path) -> Assembly:
    """Load an assembled model strictly, every tensor of every module and nothing else; one tensor is held at a time.

    Frozen parameters that the files hold rounded keep their own type's values: they were not trained.

    Raises:
        CorruptFile: a file does not match its digest, or a tensor does not fit; all are named.
    """
    assembly = read_assembly(folder)
    readers = {name: open_tensors(folder, part.weights) for name, part in assembly.modules.items()}
    parts = parts_of(model, list(readers))
    targets = {full_name(name, key): tensor for name, part in parts.items() for key, tensor in part.items()}
    held = {id(tensor) for tensor in targets.values()}
    targets |= {name: tensor for name, tensor in model_tensors(model).items() if id(tensor) not in held}
    # The model may compute in another type than the weights are kept in.
    copy_into(targets, whole(readers), where=folder)
    return assembly


def _write_module(
    folder: Path, name: str, blend: Blend, chosen: Sequence[Snapshot], specs: Mapping[str, TensorSpec]
) -> TensorFile:
    target = folder / f"{name}{SUFFIX}"
    readers = [checked_module(snapshot, name, specs) for snapshot in chosen]
    entry = chosen[0].manifest.modules[name]
    if len(chosen) == 1 and entry.content_sha256 == entry.sha256:
        try:
            os.link(chosen[0].folder / entry.file, target)
            return msgspec.structs.replace(entry, file=target.name)
        except OSError:
            # Another file system, or one without links: the bytes are written again.
            pass
    # In the order of the source, so that what is taken from one snapshot has its bytes.
    order = {key: specs[key] for key in readers[0]}
    return write_tensors(target, Tensors(order, lambda key: blended(readers, blend.weights, key)))


def checked_module(snapshot: Snapshot, name: str, specs: Mapping[str, TensorSpec]) -> Tensors:
    """One module of a snapshot, which must hold just these tensors.

    Raises:
        CorruptFile: a file does not match its digest, or holds other tensors; all are named.
    """
    reader = snapshot.open_module(name)
    check_specs(reader.specs, specs, where=f"{snapshot.folder}, {name}")
    return reader
