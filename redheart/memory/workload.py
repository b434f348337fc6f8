"""What is planned for: a model with its batch and loss, and the sizes that the ledger needs of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from redheart.memory.kernels import CUDA, Kernels
from redheart.memory.ledger import ModelSizes
from redheart.memory.trace import Loss


@dataclass(frozen=True)
class Workload:
    """A model with its batch and loss, and everything about it that does not depend on the strategy."""

    module: nn.Module
    """On `meta`, in the type that it is trained in."""
    sizes: ModelSizes
    batch: Callable[[int], Any]
    loss: Loss
    set_checkpointing: Callable[[nn.Module, bool], None]
    effective_batch: int
    snapshots: int
    snapshot_output_bytes: int
    feature_bytes: int
    log_bytes: int = 0
    kernels: Kernels = CUDA
    is_affine: bool = True
    """Whether every tensor's size is known to be affine in the number of records; else it is tried."""


def model_sizes(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> ModelSizes:
    """Names and sizes of the parameters that are trained and of their optimizer groups (`params`, `state_bits`)."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    kept = module.state_dict().keys()
    names = {id(parameter): name for name, parameter in trained.items()}
    return ModelSizes(
        {name: parameter.numel() for name, parameter in trained.items()},
        tuple(tuple(names[id(parameter)] for parameter in group["params"]) for group in groups),
        tuple(int(group["state_bits"]) for group in groups),
        tuple(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad),
        tuple(buffer.nbytes for buffer in module.buffers()),
        sum(buffer.nbytes for name, buffer in module.named_buffers() if name in kept),
    )
