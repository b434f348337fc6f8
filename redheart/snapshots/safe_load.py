"""Files of `torch.save` read without running anything that is in them, and which of their tensors can be written.

Only torch's own restricted reader is used (`weights_only=True`). What files name beside tensors, DeepSpeed's enum of
stages, loss scaler and fragment addresses, arguments, paths and scores as numbers of numpy, becomes an inert object
here: none of that code is needed or run.
"""

import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile, listed
from redheart.snapshots.tensor_file import DTYPE_NAMES
from redheart.snapshots.tensors import spec_of

_ALLOWED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "argparse.Namespace",
    "builtins.dict",
    # How Python 3.11.2 keeps a member of an enum, of which DeepSpeed writes one; nothing is looked up.
    "builtins.getattr",
    "builtins.list",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *(f"{paths}.{system}Path" for paths in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
)
"""What DeepSpeed 0.19.8 saves in stages 1 and 2, and plain data that scripts keep beside weights."""

_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    torch.serialization.pickle.PickleError,
)
"""What torch's reader was seen to raise on files that were changed at random."""

_SEEN_AS = {
    torch.complex32: "torch.view_as_real(tensor.to(torch.complex64))",
    torch.complex128: "torch.view_as_real(tensor)",
}
"""What makes a tensor of a type that the format lacks one that it has; of any other its bytes do."""
_MAX_REPEATED_BYTES = 1 << 30
"""A tensor may be larger than the storage behind it, as an expanded one is, up to this size."""


class Inert:
    """Stands where a file names something of `_ALLOWED`; remembers what it was called with, does nothing."""

    arguments: tuple[object, ...]

    def __new__(cls, *arguments: object) -> "Inert":
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: object) -> None:
        return None


def _plain_dict(*_: object) -> dict[object, object]:
    """What a `defaultdict` is read as."""
    return {}


def load_torch_file(path: Path) -> object:
    """The content of a file of `torch.save`; tensors are mapped, and read from the disk when they are used.

    Raises:
        BadInput: not such a file, or it names anything but tensors and plain data; the names are listed.
        CorruptFile: its checksums do not match, or it is not readable.
    """
    _check_zip(path)
    stand_ins: list[Any] = [*((Inert, name) for name in _ALLOWED), (_plain_dict, "collections.defaultdict")]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            # Of types that torch will give up, and of protocols: what is in the file cannot be helped here.
            warnings.simplefilter("ignore")
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not unsafe:
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _UNREADABLE as error:
        raise CorruptFile("a file of torch.save cannot be read", where=path, got=str(error).split("\n")[0]) from error
    hint = "if you trust it, load it where it was made and save its state_dict() alone, best as safetensors"
    if any(name.endswith(".DTensor") for name in unsafe):
        hint = "its tensors are parts of several processes: save tensor.full_tensor() of each there"
    raise BadInput(
        "a file wants to run code when it is read; it was not",
        where=path,
        got=", ".join(sorted(unsafe)),
        expected="tensors, numbers, texts, lists and dictionaries",
        hint=hint,
    )


def _check_zip(path: Path) -> None:
    if not path.is_file():
        raise BadInput("file not found", where=path)
    try:
        if not zipfile.is_zipfile(path):
            raise BadInput(
                "not a file of torch.save",
                where=path,
                expected="the zip format of torch 1.6 and later",
                hint="save it again with a newer torch, best as safetensors",
            )
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression; anything else could unfold to any size.
            packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
            broken = packed[0] if packed else archive.testzip()
    # An offset that was changed may point before the file's first byte, which is an OSError.
    except (zipfile.BadZipFile, OSError, *_UNREADABLE) as wrong:
        raise CorruptFile("a file of torch.save was changed or cut", where=path, got=wrong) from wrong
    if broken is not None:
        raise CorruptFile("a part of a file of torch.save was changed", where=path, got=broken)


def refuse_unwritable(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise one `BadInput` that names every tensor which no safetensors file can hold, and the way round it."""
    found = ((name, _unwritable(tensor)) for name, tensor in tensors.items())
    problems = [f"{name}: {problem}" for name, problem in found if problem]
    if problems:
        raise BadInput(
            f"{len(problems)} tensors are of a kind that is not imported{listed(problems)}",
            where=where,
            expected=f"dense tensors of {', '.join(DTYPE_NAMES.values())}",
            hint="change them where the file was made, as said behind each, and save it again",
        )


def _unwritable(tensor: Tensor) -> str | None:
    """What a tensor is that cannot be written, and what would make it one that can; None where it can be."""
    # The shape of one in parts is not defined and must not be asked for.
    if tensor.is_nested:
        return f"a nested {_text(tensor.dtype)} tensor: torch.nested.to_padded_tensor(tensor, 0.0)"
    kind = str(spec_of(tensor))
    if tensor.is_meta:
        return f"{kind} on the device `meta`, without any numbers: load its weights before it is saved"
    if tensor.layout != torch.strided:
        return f"{kind} in the layout {_text(tensor.layout)}: tensor.to_dense()"
    if tensor.is_quantized:
        return f"{kind}, quantised: tensor.dequantize()"
    if tensor.dtype not in DTYPE_NAMES:
        return f"{kind}: {_SEEN_AS.get(tensor.dtype, 'tensor.view(torch.uint8)')}"
    if tensor.nbytes > max(_MAX_REPEATED_BYTES, tensor.untyped_storage().nbytes()):
        return f"{kind}, which repeats what it holds: tensor[:1] where it was expanded"
    return None


def _text(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
