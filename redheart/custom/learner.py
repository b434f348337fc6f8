"""Any module with one loss per record, over tensors in memory, as the trainer wants it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from redheart.core.errors import BadInput
from redheart.core.seeds import stream_seed
from redheart.train.learner import MicroLoss, Validation
from redheart.train.out_of_memory import in_parts

LOSS = "loss"
"""Name of the one predictor."""

Batch = tuple[Tensor, ...]
RecordLosses = Callable[[nn.Module, Batch], Tensor]


class TensorLearner:
    """Implements `redheart.train.learner.Learner`.

    Args:
        model: on the CPU, with its initial weights in float32.
        record_losses: from the module and a batch (a tuple of tensors, records first) to the loss of every record,
            (B,). It is also called on `meta` tensors, to plan without a device.
        train: tensors of the training records, records first.
        validation: the same of the validation records. Windows are chosen on their first half and judged on the other.
        modules: dotted names of the submodules that are snapshotted and chosen apart; together they hold every tensor.
            Tied weights belong into the same one.
        seed: of the order of the records.
        micro_batch: records per forward pass in the validation.

    Raises:
        BadInput: the tensors are not of as many records each, or the modules do not hold every tensor exactly once.
    """

    def __init__(
        self,
        model: nn.Module,
        record_losses: RecordLosses,
        *,
        train: Sequence[Tensor],
        validation: Sequence[Tensor],
        modules: Sequence[str],
        seed: int = 0,
        micro_batch: int = 16,
    ) -> None:
        for part, tensors in (("train", train), ("validation", validation)):
            if len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) < 2:
                sizes = ", ".join(str(len(tensor)) for tensor in tensors) or "no tensor"
                raise BadInput("tensors of the records", where=part, got=sizes, expected="as many in each, two or more")
        _check_modules(model, modules)
        self.model: nn.Module = model
        self.record_losses, self.train, self.validation = record_losses, tuple(train), tuple(validation)
        self.seed, self.micro_batch = seed, micro_batch
        self._modules = tuple(modules)

    def modules(self) -> Sequence[str]:
        return self._modules

    def epoch_rows(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng(stream_seed(self.seed, "order", epoch))
        return random.permutation(len(self.train[0]))

    def loss(self, module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        # A rank without a row left still takes part in the backward pass, with a loss of nothing.
        share = float(len(rows) > 0)
        losses_B = self._losses(module, self.train, rows if len(rows) else step_rows[:1]) * share
        counted = torch.tensor(float(len(rows)))
        return MicroLoss(losses_B.sum() / len(step_rows), {LOSS: losses_B.detach().sum()}, {LOSS: counted})

    def read_ahead(self, rows: np.ndarray) -> None:
        return None

    def mean_losses(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[float, dict[str, float]]:
        mean = sums[LOSS] / counts[LOSS]
        return mean, {LOSS: mean}

    def validate(self, module: nn.Module) -> Validation:
        losses_N = self.validation_losses(module, np.arange(len(self.validation[0])))
        mean = float(losses_N.mean())
        return Validation(mean, {LOSS: mean}, {LOSS: mean}, {}, {LOSS: losses_N[:, None]})

    @torch.no_grad()
    def validation_losses(self, module: nn.Module, rows: np.ndarray) -> np.ndarray:
        """Loss of every one of these validation records, (N,) float32."""
        parts = [rows[start : start + self.micro_batch] for start in range(0, len(rows), self.micro_batch)]
        return np.concatenate(
            in_parts(parts, lambda part: self._losses(module, self.validation, part).float().cpu().numpy())
        )

    def _losses(self, module: nn.Module, tensors: Batch, rows: np.ndarray) -> Tensor:
        device = next(self.model.parameters()).device
        index = torch.from_numpy(rows)
        return self.record_losses(module, tuple(tensor[index].to(device) for tensor in tensors)).float()


def _check_modules(model: nn.Module, modules: Sequence[str]) -> None:
    held = [f"{name}.{key}" for name in modules for key in model.get_submodule(name).state_dict()]
    missing = sorted(set(model.state_dict()) - set(held))
    if missing or len(held) > len(set(held)):
        twice = sorted({key for key in held if held.count(key) > 1})
        raise BadInput(
            "the modules do not hold every tensor exactly once",
            got=f"missing: {', '.join(missing[:5]) or 'none'}; twice: {', '.join(twice[:5]) or 'none'}",
            hint="name submodules that together are the whole model",
        )
