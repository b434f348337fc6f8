"""Preparing and training: what makes snapshots. Each can be started again where it stopped."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from redheart.core.config import BUILT_IN_ENCODERS, GENERATED, StudyConfig, digest, fingerprint
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed
from redheart.core.folders import folder_lock, remove_leftovers
from redheart.core.progress import SILENT, Display, print_if_read
from redheart.core.ranks import launched
from redheart.data.features import FeatureCache, known_manifest, make_features
from redheart.data.prepare import Prepared, load_prepared, near_duplicate_groups, prepare
from redheart.data.scripts import warn_unread
from redheart.data.words import Labels
from redheart.evaluate.results import Sweep
from redheart.model.blocks import set_checkpointing
from redheart.model.dims import preset
from redheart.model.network import RedHeart, build
from redheart.study.learner import EmotionLearner, computes_in_halves
from redheart.study.outlook import timings
from redheart.study.run_folder import RunFolder
from redheart.train.log.display import TrainingDisplay
from redheart.train.log.events import Event, EventSink, read_events
from redheart.train.log.wandb_sink import open_wandb, wandb_mode
from redheart.train.loop import train
from redheart.train.settings import Chosen, RunSettings

_OVERFIT_RISE = 0.005
"""Rise of the validation loss over its best, relative, that is worth a word; noise stays below."""


def say(config: StudyConfig, phase: str, text: str) -> None:
    """Print a line of a phase: aligned text, or a JSON object with `event` and `text`; nothing where that is asked."""
    if config.train.progress == "off":
        return
    is_json = config.train.progress == "json"
    print_if_read(json.dumps({"event": phase, "text": text}) if is_json else f"{phase:<11}{text}")


@dataclass(frozen=True)
class Study:
    """A run at work: its settings, its folder, the prepared records and their features."""

    config: StudyConfig
    folder: RunFolder
    prepared: Prepared
    features: FeatureCache


def open_study(config: StudyConfig, folder: RunFolder, *, display: Display = SILENT) -> Study:
    """Prepare the records and compute the features, or open what is there."""
    # The ranks of one host meet here: the first one works, the others then find it done.
    with folder_lock(folder.root, name="data", wait=True):
        source = None if config.data == GENERATED else Path(config.data)
        if launched().is_first:
            # Others write what is no part of the run, such as predictions, without this lock.
            remove_leftovers(folder.root, [name for name in folder.parts if name != folder.holdout_log.name])
            if source and not source.exists() and (folder.data / "manifest.json").is_file():
                say(config, "prepare", f"{source} is not there; going on with the records that were prepared from it")
        with (display if launched().is_first else SILENT).working("prepare"):
            manifest = prepare(
                source,
                out=folder.data,
                config=config.prepare,
                seed=config.seed,
                text_chars=config.features.text_chars,
                replace=False,
            )
    encoder = config.features.encoder
    # Made-up records are half Korean, and no figure on them says how good a model is.
    tells = launched().is_first and source is not None
    if tells and encoder in BUILT_IN_ENCODERS:
        # Before it reads for minutes; what another one reads is known when its tokenizer is there.
        warn_unread(manifest.scripts, manifest.num_records, encoder=encoder)
    study = load_study(config, folder, display=display)
    if tells and encoder not in BUILT_IN_ENCODERS:
        warn_unread(study.features.manifest.unread, manifest.num_records, encoder=encoder)
    return study


def load_study(config: StudyConfig, folder: RunFolder, *, display: Display = SILENT) -> Study:
    """A run that was prepared, without the file that its records came from."""
    prepared = load_prepared(folder.data)
    known = known_manifest(folder.features)
    features = make_features(
        prepared.records,
        config=config.features,
        root=folder.features,
        fit=folder.summary_fit,
        labels=Labels(prepared.split["train"], prepared.values_NT, prepared.mask_NT, near_duplicate_groups(prepared)),
        identity=known.encoder if known else None,
        device=config.device,
        display=display if launched().is_first else SILENT,
    )
    return Study(config, folder, prepared, features)


def new_model(config: StudyConfig, prepared: Prepared, *, device: str = "cpu") -> RedHeart:
    """The preset's model for this data set's inventory, with initial weights from the seed."""
    dims = preset(config.preset, outputs=prepared.inventory.outputs, dropout=config.train.dropout)
    model = build(dims, seed=config.seed, device=device)
    set_checkpointing(model, config.train.checkpointing)
    return model


def run_training(study: Study, *, max_steps: int | None = None, chosen: Chosen | None = None) -> None:
    """The main run, at the configured learning rate or else the sweep's; `chosen` is told to its log."""
    config, folder, manifest = study.config, study.folder, study.prepared.manifest
    rate = best_rate(folder) if config.train.learning_rate is None else config.train.learning_rate
    ranks = launched().world_size
    num_validation = manifest.val_select + manifest.val_confirm
    settings = dataclasses.replace(
        run_settings(study, rate, epochs=config.epochs),
        max_steps=max_steps,
        expected=timings.expected(config, chosen, ranks=ranks, num_validation=num_validation),
        chosen=chosen,
    )
    remembering = timings.Remembering(config, ranks=ranks, num_validation=num_validation)
    train_at(study, settings, folder.train, name=folder.root.name, sinks=[remembering])
    if launched().is_first:
        epochs = read_events(folder.train / "events.jsonl", "epoch")
        if epochs and (warning := overfit_text(epochs)):
            say(config, "overfit", warning)


def overfit_text(epochs: Sequence[Event]) -> str | None:
    """What there is to say if the validation loss of these `epoch` events has risen since it was lowest."""
    best = min(epochs, key=lambda event: event["val_loss"])
    rise = epochs[-1]["val_loss"] / best["val_loss"] - 1
    if rise <= _OVERFIT_RISE:
        return None
    return (
        f"the validation loss was {best['val_loss']:.4f} after epoch {best['epoch']} of {len(epochs)} and is "
        f"{rise:.1%} higher now; try a larger --train.weight-decay"
    )


def best_rate(folder: RunFolder) -> float:
    """The rate that the sweep of this run chose; `BadInput` where there was none."""
    path = folder.sweep / "sweep.json"
    if not path.is_file():
        # A folder that is not a run yet has no settings to go by.
        sweep = f"sweep --run {folder.root}` first" if folder.config.is_file() else "sweep` with the same options first"
        raise BadInput(
            "no learning rate",
            where="--train.learning-rate",
            expected="a number, or the result of a sweep in the run's folder",
            hint=f"give --train.learning-rate 1e-4, or run `redheart {sweep}",
        )
    return read_sealed(path, Sweep).best_rate


def run_settings(study: Study, rate: float, *, epochs: int) -> RunSettings:
    """What the trainer is told: the same for the main run and every trial but for the rate and the epochs."""
    config = study.config
    dims = preset(config.preset, outputs=study.prepared.inventory.outputs)
    key = digest(
        {
            "data": study.prepared.manifest.key,
            "features": study.features.key,
            # Where runs of before have it; its value is among those of the training.
            "dims": dataclasses.asdict(dims) | {"feature_dropout": 0.0},
            "seed": config.seed,
            "rate": rate,
            "train": fingerprint(dataclasses.replace(config.train, snapshot_every=1)),
        }
    )
    return RunSettings(config.train, epochs, rate, key)


def new_learner(study: Study) -> EmotionLearner:
    """The model with initial weights and its data, as they are trained."""
    config = study.config
    return EmotionLearner(
        new_model(config, study.prepared),
        study.prepared,
        study.features,
        config.train,
        seed=config.seed,
        halves=computes_in_halves(config),
    )


def train_at(study: Study, settings: RunSettings, out: Path, *, name: str, sinks: Sequence[EventSink] = ()) -> None:
    """Train into the folder `out`, or go on there; `name` is for trackers, `sinks` are told of it beside them."""
    learner = new_learner(study)
    if launched().is_first:
        # The states' own are for the resume: a state may be among them that was about to be replaced.
        for part in (out, out / "snapshots"):
            remove_leftovers(part)
    train(learner, settings, folder=out, sinks=[*sinks, *event_sinks(study.config, settings, out, name=name)])


def event_sinks(config: StudyConfig, settings: RunSettings, out: Path, *, name: str) -> list[EventSink]:
    """Who is shown the events of a training; nobody on all ranks but the first."""
    if not launched().is_first:
        return []
    form = config.train.progress
    sinks: list[EventSink] = [] if form == "off" else [TrainingDisplay(form)]
    described = msgspec.to_builtins(config, enc_hook=str)
    # Where the files lie is nobody else's business.
    described |= {"data": Path(config.data).name, "out": config.out.name}
    tracker = open_wandb(
        wandb_mode(config.train.wandb, os.environ),
        folder=out,
        name=name,
        config={**described, "peak_learning_rate": settings.peak_learning_rate, "run_epochs": settings.epochs},
        epochs=settings.epochs,
    )
    if tracker:
        say(config, "wandb", tracker.where)
    return [*sinks, tracker] if tracker else sinks
