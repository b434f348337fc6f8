"""The compiled kernel's functions on torch tensors. All tensors are contiguous and on the CPU.

Source of the update: Loshchilov & Hutter 2019 (AdamW); of block-wise dynamic 8-bit states: Dettmers et al. 2022.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from redheart.kernel.build import NoKernel, libraries

BLOCK = 256


@dataclass(frozen=True)
class StepScalars:
    """What one optimizer step needs beside its tensors."""

    step: int
    """Number of this step, from 1."""
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_scale: float = 1.0
    """Every gradient is multiplied by it: unscaling and clipping in one."""
    min_code2: int = 1
    """Smallest code of a second moment: 1 never rounds it to zero, which would divide by eps; 0 is bitsandbytes'."""


class Moments(NamedTuple):
    """Both moments of (n,) elements: in float32, or as codes of 8 bits with what these stand for."""

    states: Sequence[Tensor]
    """The first and the second, (n,) float32 or uint8 each."""
    absmax: Sequence[Tensor] = ()
    """Of each block of 256 codes, (ceil(n / 256),) float32 each."""
    qmaps: Sequence[Tensor] = ()
    """bitsandbytes' signed and unsigned dynamic maps, (256,) float32 each."""


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("grad_to_m", "grad_to_h", "beta1", "beta2")),
        *((name, ctypes.c_float) for name in ("keep", "step_size", "eps_hat")),
        ("min_code2", ctypes.c_uint32),
    )


class Kernel:
    """One instruction-set path of the compiled library.

    It works in torch's number of threads or one of its own, on which no result depends.
    """

    def __init__(self, library: ctypes.CDLL, rank: int, num_threads: int | None = None):
        self._library, self._rank, self._num_threads = library, rank, num_threads
        self.name = str(library.redheart_path_name(rank).decode())

    def with_threads(self, num_threads: int) -> "Kernel":
        """The same path by so many threads."""
        return Kernel(self._library, self._rank, num_threads)

    def update(
        self,
        scalars: StepScalars,
        master: Tensor,
        grad: Tensor,
        moments: Moments,
        out_bf16: Tensor | None = None,
    ) -> None:
        """One step in place of weights, (n,) float32, with their gradient, (n,) float32 or bfloat16.

        `out_bf16` is where the new weights are also written, (n,) bfloat16.
        """
        function = self._library.redheart_adamw8bit if moments.absmax else self._library.redheart_adamw32
        function(
            self._rank,
            self._threads(),
            ctypes.byref(_scalars(scalars)),
            *map(_at, moments.qmaps),
            ctypes.c_int64(master.numel()),
            _at(master),
            _at(grad),
            _is_bf16(grad),
            *map(_at, (*moments.states, *moments.absmax)),
            _at(out_bf16),
        )

    def sum_squares(self, grad: Tensor) -> float:
        """Sum of squares in double precision, the same for any number of threads."""
        count = ctypes.c_int64(grad.numel())
        return float(self._library.redheart_sum_squares(self._rank, self._threads(), count, _at(grad), _is_bf16(grad)))

    def add(self, total: Tensor, addend: Tensor) -> None:
        """Add (n,) bfloat16 to (n,) float32 in place, without the float32 copy that torch makes of an addend."""
        count = ctypes.c_int64(total.numel())
        self._library.redheart_add_bf16(self._threads(), count, _at(total), _at(addend))

    def rms_norm(self, states: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of rows, (n, width) float32, times their weights, (width,), and what each was multiplied by, (n,).

        Source: Zhang & Sennrich 2019.
        """
        rows, width = states.shape
        normed, inverse = torch.empty_like(states), states.new_empty(rows)
        tensors = (states, weight, inverse, normed)
        self._library.redheart_rms_norm(self._threads(), rows, width, eps, *map(Tensor.data_ptr, tensors))
        return normed, inverse

    def rms_norm_gradients(
        self, grad: Tensor, states: Tensor, weight: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `rms_norm`'s states and weight, from that of the rows that it gave."""
        found = torch.empty_like(states), torch.empty_like(weight)
        tensors = (grad, states, weight, inverse, *found)
        self._library.redheart_rms_norm_gradients(self._threads(), *states.shape, *map(Tensor.data_ptr, tensors))
        return found

    def gelu(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The GELU of float32, (n,), and its slope there.

        Source: Hendrycks & Gimpel 2016.
        """
        found = torch.empty_like(states), torch.empty_like(states)
        self._library.redheart_gelu(self._threads(), states.numel(), *map(Tensor.data_ptr, (states, *found)))
        return found

    def _threads(self) -> int:
        return self._num_threads or torch.get_num_threads()


@cache
def fastest() -> tuple[Kernel | None, str]:
    """The fastest path that this machine runs, or None and why there is none."""
    try:
        return compiled_kernels()[-1], ""
    except NoKernel as reason:
        return None, str(reason)


def compiled_kernels() -> tuple[Kernel, ...]:
    """All paths of the first library that can be loaded, the fastest last.

    Raises:
        NoKernel: none can be had; with the reasons.
    """
    failures: list[str] = []
    for path in libraries(failures):
        try:
            found = load_kernels(str(path))
        except OSError as error:
            failures.append(f"a compiled kernel cannot be loaded: {error}")
        else:
            if found:
                return found
            failures.append("the kernel has no path for this processor")
    raise NoKernel("; ".join(dict.fromkeys(failures)))


def load_kernels(path: str) -> tuple[Kernel, ...]:
    """All paths of a compiled library that this processor runs."""
    library = ctypes.CDLL(path)
    library.redheart_path_name.restype = ctypes.c_char_p
    library.redheart_sum_squares.restype = ctypes.c_double
    # Called so often, for so little, that ctypes objects of their arguments would be a good part of it.
    sizes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.redheart_rms_norm.argtypes = [*sizes, ctypes.c_float, *[ctypes.c_void_p] * 4]
    library.redheart_gelu.argtypes = [*sizes[:2], *[ctypes.c_void_p] * 3]
    library.redheart_rms_norm_gradients.argtypes = [*sizes, *[ctypes.c_void_p] * 6]
    return tuple(Kernel(library, rank) for rank in range(4) if library.redheart_path_name(rank))


def _is_bf16(grad: Tensor) -> int:
    """Which of the two types that the library reads; any other would be read as float32, past its end."""
    if grad.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"a gradient is in {grad.dtype}, expected bfloat16 or float32")
    return int(grad.dtype == torch.bfloat16)


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _scalars(scalars: StepScalars) -> _Step:
    root = math.sqrt(1 - scalars.beta2**scalars.step)
    return _Step(
        scalars.grad_scale * (1 - scalars.beta1),
        scalars.grad_scale * math.sqrt(1 - scalars.beta2),
        scalars.beta1,
        scalars.beta2,
        1 - scalars.learning_rate * scalars.weight_decay,
        scalars.learning_rate * root / (1 - scalars.beta1**scalars.step),
        scalars.eps * root,
        scalars.min_code2,
    )
