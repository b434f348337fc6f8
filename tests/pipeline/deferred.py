"""A device without a card: its copy streams are threads that come to their work late, in their own time."""

import random
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

import torch


class Mark:
    """An event of a stream."""

    def __init__(self) -> None:
        self.reached = Event()

    def synchronize(self) -> None:
        assert self.reached.wait(20), "a stream waits for ever"


class Stream:
    """Does what it is given in a thread, after a pause of its own and once the gate is open."""

    def __init__(self, seed: int, gate: Event):
        self._random, self._gate = random.Random(seed), gate
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def give(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def wait_event(self, mark: Mark) -> None:
        self.give(mark.synchronize)

    def _work(self) -> None:
        while True:
            work = self._queue.get()
            self._gate.wait()
            time.sleep(self._random.choice((0.0, 0.0, 0.0002)))
            work()


class Passes:
    """The stream of the passes, which on the CPU are done when they are launched."""

    def give(self, work: Callable[[], None]) -> None:
        work()

    def wait_event(self, mark: Mark) -> None:
        mark.synchronize()


class DeferredCuda:
    """Stands in for `redheart.pipeline.lanes.Cuda`."""

    def __init__(self, seed: int) -> None:
        self.gate = Event()
        self.gate.set()
        self._seed, self._passes = seed, Passes()

    def __call__(self, device: torch.device) -> "DeferredCuda":
        return self

    def stream(self) -> Stream:
        self._seed += 1
        return Stream(self._seed, self.gate)

    def current(self) -> Passes:
        return self._passes

    def launch(self, stream: Stream | Passes, run: Callable[[], None]) -> None:
        stream.give(run)

    def mark(self, stream: Stream | Passes) -> Mark:
        mark = Mark()
        stream.give(mark.reached.set)
        return mark
