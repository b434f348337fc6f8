"""Training a model of one's own: the loop, its states and snapshots as they are."""

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.config import TrainConfig, digest, fingerprint
from redheart.core.folders import refuse_taken
from redheart.core.lock import folder_lock
from redheart.core.ranks import launched
from redheart.custom.learner import TensorLearner
from redheart.train.events import EventSink
from redheart.train.loop import train
from redheart.train.peers import together
from redheart.train.settings import RunSettings


def fit(
    learner: TensorLearner,
    config: TrainConfig,
    folder: Path,
    *,
    epochs: int,
    learning_rate: float,
    sinks: Sequence[EventSink] = (),
    show_progress: bool = False,
) -> None:
    """Train to the end, or from the newest state in `folder` to the end; see `redheart.train.loop.train`.

    The folder belongs to this data, these initial weights and these settings: others are refused.

    Args:
        learner: the model with its loss and data.
        config: strategy, batch, schedule and savers; `micro_batch` 0 takes the whole effective batch.
        folder: of the run; events, states and snapshots lie in it.
        epochs: to train; a finished run may be continued with more.
        learning_rate: at the top of a cycle.
        sinks: are told every event.
        show_progress: bars on standard output.

    Raises:
        BadInput: the folder holds another run or other people's files, or another process works in it.
        Diverged: the loss or gradient was not finite three steps in a row.
        Interrupted: asked to stop; a state was written.
        DiskError: a state or snapshot could not be written.
        OtherRankFailed: started by a launcher, and another rank raised one of these, or was killed.
    """
    config = dataclasses.replace(config, micro_batch=config.micro_batch or config.effective_batch)
    settings = RunSettings(config, epochs, learning_rate, _key(learner, config, learning_rate))
    with together():
        if launched().is_first and not (folder / "events.jsonl").exists():
            refuse_taken(folder, ("samples.jsonl", "states", "snapshots", "select"), what="a run")
        with folder_lock(folder, name="run", wait=False) if launched().is_first else nullcontext():
            train(learner, settings, folder=folder, sinks=sinks, show_progress=show_progress)


def _key(learner: TensorLearner, config: TrainConfig, learning_rate: float) -> str:
    weights = {name: _sha256(tensor) for name, tensor in learner.model.state_dict().items()}
    data = [[_sha256(tensor) for tensor in tensors] for tensors in (learner.train, learner.validation)]
    settings = {name: value for name, value in fingerprint(config).items() if name != "snapshot_every"}
    return digest([weights, data, settings, learning_rate, learner.seed])


def _sha256(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256(values.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
