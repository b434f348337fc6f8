"""Seconds of a step on a machine that is known by its constants: as training takes it today, or as a pipeline.

Today transfers come in turn, and what nothing hides is added up. One thread launches the pass. A gradient's copy to the
host stands in the stream that computes, and one thread there takes what arrives; the norm, the update and the copies
back follow when the pass is over (`train/zero/fused_step.py`, `train/device/transfers.py`). The pipeline that hides all
of this runs against a clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

from redheart.pipeline.bucket import BUCKET_ELEMENTS, WIRE_BYTES, cut
from redheart.pipeline.lanes import Lane, Task, Wait
from redheart.pipeline.step import OffloadStep

NORM_SHARE, NORM_OF_SUMS_SHARE = 0.18, 0.30
"""The norm's time over the update's: .026 and .043 ns/param beside .142 on 16 cores, of gradients in bf16 and of their
sums in float32."""


class Counts(NamedTuple):
    """What a pass, or a part of it, asks for."""

    operators: int = 0
    """Those that launch something; views are none."""
    flop: float = 0.0
    """Of products and attention."""
    moved_bytes: float = 0.0
    """Read and written by all other operators."""

    def plus(self, other: "Counts", times: float = 1) -> "Counts":
        """The sum with another, so many times."""
        flop, moved_bytes = self.flop + times * other.flop, self.moved_bytes + times * other.moved_bytes
        return Counts(self.operators + round(times * other.operators), flop, moved_bytes)


@dataclass(frozen=True)
class PassWork:
    """Of one micro-batch."""

    forward: Counts
    backward: Counts
    recomputed_operators: int = 0
    """Those of the backward pass that checkpointing launches a second time."""


@dataclass(frozen=True)
class Rates:
    """Constants of a card, its bus and its host: seconds an operator or an element, or units a second."""

    flop_s: float
    memory_bytes_s: float
    kernel_s: float
    """Shortest time of an operator on the card."""
    launch_s: float
    recompute_s: float
    """Launching an operator a second time under checkpointing, with what torch does around it."""
    bus_bytes_s: float
    hand_over_s: float
    """An element's gradient on its way into the host's ordinary memory, through the thread there."""
    update_s: float
    """Of the optimizer on the host."""
    around_s: float
    """A step, whatever its size: the wait for the norm, DeepSpeed, the loop."""
    keep_s: float
    """An element's gradient that stays on the card, in DeepSpeed's hands, a micro-batch."""
    update_on_card_s: float
    drain_s: float = 0.0
    """Of a pipeline: an element's gradient from its slot into ordinary memory."""


def in_turn(
    work: PassWork,
    rates: Rates,
    *,
    micro_batches: int,
    on_host: int = 0,
    on_card: int = 0,
    wire_bytes: int = WIRE_BYTES,
) -> dict[str, float]:
    """Seconds of a step by what it waits for, from its work in a micro-batch; their sum is the step.

    `on_host` and `on_card` are elements by where their optimizer is, `wire_bytes` what one of them sends to the host in
    a micro-batch.
    """
    waits: dict[str, float] = {}

    def longest(times: int = 1, **seconds: float) -> None:
        name = max(seconds, key=lambda lane: seconds[lane])
        waits[name] = waits.get(name, 0.0) + times * seconds[name]

    forward, backward = work.forward, work.backward
    longest(micro_batches, launches=forward.operators * rates.launch_s, card=computed_s(forward, rates))
    kept_s = on_card * rates.keep_s
    launches_s = backward.operators * rates.launch_s + kept_s
    launches_s += work.recomputed_operators * (rates.recompute_s - rates.launch_s)
    card_s = computed_s(backward, rates) + on_host * wire_bytes / rates.bus_bytes_s + kept_s
    longest(micro_batches, launches=launches_s, card=card_s, gradients=on_host * rates.hand_over_s)
    longest(rest=rates.around_s)
    longest(card=on_card * rates.update_on_card_s)
    norm_share = NORM_SHARE if micro_batches == 1 else NORM_OF_SUMS_SHARE
    longest(host=norm_share * on_host * rates.update_s)
    longest(host=on_host * rates.update_s, bus=on_host * WIRE_BYTES / rates.bus_bytes_s)
    return waits


def computed_s(counts: Counts, rates: Rates) -> float:
    """Seconds on the card."""
    products_s, others_s = counts.flop / rates.flop_s, counts.moved_bytes / rates.memory_bytes_s
    return products_s + others_s + counts.operators * rates.kernel_s


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
        match lane:
            case Lane.OUT:
                return task.amount / machine.out_bytes_s
            case Lane.IN:
                return task.amount / machine.in_bytes_s
            case Lane.HOST:
                each_s = {"update": machine.update_s, "square": machine.square_s}
                return task.amount * each_s.get(task.kind, machine.drain_s)
        return machine.norm_s if task.kind == "norm" else task.amount


WAITS = {Lane.LAUNCH: "launches", Lane.COMPUTE: "card", Lane.OUT: "bus", Lane.HOST: "host", Lane.IN: "bus"}
"""What a step waits for whose busiest lane is this."""
MOST_SIMULATED = 256
"""Micro-batches of a step; each one behind them takes as long as the one before it."""


@dataclass(frozen=True)
class StepTimes:
    """A step of a run that has been under way for a while."""

    step_s: float
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
    """A step of a model in full swing, the last of `steps` that are simulated.

    A pass's time is divided by the elements of its modules, which are in the order of the forward pass; `ring_bytes` is
    page-locked memory for slots.
    """
    more = passes.micro_batches - MOST_SIMULATED
    if more > 0:
        some, most = (
            simulate(modules, machine, replace(passes, micro_batches=number), ring_bytes=ring_bytes, steps=steps)
            for number in (MOST_SIMULATED // 2, MOST_SIMULATED)
        )
        times = more / (MOST_SIMULATED // 2)
        busy_s = {lane: busy_s + times * (busy_s - some.busy_s[lane]) for lane, busy_s in most.busy_s.items()}
        return StepTimes(most.step_s + times * (most.step_s - some.step_s), busy_s, most.timeline)
    total, lanes = sum(modules.values()), ClockLanes(machine)
    step = OffloadStep(cut(modules), lanes, ring_bytes=ring_bytes, accumulates=passes.micro_batches > 1)
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
    return StepTimes(span[1] - span[0], busy_s, last)


def pipelined(work: PassWork, rates: Rates, *, micro_batches: int, on_host: int, ring_bytes: int) -> dict[str, float]:
    """As `in_turn`, as a pipeline: the busiest lane, and what else nothing hides.

    A step's time around it is taken to stay as it is.
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


# Where no card is named, configurations are ranked by a pipeline on a small one: no promise of a time. The functions
# take the parameters of a rank, the micro-batches of a step and whether it checkpoints.
RING_BYTES = 96 << 20
"""Page-locked slots of today's transfers."""
SMALL_CARD = Machine("a small card on PCIe 3.0 x16", 12e9, 12e9, update_s=0.6e-9, drain_s=0.2e-9)
"""Constants that configurations are ranked by; no card's own."""
UPDATE_32_S = 1.1e-9
"""An element's update on that machine with 32-bit states."""
PASS_S = (0.08, 0.17)
"""Forward and backward of 64 records of 128 tokens of the full model on a small card, at 40 TFLOP/s bf16."""
LAUNCH_S = 0.4
"""Launches of a micro-batch, whatever its size: measured 383 ms for 16 and 411 for 64 records on an H200."""
PARTS = 4
"""Of a model whose modules are not looked at."""


def traffic_bytes(steps: int, *, state_bits: int) -> int:
    """Bytes a parameter over the bus in one step of ZeRO-2 offload with `steps` micro-batches.

    With 8-bit states the gradient leaves in bf16 at every micro-batch and is summed on the host. DeepSpeed's own path
    sends the sum out at every micro-batch, pulls it in again at every later one, and sends it in float32 at the end.
    Either way the weights return in bf16. Counted by benchmarks/accumulation.py.
    """
    if state_bits == 8:
        return 2 * steps + 2
    return 6 if steps == 1 else 4 * steps + 4


def on_card(parameters: int, steps: int, checkpointing: bool) -> float:
    """All on the card: the passes and their launches."""
    passes = _passes(steps, checkpointing)
    return steps * max(passes.forward_s + passes.backward_s, passes.launch_s)


@cache
def fused_offload(parameters: int, steps: int, checkpointing: bool, machine: Machine = SMALL_CARD) -> float:
    """So much of the optimizer on the host, by the pipeline's own order."""
    if not parameters:
        return on_card(parameters, steps, checkpointing)
    modules = {f"part {number}": max(1, parameters // PARTS) for number in range(PARTS)}
    return simulate(modules, machine, _passes(steps, checkpointing), ring_bytes=RING_BYTES, steps=2).step_s


def deepspeed_offload(parameters: int, steps: int, checkpointing: bool) -> float:
    """The same by DeepSpeed's own path, which takes twice the bytes out (see `traffic_bytes`), with 32-bit states."""
    machine = replace(SMALL_CARD, update_s=UPDATE_32_S, out_bytes_s=SMALL_CARD.out_bytes_s / 2)
    return fused_offload(parameters, steps, checkpointing, machine)


def _passes(steps: int, checkpointing: bool) -> Passes:
    forward_s, backward_s = (share / steps for share in PASS_S)
    launch_s = LAUNCH_S * (4 / 3 if checkpointing else 1)
    return Passes(forward_s, backward_s + forward_s * checkpointing, launch_s, steps)
