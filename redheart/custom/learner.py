"""Any module with a loss for every record, over data in memory or in a dataset, as the trainer wants it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from redheart.core.errors import BadInput, names_text, one_line
from redheart.custom.losses import RecordLosses, check_takes_batch, sums_and_counts
from redheart.custom.models import checked_parts, found_parts, refuse_unfit
from redheart.custom.records import Batch, Collate, Records, pad_alike
from redheart.data.loader import epoch_order, split
from redheart.train.device.out_of_memory import in_parts
from redheart.train.draws import drawn
from redheart.train.learner import MicroLoss, Validation

LOSS = "loss"
"""Name of the one predictor."""


@dataclass(frozen=True)
class RunShape:
    """What `fit` has made of a configuration."""

    micro_batch: int = 16
    effective_batch: int = 1
    max_steps: int | None = None


class TensorLearner:
    """Implements `redheart.train.learner.Learner`.

    Args:
        model: with its initial weights; what does not require a gradient stays as it is.
        record_losses: from the module and a batch to the loss of every record, (B,), or to a pair: the sum of the
            losses within every record and how many it is of (tokens), each (B,). Then training and validation are
            normalised by that number over the whole effective batch; it must follow from the data alone. It is also
            called on `meta` tensors, to plan without a device.
        train: the training records; see `redheart.custom.records` for their kinds.
        validation: the same of the validation records. Windows are chosen on their first half and judged on the other.
        modules: dotted names of the submodules that are snapshotted and chosen apart; together they hold every tensor,
            tied weights wherever. None finds them: embeddings, each block of a `ModuleList`, heads, the rest.
        seed: of the order of the records, and of what is drawn in the validation.
        micro_batch: records per forward pass in the validation; 0 takes training's.
        collate: from a list of a dataset's rows to a batch, a tuple or dict of tensors, records first.

    Raises:
        BadInput: the data or the model cannot be taken, or the modules do not hold every tensor exactly once.
    """

    def __init__(
        self,
        model: nn.Module,
        record_losses: RecordLosses,
        *,
        train: object,
        validation: object,
        modules: Sequence[str] | None = None,
        seed: int = 0,
        micro_batch: int = 0,
        collate: Collate | None = None,
    ) -> None:
        self.train = Records(train, where="train", collate=collate)
        self.validation = Records(validation, where="validation", collate=collate)
        refuse_unfit(model)
        self._modules = found_parts(model) if modules is None else checked_parts(model, modules)
        self.model: nn.Module = model
        self.record_losses = record_losses
        self.seed, self.micro_batch = seed, micro_batch
        self.run = RunShape()
        self.started: dict[str, dict[str, str]] = {}
        """By folder, the digests of the weights that its run started with: the model holds others by now."""
        self._counts_N = np.full(len(self.train), np.nan)
        self._mean_count: float | None = None
        self._largest_batch = max(len(self.train), len(self.validation))
        pad_alike(self.train, self.validation)
        for records in (self.train, self.validation):
            check_takes_batch(record_losses, model, self._batch(records, np.arange(2)))

    def modules(self) -> Sequence[str]:
        return self._modules

    def epoch_rows(self, epoch: int) -> np.ndarray:
        order = epoch_order(np.arange(len(self.train)), seed=self.seed, epoch=epoch)
        if self.run.max_steps is None:
            return order
        size = self.run.effective_batch
        left = self.run.max_steps - epoch * -(-len(order) // size)
        return order[: max(0, left) * size]

    def loss(self, module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        # A rank without a row left still takes part in the backward pass, with a loss of nothing.
        share = float(len(rows) > 0)
        sums_B, counts_B = self._losses(module, self.train, rows if len(rows) else step_rows[:1])
        if torch.is_grad_enabled() and not sums_B.requires_grad:
            raise BadInput(
                "record_losses gives losses without a gradient",
                hint="compute them from what the model gives, without detach(), item() or no_grad()",
            )
        sums_B = sums_B * share
        if counts_B is None:
            counted, step_count = torch.tensor(float(len(rows))), float(len(step_rows))
        else:
            counted = counts_B.sum().cpu() * share
            step_count = float(counted) if len(rows) == len(step_rows) else self._step_count(step_rows)
        return MicroLoss(sums_B.sum() / max(step_count, 1.0), {LOSS: sums_B.detach().sum()}, {LOSS: counted})

    def read_ahead(self, rows: np.ndarray) -> None:
        return None

    def mean_losses(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[float, dict[str, float]]:
        mean = sums[LOSS] / max(counts[LOSS], 1.0)
        return mean, {LOSS: mean}

    def validate(self, module: nn.Module) -> Validation:
        losses_N = self.validation_losses(module, np.arange(len(self.validation)))
        mean = float(losses_N.mean())
        return Validation(mean, {LOSS: mean}, {LOSS: mean}, {}, {LOSS: losses_N[:, None]})

    def validation_losses(self, module: nn.Module, rows: np.ndarray) -> np.ndarray:
        """Loss of every one of these validation records, (N,) float32.

        Of losses by tokens the sum of a record over the mean number of tokens, so that their mean is that of tokens.
        """
        sums_N, counts_N = self._without_gradients(module, self.validation, rows)
        if counts_N is None:
            return sums_N
        if self._mean_count is None:
            every = np.arange(len(self.validation))
            whole = counts_N if len(rows) == len(every) else self._without_gradients(module, self.validation, every)[1]
            assert whole is not None
            self._mean_count = max(float(whole.mean()), 1e-9)
        return sums_N / np.float32(self._mean_count)

    def _step_count(self, step_rows: np.ndarray) -> float:
        """What the records of a step are counted as; those of which it is not known yet are passed without gradients.

        Every record once: by then the step has begun, and its micro-batches must be divided by what all have.
        """
        unknown = step_rows[np.isnan(self._counts_N[step_rows])]
        if len(unknown):
            self.model.eval()
            self._counts_N[unknown] = self._without_gradients(self.model, self.train, unknown)[1]
            self.model.train()
        return float(self._counts_N[step_rows].sum())

    @torch.no_grad()
    def _without_gradients(
        self, module: nn.Module, records: Records, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        size = min(self.micro_batch or self.run.micro_batch, self._largest_batch)

        def work(part: np.ndarray) -> np.ndarray:
            losses = drawn(lambda: self._losses(module, records, part), self.seed, "validation", int(part[0]))
            return np.stack([item.float().cpu().numpy() for item in losses if item is not None])

        parts = split([rows], size)
        done = in_parts(parts, work)
        if len(done) > len(parts):
            # Memory ran out: the next validation need not find that out again. The last batch may be a rest.
            self._largest_batch = done[-2].shape[1]
        found = np.concatenate(done, axis=1)
        return found[0], found[1] if len(found) > 1 else None

    def _batch(self, records: Records, rows: np.ndarray) -> Batch:
        device = next(self.model.parameters()).device
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), records.batch(rows))

    def _losses(self, module: nn.Module, records: Records, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        try:
            losses = self.record_losses(module, self._batch(records, rows))
        except RuntimeError as error:
            types = {parameter.dtype for parameter in self.model.parameters()}
            tables = [name for name, item in self.model.named_buffers() if item.dtype == torch.float32]
            if "dtype" not in str(error) or not tables or torch.bfloat16 not in types:
                raise
            raise BadInput(
                "tensors of two types meet in the model: weights are in bf16, buffers stay as they are",
                where=names_text(tables),
                got=one_line(error),
                hint="turn a buffer where it is used, as in `self.table.to(inputs.dtype)`, or train with `plain`",
            ) from error
        return sums_and_counts(losses, len(rows))
