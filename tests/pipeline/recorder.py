"""Lanes that run nothing and prove, by vector clocks, that no memory is read before it is written, or written too soon.

Source: Fidge 1988, Mattern 1989; as race detectors use them (Flanagan and Freund 2009).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from redheart.pipeline.lanes import Lane, Task, Wait

Clock = dict[Lane, int]


class Race(AssertionError):
    """Two tasks touch the same memory, one of them writes, and nothing orders them."""


@dataclass
class RecordingLanes:
    """Every lane knows what has surely ended before its next task; waits for `broken` reasons are left out."""

    broken: str | None = None
    reasons: set[str] = field(default_factory=set)
    _known: dict[Lane, Clock] = field(default_factory=lambda: defaultdict(dict))
    _written: dict[str, tuple[Lane, int, Task]] = field(default_factory=dict)
    _read: dict[str, list[tuple[Lane, int, Task]]] = field(default_factory=lambda: defaultdict(list))

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> Clock:
        known = self._known[lane]
        for wait in waits:
            self.reasons.add(wait.reason)
            if wait.reason != self.broken:
                for other, count in wait.event.items():
                    known[other] = max(known.get(other, 0), count)
        known[lane] = number = known.get(lane, 0) + 1
        for name in task.reads:
            if name in self._written:
                self._check(known, self._written[name], task, name)
            elif not name.startswith(("weights", "sum", "squares", "master")):
                raise Race(f"{task.kind} {task.of} reads {name}, which nobody has written")
            self._read[name].append((lane, number, task))
        for name in task.writes:
            for before in [*self._read[name], *([self._written[name]] if name in self._written else [])]:
                self._check(known, before, task, name)
            self._written[name], self._read[name] = (lane, number, task), []
        return dict(known)

    @staticmethod
    def _check(known: Clock, before: tuple[Lane, int, Task], task: Task, name: str) -> None:
        lane, number, other = before
        if known.get(lane, 0) < number:
            raise Race(f"{other.kind} {other.of} and {task.kind} {task.of} touch {name} in any order")
