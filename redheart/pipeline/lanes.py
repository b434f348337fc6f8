"""What a step's work is handed to: lanes that each do one thing after the other, beside each other.

The order of a step is written once, in `step`, against this protocol. Behind it stand a card's streams and threads, a
clock that turns constants into times (`clock`), or a recorder that proves what happens before what (in the tests).

A card has streams of its own for the copies each way, and a thread for each lane that waits for the host. The thread
that launches the passes is never kept: copies are queued by a thread of theirs, which can wait for a slot that the host
reads, and updates run in another. The end of a task is what its thread has queued, and an event of the card behind it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import torch


class Lane(StrEnum):
    """A queue: tasks of one lane run one after the other, in the order of their submission."""

    LAUNCH = "launch"
    COMPUTE = "compute"
    OUT = "card to host"
    HOST = "host"
    IN = "host to card"


class Task(NamedTuple):
    """A piece of work, with everything that the lanes behind the protocol may want to know of it."""

    kind: str
    """`launch`, `forward`, `backward`, `square`, `copy out`, `drain`, `norm`, `update`, `copy in`."""
    of: str
    """The module or bucket that it is about."""
    amount: float
    """Seconds of computing and launching, bytes on the bus, elements on the host."""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """Names of the memory that it touches."""
    run: Callable[[], None] | None = None
    """What is done, where anything is."""


Event = Any
"""The end of a task; what it is, is the lanes' own affair."""


class Wait(NamedTuple):
    """Why a task may not start before another one's end; the reason names the edge in tests and figures."""

    event: Event
    reason: str


class Lanes(Protocol):
    """Where tasks run."""

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> Event:
        """Queue a task behind those of its lane, not to start before the ends that it waits for; its own end."""


class InTurn:
    """Every task at once, when it is submitted: one thread, nothing beside anything, the same results."""

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> None:
        """Run a task; its end is now."""
        if task.run is not None:
            task.run()

    def wait(self, end: None = None) -> None:
        """Until a task's end, which is now."""


End = Future[Any]
"""Of a task: done when it is queued, with an event of the device; one of the host's when it is done, with None."""


class Cuda:
    """What the lanes need of a device."""

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise ValueError(f"copies beside the passes need parameters on a CUDA device, not on {device}")
        self._device = device

    def stream(self) -> torch.cuda.Stream:
        """A new stream."""
        return torch.cuda.Stream(self._device)

    def current(self) -> torch.cuda.Stream:
        """The stream of the pass."""
        return torch.cuda.current_stream(self._device)

    def launch(self, stream: torch.cuda.Stream, run: Callable[[], None]) -> None:
        """Queue what a function does on a stream."""
        with torch.cuda.stream(stream):
            run()

    def mark(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """The point that a stream has reached with all that it was given."""
        # The host's lane sleeps until it comes; otherwise it would keep a core busy.
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return event


class StreamLanes:
    """Lanes of one CUDA device; nothing runs after a task that failed, and `submit` and `wait` raise its error."""

    def __init__(self, device: torch.device):
        self._cuda = Cuda(device)
        self._streams = {lane: self._cuda.stream() for lane in (Lane.OUT, Lane.IN)}
        self._threads = {
            lane: ThreadPoolExecutor(1, thread_name_prefix=lane.value) for lane in (Lane.OUT, Lane.HOST, Lane.IN)
        }
        self._last: dict[Lane, End] = {}
        self._error: BaseException | None = None

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> End:
        """Queue a task in its lane's thread; launching and the passes are the caller's own."""
        ends = [wait.event for wait in waits]
        if lane in self._threads:
            end = self._threads[lane].submit(self._guarded, lane, task, ends)
        else:
            end = Future()
            end.set_result(self._guarded(lane, task, ends))
        self._last[lane] = end
        return end

    def wait(self, end: End | None = None) -> None:
        """Until a task's end, or all there are, on the host; the device is waited for by its streams."""
        for one in [end] if end else list(self._last.values()):
            one.result()

    def _guarded(self, lane: Lane, task: Task, ends: Sequence[End]) -> Any:
        if self._error is not None:
            raise self._error
        try:
            return self._run(lane, task, ends)
        except BaseException as error:
            self._error = error
            raise

    def _run(self, lane: Lane, task: Task, ends: Sequence[End]) -> Any:
        events = [event for end in ends if (event := end.result()) is not None]
        if lane in (Lane.HOST, Lane.LAUNCH):
            if lane == Lane.HOST:
                for event in events:
                    event.synchronize()
            if task.run is not None:
                task.run()
            return None
        stream = self._streams.get(lane) or self._cuda.current()
        for event in events:
            stream.wait_event(event)
        if task.run is not None:
            self._cuda.launch(stream, task.run)
        return self._cuda.mark(stream)
