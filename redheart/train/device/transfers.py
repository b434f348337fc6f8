"""Copies between a CUDA device and host memory that overlap with the work on both sides.

Only page-locked memory is copied without the host waiting. Locking all that an optimizer holds is what laptops and WSL
refuse, so everything passes through a few small page-locked slots.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

SLOT_ELEMENTS = 8 << 20
"""Elements of a slot: 16 MiB in bf16, of which a bus of 12 GB/s takes 1.4 ms."""
SLOTS_TO_HOST, SLOTS_TO_DEVICE = 4, 2


def pieces(elements: int) -> Iterator[slice]:
    """The parts of a flat tensor that fit into one slot each."""
    for start in range(0, elements, SLOT_ELEMENTS):
        yield slice(start, min(start + SLOT_ELEMENTS, elements))


class ToHost:
    """Brings tensors to the host and hands each to a function there, in order, in a thread of its own.

    So the device goes on with its pass, and the thread that launches its work goes on launching.
    """

    def __init__(self) -> None:
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        for slot in _slots(SLOTS_TO_HOST):
            self._free.put(slot)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="to-host")
        self._pending: list[Future[None]] = []

    def send(self, source: Tensor, use: Callable[[Tensor], None]) -> None:
        """Copy a flat tensor of at most `SLOT_ELEMENTS`; `use` gets the copy, which is its own until it returns."""
        slot = self._free.get()  # waits while all of them are on their way
        slot[: source.numel()].copy_(source, non_blocking=True)
        self._pending.append(self._worker.submit(self._use, slot, source.numel(), _Mark(), use))

    def wait(self) -> None:
        """Until everything sent has arrived and been used; raises what a `use` raised."""
        pending, self._pending = self._pending, []
        for job in pending:
            job.result()

    def _use(self, slot: Tensor, elements: int, copied: "_Mark", use: Callable[[Tensor], None]) -> None:
        try:
            copied.wait()
            with torch.no_grad():
                use(slot[:elements])
        finally:
            self._free.put(slot)


class ToDevice:
    """Slots that are filled on the host in turn, each while the one before is on its way to the device."""

    def __init__(self) -> None:
        self._slots = _slots(SLOTS_TO_DEVICE)
        self._copied: list[_Mark | None] = [None] * SLOTS_TO_DEVICE
        self._next = 0

    def slot(self, elements: int) -> Tensor:
        """The next slot, once what it held has left."""
        copied = self._copied[self._next]
        if copied is not None:
            copied.wait()
        return self._slots[self._next][:elements]

    def send(self, slot: Tensor, target: Tensor) -> None:
        """Start the copy of what `slot` gave last."""
        target.copy_(slot, non_blocking=True)
        self._copied[self._next] = _Mark()
        self._next = (self._next + 1) % SLOTS_TO_DEVICE


class _Mark:
    """The point that the device has reached when all that was given to it until now is done."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event() if torch.cuda.is_available() else None
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


def _slots(count: int) -> list[Tensor]:
    return list(torch.empty(count, SLOT_ELEMENTS, dtype=torch.bfloat16, pin_memory=torch.cuda.is_available()))
