"""The pipeline against a clock: what a step takes on a machine that is known by its constants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from redheart.pipeline.bucket import BUCKET_ELEMENTS, WIRE_BYTES, Bucket, cut
from redheart.pipeline.in_turn import NORM_OF_SUMS_SHARE, PassWork, Rates, computed_s
from redheart.pipeline.lanes import Lane, Task, Wait
from redheart.pipeline.step import OffloadStep


@dataclass(frozen=True)
class Machine:
    """A card, its bus and its host. Bytes a second each way, seconds an element."""

    name: str
    out_bytes_s: float
    in_bytes_s: float
    update_s: float
    """Of the 8-bit AdamW, over all threads but the one that launches."""
    drain_s: float
    """Of copying or adding a gradient from page-locked into ordinary memory."""
    square_s: float = 0.043e-9
    """Of the squares of a sum in float32, where several micro-batches were summed."""
    norm_s: float = 0.7e-3
    """Of all squares on the card, the eight bytes' latency in it."""


@dataclass(frozen=True)
class Passes:
    """What a micro-batch takes on the card when nothing waits for it, and what the launching thread takes for it."""

    forward_s: float
    backward_s: float
    launch_s: float = 0.0
    micro_batches: int = 1


class Interval(NamedTuple):
    """A task on its lane, in seconds since the beginning."""

    lane: Lane
    task: Task
    start_s: float
    end_s: float


@dataclass
class ClockLanes:
    """Every lane as the time until which it is busy."""

    machine: Machine
    timeline: list[Interval] = field(default_factory=list)
    _busy_until_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))

    def submit(self, lane: Lane, task: Task, waits: Sequence[Wait] = ()) -> float:
        start_s = max([self._busy_until_s[lane], *(wait.event for wait in waits)])
        self._busy_until_s[lane] = end_s = start_s + self._seconds(lane, task)
        self.timeline.append(Interval(lane, task, start_s, end_s))
        return end_s

    def _seconds(self, lane: Lane, task: Task) -> float:
        machine = self.machine
        match lane, task.kind:
            case Lane.OUT, _:
                return task.amount / machine.out_bytes_s
            case Lane.IN, _:
                return task.amount / machine.in_bytes_s
            case Lane.HOST, "update":
                return task.amount * machine.update_s
            case Lane.HOST, "square":
                return task.amount * machine.square_s
            case Lane.HOST, _:
                return task.amount * machine.drain_s
            case Lane.COMPUTE, "norm":
                return machine.norm_s
        return task.amount


WAITS = {Lane.LAUNCH: "launches", Lane.COMPUTE: "card", Lane.OUT: "bus", Lane.HOST: "host", Lane.IN: "bus"}
"""What a step waits for whose busiest lane is this."""


@dataclass(frozen=True)
class StepTimes:
    """A step of a run that has been under way for a while."""

    step_s: float
    floor_s: float
    """The longest chain that no order can shorten: backward pass, norm, all updates, the last upload."""
    busy_s: dict[str, float]
    """By lane."""
    timeline: tuple[Interval, ...]
    """Of that step, from its first launch on, until the next step's."""

    @property
    def bound_by(self) -> str:
        """The lane that is busy longest."""
        return max(self.busy_s, key=lambda lane: self.busy_s[lane])


def simulate(
    modules: Mapping[str, int], machine: Machine, passes: Passes, *, ring_bytes: int, steps: int = 4
) -> StepTimes:
    """A step of a model in full swing.

    Args:
        modules: elements of every module, in the order of the forward pass; a pass's time is divided by them.
        machine: constants of the machine.
        passes: of one micro-batch.
        ring_bytes: page-locked memory for slots.
        steps: how many are simulated; the last one is answered.
    """
    buckets, total = cut(modules), sum(modules.values())
    lanes = ClockLanes(machine)
    step = OffloadStep(buckets, lanes, ring_bytes=ring_bytes, accumulates=passes.micro_batches > 1)
    shares = {name: elements / total for name, elements in modules.items() if elements}
    ends = []
    for _ in range(steps):
        begin = len(lanes.timeline)
        for _ in range(passes.micro_batches):
            for name, share in shares.items():
                step.forward(name, share * passes.forward_s, launch_s=share * passes.launch_s / 3)
            for name, share in reversed(shares.items()):
                step.backward(name, share * passes.backward_s, launch_s=share * passes.launch_s * 2 / 3)
        step.step()
        ends.append(min(item.start_s for item in lanes.timeline[begin:] if item.task.kind == "update"))
    # From first update to first update: the next forward pass runs beside the updates of the one before.
    span = (ends[-2], ends[-1])
    last = tuple(item for item in lanes.timeline if span[0] < item.end_s <= span[1])
    busy_s = {
        lane.value: sum(item.end_s - max(item.start_s, span[0]) for item in last if item.lane == lane) for lane in Lane
    }
    return StepTimes(span[1] - span[0], floor_s(buckets, machine, passes), busy_s, last)


def floor_s(buckets: Sequence[Bucket], machine: Machine, passes: Passes) -> float:
    """The chain backward pass, norm, all updates, last upload, and the passes before the last micro-batch."""
    elements = sum(bucket.elements for bucket in buckets)
    norm_s = machine.norm_s if passes.micro_batches == 1 else elements * machine.square_s
    earlier = (passes.micro_batches - 1) * (passes.forward_s + passes.backward_s)
    upload = buckets[-1].wire_bytes / machine.in_bytes_s
    return earlier + passes.backward_s + norm_s + elements * machine.update_s + upload


def pipelined(work: PassWork, rates: Rates, *, micro_batches: int, on_host: int, ring_bytes: int) -> dict[str, float]:
    """Seconds of a step as a pipeline by what it waits for: the busiest lane, and what else nothing hides.

    Args:
        work: of one micro-batch.
        rates: of the machine; a step's time around it is taken to stay as it is.
        micro_batches: of a step.
        on_host: elements, whose optimizer is there.
        ring_bytes: page-locked memory for slots.
    """
    parts = max(1, on_host // BUCKET_ELEMENTS)
    launches = work.forward.operators + work.backward.operators - work.recomputed_operators
    passes = Passes(
        computed_s(work.forward, rates),
        computed_s(work.backward, rates),
        launches * rates.launch_s + work.recomputed_operators * rates.recompute_s,
        micro_batches,
    )
    machine = Machine(
        "",
        rates.bus_bytes_s,
        rates.bus_bytes_s,
        rates.update_s,
        rates.drain_s,
        NORM_OF_SUMS_SHARE * rates.update_s,
        on_host * WIRE_BYTES / rates.memory_bytes_s,
    )
    modules = {f"part {number}": on_host // parts for number in range(parts)}
    found = simulate(modules, machine, passes, ring_bytes=ring_bytes, steps=2)
    lane = Lane(found.bound_by)
    busy_s = found.busy_s[lane]
    return {WAITS[lane]: busy_s, "order": found.step_s - busy_s, "rest": rates.around_s}
