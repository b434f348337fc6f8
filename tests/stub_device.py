"""A CUDA device for machines without one: tensors that say they lie on `cuda` and keep the host's bits inside.

As CUDA does, it refuses operators that mix its tensors with the host's (numbers without dimensions excepted) and has no
`numpy()`. Everything that makes a tensor there goes through `torch.Tensor.to` or a factory's `device`, which are
replaced, for all threads: modes of torch are one thread's own.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
_FACTORIES = ("empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "full", "arange", "eye", "tensor")
_ATEN = torch.ops.aten


class OnStub(Tensor):
    """A tensor on the stub device."""

    inner: Tensor
    # To torch itself it lies on the host: torch would ask a driver for any other device.
    device = DEVICE  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnStub":
        # Inference tensors have no version, which torch would set in a view.
        with torch.inference_mode(False):
            found: OnStub = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
            )
        found.inner = inner
        return found

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.inner.clone()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host.")

    __array__ = numpy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            # torch would look for a CUDA kernel before any operator is asked for.
            return _on_host(func, args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN.copy_.default:
            func(*_opened(args), **kwargs)
            return args[0]
        if func in (_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.is_nonzero.default):
            return func(*_opened(args), **kwargs)
        result = _on_host(func, args, kwargs)
        # What works in place gives back what it was given.
        return args[0] if func._schema.is_mutable and isinstance(args[0], OnStub) else result


def _opened(value: Any) -> Any:
    return tree_map_only(OnStub, lambda tensor: tensor.inner, value)


def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        if not isinstance(tensor, OnStub) and tensor.dim():
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two, cuda:0 and {tensor.device}! "
                f"({func})"
            )
    return tree_map_only(Tensor, OnStub, func(*_opened(args), **_opened(kwargs)))


def install(monkeypatch: pytest.MonkeyPatch, *, free_bytes: int = 8 << 30) -> None:
    """Let torch have this one device until the test ends."""
    to = torch.Tensor.to

    def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        for item in args:
            if isinstance(item, Tensor):
                target, dtype = item.device, item.dtype
            elif isinstance(item, torch.dtype):
                dtype = item
            elif isinstance(item, str | torch.device):
                target = item
        target, dtype = torch.device(target or tensor.device), dtype or tensor.dtype
        if target.type != "cuda":
            return to(tensor.cpu() if isinstance(tensor, OnStub) else tensor, target, dtype)
        if isinstance(tensor, OnStub):
            return to(tensor, dtype)
        # A copy even where the type is the same: it lies elsewhere now.
        return OnStub(to(tensor.detach(), dtype, copy=True))

    monkeypatch.setattr(torch.Tensor, "to", moved)
    for name in _FACTORIES:
        monkeypatch.setattr(torch, name, _making(getattr(torch, name)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free_bytes, free_bytes))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 1.0)


def _making(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return factory(*args, **kwargs) if device is None else factory(*args, device=device, **kwargs)
        return OnStub(factory(*_opened(args), device="cpu", **kwargs))

    return make
