"""The optimizer that ZeRO runs on the host: the one place where it is chosen."""

from collections.abc import Sequence

import torch

from redheart.core.config import TrainConfig


def host_optimizer(
    groups: Sequence[dict[str, object]], config: TrainConfig, *, state_bits: int
) -> torch.optim.Optimizer:
    """AdamW with 8-bit (bitsandbytes, blocks of 256) or 32-bit states; the learning rate is set at every step."""
    betas = (config.beta1, config.beta2)
    if state_bits == 32:
        return torch.optim.AdamW(list(groups), lr=0.0, betas=betas, foreach=False)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(list(groups), lr=0.0, betas=betas)
