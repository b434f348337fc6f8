"""Seconds of a step on a card that is not here, with an interval: constants of the machine, each with its range.

Typical values are fitted to the steps that were measured on an H100 and an H200, all on hosts of 16 cores
(`benchmarks/step_times.py` shows what is left); ranges are what other machines are taken to do.
"""

from dataclasses import dataclass
from math import hypot
from typing import NamedTuple

import msgspec

from redheart.memory.cards import Card
from redheart.memory.ledger import StrategySizes
from redheart.memory.plan import Planner
from redheart.pipeline.bucket import WIRE_BYTES
from redheart.pipeline.clock import UPDATE_32_S, PassWork, Rates, in_turn, pipelined, traffic_bytes


class Range(NamedTuple):
    """A constant, and what it may be at its best and its worst."""

    typical: float
    best: float
    worst: float

    def times(self, factor: float) -> "Range":
        return Range(*(factor * value for value in self))


ADDED = {
    "kernel_s": Range(3e-6, 2e-6, 5e-6),
    "launch_s": Range(43e-6, 15e-6, 55e-6),
    "recompute_s": Range(124e-6, 45e-6, 160e-6),
    "hand_over_s": Range(1.06e-9, 0.53e-9, 1.4e-9),
    "update_s": Range(0.35e-9, 0.142e-9, 0.6e-9),
    "around_s": Range(0.1, 0.05, 0.15),
    "keep_s": Range(0.19e-9, 0.1e-9, 0.3e-9),
    "drain_s": Range(0.2e-9, 0.084e-9, 0.4e-9),
}
"""Of a host that nobody has measured. The update is the 8-bit one: .142 ns on 16 server cores, .48 on two; the fastest
hand-over is a first run's on an H100, which launched an operator in 22 us."""
EFFICIENCY = Range(0.42, 0.8, 0.3)
"""Of the data sheet's rate: on an H200 as one CUDA graph; a smaller card is fed more easily."""
MEMORY_SHARE = Range(0.8, 0.9, 0.65)
BUS_SHARE = Range(0.87, 0.9, 0.6)
"""54.7 of 63 GB/s were measured; some boards give a card half its lanes."""
UPDATE_ON_CARD_BYTES = 158
"""An element's update by bitsandbytes on the card, as bytes of its memory: 24 ms for 730 million on an H200."""
UPDATE_8_S = 0.48e-9
"""The 8-bit update where the 32-bit one takes `UPDATE_32_S`."""
RESIDUAL = 0.10
"""Relative, of what is left on the measured steps: their standard deviation."""
MEASURED_SHARE = 0.1
"""Either side of what was measured on this machine."""


class HostSpeed(msgspec.Struct, frozen=True):
    """What `redheart doctor --measure` found on a machine; None is what it has no card for."""

    update_s: float
    """Of an element by the 8-bit AdamW."""
    add_s: float
    """Of adding an element of a gradient to its sum."""
    copy_bytes_s: float
    """Copied within host memory."""
    launch_s: float | None = None
    """Of an operator of a pass."""
    bus_bytes_s: float | None = None
    """Page-locked, the slower way."""


@dataclass(frozen=True)
class StepTime:
    """A step on a card."""

    step_s: float
    low_s: float
    high_s: float
    waits_s: dict[str, float]
    """By what it waits for: `card`, `launches`, `gradients`, `host`, `bus`, `order`, `rest`."""

    @property
    def bound_by(self) -> str:
        return max(self.waits_s, key=lambda name: self.waits_s[name])


def constants(
    card: Card, strategy: StrategySizes, host: HostSpeed | None, *, is_replayed: bool = False
) -> dict[str, Range]:
    """Of a card, in the machine that was measured or else in any; what is replayed as graphs is not launched."""
    in_float32 = strategy.weight_bytes == 4 or card.bf16_tflops is None
    tflops = card.fp32_tflops if in_float32 else card.bf16_tflops or 0.0
    # A laptop's rate depends on what its maker lets it draw.
    clock = Range((1 + card.slowest_share) / 2, 1.0, card.slowest_share)
    flop_s = Range(*(1e12 * tflops * a * b for a, b in zip(EFFICIENCY, clock, strict=True)))
    memory_bytes_s = MEMORY_SHARE.times(1e9 * card.bandwidth_gb_s)
    found = ADDED | {
        "flop_s": flop_s,
        "memory_bytes_s": memory_bytes_s,
        "bus_bytes_s": BUS_SHARE.times(card.bus_bytes_s),
        "update_on_card_s": Range(*(UPDATE_ON_CARD_BYTES * MEMORY_SHARE.typical / rate for rate in memory_bytes_s)),
    }
    if host:
        measured = {"update_s": host.update_s, "launch_s": host.launch_s, "bus_bytes_s": host.bus_bytes_s}
        for name, value in measured.items():
            if value is not None:
                better, worse = (1 + MEASURED_SHARE, 1 - MEASURED_SHARE)[:: 1 if name == "bus_bytes_s" else -1]
                found[name] = Range(value, better * value, worse * value)
        least_s = max(host.add_s, WIRE_BYTES / host.copy_bytes_s)
        found["hand_over_s"] = Range(*(max(least_s, value) for value in found["hand_over_s"]))
        found["drain_s"] = Range(least_s, least_s, found["drain_s"].worst)
    if is_replayed:
        found |= dict.fromkeys(("launch_s", "recompute_s"), Range(0.0, 0.0, 0.0))
    if strategy.kind.state_bits == 32:
        found["update_s"] = found["update_s"].times(UPDATE_32_S / UPDATE_8_S)
    return found


def step_time(
    parameters: int, strategy: StrategySizes, steps: int, work: PassWork, ranges: dict[str, Range]
) -> StepTime:
    """A step of `steps` micro-batches: typical constants, and each one's range and the residual added in squares."""
    typical = _waits(parameters, strategy, steps, work, ranges)
    step_s = sum(typical.values())

    def off_s(end: int) -> float:
        changed = [ranges | {name: Range(value[end], *value[1:])} for name, value in ranges.items()]
        each_s = (sum(_waits(parameters, strategy, steps, work, item).values()) for item in changed)
        return hypot(RESIDUAL * step_s, *(other_s - step_s for other_s in each_s))

    return StepTime(step_s, max(step_s - off_s(1), 0.0), step_s + off_s(2), typical)


def _waits(
    parameters: int, strategy: StrategySizes, steps: int, work: PassWork, ranges: dict[str, Range]
) -> dict[str, float]:
    """By what it waits for, with typical constants."""
    rates = Rates(**{name: value.typical for name, value in ranges.items()})
    share = parameters // strategy.ranks
    if strategy.ring_bytes:
        return pipelined(work, rates, micro_batches=steps, on_host=share, ring_bytes=strategy.ring_bytes)
    on_card = round(strategy.card_share * share) if strategy.kind.home == "host" else share
    # The weights' way back is not in a micro-batch.
    wire_bytes = (traffic_bytes(steps, state_bits=strategy.kind.state_bits) - WIRE_BYTES) // steps
    return in_turn(work, rates, micro_batches=steps, on_host=share - on_card, on_card=on_card, wire_bytes=wire_bytes)


@dataclass(frozen=True)
class CardClock:
    """Steps of a planner's workload on a card that need not be here."""

    card: Card
    planner: Planner
    host: HostSpeed | None
    has_dropout: bool = False
    """With it a pass that recomputes is not captured."""

    def time(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> StepTime:
        """Of a configuration."""
        return step_time(*self._asked(strategy, micro_batch, checkpointing))

    def cost(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> float:
        """Its seconds without their interval, to rank by."""
        return sum(_waits(*self._asked(strategy, micro_batch, checkpointing)).values())

    def _asked(
        self, strategy: StrategySizes, micro_batch: int, checkpointing: bool
    ) -> tuple[int, StrategySizes, int, PassWork, dict[str, Range]]:
        workload = self.planner.workload
        steps = self.planner.steps(strategy, micro_batch)
        work = self.planner.pass_work(micro_batch, checkpointing=checkpointing)
        is_replayed = strategy.graph_shapes > 0 and not (checkpointing and self.has_dropout)
        ranges = constants(self.card, strategy, self.host, is_replayed=is_replayed)
        return workload.sizes.trained, strategy, steps, work, ranges
