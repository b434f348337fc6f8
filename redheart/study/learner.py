"""The emotion model with its data, as the trainer sees it.

Shape suffixes: B batch, T target columns, O targets of a task, N records.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from redheart.core.config import StudyConfig, TrainConfig
from redheart.core.ranks import launched
from redheart.data.features import FeatureCache
from redheart.data.loader import epoch_order, kept_channels, load_features
from redheart.data.prepare import Prepared
from redheart.evaluate import metrics
from redheart.evaluate.prediction import predict_rows, predictor_losses
from redheart.memory.host import available_cores
from redheart.model.dims import TASKS
from redheart.model.ledger import module_names
from redheart.model.losses import HEADS_SHARE, multitask_loss, task_counts, task_weight
from redheart.model.network import RedHeart, task_of
from redheart.train.device.compiled_modules import compile_modules
from redheart.train.device.graphs import LENGTH_STEP
from redheart.train.halves import Halves, by_length
from redheart.train.learner import MicroLoss, Validation

VALIDATION_PARTS = ("val_select", "val_confirm")
Tensors = tuple[Tensor, ...]


class _Ahead:
    """Reads rows when they are asked for, or before: one part of them in a thread, or two in two of one core each."""

    def __init__(self, read: Callable[[np.ndarray], Tensors], *, parts: int):
        self._read = read
        one_core = partial(torch.set_num_threads, 1) if parts > 1 else None
        self._threads = ThreadPoolExecutor(parts, thread_name_prefix="read-ahead", initializer=one_core)
        self._coming: dict[bytes, Future[Tensors]] = {}

    def begin(self, parts: Sequence[np.ndarray]) -> None:
        self._coming = {rows.tobytes(): self._threads.submit(self._read, rows) for rows in parts if len(rows)}

    def get(self, rows: np.ndarray) -> Tensors:
        """What was read of these rows; raises what reading them raised."""
        coming = self._coming.pop(rows.tobytes(), None)
        return coming.result() if coming else self._read(rows)


def computes_in_halves(config: StudyConfig) -> bool:
    """Whether two threads compute half of a batch each, see `Halves`: on the CPU, with the sizes that were measured.

    The last bits depend on it. What layers drop out would be drawn by both threads in any order.
    """
    train = config.train
    threads = min(train.num_threads or available_cores(), available_cores())
    is_alone_on_cpu = launched().world_size == 1 and not torch.cuda.is_available()
    return is_alone_on_cpu and threads > 1 and config.preset != "full" and train.dropout == 0


class EmotionLearner:
    """Implements `redheart.train.learner.Learner`.

    On a CUDA device, batches for a pipeline are page-locked, and texts for graphs padded to a few lengths.
    """

    def __init__(
        self,
        model: RedHeart,
        prepared: Prepared,
        features: FeatureCache,
        train: TrainConfig,
        *,
        seed: int,
        halves: bool = False,
    ) -> None:
        self.model: nn.Module = model
        self._outputs = model.dims.outputs
        self._prepared, self._features, self._train, self._seed = prepared, features, train, seed
        self._module_names, self._parameters = module_names(model), list(model.parameters())
        self._length_step = LENGTH_STEP if train.graphs and torch.cuda.is_available() else 1
        self._pinned = train.pipeline and torch.cuda.is_available()
        self._halves = Halves() if halves else None
        if halves:
            compile_modules(model)
        self._batches = _Ahead(self._read, parts=2 if halves else 1)

    def modules(self) -> Sequence[str]:
        return self._module_names

    def epoch_rows(self, epoch: int) -> np.ndarray:
        return epoch_order(self._prepared.split["train"], seed=self._seed, epoch=epoch)

    def loss(self, module: nn.Module, rows: np.ndarray, *, step_rows: np.ndarray) -> MicroLoss:
        is_empty = len(rows) == 0
        read = step_rows[:1] if is_empty else rows
        first = next(self.model.parameters())
        step_counts_K = task_counts(torch.from_numpy(self._prepared.mask_NT[step_rows]), self._outputs)
        step_counts_K = step_counts_K.to(first.device, non_blocking=self._pinned)
        share = self._train.feature_dropout if self.model.training else 0.0
        kept_B1D = kept_channels(len(read), share, like=first) if share else None

        def loss_of(records: np.ndarray | slice, network: nn.Module) -> MicroLoss:
            features_BSD, mask_BS, targets_BT, target_mask_BT = (
                tensor.to(first.device, non_blocking=self._pinned) for tensor in self._batches.get(read[records])
            )
            terms = multitask_loss(
                network(features_BSD if kept_B1D is None else features_BSD * kept_B1D[records], mask_BS),
                targets_BT,
                # A rank without a row left still takes part in the backward pass, with everything masked.
                target_mask_BT & (not is_empty),
                outputs=self._outputs,
                step_counts_K=step_counts_K,
                value_weight=self._train.value_weight,
            )
            counts = {name: terms.counts_K[TASKS.index(task_of(name))] for name in terms.sums}
            return MicroLoss(terms.total, terms.sums, counts)

        if self._halves and len(read) > 1:
            return self._halves.loss(partial(loss_of, network=self.model), self._halves_of(read), self._parameters)
        return loss_of(slice(None), module)

    def read_ahead(self, rows: np.ndarray) -> None:
        if self._halves:
            # Their own threads wait by now, and the optimizer's use few cores.
            self._batches.begin([rows[half] for half in self._halves_of(rows)] if len(rows) > 1 else [])
        elif torch.cuda.is_available() or torch.get_num_threads() == 1:
            # A thread has a team of torch's threads of its own, which takes the cores that compute: docs/step.md.
            self._batches.begin([rows])

    def _halves_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return by_length(self._features.lengths(rows))

    def _read(self, rows: np.ndarray) -> Tensors:
        """Features in the model's type, their mask, targets and their mask; where they are copied from, page-locked."""
        features_BSD, mask_BS = load_features(self._features, rows)
        features_BSD = features_BSD.to(next(self.model.parameters()).dtype)
        more = -features_BSD.shape[1] % self._length_step
        if more:
            features_BSD = functional.pad(features_BSD, (0, 0, 0, more))
        targets = (torch.from_numpy(whole[rows]) for whole in (self._prepared.values_NT, self._prepared.mask_NT))
        tensors = (features_BSD, functional.pad(mask_BS, (0, more)), *targets)
        return tuple(tensor.pin_memory() for tensor in tensors) if self._pinned else tensors

    def mean_losses(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[float, dict[str, float]]:
        means = {name: sums[name] / counts[name] for name in sums if counts[name] > 0}
        total = total_loss(dict.fromkeys(sums, 0.0) | means, value_weight=self._train.value_weight)
        return total, {task_of(name): value for name, value in means.items() if name.startswith("heads.")}

    def validate(self, module: nn.Module) -> Validation:
        rows = np.concatenate([self._prepared.split[part] for part in VALIDATION_PARTS])
        outputs = predict_rows(module, self._features, rows, micro_batch=self._train.micro_batch)
        losses_N = predictor_losses(outputs, self._prepared, rows)
        means = {name: float(np.nanmean(losses)) for name, losses in losses_N.items() if not np.isnan(losses).all()}
        tasks = {task_of(name): value for name, value in means.items() if name.startswith("heads.")}
        columns = self._prepared.inventory.columns("emotion")
        labelled = self._prepared.mask_NT[rows][:, columns].all(1)
        found = {}
        if labelled.any():
            logits_NC = outputs["heads.emotion"][labelled]
            targets_NC = self._prepared.values_NT[rows][labelled][:, columns]
            found = {
                "kl": float(metrics.emotion_kl(logits_NC, targets_NC).mean()),
                "accuracy": float(metrics.hits(logits_NC, targets_NC, tie_tolerant=False).mean()),
                "accuracy_tie": float(metrics.hits(logits_NC, targets_NC, tie_tolerant=True).mean()),
            }
        total = total_loss(dict.fromkeys(losses_N, 0.0) | means, value_weight=self._train.value_weight)
        return Validation(total, tasks, means, found, outputs)


def total_loss(means: dict[str, float], *, value_weight: float = 1.0) -> float:
    """The weighted total of all predictors' mean losses, as in training: 0 of those whose task has no target."""
    weighted = {name: value * task_weight(task_of(name), value_weight) for name, value in means.items()}
    heads = [value for name, value in weighted.items() if name.startswith("heads.")]
    others = [value for name, value in weighted.items() if not name.startswith("heads.")]
    return HEADS_SHARE * float(np.mean(heads)) + (1 - HEADS_SHARE) * float(np.mean(others))
