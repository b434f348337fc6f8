"""`plain`: one process, no DeepSpeed, everything in float32 on the device; for debugging and as a reference."""

import torch

from redheart.core.config import TrainConfig
from redheart.memory.ledger import Entry, Groups, ModelSizes, Strategy, StrategySizes, each
from redheart.pipeline.clock import on_card


def ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """Weights, gradients and states, parameter by parameter."""
    counts = model.parameters.values()
    four, made = each(4, counts), "redheart/train/engine.py, PlainEngine"
    update = "torch/optim/adamw.py, _multi_tensor_adam: exp_avg_sq_sqrt of all parameters of a group"
    states = "torch/optim/adamw.py, _init_group"
    return [
        Entry("weights", "device", "parameter", "always", four, made, "parameters"),
        Entry("gradients", "device", "parameter", "accumulation", four, "torch.autograd", "parameters.grad"),
        Entry("intermediates of the multi-tensor update", "device", "parameter", "step_all", four, update),
        Entry("optimizer states", "device", "parameter", "always", each(8, counts), states, "state"),
    ]


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Torch's own."""
    return torch.optim.AdamW(list(groups), lr=0.0, betas=(config.beta1, config.beta2))


STRATEGY = Strategy(
    name="plain",
    configuration=None,
    is_zero=False,
    home="device",
    state_bits=32,
    ledger=ledger,
    optimizer=adamw,
    cost=on_card,
)
