"""Lossless differences between the weights of two snapshots, tensor by tensor.

Weights of the next epoch are close to those of the last one. Their bf16 patterns are put in the order of the numbers
that they stand for, subtracted, folded so that small differences of either sign are small (zigzag), split into a plane
of high and one of low bytes, and each plane is compressed with zstd. On snapshots of `small` two epochs apart this
leaves 8 to 30 % of the bytes, by the learning rate between them; planes without a difference leave 70 %. Level 1 is
also the smallest of the fast ones: 26.1 %, 27.0 at level 3 and 27.1 at level 6, at less than half of its speed.

A file is 8 bytes of header length, a JSON header, then the frames; every tensor can be read alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
import zstandard
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.snapshots.manifests import Delta, TensorFile
from redheart.snapshots.tensor_file import read_errors, read_header, write_blocks
from redheart.snapshots.tensors import Tensors, TensorSpec

SUFFIX = ".delta"
LEVEL = 1
_SIGN = np.int16(-0x8000)


class _Frames(msgspec.Struct, frozen=True):
    """One tensor in the header: where its planes lie after the header, high bytes first."""

    shape: list[int]
    frames: list[tuple[int, int]]
    has_base: bool


def write_delta(path: Path, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], *, delta: Delta) -> TensorFile:
    """Write bf16 tensors as differences to those of the same name and shape in `base`; others are only compressed.

    One tensor is held at a time, and the compressed planes until all are there: a third of the tensors' bytes.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    header, planes, offset, num_elements = {}, [], 0, 0
    for name, tensor in tensors.items():
        num_elements += tensor.numel()
        assert tensor.dtype == torch.bfloat16, name
        older = base.get(name)
        if older is not None and older.shape != tensor.shape:
            older = None
        frames = []
        for plane in _encoded(_bits(tensor), None if older is None else _bits(older)):
            packed = compressor.compress(plane)
            frames.append((offset, len(packed)))
            offset += len(packed)
            planes.append(packed)
        header[name] = _Frames(list(tensor.shape), frames, older is not None)
    text = msgspec.json.encode(header)
    sha256, size = write_blocks(path, (len(text).to_bytes(8, "little"), text, *planes))
    return TensorFile(path.name, sha256, size, num_elements, delta)


def read_delta(path: Path, base: Mapping[str, Tensor]) -> Tensors:
    """The tensors of a file of differences, put together with their base when they are asked for.

    Raises:
        CorruptFile: the file is not what `write_delta` writes, or does not belong to this base.
    """
    try:
        raw, start = read_header(path)
        header = {name: msgspec.json.decode(item, type=_Frames) for name, item in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptFile("not a file of differences", where=path, got=error) from error
    end = path.stat().st_size - start
    for name, item in header.items():
        inside = all(offset >= 0 and 0 <= length <= end - offset for offset, length in item.frames)
        if len(item.frames) != 2 or not inside or min(item.shape, default=0) < 0:
            raise CorruptFile("not a readable tensor", where=f"{path}, {name}", got=item)

    def plane(frame: tuple[int, int], size: int) -> np.ndarray:
        with read_errors(path), path.open("rb") as file:
            file.seek(start + frame[0])
            packed = file.read(frame[1])
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        return np.frombuffer(plain, dtype=np.uint8)

    def read(name: str) -> Tensor:
        item = header[name]
        size = math.prod(item.shape)
        try:
            high, low = (plane(frame, size) for frame in item.frames)
            older = _bits(base[name]) if item.has_base else None
        except (zstandard.ZstdError, KeyError) as error:
            raise CorruptFile("a difference cannot be read", where=f"{path}, {name}", got=error) from error
        if len(high) != size or len(low) != size or (older is not None and len(older) != size):
            raise CorruptFile("a difference does not fit its base", where=f"{path}, {name}", got=item.shape)
        return torch.from_numpy(_decoded(high, low, older)).view(torch.bfloat16).reshape(item.shape)

    return Tensors({name: TensorSpec(torch.bfloat16, tuple(item.shape)) for name, item in header.items()}, read)


def _bits(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().contiguous().cpu().view(torch.int16).numpy().reshape(-1).view(np.uint16))


def _encoded(bits: np.ndarray, older: np.ndarray | None) -> tuple[bytes, bytes]:
    folded = bits.view(np.int16)
    if older is not None:
        folded = _ordered(bits)
        folded -= _ordered(older)
        sign = folded >> 15
        folded <<= 1
        folded ^= sign
    planes = folded.view(np.uint8)
    return planes[1::2].tobytes(), planes[0::2].tobytes()


def _decoded(high: np.ndarray, low: np.ndarray, older: np.ndarray | None) -> np.ndarray:
    folded = np.empty(len(high), dtype=np.uint16)
    planes = folded.view(np.uint8)
    planes[1::2], planes[0::2] = high, low
    if older is None:
        return folded.view(np.int16)
    sign = (folded & 1).view(np.int16)
    np.negative(sign, out=sign)
    folded >>= 1
    bits = folded.view(np.int16)
    bits ^= sign
    bits += _ordered(older)
    # Back from the order of numbers to sign and magnitude.
    flipped = np.invert(bits >> 15)
    flipped |= _SIGN
    bits ^= flipped
    return bits


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Patterns of floats as integers in the order of their values: negative ones turned around, below all others.

    In place and without branches, like its callers: five times as fast as `np.where` on shifted copies.
    """
    flipped = bits.view(np.int16) >> 15
    flipped |= _SIGN
    flipped ^= bits.view(np.int16)
    return flipped
