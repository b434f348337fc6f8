"""Tensors in one safetensors file, written tensor by tensor with its digest, and read strictly.

The format is 8 bytes of header length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors). Own writing, since the library copies all tensors before it writes
and does not flush: here one tensor is held at a time, and the SHA-256 is taken in the same pass.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.core.files import disk_errors, sha256_file

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
}


class TensorFile(msgspec.Struct, frozen=True):
    """What a manifest knows of one file of tensors."""

    file: str
    sha256: str
    bytes: int
    num_elements: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Write and flush a new file; the folder around it decides when it appears.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with disk_errors(path), path.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            digest.update(block)
            file.write(block)
        for tensor in tensors.values():
            content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return TensorFile(
        file=path.name,
        sha256=digest.hexdigest(),
        bytes=8 + len(text) + offset,
        num_elements=sum(tensor.numel() for tensor in tensors.values()),
    )


def verify(folder: Path, entry: TensorFile) -> Path:
    """The path of a file whose bytes match its manifest entry.

    Raises:
        CorruptFile: it is missing, cut or changed; the file is named.
    """
    path = folder / entry.file
    if not path.is_file():
        raise CorruptFile(
            "a file of tensors is missing", where=path, mend="restore it, or use another snapshot or state"
        )
    size = path.stat().st_size
    if size != entry.bytes:
        raise CorruptFile("a file of tensors is cut", where=path, got=f"{size} bytes", expected=f"{entry.bytes} bytes")
    found = sha256_file(path)
    if found != entry.sha256:
        raise CorruptFile(
            "a file of tensors was changed",
            where=path,
            got=f"SHA-256 {found}",
            expected=entry.sha256,
            mend="restore it, or use another snapshot or state",
        )
    return path


def read_tensors(folder: Path, entry: TensorFile) -> dict[str, Tensor]:
    """All tensors of a verified file.

    Raises:
        CorruptFile: as `verify`, or the file is no safetensors file.
    """
    path = verify(folder, entry)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CorruptFile("not a safetensors file", where=path, got=error) from error


def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], *, where: object) -> None:
    """Copy tensors by name into existing ones, strictly.

    Raises:
        CorruptFile: a tensor is missing, unexpected or of another shape; all are named.
    """
    wrong = [f"{name}: missing" for name in target if name not in source]
    wrong += [f"{name}: not expected" for name in source if name not in target]
    wrong += [
        f"{name}: got {tuple(source[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    if wrong:
        raise CorruptFile("the tensors do not fit the module", where=where, got="; ".join(wrong))
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
