"""The whole of training in thirty lines: what every engine is held against."""

import numpy as np
import torch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.train.learner import Learner
from redheart.train.zero.groups import parameter_groups


def raw_loop(
    learner: Learner, config: TrainConfig, *, epochs: int, rates: list[float]
) -> tuple[nn.Module, list[float]]:
    """Train in float32 on one device; the trained model and the loss of every step."""
    model = learner.model
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)
    losses: list[float] = []
    for epoch in range(epochs):
        order: np.ndarray = learner.epoch_rows(epoch)
        for start in range(0, len(order), config.effective_batch):
            step_rows = order[start : start + config.effective_batch]
            total = 0.0
            for first in range(0, len(step_rows), config.micro_batch):
                loss: Tensor = learner.loss(
                    model, step_rows[first : first + config.micro_batch], step_rows=step_rows
                ).total
                loss.backward()
                total += loss.double().item()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = rates[len(losses)]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
    return model, losses
