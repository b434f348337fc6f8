"""Times in a plan come from steps that this machine has taken, and only from these."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
from redheart.core.units import GIB
from redheart.study import phases, run_folder
from redheart.study.outlook import planning, timings
from redheart.study.outlook.plan_output import time_text
from redheart.train.device.compute_type import type_name

CONFIG = resolved(
    StudyConfig(
        preset="tiny",
        epochs=10,
        features=FeatureConfig(seq_len_tokens=8),
        train=TrainConfig(effective_batch=32, micro_batch=8),
    )
)


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "step_times.json"
    monkeypatch.setenv("REDHEART_STEP_TIMES", str(path))
    return path


def events(*pairs: tuple[float, float]) -> list[dict[str, object]]:
    return [{"forward_backward_s": passing, "step_s": whole} for passing, whole in pairs]


STEPS = events((9.0, 99.0), (0.32, 0.40), (0.31, 0.39), (0.33, 0.41))


def test_a_step_is_the_median_of_the_warm_ones_in_its_two_shares() -> None:
    found = timings.measured_step(CONFIG, STEPS, ranks=1)
    assert found is not None
    assert found.pass_s_per_record == pytest.approx(0.32 / 32) and found.update_s == pytest.approx(0.08)
    assert found.step_s(effective_batch=64, seq_len_tokens=16) == pytest.approx(4 * 0.32 + 0.08)


def test_too_few_steps_say_nothing() -> None:
    assert timings.measured_step(CONFIG, STEPS[:3], ranks=1) is None


def test_a_plan_says_hours_once_steps_were_taken_and_only_for_the_same_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(config: StudyConfig):
        return planning.answer(config, vram_bytes=8 * GIB, micro_batch=8).plan

    before = plan(CONFIG)
    assert before.step_s is None and before.run_s is None and "unknown" in time_text(before)
    found = timings.measured_step(CONFIG, STEPS, ranks=1)
    assert found is not None
    timings.remember(found)
    after = plan(CONFIG)
    assert after.step_s == pytest.approx(0.40)
    assert after.run_s == pytest.approx(0.40 * -(-7086 // 32) * 10)
    assert found.device in time_text(after)
    for has_card, words in ((True, "hours of steps"), (False, "unknown for a card")):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda has_card=has_card: has_card)
            assert words in time_text(after)
    another_type = "fp32" if type_name(CONFIG.train) == "bf16" else "bf16"
    changes = {"strategy": "zero2_offload_adam32", "compute_type": another_type, "card_share": 0.5, "pipeline": True}
    for change in ({name: value} for name, value in changes.items()):
        other = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **change))
        assert plan(other).step_s is None


def test_a_newer_figure_replaces_the_older_and_the_nearest_micro_batch_answers(empty_store: Path) -> None:
    for micro_batch, seconds in ((8, 1.0), (8, 2.0), (64, 5.0)):
        train = dataclasses.replace(CONFIG.train, micro_batch=micro_batch)
        steps = events(*[(seconds, seconds)] * 4)
        found = timings.measured_step(dataclasses.replace(CONFIG, train=train), steps, ranks=1)
        assert found is not None
        timings.remember(found)
    train = dataclasses.replace(CONFIG.train, micro_batch=16)
    known = timings.recall(dataclasses.replace(CONFIG, train=train), ranks=1)
    assert known is not None and known.micro_batch == 8
    assert known.pass_s_per_record == pytest.approx(2.0 / 32)


def test_a_card_s_figure_answers_for_its_own_micro_batch(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "this_device", lambda: "NVIDIA RTX 3070")
    found = timings.measured_step(CONFIG, STEPS, ranks=1)
    assert found is not None
    timings.remember(found)
    assert timings.recall(CONFIG, ranks=1) == found
    train = dataclasses.replace(CONFIG.train, micro_batch=2 * CONFIG.train.micro_batch)
    assert timings.recall(dataclasses.replace(CONFIG, train=train), ranks=1) is None


def test_a_broken_or_unwritable_store_costs_nothing_but_the_times(empty_store: Path) -> None:
    empty_store.write_text("[{")
    assert planning.answer(CONFIG, vram_bytes=8 * GIB, micro_batch=8).plan.step_s is None
    found = timings.measured_step(CONFIG, STEPS, ranks=1)
    assert found is not None
    empty_store.unlink()
    if os.geteuid() != 0:
        empty_store.parent.chmod(0o500)
        timings.remember(found)
        empty_store.parent.chmod(0o700)
        assert not empty_store.exists()
    timings.remember(found)
    assert empty_store.exists()


@pytest.mark.parametrize("spoil", ["no cache", "a folder", "below a file", "nowhere"])
def test_a_store_that_cannot_be_used_leaves_times_unknown_and_nothing_else(
    spoil: str, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil == "no cache":
        monkeypatch.delenv("REDHEART_STEP_TIMES")
        monkeypatch.setattr(timings, "cache_folder", lambda: None)
    elif spoil == "a folder":
        empty_store.mkdir()
    elif spoil == "below a file":
        empty_store.touch()
        monkeypatch.setenv("REDHEART_STEP_TIMES", str(empty_store / "step_times.json"))
    else:
        monkeypatch.setenv("REDHEART_STEP_TIMES", "/proc/none/step_times.json")
    found = timings.measured_step(CONFIG, STEPS, ranks=1)
    assert found is not None
    timings.remember(found)
    assert planning.answer(CONFIG, vram_bytes=8 * GIB, micro_batch=8).plan.step_s is None


def test_what_another_process_trained_is_not_this_ones_time(tmp_path: Path, empty_store: Path) -> None:
    """A finished run that came from a faster machine, or was trained in other micro-batches."""
    config = resolved(
        StudyConfig(
            out=tmp_path / "run",
            epochs=2,
            prepare=PrepareConfig(num_generated=300),
            features=FeatureConfig("hash", 8),
            train=TrainConfig(strategy="plain", learning_rate=1e-3, effective_batch=32),
        )
    )
    folder = run_folder.start(config)
    study = phases.open_study(config, folder)
    phases.run_training(study)
    assert empty_store.is_file()
    empty_store.unlink()
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=8))
    phases.run_training(dataclasses.replace(study, config=other))
    assert not empty_store.exists()


@pytest.mark.parametrize(
    ("first", "is_whole"),
    [
        ({"event": "start", "micro_batch": CONFIG.train.micro_batch}, True),
        ({"event": "start", "micro_batch": 4}, False),
        ({"event": "out_of_memory", "step": 0, "micro_batch": 4}, False),
    ],
)
def test_a_step_of_a_halved_micro_batch_is_not_remembered_as_the_whole_one_s(
    first: dict[str, Any], is_whole: bool, empty_store: Path
) -> None:
    sink = timings.Remembering(CONFIG, ranks=1, num_validation=1)
    sink.write(first)
    for step in STEPS:
        sink.write({"event": "step", **step})
    sink.write({"event": "end", "epoch_end_s": None})
    assert empty_store.exists() is is_whole
