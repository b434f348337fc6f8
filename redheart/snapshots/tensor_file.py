"""Tensors in one safetensors file, written tensor by tensor with its digest, and read strictly.

The format is 8 bytes of header length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors). Own writing, since the library copies all tensors before it writes
and does not flush: here one tensor is held at a time, and the SHA-256 is taken in the same pass. Own reading, since the
library maps the whole file into the process, which counts as resident and made a resume's peak larger than a start's.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.core.files import disk_errors, sha256_file

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""


class TensorFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a manifest knows of one file of tensors."""

    file: str
    sha256: str
    bytes: int
    num_elements: int
    base: str | None = None
    """Folder of the snapshot that the file holds differences to."""


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
            "dtype": DTYPE_NAMES[tensor.dtype],
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


class TensorReader(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name; each is read when it is asked for, and nothing is kept.

    Raises:
        CorruptFile: the file is no safetensors file of tensor types known here, or ends early.
    """

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(min(size, MAX_HEADER_BYTES))
        self._start = 8 + size
        try:
            header = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            slices = {name: msgspec.json.decode(item, type=_Slice) for name, item in header.items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptFile("not a safetensors file", where=path, got=error) from error
        end = path.stat().st_size - self._start
        for name, item in slices.items():
            dtype = _DTYPES.get(item.dtype)
            first, last = item.data_offsets
            if dtype is None or not 0 <= first <= last <= end:
                raise CorruptFile("not a readable tensor", where=f"{path}, {name}", got=item)
            if last - first != math.prod(item.shape) * dtype.itemsize or min(item.shape, default=0) < 0:
                raise CorruptFile("a tensor's size is not its shape's", where=f"{path}, {name}", got=item)
        self._slices = MappingProxyType(slices)

    def __getitem__(self, name: str) -> Tensor:
        item = self._slices[name]
        first, last = item.data_offsets
        content = torch.empty(last - first, dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start + first)
            target = content.numpy().data
            while target and (count := file.readinto(target)):
                target = target[count:]
        if target:
            raise CorruptFile("a file of tensors is cut", where=self._path, got=f"{name} ends early")
        return content.view(_DTYPES[item.dtype]).reshape(item.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._slices[name].shape)


class _Slice(msgspec.Struct, frozen=True):
    """One tensor in the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def open_tensors(folder: Path, entry: TensorFile) -> TensorReader:
    """The tensors of a verified file, to be read one by one.

    Raises:
        CorruptFile: as `verify`, or the file is no safetensors file.
    """
    return TensorReader(verify(folder, entry))


def read_tensors(folder: Path, entry: TensorFile) -> dict[str, Tensor]:
    """All tensors of a verified file.

    Raises:
        CorruptFile: as `verify`, or the file is no safetensors file.
    """
    return dict(open_tensors(folder, entry))


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
