"""The loss of a causal language model of transformers, token by token."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from redheart.custom.records import IDS, LABELS, MASK, NO_LABEL


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
