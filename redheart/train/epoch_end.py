"""What the first rank does at the end of an epoch: the validation, the copies for a snapshot, the epoch's event."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from redheart.core.errors import Diverged, DoesNotFit
from redheart.snapshots.manifests import Progress
from redheart.snapshots.module_snapshots import write_snapshot
from redheart.snapshots.tensors import kept_type, parts_of
from redheart.train.device.out_of_memory import tried
from redheart.train.learner import Learner, Validation
from redheart.train.log.events import Event


@dataclass(frozen=True)
class TrainedEpoch:
    """An epoch whose steps are done."""

    at: Progress
    """How far the run had come with its last step."""
    learning_rate: float
    """Of its last step."""
    cycle_position: float
    records: int
    """That this process has trained on in it."""
    seconds: float

    @property
    def number(self) -> int:
        return self.at.epoch + 1

    def module_losses(self) -> dict[str, float]:
        """The mean training loss of every predictor."""
        return {name: value / max(1.0, self.at.counts[name]) for name, value in self.at.sums.items()}


def validated(learner: Learner, epoch: TrainedEpoch) -> tuple[Validation, float]:
    """The validation after an epoch, and the seconds that it took.

    Raises:
        DoesNotFit: the device's memory ran out.
        Diverged: its loss is no number.
    """
    learner.model.eval()
    start_s = time.perf_counter()
    validation = tried(lambda: learner.validate(learner.model))
    where = f"the validation after epoch {epoch.number}, step {epoch.at.step}"
    if validation is None:
        raise DoesNotFit(
            "out of device memory",
            where=where,
            hint="validate in smaller batches, then run the same command again; it goes on with the validation",
        )
    if not math.isfinite(validation.loss):
        raise Diverged(
            f"the validation loss is {validation.loss}",
            where=where,
            hint="lower --train.learning-rate; the states from before are intact",
        )
    return validation, time.perf_counter() - start_s


def snapshot(folder: Path, learner: Learner, epoch: TrainedEpoch, validation: Validation) -> Callable[[], object]:
    """The write of the epoch's snapshot, on copies that training does not change: weights in bf16, buffers as kept."""
    copies = {
        name: {key: item.detach().to("cpu", kept_type(item, torch.bfloat16), copy=True) for key, item in part.items()}
        for name, part in parts_of(learner.model, learner.modules()).items()
    }
    return partial(
        write_snapshot,
        folder,
        modules=copies,
        outputs={name: torch.from_numpy(values) for name, values in validation.outputs.items()},
        epoch=epoch.number,
        step=epoch.at.step,
        cycle_position=epoch.cycle_position,
        val_loss=validation.loss,
        val_module_loss=validation.module_losses,
        train_module_loss=epoch.module_losses(),
    )


def epoch_event(learner: Learner, epoch: TrainedEpoch, validation: Validation, *, validation_s: float) -> Event:
    train_loss, train_task_losses = learner.mean_losses(epoch.at.sums, epoch.at.counts)
    return {
        "epoch": epoch.number,
        "step": epoch.at.step,
        "train_loss": train_loss,
        "val_loss": validation.loss,
        "train_task_loss": train_task_losses,
        "val_task_loss": validation.task_losses,
        "train_module_loss": epoch.module_losses(),
        "val_module_loss": validation.module_losses,
        "val_metrics": validation.metrics,
        "grad_norm": epoch.at.grad_norm,
        "learning_rate": epoch.learning_rate,
        "cycle_position": epoch.cycle_position,
        # Of one that goes on behind its last step there is none.
        "samples_per_s": round(epoch.records / epoch.seconds, 2) if epoch.records else None,
        "epoch_s": round(epoch.seconds, 2),
        "validation_s": round(validation_s, 2),
        "host_rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
