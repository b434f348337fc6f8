"""Every tensor storage that a forward and backward pass allocates, with its life, on any device, `meta` included.

On `meta` nothing is computed or allocated, so that the pass of a model of any size takes seconds and no memory.
Knows nothing of the model: a module, an example batch and a function from both to a scalar loss.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from redheart.memory.kernels import CUDA, Kernels, replaced
from redheart.memory.ledger import ModelSizes
from redheart.pipeline.clock import Counts

Loss = Callable[[nn.Module, Any], Tensor]
_VIEWS_BY_COPY = ("aten::_unsafe_view",)
"""Views that do not call themselves so."""


@dataclass(frozen=True)
class Workload:
    """A model with its batch and loss, and everything about it that does not depend on the strategy."""

    module: nn.Module
    """On `meta`, in the type that it is trained in."""
    sizes: ModelSizes
    batch: Callable[[int], Any]
    loss: Loss
    set_checkpointing: Callable[[nn.Module, bool], None]
    effective_batch: int
    snapshots: int
    snapshot_output_bytes: int
    feature_bytes: int
    log_bytes: int = 0
    kernels: Kernels = CUDA
    is_affine: bool = True
    """Whether every tensor's size is known to be affine in the number of records; else it is tried."""


@dataclass(frozen=True)
class Event:
    """One thing that happened: a storage came or went, or a mark was set."""

    kind: Literal["alloc", "free", "mark"]
    buffer: int
    """Number of the storage within its trace; -1 for a mark."""
    size_bytes: int
    label: str = ""
    """Of a mark: `forward`, `backward`, `end`, or `gradient:NAME` where a parameter's gradient is complete."""


@dataclass(frozen=True)
class Trace:
    """The events of one pass in their order. Storages that were there before it are not in it."""

    events: tuple[Event, ...]
    forward: Counts
    backward: Counts
    """What the two parts launch, compute and move."""

    @property
    def peak_bytes(self) -> int:
        """Largest sum of live storages."""
        # A mark has no size.
        changes = (event.size_bytes if event.kind == "alloc" else -event.size_bytes for event in self.events)
        return max(accumulate(changes, initial=0))


class _StorageTracker(TorchDispatchMode):
    """Notes every storage that an operator brings into being, and when it is given back."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.events: list[Event] = []
        self._live: dict[int, weakref.ref[Any]] = {}
        # Storages from before the pass are marked as known, so that a view of them is not counted as new.
        self._before = {tensor.untyped_storage()._cdata for tensor in known}
        self._count = 0
        self.forward = self.all = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name not in _VIEWS_BY_COPY:
            self.all = _counted(self.all, func, args, kwargs or {}, result)
        # Most operators give one tensor; walking a structure for it would take as long as the operator on `meta`.
        for item in (result,) if isinstance(result, Tensor) else tree_iter(result):
            if isinstance(item, Tensor):
                self._note(item)
        return result

    def mark(self, label: str) -> None:
        self.events.append(Event("mark", -1, 0, label))

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._before or key in self._live or storage.nbytes() == 0:
            return
        number, size = self._count, storage.nbytes()
        self._count += 1

        def gone(_: object) -> None:
            del self._live[key]
            self.events.append(Event("free", number, size))

        self._live[key] = weakref.ref(storage, gone)
        self.events.append(Event("alloc", number, size))


def trace_pass(
    module: nn.Module,
    batch: Any,
    loss: Loss,
    *,
    kernels: Kernels | None = None,
    backward: bool = True,
    release_gradients: bool = False,
) -> Trace:
    """Run one pass under a tracker that sees every operator, and give its allocations but those of parameters.

    `kernels` are those of the device that the pass is meant for; None leaves the choice to torch. Without `backward` it
    is a pass without gradients, as in validation; with `release_gradients` each is dropped once it is complete, as ZeRO
    does after it has copied it.
    """
    known = [*module.parameters(), *module.buffers(), *(item for item in tree_iter(batch) if isinstance(item, Tensor))]
    tracker = _StorageTracker(known)
    with _gradient_marks(module, tracker, release=release_gradients), replaced(kernels), tracker:
        tracker.mark("forward")
        if backward:
            value = loss(module, batch)
            tracker.forward = tracker.all
            tracker.mark("backward")
            value.backward()
            del value
        else:
            with torch.no_grad():
                loss(module, batch)
        tracker.mark("end")
        # What is freed from now on is not the pass's doing.
        events = tuple(tracker.events)
    for parameter in module.parameters():
        parameter.grad = None
    return Trace(events, tracker.forward, tracker.all.plus(tracker.forward, -1))


def _counted(counts: Counts, func: Any, args: Any, kwargs: Any, result: Any) -> Counts:
    """With one more operator: its operations, or, where it multiplies nothing, the bytes that it reads and writes."""
    if (formula := flop_registry.get(func.overloadpacket)) is not None:
        return counts.plus(Counts(1, formula(*args, **kwargs, out_val=result)))
    # What only sets memory aside moves nothing.
    tensors = [] if "empty" in func._schema.name else tree_iter((args, kwargs, result))
    return counts.plus(Counts(1, 0, sum(item.nbytes for item in tensors if isinstance(item, Tensor))))


@contextmanager
def _gradient_marks(module: nn.Module, tracker: _StorageTracker, *, release: bool) -> Iterator[None]:
    def hook(name: str) -> Callable[[Tensor], None]:
        def complete(parameter: Tensor) -> None:
            tracker.mark(f"gradient:{name}")
            if release:
                parameter.grad = None

        return complete

    handles = [
        parameter.register_post_accumulate_grad_hook(hook(name))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def at_batch(traces: Mapping[int, Trace], batch: int) -> Trace | None:
    """The trace at another batch size from those at two: every size is affine in the batch.

    None where the two are not the same sequence of events: then nothing can be concluded from them.
    """
    (first, low), (second, high) = sorted(traces.items())
    if len(low.events) != len(high.events):
        return None
    events = []
    for one, two in zip(low.events, high.events, strict=True):
        if (one.kind, one.buffer, one.label) != (two.kind, two.buffer, two.label):
            return None
        slope, rest = divmod(two.size_bytes - one.size_bytes, second - first)
        if rest:
            return None
        events.append(replace(one, size_bytes=one.size_bytes + slope * (batch - first)))
    share = (batch - first) / (second - first)
    forward, backward = (
        one.plus(two.plus(one, -1), share) for one, two in ((low.forward, high.forward), (low.backward, high.backward))
    )
    return Trace(tuple(events), forward, backward)
