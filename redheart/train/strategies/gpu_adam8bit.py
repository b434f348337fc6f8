"""`gpu_adam8bit`: ZeRO-2 without offload; weights, float32 masters, 8-bit states and gradients on the device."""

import torch

from redheart.core.config import TrainConfig
from redheart.memory.ledger import DS_CONFIGS, Entry, Groups, ModelSizes, Strategy, StrategySizes, each
from redheart.memory.zero2 import HELD, ZERO, bucket, padded_groups, states_bytes
from redheart.pipeline.clock import on_card


def ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """Everything on the device; the gradients of a step beside those of the micro-batch before it is stepped."""
    weight, (groups, parts) = strategy.weight_bytes, padded_groups(model, strategy.ranks)
    flat, masters, second = each(weight, groups), each(4, parts), each(weight if accumulates else 0, groups)
    upcast, states = each(0 if weight == 4 else 4, parts), tuple(states_bytes(count, 8) for count in parts)
    made = f"{ZERO}, DeepSpeedZeroOptimizer.__init__"
    dropped = f"{ZERO}, initialize_optimizer_states: allocated for all groups, then dropped"
    own = f"{ZERO}, copy_grads_in_partition: grads_in_partition"
    beside = f"{ZERO}, independent_gradient_partition_epilogue: all_grad_tensors beside the new ones"
    flattened = f"{ZERO}, step: flatten_dense_tensors_aligned"
    converted = f"{ZERO}, step: .to(single_partition_of_fp32_groups[i].dtype)"
    started = "bitsandbytes/optim/optimizer.py, Optimizer2State.init_state"
    return [
        Entry("flat weights", "device", "group", "always", flat, made, "bit16_groups_flat"),
        Entry("clone of a partition", "device", "group", "init", each(weight, parts), f"{ZERO}, __init__"),
        Entry("master weights", "device", "group", "always", masters, f"{ZERO}, __init__", HELD),
        Entry("gradients of a group at initialisation", "device", "group", "init_all", masters, dropped),
        bucket(strategy),
        Entry("gradients of the own partition", "device", "group", "accumulation", flat, own, "averaged_gradients"),
        Entry("second set of gradients while summing", "device", "group", "backward", second, beside),
        Entry("flat gradients of a group", "device", "group", "step", flat, flattened),
        Entry("gradients of a group in float32", "device", "group", "step", upcast, converted),
        Entry("optimizer states", "device", "group", "always", states, started, "state"),
    ]


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Of bitsandbytes."""
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(list(groups), lr=0.0, betas=(config.beta1, config.beta2))
    return optimizer


STRATEGY = Strategy(
    name="gpu_adam8bit",
    configuration=DS_CONFIGS / "gpu_adam8bit.json",
    is_zero=True,
    home="device",
    state_bits=8,
    ledger=ledger,
    optimizer=adamw,
    cost=on_card,
    is_offered=True,
)
