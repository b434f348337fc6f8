"""The lanes of a card: streams of its own for the copies each way, and a thread for each lane that waits for the host.

The thread that launches the passes is never kept: copies are queued by a thread of theirs, which can wait for a slot
that the host reads, and updates run in another. A task's end is what its lane's thread has queued, and on the card an
event behind it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from redheart.pipeline.lanes import Lane, Task, Wait

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
