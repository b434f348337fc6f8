"""The planner for a model of one's own."""

import copy

import torch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.custom.learner import Batch, TensorLearner
from redheart.memory.plan import Plan, Planner, Workload, model_sizes
from redheart.train.groups import parameter_groups
from redheart.train.strategy import strategy_sizes


def plan(
    learner: TensorLearner, config: TrainConfig, *, vram_bytes: int, epochs: int = 1, micro_batch: int = 0
) -> Plan:
    """Does training fit into that much device memory; nothing is allocated and no device is needed.

    Args:
        learner: the model with its loss and data.
        config: its strategy, effective batch and snapshots.
        vram_bytes: of the card.
        epochs: for the disk of the snapshots.
        micro_batch: 0 takes the largest that fits, or 1 where none does.

    Raises:
        BadInput: there is no such strategy.
    """
    sizes = strategy_sizes(config.strategy)
    module = copy.deepcopy(learner.model).to("meta", sizes.kind.card_dtype)

    def batch(size: int) -> Batch:
        return tuple(torch.empty(size, *t.shape[1:], dtype=t.dtype, device="meta") for t in learner.train)

    def loss(network: nn.Module, given: Batch) -> Tensor:
        return learner.record_losses(network, given).float().mean()

    planner = Planner(
        Workload(
            module,
            model_sizes(module, parameter_groups(module, weight_decay=config.weight_decay)),
            batch,
            loss,
            lambda _module, _on: None,
            config.effective_batch,
            snapshots=-(-epochs // config.snapshot_every),
            snapshot_output_bytes=4 * len(learner.validation[0]),
            feature_bytes=0,
        )
    )
    if not micro_batch:
        # Without checkpointing of its own there is only this one way to make a pass smaller.
        found = planner.fastest([sizes], checkpointing=False, vram_bytes=vram_bytes)
        micro_batch = found.micro_batch if found else 1
    return planner.plan(sizes, micro_batch=micro_batch, checkpointing=False, vram_bytes=vram_bytes)[0]
