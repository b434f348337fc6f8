"""Training a model of one's own: the loop, its states and snapshots as they are."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from operator import index
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from redheart.core.config import TrainConfig, digest, fingerprint, out_of_range
from redheart.core.errors import BadInput, one_line
from redheart.core.files import is_sealed, write_sealed
from redheart.core.folders import folder_lock, refuse_taken
from redheart.core.ranks import launched
from redheart.custom.learner import RunShape, TensorLearner
from redheart.custom.models import buffers_kept
from redheart.custom.planning import plan, set_checkpointing
from redheart.custom.records import tensor_digest
from redheart.evaluate.holdout_log import OPENINGS
from redheart.snapshots.manifests import newest_progress, snapshot_folders
from redheart.snapshots.tensors import model_tensors
from redheart.train.draws import drawn
from redheart.train.log.display import TrainingDisplay
from redheart.train.log.events import EventSink
from redheart.train.log.wandb_sink import RUN_ID, open_wandb, wandb_mode
from redheart.train.loop import train
from redheart.train.ranks.peers import together
from redheart.train.settings import Decay, RunSettings

OF_THE_EMOTION_MODEL = ("dropout", "feature_dropout", "value_weight")
"""Settings that are that model's own."""
VALIDATION = "validation.json"
LEAST_VALIDATION = 4
"""Records: a comparison needs two in each half."""


class ValidationRecords(msgspec.Struct, frozen=True):
    """What a run is validated on, which its snapshots' stored losses are of."""

    digests: list[str]


# Whatever the caller is in, here are gradients.
@torch.inference_mode(False)
def fit(
    learner: TensorLearner,
    config: TrainConfig,
    folder: Path | str,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    decay: Decay = "restarts",
    warmup_steps: int = 0,
    max_steps: int | None = None,
    sinks: Sequence[EventSink] = (),
    show_progress: bool = False,
) -> None:
    """Train to the end, or from the newest state in `folder` to the end; see `redheart.train.loop.train`.

    The folder belongs to this data, these initial weights and these settings: others are refused. The same learner
    goes on in the same folder, and starts in a new one from the weights that its model holds by then. Afterwards the
    model holds the trained weights in the type of the strategy, and is in evaluation mode.

    Args:
        learner: the model with its loss and data.
        config: strategy, batch, schedule and savers; `micro_batch` 0 takes the plan's on a card, and the whole
            effective batch without one; `checkpointing` calls the model's own `gradient_checkpointing_enable`.
        folder: of the run; events, states and snapshots lie in it.
        epochs: to train; a finished run may be continued with more under `restarts`. None follows from `max_steps`.
        learning_rate: at the top of a cycle; None takes the configuration's.
        decay: from there on: `restarts` as the configuration's cycles, or once over the run as a `cosine` or `linear`,
            to `config.eta_min`.
        warmup_steps: over which the rate rises from 0.
        max_steps: optimizer steps after which the run ends, with a validation and a snapshot.
        sinks: are told every event.
        show_progress: on standard output: a bar in a terminal, lines elsewhere.

    Raises:
        BadInput: the folder holds another run or other people's files, or another process works in it; a setting has
            no meaning here.
        Diverged: the loss or gradient was not finite three steps in a row.
        Interrupted: asked to stop; a state was written.
        DiskError: a state or snapshot could not be written.
        OtherRankFailed: started by a launcher, and another rank raised one of these, or was killed.
    """
    folder = Path(folder)
    rate = config.learning_rate if learning_rate is None else learning_rate
    rate, epochs, max_steps, warmup_steps = _checked(rate, epochs, max_steps, warmup_steps, decay)
    if wrong := out_of_range(config):
        raise BadInput("settings out of range", where=f"TrainConfig: {'; '.join(wrong)}")
    config = dataclasses.replace(config, micro_batch=_micro_batch(learner, config))
    for name in OF_THE_EMOTION_MODEL:
        if getattr(config, name) != getattr(TrainConfig(), name):
            raise BadInput(
                "a setting of the emotion model", where=f"TrainConfig.{name}", hint="set it in your model or loss"
            )
    if len(learner.validation) < LEAST_VALIDATION:
        raise BadInput(
            "too few validation records to choose on one half and judge on the other",
            got=len(learner.validation),
            expected=f"{LEAST_VALIDATION} or more",
        )
    learner.run = RunShape(config.micro_batch, config.effective_batch, max_steps)
    _refuse_batches_of_one(learner, config)
    if config.checkpointing:
        set_checkpointing(learner.model, True)
    steps_per_epoch = -(-len(learner.train) // config.effective_batch)
    if max_steps:
        epochs = min(epochs or max_steps, -(-max_steps // steps_per_epoch))
    assert epochs
    num_steps = min(epochs * steps_per_epoch, max_steps or epochs * steps_per_epoch)
    once = [decay, num_steps] if decay != "restarts" else None
    how = {"decay": once, "warmup_steps": warmup_steps, "max_steps": max_steps}
    key = _key(learner, config, rate, folder, how)
    settings = RunSettings(
        config,
        epochs,
        rate,
        key,
        decay=decay,
        warmup_steps=warmup_steps,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )
    with together(), ExitStack() as until_the_end:
        if launched().is_first:
            _refuse_others_files(folder)
            until_the_end.enter_context(folder_lock(folder, name="run", wait=False))
            sinks = [*sinks, *_sinks(config, settings, folder, show_progress=show_progress)]
            if newest_progress(folder / "states") is None and not snapshot_folders(folder / "snapshots"):
                # Of a try before no loss is left that its records would have to be known for.
                write_sealed(folder / VALIDATION, ValidationRecords(learner.validation.digest()))
        train(learner, settings, folder=folder, sinks=sinks)
    # Where nothing was left to train, too.
    learner.model.eval()


def _refuse_others_files(folder: Path) -> None:
    names = () if (folder / "events.jsonl").exists() else ("samples.jsonl", "states", "snapshots", "select", OPENINGS)
    # A try that ended before it had a log has left these.
    ours = {VALIDATION: is_sealed(folder / VALIDATION), "wandb": not names or (folder / RUN_ID).is_file()}
    refuse_taken(folder, [*names, *(name for name, is_ours in ours.items() if not is_ours)], what="a run")


def _checked(
    rate: Any, epochs: Any, max_steps: Any, warmup_steps: Any, decay: Decay
) -> tuple[float, int | None, int | None, int]:
    """How fast and how long, as Python's own numbers: those of numpy and torch no log can hold."""
    with suppress(TypeError, ValueError):
        speed, warmup = float(rate), index(warmup_steps)
        lengths = [None if count is None else index(count) for count in (epochs, max_steps)]
        given = [count for count in lengths if count is not None]
        if 0 < speed < math.inf and given and min(given) > 0 and warmup >= 0 and decay in get_args(Decay):
            return speed, lengths[0], lengths[1], warmup
    raise BadInput(
        "how long, how fast and how it ends",
        got=f"learning_rate {rate}, epochs {epochs}, max_steps {max_steps}, warmup_steps {warmup_steps}, decay {decay}",
        expected="a learning_rate above 0; epochs or max_steps, 1 or more; warmup_steps, 0 or more; "
        f"of decay {', '.join(get_args(Decay))}; all but the rate whole numbers",
    )


def _micro_batch(learner: TensorLearner, config: TrainConfig) -> int:
    if config.micro_batch or not torch.cuda.is_available():
        return config.micro_batch or config.effective_batch
    card = torch.cuda.get_device_properties(launched().local_rank)
    return plan(learner, config, vram_bytes=card.total_memory).micro_batch


def _refuse_batches_of_one(learner: TensorLearner, config: TrainConfig) -> None:
    """Refuse a micro-batch of one record where batch norms need two, before an epoch is spent on what comes before.

    Of several ranks and of a limited number of steps it is found out when it comes.
    """
    num_records, micro_batch = len(learner.train), config.micro_batch
    sizes = (min(config.effective_batch, num_records), num_records % config.effective_batch)
    has_one = any(size and (micro_batch == 1 or size % micro_batch == 1) for size in sizes)
    is_known = launched().world_size == 1 and learner.run.max_steps is None
    if not has_one or not is_known or not any(isinstance(item, _BatchNorm) for item in learner.model.modules()):
        return
    one = np.arange(1)
    try:
        with torch.no_grad(), buffers_kept(learner.model):
            drawn(lambda: learner.loss(learner.model.train(), one, step_rows=one), "one record")
    except ValueError as error:
        raise BadInput(
            "a micro-batch would be of one record, which the model does not take in training",
            got=f"{num_records} records, effective batch {config.effective_batch}, micro-batch {micro_batch}: "
            + one_line(error),
            hint="choose another effective_batch or micro_batch, or leave a record out",
        ) from error


def _sinks(config: TrainConfig, settings: RunSettings, folder: Path, *, show_progress: bool) -> list[EventSink]:
    tracker = open_wandb(
        wandb_mode(config.wandb, os.environ),
        folder=folder,
        name=folder.name,
        config={**dataclasses.asdict(config), "peak_learning_rate": settings.peak_learning_rate},
        epochs=settings.epochs,
    )
    is_shown = config.progress == "json" or (show_progress and config.progress == "bar")
    shown: list[EventSink] = [TrainingDisplay(config.progress)] if is_shown else []  # type: ignore[arg-type]
    return [*shown, tracker] if tracker else shown


def _key(learner: TensorLearner, config: TrainConfig, rate: float, folder: Path, how: Mapping[str, object]) -> str:
    """Digest of what decides the result; of `how` and what is frozen only what there is, as runs of before have it."""
    where = str(folder.resolve())
    if where not in learner.started or newest_progress(folder / "states") is None:
        learner.started[where] = {name: tensor_digest(item) for name, item in model_tensors(learner.model).items()}
    data = [records.digest() for records in (learner.train, learner.validation)]
    settings = {name: value for name, value in fingerprint(config).items() if name != "snapshot_every"}
    frozen = [name for name, item in learner.model.named_parameters() if not item.requires_grad]
    more = {name: value for name, value in {**how, "frozen": frozen}.items() if value}
    return digest([learner.started[where], data, settings, rate, learner.seed, *([more] if more else [])])
