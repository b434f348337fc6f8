"""The training loop gives the weights of the thirty-line loop, bit for bit."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from raw_loop import raw_loop

from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
from redheart.evaluate.metrics import emotion_kl
from redheart.evaluate.prediction import predict_rows
from redheart.study import phases, run_folder
from redheart.study.learner import EmotionLearner
from redheart.train.log.events import read_events
from redheart.train.loop import RunSettings, train


def open_study(config: StudyConfig) -> phases.Study:
    return phases.open_study(config, run_folder.start(config))


def learner_of(study: phases.Study) -> EmotionLearner:
    model, config = phases.new_model(study.config, study.prepared), study.config
    return EmotionLearner(model, study.prepared, study.features, config.train, seed=config.seed)


def test_training_gives_the_weights_of_the_raw_loop(tmp_path: Path) -> None:
    config = resolved(
        StudyConfig(
            out=tmp_path / "run",
            prepare=PrepareConfig(num_generated=90),
            features=FeatureConfig(encoder="hash", seq_len_tokens=24),
            train=TrainConfig(strategy="plain", effective_batch=16, micro_batch=8, cycle_epochs=1),
        )
    )
    study = open_study(config)
    ours = learner_of(study)
    train(ours, RunSettings(config.train, 2, 1e-3, "key"), folder=tmp_path / "train")
    steps = read_events(tmp_path / "train" / "events.jsonl", "step")
    rates = [float(str(step["learning_rate"])) for step in steps]
    assert len(set(rates)) > 5
    reference, losses = raw_loop(learner_of(study), config.train, epochs=2, rates=rates)
    assert [step["loss"] for step in steps] == losses
    for (name, ours_tensor), reference_tensor in zip(
        ours.model.named_parameters(), reference.parameters(), strict=True
    ):
        assert torch.equal(ours_tensor, reference_tensor), name


@pytest.mark.long
@pytest.mark.real_data
def test_small_overfits_32_real_records(real_records: Path, tmp_path: Path) -> None:
    rows = json.loads(gzip.decompress(real_records.read_bytes()))[:48]
    source = tmp_path / "records.json"
    source.write_text(json.dumps(rows))
    config = resolved(
        StudyConfig(
            data=str(source),
            out=tmp_path / "run",
            preset="small",
            features=FeatureConfig(seq_len_tokens=32),
            train=TrainConfig(strategy="plain", effective_batch=32, weight_decay=0.0),
        )
    )
    study = open_study(config)
    learner = learner_of(study)
    rows_N = study.prepared.split["train"][:32]
    learner.epoch_rows = lambda epoch: rows_N  # type: ignore[method-assign]
    raw_loop(learner, config.train, epochs=60, rates=[1e-3] * 60)
    logits_NC = predict_rows(learner.model.eval(), study.features, rows_N, micro_batch=32)["heads.emotion"]
    columns = study.prepared.inventory.columns("emotion")
    assert emotion_kl(logits_NC, study.prepared.values_NT[rows_N][:, columns]).mean() < 0.02
