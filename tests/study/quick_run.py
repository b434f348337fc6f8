"""A finished run without training: tiny networks whose snapshots are made up, with their real outputs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from redheart.core.config import FeatureConfig, PrepareConfig, SelectConfig, StudyConfig, TrainConfig, resolved
from redheart.core.seeds import stream_seed
from redheart.evaluate.prediction import predict_rows, predictor_losses
from redheart.model.ledger import module_names
from redheart.model.network import RedHeart
from redheart.snapshots.module_snapshots import write_snapshot
from redheart.study import run_folder
from redheart.study.learner import VALIDATION_PARTS
from redheart.study.phases import Study, new_model, open_study
from redheart.study.run_folder import RunFolder

Change = Callable[[RedHeart, int], None]
"""Makes the network of an epoch out of the one that all share."""


@dataclasses.dataclass(frozen=True)
class QuickRun:
    """A run, and its parts."""

    study: Study

    @property
    def config(self) -> StudyConfig:
        return self.study.config

    @property
    def folder(self) -> RunFolder:
        return self.study.folder

    def choosing(self, **changes: object) -> Study:
        """The same with other settings of the choice."""
        select = dataclasses.replace(self.config.select, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self.study, config=dataclasses.replace(self.config, select=select))


def make_run(root: Path, change: Change, *, epochs: tuple[int, ...] = (2, 4, 6), num_generated: int = 240) -> QuickRun:
    """Prepare generated records and write one snapshot per epoch."""
    config = resolved(
        StudyConfig(
            out=root / "run",
            epochs=epochs[-1],
            prepare=PrepareConfig(num_generated=num_generated),
            features=FeatureConfig(encoder="hash", seq_len_tokens=16),
            train=TrainConfig(strategy="plain", learning_rate=1e-3),
            select=SelectConfig(map_epochs=0),
        )
    )
    folder = run_folder.start(config)
    study = open_study(config, folder)
    rows = np.concatenate([study.prepared.split[part] for part in VALIDATION_PARTS])
    for epoch in epochs:
        model = new_model(config, study.prepared)
        with torch.no_grad():
            change(model, epoch)
        # Snapshots are bf16; their outputs are those of the rounded weights.
        model.to(torch.bfloat16)
        modules = {name: dict(model.get_submodule(name).state_dict()) for name in module_names(model)}
        outputs = predict_rows(model.float().eval(), study.features, rows, micro_batch=64)
        losses = predictor_losses(outputs, study.prepared, rows)
        means = {name: float(np.nanmean(values)) for name, values in losses.items()}
        write_snapshot(
            folder.snapshots,
            modules={
                name: {key: tensor.bfloat16() for key, tensor in tensors.items()} for name, tensors in modules.items()
            },
            outputs={name: torch.from_numpy(values) for name, values in outputs.items()},
            epoch=epoch,
            step=epoch,
            cycle_position=0.5,
            val_loss=1.0,
            val_module_loss=means,
            train_module_loss=means,
        )
    return QuickRun(study)


def shake(model: RedHeart, epoch: int, *, scale: float, seed: int = 0) -> None:
    """Add noise to every weight, a share of the tensor's own size."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(stream_seed(seed, "shake", epoch, name))
        parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0) * scale)
