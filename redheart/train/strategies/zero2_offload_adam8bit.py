"""`zero2_offload_adam8bit`: ZeRO-2, float32 masters and 8-bit AdamW states on the host, stepped by the fused kernel."""

from collections.abc import Sequence

from redheart.core.config import TrainConfig
from redheart.memory import zero2
from redheart.memory.adamw8bit.optimizer import HostAdamW8bit
from redheart.memory.ledger import DS_CONFIGS, SLOTS, Entry, Groups, ModelSizes, Strategy, StrategySizes, each
from redheart.memory.zero2 import HELD, ZERO
from redheart.pipeline.clock import fused_offload
from redheart.train.zero.fused_step import install

INSTALL = "redheart/train/zero/fused_step.py, install"


def ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """ZeRO-2 offload without DeepSpeed's copy of the new weights; gradients stay as small as they come.

    A share of the groups has its masters, states and waiting gradients on the card.
    """
    weight, (_, parts) = strategy.weight_bytes, zero2.padded_groups(model, strategy.ranks)
    host, card = zero2.homes(parts, strategy.card_share)
    grad_bytes = 4 if accumulates else weight
    grad = f"{INSTALL}: the type of the weights where a micro-batch is the whole step, else the float32 sum"
    copy = f"{ZERO}, __init__, param_buffer_of_bit16_for_cpu_offload_groups; given up by {INSTALL}"
    first = f"{ZERO}, initialize_optimizer_states, beyond those that are kept"
    slots, slots_bytes = "redheart/train/device/transfers.py: six of 8 Mi bf16 elements", 6 * (8 << 20) * 2
    states = tuple(map(zero2.states_bytes, host, model.group_state_bits))
    started = "redheart/memory/adamw8bit/optimizer.py, HostAdamW8bit._start"
    if strategy.ring_bytes:
        gradients, leaving = _in_ring(parts, strategy, accumulates)
        grad_bytes = 0
    else:
        leaving = []
        gradients = [
            Entry("gradients", "host", "group", "always", each(grad_bytes, host), grad, f"{HELD}.grad"),
            Entry(SLOTS, "host", "once", "always", (slots_bytes,), slots),
        ]
    kept = [
        *gradients,
        Entry("DeepSpeed's copy of the new weights", "host", "group", "init_all", each(weight, parts), copy),
        Entry("gradients in float32", "host", "group", "init_all", each(4 - grad_bytes, host), first),
    ]
    held = Entry("optimizer states", "host", "group", "always", states, started, "state")
    on_card = _on_card(model, card, weight, grad_bytes) if any(card) else []
    return [*on_card, *zero2.offload(model, strategy, leaving=leaving, kept=kept), held]


def _in_ring(parts: Sequence[int], strategy: StrategySizes, accumulates: bool) -> tuple[list[Entry], list[Entry]]:
    """Gradients of a step that is a pipeline, on the host and on their way there."""
    source = "redheart/memory/offloaded.py"
    largest_bytes = strategy.weight_bytes * max(parts, default=0)
    num_slots = min(len(parts), max(1, strategy.ring_bytes // max(1, largest_bytes)))
    ring_bytes = num_slots * largest_bytes
    # Where one micro-batch is the whole step, what is in a slot when the norm is known has no sum.
    summed = sorted(parts)[0 if accumulates else num_slots :]
    sum_bytes = 4 if accumulates else strategy.weight_bytes
    ring = Entry("ring of slots", "host", "once", "always", (ring_bytes,), f"{source}, Offloaded._slots")
    sums = Entry("sums of gradients", "host", "group", "always", each(sum_bytes, summed), f"{source}, drain")
    # A bus that is slower than the pass lets more of them wait.
    waiting = f"{source}, copy_out: record_stream, for as many as there are slots"
    return [ring, sums], [Entry("gradients on their way", "device", "once", "backward", (ring_bytes,), waiting)]


def _on_card(model: ModelSizes, card: Sequence[int], weight: int, grad_bytes: int) -> list[Entry]:
    update = "redheart/memory/adamw8bit/chunked.py, CardKernel.update: grad.float()"
    own, converted = each(4 if weight < 4 else 0, card), each(4 if grad_bytes < 4 else 0, card)
    states = tuple(map(zero2.states_bytes, card, model.group_state_bits))
    made = f"{ZERO}, __init__; taken to the card by {INSTALL}"
    return [
        Entry("master weights on the card", "device", "group", "always", own, INSTALL, HELD),
        Entry("gradients on the card", "device", "group", "always", each(grad_bytes, card), INSTALL, f"{HELD}.grad"),
        Entry("optimizer states on the card", "device", "group", "always", states, INSTALL, "state"),
        Entry("gradients of a group in float32", "device", "group", "step", converted, update),
        Entry("masters and gradients of the card", "host", "group", "init_all", each(8, card), made),
    ]


def adamw(groups: Groups, config: TrainConfig) -> HostAdamW8bit:
    """The fused kernel, or its fallback."""
    return HostAdamW8bit(list(groups), lr=0.0, betas=(config.beta1, config.beta2))


STRATEGY = Strategy(
    name="zero2_offload_adam8bit",
    configuration=DS_CONFIGS / "zero2_offload_adam8bit.json",
    is_zero=True,
    home="host",
    state_bits=8,
    ledger=ledger,
    optimizer=adamw,
    cost=fused_offload,
    install_step=install,
    is_offered=True,
)
