"""The optimizer that ZeRO runs on the host: the one place where it is chosen."""

from collections.abc import Sequence

import torch

from redheart.core.config import TrainConfig
from redheart.memory.adamw8bit.optimizer import HostAdamW8bit


def host_optimizer(
    groups: Sequence[dict[str, object]], config: TrainConfig, *, state_bits: int
) -> torch.optim.Optimizer:
    """AdamW with 8-bit states (the fused kernel) or 32-bit ones (DeepSpeed's); the rate is set at every step."""
    betas = (config.beta1, config.beta2)
    if state_bits == 32:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        adam: torch.optim.Optimizer = DeepSpeedCPUAdam(list(groups), lr=0.0, betas=betas, adamw_mode=True)
        return adam
    return HostAdamW8bit(list(groups), lr=0.0, betas=betas)
