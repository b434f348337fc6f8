"""What a step's work is handed to: lanes that each do one thing after the other, beside each other.

The order of a step is written once, in `step`, against this protocol. A card's streams and a pool of threads can stand
behind it, a clock that turns constants into times (`clock`), or a recorder that proves what happens before what (in
the tests).
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol


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
