"""A whole model as one safetensors file: from a snapshot in bf16, or from a resume state's float32 masters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.core.files import new_file
from redheart.snapshots.module_snapshots import Snapshot
from redheart.snapshots.states import State, open_masters
from redheart.snapshots.tensor_file import SUFFIX, write_tensors
from redheart.snapshots.tensors import Tensors, TensorSpec

DtypeName = Literal["fp32", "bf16"]
DTYPES: Mapping[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SingleFile(msgspec.Struct, frozen=True):
    """A model that was written as one file."""

    file: str
    sha256: str
    bytes: int
    num_tensors: int
    num_elements: int
    dtype: str
    source: str
    """The folder or file that it was made from."""


def consolidated(
    source: Snapshot | State, out: Path, *, dtype: DtypeName | None, on_tensor: Callable[[int], object] = lambda _: None
) -> SingleFile:
    """Write a snapshot's model, or the float32 masters of a resume state of any number of ranks, as one file.

    Args:
        source: a snapshot may be compressed.
        out: a `.safetensors` file; it appears whole or not at all.
        dtype: of floating-point tensors; None keeps what the source holds.
        on_tensor: told the bytes of every tensor when it is written.

    Raises:
        BadInput: `out` is no `.safetensors` file.
        CorruptFile: a file of the source does not match its digest.
        DiskError: the file cannot be written.
    """
    if isinstance(source, Snapshot):
        kind, epoch, step, tensors = "snapshot", source.epoch, source.manifest.step, source.open_model()
    else:
        progress = source.manifest.progress
        kind, epoch, step, tensors = "resume state", progress.epoch, progress.step, open_masters(source)
    return write_model(
        out,
        tensors,
        dtype=DTYPES[dtype] if dtype else None,
        source=source.folder,
        provenance={"epoch": str(epoch), "step": str(step), "from": kind},
        on_tensor=on_tensor,
    )


def write_model(
    out: Path,
    tensors: Tensors,
    *,
    dtype: torch.dtype | None,
    source: Path,
    provenance: Mapping[str, str],
    on_tensor: Callable[[int], object] = lambda _: None,
) -> SingleFile:
    """Write tensors as one file, tensor by tensor; floating-point ones in `dtype`, or as they are where it is None."""
    if out.suffix != SUFFIX:
        raise BadInput("not the name of a safetensors file", where=out, expected=f"a name that ends in {SUFFIX}")
    converted = in_type(tensors, dtype)

    def read(name: str) -> Tensor:
        tensor = converted[name]
        on_tensor(tensor.nbytes)
        return tensor

    specs = converted.specs
    with new_file(out) as temporary:
        entry = write_tensors(temporary, Tensors(specs, read), metadata={"format": "pt", **provenance})
    found = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    return SingleFile(
        str(out), entry.sha256, entry.bytes, len(specs), entry.num_elements, ", ".join(found), str(source)
    )


def in_type(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    """Tensors with floating-point numbers turned into `dtype`; None leaves them."""
    specs = {
        name: TensorSpec(dtype, spec.shape) if dtype and spec.dtype.is_floating_point else spec
        for name, spec in tensors.specs.items()
    }
    return Tensors(specs, lambda name: tensors[name].to(specs[name].dtype))
