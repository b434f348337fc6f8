"""The planner for a model of one's own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput, one_line
from redheart.custom.learner import TensorLearner
from redheart.custom.losses import sums_and_counts
from redheart.custom.records import Batch
from redheart.memory.ledger import model_sizes
from redheart.memory.plan import Plan, Planner
from redheart.memory.trace import Workload
from redheart.train.strategy import strategy_sizes
from redheart.train.zero.groups import parameter_groups


def plan(
    learner: TensorLearner, config: TrainConfig, *, vram_bytes: int, epochs: int = 1, micro_batch: int = 0
) -> Plan:
    """Does training fit into that much device memory; nothing is allocated and no device is needed.

    Records count as the longest one.

    Args:
        learner: the model with its loss and data.
        config: its strategy, effective batch, checkpointing and snapshots.
        vram_bytes: of the card.
        epochs: for the disk of the snapshots.
        micro_batch: 0 takes the configuration's, and if that is 0 the largest that fits, or 1 where none does.

    Raises:
        BadInput: there is no such strategy, or the loss cannot be traced on `meta` tensors or is not one of records.
    """
    sizes = strategy_sizes(config.strategy, config)
    with _needing_contents("the model cannot be copied without its contents", where=type(learner.model).__name__):
        module = _on_meta(learner.model, sizes.kind.card_dtype).train()
    example = learner.train.batch(learner.train.longest())

    def batch(size: int) -> Batch:
        return tree_map_only(
            Tensor, lambda one: torch.empty(size, *one.shape[1:], dtype=one.dtype, device="meta"), example
        )

    def loss(network: nn.Module, given: Batch) -> Tensor:
        num_records = next(item.shape[0] for item in tree_leaves(given) if isinstance(item, Tensor))
        return sums_and_counts(learner.record_losses(network, given), num_records)[0].mean()

    def checkpoint(network: nn.Module, wanted: bool) -> None:
        if wanted:
            set_checkpointing(network, True)

    planner = Planner(
        Workload(
            module,
            model_sizes(module, parameter_groups(module, weight_decay=config.weight_decay)),
            batch,
            loss,
            checkpoint,
            config.effective_batch,
            snapshots=-(-epochs // config.snapshot_every),
            snapshot_output_bytes=4 * len(learner.validation),
            feature_bytes=0,
            is_affine=False,
        )
    )
    micro_batch = micro_batch or config.micro_batch
    no_values = "no decision that depends on a tensor's values"
    with _needing_contents("the model or its loss cannot be traced without data", expected=no_values):
        if not micro_batch:
            # Recomputing is the user's choice; without it there is only this one way to make a pass smaller.
            found = planner.fastest([sizes], checkpointing=config.checkpointing, vram_bytes=vram_bytes)
            micro_batch = found.micro_batch if found else 1
        found, _ = planner.plan(
            sizes, micro_batch=micro_batch, checkpointing=config.checkpointing, vram_bytes=vram_bytes
        )
        return found


@contextmanager
def _needing_contents(what: str, **more: str) -> Iterator[None]:
    """Errors of what works on `meta` alone, as one of ours."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        hint = "name a micro_batch in the configuration: then `fit` needs no plan"
        raise BadInput(what, got=one_line(error), hint=hint, **more) from error


def set_checkpointing(model: Any, is_on: bool) -> None:
    """Let a model recompute activations in its backward pass, or not, by its own way (transformers renames it in 5.23).

    Raises:
        BadInput: it has none.
    """
    way = next((name for name in ("activation", "gradient") if hasattr(model, f"{name}_checkpointing_enable")), None)
    if not is_on:
        getattr(model, f"{way}_checkpointing_disable")()
        return
    # Every model of transformers has the method, and of some it raises.
    if way is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise BadInput(
            "this model has no checkpointing of its own",
            where="TrainConfig.checkpointing",
            got=type(model).__name__,
            expected="gradient_checkpointing_enable, as models of transformers have it",
            hint="call torch.utils.checkpoint in its forward, and leave checkpointing False",
        )
    # The other way gives no gradients where the first block's inputs have none, as behind frozen embeddings.
    getattr(model, f"{way}_checkpointing_enable")(**{f"{way}_checkpointing_kwargs": {"use_reentrant": False}})


def _on_meta(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with parameters in a type and without contents; tied ones stay tied, frozen ones frozen."""
    held: dict[int, object] = {id(buffer): buffer.detach().to("meta") for buffer in model.buffers()}
    for item in model.parameters():
        kind = dtype if item.is_floating_point() else item.dtype
        held[id(item)] = nn.Parameter(item.detach().to("meta", kind), requires_grad=item.requires_grad)
    return copy.deepcopy(model, held)
