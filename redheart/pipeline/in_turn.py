"""The step that training takes today, its transfers in turn: what nothing hides is added up.

One thread launches the pass. A gradient's copy to the host stands in the stream that computes, and one thread there
takes what arrives; the norm, the update and the copies back follow when the pass is over (`train/zero/fused_step.py`,
`train/device/transfers.py`). `clock.py` times the pipeline that hides all of this.
"""

from dataclasses import dataclass
from typing import NamedTuple

from redheart.pipeline.bucket import WIRE_BYTES


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


NORM_SHARE, NORM_OF_SUMS_SHARE = 0.18, 0.30
"""The norm's time over the update's: .026 and .043 ns/param beside .142 on 16 cores, of gradients in bf16 and of their
sums in float32."""


def in_turn(
    work: PassWork,
    rates: Rates,
    *,
    micro_batches: int,
    on_host: int = 0,
    on_card: int = 0,
    wire_bytes: int = WIRE_BYTES,
) -> dict[str, float]:
    """Seconds of a step by what it waits for; their sum is the step.

    Args:
        work: of one micro-batch.
        rates: of the machine.
        micro_batches: of a step.
        on_host: elements whose optimizer is on the host.
        on_card: elements whose optimizer is on the card.
        wire_bytes: an element's bytes from the card to the host in a micro-batch.
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
