"""Which tensors of other tools can be written as they are, bit for bit, and what to do about the others."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.snapshots.tensor_file import DTYPE_NAMES, MAX_PROBLEMS, text_of

_SEEN_AS = {
    torch.complex32: "torch.view_as_real(tensor.to(torch.complex64))",
    torch.complex128: "torch.view_as_real(tensor)",
}
"""What makes a tensor of a type that the format lacks one that it has; of any other its bytes do."""
_MAX_REPEATED_BYTES = 1 << 30
"""A tensor may be larger than the storage behind it, as an expanded one is, up to this size."""


def refuse_unwritable(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise one error that names every tensor which no safetensors file can hold, its type, and the way round it.

    Raises:
        BadInput: there are any.
    """
    found = ((name, unwritable(tensor)) for name, tensor in tensors.items())
    lines = [f"    {name}: {problem}" for name, problem in found if problem]
    if lines:
        more = [f"    and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
        raise BadInput(
            "\n".join([f"{len(lines)} tensors are of a kind that is not imported", *lines[:MAX_PROBLEMS], *more]),
            where=where,
            expected=f"dense tensors of {', '.join(DTYPE_NAMES.values())}",
            hint="change them where the file was made, as said behind each, and save it again",
        )


def unwritable(tensor: Tensor) -> str | None:
    """What a tensor is that cannot be written, and what would make it one that can; None where it can be."""
    # The shape of one in parts is not defined and must not be asked for.
    if tensor.is_nested:
        return f"a nested {text_of(tensor.dtype)} tensor: torch.nested.to_padded_tensor(tensor, 0.0)"
    kind = f"{text_of(tensor.dtype)} {list(tensor.shape)}"
    if tensor.is_meta:
        return f"{kind} on the device `meta`, without any numbers: load its weights before it is saved"
    if tensor.layout != torch.strided:
        return f"{kind} in the layout {text_of(tensor.layout)}: tensor.to_dense()"
    if tensor.is_quantized:
        return f"{kind}, quantised: tensor.dequantize()"
    if tensor.dtype not in DTYPE_NAMES:
        return f"{kind}: {_SEEN_AS.get(tensor.dtype, 'tensor.view(torch.uint8)')}"
    if tensor.nbytes > max(_MAX_REPEATED_BYTES, tensor.untyped_storage().nbytes()):
        return f"{kind}, which repeats what it holds: tensor[:1] where it was expanded"
    return None
