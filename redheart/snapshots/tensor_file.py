"""Tensors in one safetensors file, written tensor by tensor with its digest, and read strictly.

The format is 8 bytes of header length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors). Own writing, since the library copies all tensors before it writes
and does not flush: here one tensor is held at a time, and the SHA-256 is taken in the same pass. Own reading, since the
library maps the whole file into the process, which counts as resident and made a resume's peak larger than a start's.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import MAX_PROBLEMS, BadInput, CorruptFile, names_text
from redheart.core.files import disk_errors, open_output, sha256_file, to_disk
from redheart.snapshots.manifests import TensorFile
from redheart.snapshots.tensors import Tensors, TensorSpec, spec_of

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.complex64: "C64",
}
"""The format's types that torch computes with; those of less than a byte are not among them."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
SUFFIX = ".safetensors"
_MAX_HEADER_BYTES = 100_000_000
_HINT = "restore it, or use another snapshot or state"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> TensorFile:
    """Write and flush a new file, one tensor at a time; the folder around it decides when it appears.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    tensors = Tensors.of(tensors)
    sha256, size = write_blocks(path, _blocks(tensors, metadata))
    return TensorFile(path.name, sha256, size, sum(spec.num_elements for spec in tensors.specs.values()))


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write and flush a new file; its SHA-256 and size in bytes."""
    digest, size = hashlib.sha256(), 0
    with disk_errors(path), open_output(path) as file:
        for block in blocks:
            digest.update(block)
            size += file.write(block)
        to_disk(file)
    return digest.hexdigest(), size


def content_sha256(tensors: Tensors) -> str:
    """SHA-256 of the file that `write_tensors` would write."""
    digest = hashlib.sha256()
    for block in _blocks(tensors, None):
        digest.update(block)
    return digest.hexdigest()


def _blocks(tensors: Tensors, metadata: Mapping[str, str] | None) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, spec in tensors.specs.items():
        header[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name, spec in tensors.specs.items():
        tensor = tensors[name]
        assert spec_of(tensor) == spec, name
        plain = tensor.detach().resolve_conj().resolve_neg()
        # An empty tensor may have strides that no view of bytes has.
        yield plain.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b""


def verify(folder: Path, entry: TensorFile) -> Path:
    """The path of a file whose bytes match its manifest entry.

    Raises:
        CorruptFile: it is missing, cut or changed, or cannot be read; the file is named.
    """
    path = folder / entry.file
    if not path.is_file():
        raise CorruptFile("a file of tensors is missing", where=path, hint=_HINT)
    with read_errors(path):
        size = path.stat().st_size
        if size != entry.bytes:
            raise CorruptFile(
                "a file of tensors is cut", where=path, got=f"{size} bytes", expected=f"{entry.bytes} bytes"
            )
        found = sha256_file(path)
    if found != entry.sha256:
        raise CorruptFile(
            "a file of tensors was changed", where=path, got=f"SHA-256 {found}", expected=entry.sha256, hint=_HINT
        )
    return path


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while reading into one about this file: around it another may be written."""
    try:
        yield
    except OSError as error:
        raise CorruptFile("a file of tensors cannot be read", where=path, got=error.strerror, hint=_HINT) from error


def read_header(path: Path) -> tuple[dict[str, msgspec.Raw], int]:
    """The JSON header of a file by tensor, and where the bytes behind it begin.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: there is none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(min(size, _MAX_HEADER_BYTES))
    return msgspec.json.decode(text, type=dict[str, msgspec.Raw]), 8 + size


class TensorReader(Tensors):
    """The tensors of a safetensors file by name; each is read when it is asked for, and nothing is kept.

    Raises:
        BadInput: the file is in order and holds tensors of types that are not known here; all are named.
        CorruptFile: the file is no safetensors file, or ends early.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            header, self._start = read_header(path)
            header.pop("__metadata__", None)
            slices = {name: msgspec.json.decode(item, type=_Slice) for name, item in header.items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptFile("not a safetensors file", where=path, got=error) from error
        if unknown := [f"{name}: {item}" for name, item in slices.items() if item.dtype not in _DTYPES]:
            raise BadInput(
                "tensors are of a type that is not known here",
                where=path,
                got=names_text(unknown, shown=MAX_PROBLEMS, separator="; "),
                expected=", ".join(_DTYPES),
                hint="convert them where the file was made; what packs several numbers into a byte can be kept as U8",
            )
        end = path.stat().st_size - self._start
        for name, item in slices.items():
            first, last = item.data_offsets
            size = math.prod(item.shape) * _DTYPES[item.dtype].itemsize
            is_inside = 0 <= first <= last <= end and last - first == size and min(item.shape, default=0) >= 0
            # Beside an axis of no elements the others may be of any length, which torch multiplies all the same.
            if not is_inside or math.prod(max(axis, 1) for axis in item.shape) >= 2**63:
                raise CorruptFile(
                    "a tensor's size is not its shape's",
                    where=f"{path}, {name}",
                    got=f"{item}, bytes {first} to {last}",
                    expected=f"{size} bytes within the {end} behind the header",
                )
        places = sorted(item.data_offsets for item in slices.values())
        ends = [0, *(last for _, last in places)]
        if [first for first, _ in places] != ends[:-1] or ends[-1] != end:
            raise CorruptFile("tensors of a file overlap, or bytes of it belong to none", where=path)
        self._first_byte = {name: item.data_offsets[0] for name, item in slices.items()}
        specs = {name: TensorSpec(_DTYPES[item.dtype], tuple(item.shape)) for name, item in slices.items()}
        super().__init__(specs, lambda name: self.part(name, slice(None)).reshape(specs[name].shape))

    def part(self, name: str, elements: slice) -> Tensor:
        """Some elements of a tensor seen as flat, without reading the others; those beyond its end are left out."""
        spec = self.specs[name]
        start, stop, _ = elements.indices(spec.num_elements)
        content = torch.empty(max(0, stop - start) * spec.dtype.itemsize, dtype=torch.uint8)
        with read_errors(self._path), self._path.open("rb", buffering=0) as file:
            file.seek(self._start + self._first_byte[name] + start * spec.dtype.itemsize)
            target = content.numpy().data
            while target and (count := file.readinto(target)):
                target = target[count:]
        if target:
            raise CorruptFile("a file of tensors is cut", where=self._path, got=f"{name} ends early")
        return content.view(spec.dtype)


class _Slice(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def open_tensors(folder: Path, entry: TensorFile) -> TensorReader:
    """The tensors of a verified file, to be read one by one; raises as `verify` and `TensorReader`."""
    return TensorReader(verify(folder, entry))
