"""The batch that engines and optimizers are held against each other on."""

import torch
from torch import Tensor

from redheart.model.dims import preset

RECORDS, LENGTH = 8, 12
DIMS = preset("tiny")


def fixed_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (B, S, 768), their mask, targets (B, T) and which of them are there: all, the same at every call."""
    random = torch.Generator().manual_seed(0)
    features_BSD = torch.randn(RECORDS, LENGTH, 768, generator=random)
    targets_BT = torch.rand(RECORDS, 22, generator=random)
    targets_BT[:, :7] /= targets_BT[:, :7].sum(1, keepdim=True)
    mask_BS = torch.ones(RECORDS, LENGTH, dtype=torch.bool)
    return features_BSD, mask_BS, targets_BT, torch.ones_like(targets_BT, dtype=torch.bool)
