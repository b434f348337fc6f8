"""The multi-task loss: soft cross-entropy for the emotion, masked smooth L1 for values in 0-1, in float32.

Shape suffixes: B batch, T target columns of all tasks side by side, O targets of one task, P predictors of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

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
    ends = accumulate(outputs)
    return {task: slice(end - width, end) for task, width, end in zip(TASKS, outputs, ends, strict=True)}


def record_losses(task: str, predictions_PBO: Tensor, targets_BO: Tensor, mask_BO: Tensor) -> Tensor:
    """Loss of every record by several predictors of a task, (P, B); zero where it has no target of the task.

    Emotion: cross-entropy of the target distribution, in nats. Others: smooth L1 (beta 1), mean over present targets.
    """
    present_BO = mask_BO.float()
    if task == "emotion":
        return (predictions_PBO.log_softmax(-1) * -(targets_BO * present_BO)).sum(-1)
    share_BO = present_BO / present_BO.sum(-1, keepdim=True).clamp(min=1)
    targets_PBO = targets_BO.expand_as(predictions_PBO)
    return (functional.smooth_l1_loss(predictions_PBO, targets_PBO, reduction="none") * share_BO).sum(-1)


def task_counts(mask_BT: Tensor, outputs: tuple[int, ...]) -> Tensor:
    """Records that have at least one target of each task, (4,) float32."""
    return torch.stack([mask_BT[:, columns].any(1) for columns in task_columns(outputs).values()]).sum(1).float()


def task_weight(task: str, value_weight: float) -> float:
    """Weight of a task in the total."""
    return 1.0 if task == "emotion" else value_weight


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
    # Few large operators: a card waits for launches.
    sums: dict[str, Tensor] = {}
    by_kind: tuple[list[Tensor], list[Tensor]] = ([], [])
    for task, columns in task_columns(outputs).items():
        names = sorted((name for name in predictions if task_of(name) == task), key=_is_head)
        predictions_PBO = torch.stack([predictions[name] for name in names])
        sums_P = record_losses(task, predictions_PBO, targets_BT[:, columns], mask_BT[:, columns]).sum(-1)
        num_heads = sum(map(_is_head, names))
        for kind, part in zip(by_kind, sums_P.split([len(names) - num_heads, num_heads]), strict=True):
            weight = task_weight(task, value_weight)
            kind.append(part.sum() if weight == 1 else weight * part.sum())
        sums |= dict(zip(names, sums_P.detach().unbind(), strict=True))
    modules_K, heads_K = map(torch.stack, by_kind)
    num_heads = sum(map(_is_head, predictions))
    mean_K = (1 - HEADS_SHARE) / (len(predictions) - num_heads) * modules_K + HEADS_SHARE / num_heads * heads_K
    # A task without any target in the effective batch has zero loss, not 0/0.
    total = (mean_K / step_counts_K.clamp(min=1)).sum()
    return LossTerms(total, sums, task_counts(mask_BT, outputs))


def _is_head(predictor: str) -> bool:
    return predictor.startswith("heads.")
