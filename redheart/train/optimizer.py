"""The optimizer that ZeRO runs: the one place where it is chosen."""

from collections.abc import Sequence

import torch

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.memory.adamw8bit.optimizer import HostAdamW8bit
from redheart.train.extension import building


def adamw(
    groups: Sequence[dict[str, object]], config: TrainConfig, *, state_bits: int, on_host: bool
) -> torch.optim.Optimizer:
    """AdamW with 8-bit or 32-bit states; the learning rate is set at every step.

    On the host the fused kernel or DeepSpeed's Adam, on a device bitsandbytes' or torch's own.
    """
    betas = (config.beta1, config.beta2)
    if state_bits == 8:
        if on_host:
            return HostAdamW8bit(list(groups), lr=0.0, betas=betas)
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(list(groups), lr=0.0, betas=betas)
        return eight_bit
    if not on_host:
        return torch.optim.AdamW(list(groups), lr=0.0, betas=betas)
    return _deepspeed_adam(groups, betas)


def _deepspeed_adam(groups: Sequence[dict[str, object]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        with building("cpu_adam"):
            adam: torch.optim.Optimizer = DeepSpeedCPUAdam(list(groups), lr=0.0, betas=betas, adamw_mode=True)
    except RuntimeError as error:
        raise BadInput(
            "DeepSpeed's Adam for the host cannot be compiled or loaded",
            got=_cause(str(error.__cause__ or error)),
            hint="install g++ (apt install g++), or take --train.strategy zero2_offload_adam8bit",
        ) from error
    return adam


def _cause(text: str) -> str:
    """The line of a failed build that says why; ninja's first is the whole command."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in lines if "error:" in line or "not found" in line), lines[0])
