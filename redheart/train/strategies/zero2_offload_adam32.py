"""`zero2_offload_adam32`: ZeRO-2 offload by DeepSpeed's own path with 32-bit states, the exact reference."""

import torch

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.memory.ledger import DS_CONFIGS, Groups, Strategy
from redheart.memory.zero2 import deepspeed_offload as ledger
from redheart.pipeline.clock import deepspeed_offload
from redheart.train.zero.extension import building


def deepspeed_adam(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """DeepSpeed's for the host, compiled at its first use.

    Raises:
        BadInput: it cannot be compiled or loaded.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (config.beta1, config.beta2)
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


STRATEGY = Strategy(
    name="zero2_offload_adam32",
    configuration=DS_CONFIGS / "zero2_offload_adam32.json",
    is_zero=True,
    home="host",
    state_bits=32,
    ledger=ledger,
    optimizer=deepspeed_adam,
    cost=deepspeed_offload,
    is_offered=True,
)
