"""A model's outputs and losses on rows of the prepared records.

Shape suffixes: B batch, S tokens, D width, O targets of a task, N records.
"""

import numpy as np
import torch
from torch import Tensor, nn

from redheart.core.errors import Diverged
from redheart.data.features import FeatureCache
from redheart.data.loader import load_features, split
from redheart.data.prepare import Prepared
from redheart.evaluate import metrics
from redheart.model.network import task_of
from redheart.train.device.out_of_memory import in_parts


def predictor_losses(outputs: dict[str, np.ndarray], prepared: Prepared, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Loss of every predictor on every row, NaN where it has no target, (N,) each."""
    losses = {}
    for name, predictions_NO in outputs.items():
        task = prepared.inventory.task(task_of(name))
        columns = prepared.inventory.columns(task.name)
        losses[name] = metrics.record_losses(
            task.kind, predictions_NO, prepared.values_NT[rows][:, columns], prepared.mask_NT[rows][:, columns]
        )
    return losses


def loss_floors(prepared: Prepared, rows: np.ndarray) -> dict[str, np.ndarray]:
    """By final predictor, the part of every row's loss that no model can remove, (N,); absent where there is none.

    That of a distribution is its entropy: what lies above it is the KL divergence.
    """
    floors = {}
    for task in prepared.inventory.tasks:
        if task.kind == "distribution":
            columns = prepared.inventory.columns(task.name)
            floors[f"heads.{task.name}"] = metrics.entropy(prepared.values_NT[rows][:, columns])
    return floors


@torch.inference_mode()
def predict_rows(
    module: nn.Module, features: FeatureCache, rows: np.ndarray, *, micro_batch: int
) -> dict[str, np.ndarray]:
    """Outputs of every predictor on rows, float32, in their order.

    Rows of similar length are run together, so that little is computed for padding; fewer where memory runs out.

    Raises:
        DoesNotFit: the device's memory does not take one record.
        Diverged: an output is not finite. In a loss it would look like a target that is absent.
    """
    batches, back_N = length_batches(features, rows, micro_batch=micro_batch)
    parameter = next(module.parameters())

    def predicted(batch: np.ndarray) -> dict[str, Tensor]:
        features_BSD, mask_BS = load_features(features, batch)
        predictions = module(features_BSD.to(parameter), mask_BS.to(parameter.device))
        return {name: value.float().cpu() for name, value in predictions.items()}

    parts = in_parts(batches, predicted)
    outputs = {name: torch.cat([part[name] for part in parts]).numpy()[back_N] for name in parts[0]}
    wrong = [name for name, values in outputs.items() if not np.isfinite(values).all()]
    if wrong:
        raise Diverged(
            "the model's outputs are not finite",
            got=", ".join(wrong),
            hint="lower --train.learning-rate; the states from before are intact",
        )
    return outputs


def length_batches(
    features: FeatureCache, rows: np.ndarray, *, micro_batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows in batches of similar length, and the positions of `rows` in the order of these batches, (N,)."""
    order = np.argsort(features.lengths(rows), kind="stable")
    return split([rows[order]], micro_batch), np.argsort(order)
