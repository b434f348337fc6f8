"""`zero2_offload_adam8bit`: ZeRO-2, float32 masters and 8-bit AdamW states on the host, stepped by the fused kernel."""

from redheart.core.config import TrainConfig
from redheart.memory import zero2
from redheart.memory.adamw8bit.optimizer import HostAdamW8bit
from redheart.memory.ledger import DS_CONFIGS, SLOTS, Entry, Groups, Homes, ModelSizes, Strategy, StrategySizes, each
from redheart.memory.step_cost import fused_offload
from redheart.memory.zero2 import HELD, ZERO
from redheart.train.fused_step import install


def ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """ZeRO-2 offload without DeepSpeed's copy of the new weights; gradients stay as small as they come."""
    weight, (_, parts) = strategy.weight_bytes, zero2.padded_groups(model, strategy.ranks)
    grad_bytes = 4 if accumulates else weight
    installed = "redheart/train/fused_step.py, install"
    grad = f"{installed}: the type of the weights where a micro-batch is the whole step, else the float32 sum"
    copy = f"{ZERO}, __init__, param_buffer_of_bit16_for_cpu_offload_groups; given up by {installed}"
    first = f"{ZERO}, initialize_optimizer_states, beyond those that are kept"
    slots, slots_bytes = "redheart/train/transfers.py: six of 8 Mi bf16 elements", 6 * (8 << 20) * 2
    states = tuple(map(zero2.states_bytes, parts, model.group_state_bits))
    started = "redheart/memory/adamw8bit/optimizer.py, HostAdamW8bit._start"
    kept = [
        Entry("gradients", "host", "group", "always", each(grad_bytes, parts), grad, f"{HELD}.grad"),
        Entry("DeepSpeed's copy of the new weights", "host", "group", "init_all", each(weight, parts), copy),
        Entry("gradients in float32", "host", "group", "init_all", each(4 - grad_bytes, parts), first),
        Entry(SLOTS, "host", "once", "always", (slots_bytes,), slots),
    ]
    held = Entry("optimizer states", "host", "group", "always", states, started, "state")
    return [*zero2.offload(model, strategy, kept=kept), held]


def adamw(groups: Groups, config: TrainConfig) -> HostAdamW8bit:
    """The fused kernel, or its fallback."""
    return HostAdamW8bit(list(groups), lr=0.0, betas=(config.beta1, config.beta2))


STRATEGY = Strategy(
    name="zero2_offload_adam8bit",
    configuration=DS_CONFIGS / "zero2_offload_adam8bit.json",
    is_zero=True,
    homes=Homes(masters="host", states="host", gradients="host"),
    state_bits=8,
    ledger=ledger,
    optimizer=adamw,
    cost=fused_offload,
    install_step=install,
    is_offered=True,
)
