"""Losses of records: of a causal language model of transformers, and whether one of one's own takes the batches."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_map_only

from redheart.core.errors import BadInput
from redheart.custom.models import buffers_kept
from redheart.custom.records import IDS, LABELS, MASK, NO_LABEL, Batch
from redheart.train.draws import generators_kept

RecordLosses = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Tensor]]


class _Reached(Exception):
    """The model, or a part of it, was about to be called."""


def check_takes_batch(record_losses: RecordLosses, model: nn.Module, batch: Batch) -> None:
    """Call a loss as far as the model or a part of it, which computes nothing.

    Raises:
        BadInput: it cannot take the batch apart.
    """

    parts = set(model.modules())

    def stop(module: nn.Module, _: object) -> None:
        if module in parts:
            raise _Reached

    # For all modules: those of TorchScript take none of their own.
    hook = register_module_forward_pre_hook(stop)
    try:
        # What is drawn on the way must not move the caller's own draws.
        with generators_kept(), buffers_kept(model):
            record_losses(model, batch)
    except _Reached:
        pass
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        if frame is None or frame.tb_frame.f_code is not getattr(record_losses, "__code__", None):
            raise
        raise BadInput(
            "record_losses cannot take a batch apart",
            where=f"{record_losses.__name__}, line {frame.tb_lineno}",
            got=f"{type(error).__name__}: {error}",
            expected=str(tree_map_only(Tensor, lambda tensor: f"{tensor.dtype} {list(tensor.shape)}", batch)),
            hint="docs/own-model.md says what data becomes; where lengths differ the mask is the last of a tuple",
        ) from error
    finally:
        hook.remove()


def sums_and_counts(losses: object, num_records: int) -> tuple[Tensor, Tensor | None]:
    """What a loss has given, in float32: of every record the sum, and how many it is of if it says so.

    Raises:
        BadInput: it is not one number, or a pair of them, for every record.
    """
    found = losses if isinstance(losses, tuple) else (losses,)
    tensors = [item for item in found if isinstance(item, Tensor) and item.shape == (num_records,)]
    if len(tensors) != len(found) or len(found) not in (1, 2):
        kinds = [f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in found]
        raise BadInput(
            "record_losses must give a number for every record",
            got=", ".join(kinds) or "an empty tuple",
            expected=f"a tensor of shape [{num_records}], or a tuple of two",
            hint='take reduction="none", and the mean over all dimensions but the first',
        )
    return tensors[0].float(), tensors[1] if len(tensors) == 2 else None


def token_losses(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the losses of a record's tokens and how many count, each (B,): normalised by tokens, as transformers does.

    Args:
        module: gives `.logits` of shape (B, S, vocabulary).
        batch: `input_ids` (B, S), and where there are any `attention_mask` and `labels` (-100 does not count); without
            labels every token is predicted but the first.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != LABELS}
    labels_BS = batch.get(LABELS)
    if labels_BS is None:
        labels_BS = batch[IDS] if MASK not in batch else batch[IDS].masked_fill(batch[MASK] == 0, NO_LABEL)
    logits_BSV = module(**inputs).logits[:, :-1].float()
    losses_BS = torch.nn.functional.cross_entropy(
        logits_BSV.transpose(1, 2), labels_BS[:, 1:], reduction="none", ignore_index=NO_LABEL
    )
    return losses_BS.sum(1), (labels_BS[:, 1:] != NO_LABEL).sum(1)
