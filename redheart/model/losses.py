"""The multi-task loss: soft cross-entropy for the emotion, masked smooth L1 for values in 0-1, in float32.

Shape suffixes: B batch, T target columns of all tasks side by side, O targets of one task.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redheart.model.dims import TASKS
from redheart.model.network import task_of

HEADS_SHARE = 0.7
"""Weight of the mean over the heads; the modules' own predictions share the rest."""


@dataclass(frozen=True)
class LossTerms:
    """Contribution of a micro-batch to the loss of its effective batch."""

    total: Tensor
    """Scalar; the sum over the micro-batches is the loss of the effective batch."""
    sums: dict[str, Tensor]
    """Per predictor, the sum over records of its loss (detached)."""
    counts_K: Tensor
    """Records that have a target, per task in the order of `TASKS`."""


def task_columns(outputs: tuple[int, ...]) -> dict[str, slice]:
    """Where each task's targets lie among the T columns."""
    columns, start = {}, 0
    for task, width in zip(TASKS, outputs, strict=True):
        columns[task] = slice(start, start + width)
        start += width
    return columns


def record_losses(predictor: str, prediction_BO: Tensor, targets_BO: Tensor, mask_BO: Tensor) -> Tensor:
    """Loss of every record, (B,); zero where it has no target of the task.

    Emotion: cross-entropy of the target distribution, in nats. Others: smooth L1 (beta 1), mean over present targets.
    """
    present_BO = mask_BO.float()
    if task_of(predictor) == "emotion":
        return -(targets_BO * prediction_BO.log_softmax(-1) * present_BO).sum(-1)
    error_BO = functional.smooth_l1_loss(prediction_BO, targets_BO, reduction="none") * present_BO
    return error_BO.sum(-1) / present_BO.sum(-1).clamp(min=1)


def task_counts(mask_BT: Tensor, outputs: tuple[int, ...]) -> Tensor:
    """Records that have at least one target of each task, (4,) float32."""
    return torch.stack([mask_BT[:, columns].any(1).sum() for columns in task_columns(outputs).values()]).float()


def task_weight(predictor: str, value_weight: float) -> float:
    """Weight of a predictor's task in the total."""
    return 1.0 if task_of(predictor) == "emotion" else value_weight


def multitask_loss(
    predictions: Mapping[str, Tensor],
    targets_BT: Tensor,
    mask_BT: Tensor,
    *,
    outputs: tuple[int, ...],
    step_counts_K: Tensor,
    value_weight: float = 1.0,
) -> LossTerms:
    """Loss of a micro-batch, normalised by the records of its whole effective batch.

    Args:
        predictions: by predictor, as `RedHeart.forward` gives them.
        targets_BT: targets, 0 where absent.
        mask_BT: True where the target is present.
        outputs: number of targets per task.
        step_counts_K: `task_counts` of the whole effective batch over all ranks; k micro-batches then sum
            to exactly the one big batch.
        value_weight: weight of the tasks in 0-1 beside the emotion.
    """
    columns = task_columns(outputs)
    heads = [name for name in predictions if name.startswith("heads.")]
    total = targets_BT.new_zeros(())
    sums = {}
    for name, prediction in predictions.items():
        task = task_of(name)
        losses_B = record_losses(name, prediction, targets_BT[:, columns[task]], mask_BT[:, columns[task]])
        is_head = name.startswith("heads.")
        share = HEADS_SHARE / len(heads) if is_head else (1 - HEADS_SHARE) / (len(predictions) - len(heads))
        share *= task_weight(name, value_weight)
        # A task without any target in the effective batch has zero loss, not 0/0.
        total = total + share * losses_B.sum() / step_counts_K[TASKS.index(task)].clamp(min=1)
        sums[name] = losses_B.detach().sum()
    return LossTerms(total, sums, task_counts(mask_BT, outputs))
