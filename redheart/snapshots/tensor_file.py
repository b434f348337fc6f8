"""Tensors in one safetensors file, written tensor by tensor with its digest, and read strictly.

The format is 8 bytes of header length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors). Own writing, since the library copies all tensors before it writes
and does not flush: here one tensor is held at a time, and the SHA-256 is taken in the same pass. Own reading, since the
library maps the whole file into the process, which counts as resident and made a resume's peak larger than a start's.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import disk_errors, open_output, sha256_file, to_disk

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
MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
MAX_PROBLEMS = 50
"""So many tensors are named in one error."""
_MAX_ELEMENTS = 2**63 - 1


class Delta(msgspec.Struct, frozen=True):
    """What a file of differences belongs to."""

    base: str
    """Folder of the snapshot that the differences are to."""
    base_sha256: str
    """SHA-256 of that snapshot's own safetensors file of the same module."""
    content_sha256: str
    """SHA-256 of the safetensors file that stands here once the differences are put together."""
    content_bytes: int


class TensorFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a manifest knows of one file of tensors."""

    file: str
    sha256: str
    bytes: int
    num_elements: int
    delta: Delta | None = None
    """Set where the file holds differences to another snapshot's."""

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the tensors as a safetensors file, compressed or not."""
        return self.delta.content_sha256 if self.delta else self.sha256

    @property
    def content_bytes(self) -> int:
        """Size of the tensors as a safetensors file."""
        return self.delta.content_bytes if self.delta else self.bytes


class TensorSpec(msgspec.Struct, frozen=True):
    """Type and shape of a tensor that need not be there yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{text_of(self.dtype)} {list(self.shape)}"


def text_of(kind: torch.dtype | torch.layout) -> str:
    """A type's name without torch's."""
    return str(kind).removeprefix("torch.")


def spec_of(tensor: Tensor) -> TensorSpec:
    """Type and shape of a tensor."""
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Write and flush a new file; the folder around it decides when it appears.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    return write_stream(path, {name: spec_of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)


def write_stream(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> TensorFile:
    """As `write_tensors`, for tensors that are made when they are asked for; one is held at a time.

    Args:
        path: a new file.
        specs: what will be written, in its order.
        read: gives a tensor of exactly that type and shape.
        metadata: the format's own free text by key.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    digest, size = hashlib.sha256(), 0
    with disk_errors(path), open_output(path) as file:
        for block in _blocks(specs, read, metadata):
            digest.update(block)
            size += file.write(block)
        to_disk(file)
    return TensorFile(
        file=path.name,
        sha256=digest.hexdigest(),
        bytes=size,
        num_elements=sum(spec.num_elements for spec in specs.values()),
    )


def content_sha256(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> str:
    """SHA-256 of the file that `write_stream` would write."""
    digest = hashlib.sha256()
    for block in _blocks(specs, read, None):
        digest.update(block)
    return digest.hexdigest()


def _blocks(
    specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, spec in specs.items():
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
    for name, spec in specs.items():
        tensor = read(name)
        assert spec_of(tensor) == spec, name
        plain = tensor.detach().resolve_conj().resolve_neg()
        yield plain.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def verify(folder: Path, entry: TensorFile) -> Path:
    """The path of a file whose bytes match its manifest entry.

    Raises:
        CorruptFile: it is missing, cut or changed; the file is named.
    """
    path = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise CorruptFile("a manifest names a file of another folder", where=folder, got=entry.file)
    if not path.is_file():
        raise CorruptFile(
            "a file of tensors is missing", where=path, hint="restore it, or use another snapshot or state"
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
            hint="restore it, or use another snapshot or state",
        )
    return path


class TensorReader(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name; each is read when it is asked for, and nothing is kept.

    Raises:
        BadInput: the file is in order and holds tensors of types that are not known here; all are named.
        CorruptFile: the file is no safetensors file, or ends early.
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
            first, last = item.data_offsets
            if not 0 <= first <= last <= end or min(item.shape, default=0) < 0:
                raise CorruptFile(
                    "not a readable tensor",
                    where=f"{path}, {name}",
                    got=f"{item}, bytes {first} to {last}",
                    expected=f"within the {end} bytes behind the header",
                )
        _refuse_unknown_types(slices, path)
        for name, item in slices.items():
            first, last = item.data_offsets
            size = math.prod(item.shape) * _DTYPES[item.dtype].itemsize
            # Beside an axis of no elements the others may be of any length, which torch multiplies all the same.
            if last - first != size or math.prod(max(axis, 1) for axis in item.shape) > _MAX_ELEMENTS:
                raise CorruptFile(
                    "a tensor's size is not its shape's",
                    where=f"{path}, {name}",
                    got=f"{item}, {last - first} bytes",
                    expected=f"{size} bytes",
                )
        self._slices = MappingProxyType(slices)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: TensorSpec(_DTYPES[item.dtype], tuple(item.shape)) for name, item in slices.items()}
        )
        """Types and shapes of all tensors."""

    def __getitem__(self, name: str) -> Tensor:
        item = self._slices[name]
        return self._read(name, *item.data_offsets).reshape(item.shape)

    def part(self, name: str, elements: slice) -> Tensor:
        """Some elements of a tensor seen as flat, without reading the others; those beyond its end are left out."""
        item = self._slices[name]
        size = _DTYPES[item.dtype].itemsize
        start, stop, _ = elements.indices(math.prod(item.shape))
        first = item.data_offsets[0]
        return self._read(name, first + start * size, first + max(start, stop) * size)

    def _read(self, name: str, first: int, last: int) -> Tensor:
        content = torch.empty(last - first, dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start + first)
            target = content.numpy().data
            while target and (count := file.readinto(target)):
                target = target[count:]
        if target:
            raise CorruptFile("a file of tensors is cut", where=self._path, got=f"{name} ends early")
        return content.view(_DTYPES[self._slices[name].dtype])

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)


class _Slice(msgspec.Struct, frozen=True):
    """One tensor in the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def _refuse_unknown_types(slices: Mapping[str, _Slice], path: Path) -> None:
    unknown = [f"{name}: {item}" for name, item in slices.items() if item.dtype not in _DTYPES]
    if unknown:
        more = f" and {len(unknown) - MAX_PROBLEMS} more" if len(unknown) > MAX_PROBLEMS else ""
        raise BadInput(
            "tensors are of a type that is not known here",
            where=path,
            got="; ".join(unknown[:MAX_PROBLEMS]) + more,
            expected=", ".join(_DTYPES),
            hint="convert them where the file was made; what packs several numbers into a byte can be kept as U8",
        )


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
