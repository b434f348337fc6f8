"""A run that cannot fit is refused before anything is allocated, with what would fit."""

import dataclasses
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from redheart.cli.study import _checked_study
from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved
from redheart.core.errors import DoesNotFit
from redheart.memory.host import HostMemory
from redheart.memory.ledger import ledger
from redheart.memory.plan import GIB
from redheart.study import preflight
from redheart.study.outlook import planning
from redheart.study.outlook.chosen import on_this_card
from redheart.study.preflight import check_run

Card = namedtuple("Card", "total_memory")


def config(out: Path, **train: object) -> StudyConfig:
    return resolved(
        StudyConfig(preset="tiny", out=out, features=FeatureConfig(seq_len_tokens=8), train=TrainConfig(**train))  # type: ignore[arg-type]
    )


def test_a_run_that_fits_says_what_it_takes(tmp_path: Path) -> None:
    line = check_run(config(tmp_path / "run"))
    assert "GiB of host memory" in line and "micro-batch 64 as the settings have it" in line


def predicted_bytes(config: StudyConfig) -> float:
    return float(check_run(config).split()[1]) * GIB


def test_the_memory_of_a_run_on_the_cpu_follows_the_type_that_it_computes_in(tmp_path: Path) -> None:
    """Weight, master and gradient take 2 + 4 + 2 bytes a parameter in bf16, 4 + 0 + 4 in float32."""
    parts = {}
    for compute_type in ("bf16", "fp32"):
        settings = config(tmp_path / "run", compute_type=compute_type, micro_batch=64)
        settings = dataclasses.replace(settings, preset="full")
        work, sizes = planning.cpu_workload(settings), planning.cpu_sizes(settings)
        entries = {
            entry.name: entry.total_bytes
            for entry in ledger(work.sizes, sizes, accumulates=False)
            if entry.life == "always" and entry.per == "group"
        }
        parts[compute_type] = entries
        assert {item.dtype for item in work.module.parameters()} == {
            torch.bfloat16 if compute_type == "bf16" else torch.float32
        }
    bf16, fp32 = parts["bf16"], parts["fp32"]
    assert bf16["master weights"] == fp32["flat weights"] == 2 * bf16["flat weights"]
    assert fp32["master weights"] == 0 and fp32["gradients"] == 2 * bf16["gradients"]
    assert sum(bf16.values()) == sum(fp32.values())


def test_a_large_model_counts_its_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "run", micro_batch=64)
    before = predicted_bytes(settings)
    monkeypatch.setattr(preflight, "TRACED_FROM", 1)
    assert predicted_bytes(settings) > before


def test_too_little_host_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(GIB // 4, GIB, "RLIMIT_AS (ulimit -v)")
    monkeypatch.setattr(preflight, "host_memory", lambda: memory)
    with pytest.raises(DoesNotFit, match="too little host memory") as refusal:
        check_run(config(tmp_path / "run"))
    assert refusal.value.exit_code == 3 and "--force" in str(refusal.value)
    assert "0.25 of 1.00 GiB available, limited by RLIMIT_AS" in str(refusal.value.got)
    assert float(str(refusal.value.expected).split()[0]) > 0.25


def test_a_state_that_is_larger_than_a_file_may_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "max_file_bytes", lambda: 1 << 20)
    with pytest.raises(DoesNotFit, match=r"resume state\n.*ulimit -f"):
        check_run(config(tmp_path / "run"))
    monkeypatch.setattr(preflight, "max_file_bytes", lambda: GIB)
    check_run(config(tmp_path / "run"))


def test_too_little_disk_is_refused_and_what_the_run_holds_already_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run")
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: 0)
    with pytest.raises(DoesNotFit, match="too little disk") as refusal:
        check_run(settings)
    wanted_gib = float(str(refusal.value.expected).split()[0])
    settings.out.mkdir()
    with (settings.out / "states.bin").open("wb") as file:
        file.truncate(int((wanted_gib + 0.01) * GIB))
    check_run(settings)


def test_a_card_that_is_too_small_is_refused_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(GIB // 2))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "half a card")
    with pytest.raises(DoesNotFit, match="device memory"):
        check_run(config(tmp_path / "run"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(4 * GIB))
    assert "predicted" in check_run(dataclasses.replace(config(tmp_path / "run"), epochs=2))


def test_on_a_card_full_takes_what_the_planner_finds_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = StudyConfig(preset="full")
    assert on_this_card(full) == (full, None)  # no card
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(8 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    told = dataclasses.replace(full, train=TrainConfig(micro_batch=8))
    taken, why = on_this_card(told)
    assert taken == told and why is not None and why.by == "settings"
    found, why = _checked_study(["--preset", "full", "--recipe", "design", "--force"], "train")
    assert (found.train.micro_batch, found.train.checkpointing) == (64, True)
    assert dataclasses.replace(found, train=full.train) == full
    assert why is not None and why.predicted_step_s is None and "a card is not in the table" in why.text
    shown = (
        "chosen by the planner: zero2_offload_adam8bit, 64 x 1, checkpointing, because it is the fastest that leaves"
    )
    assert capsys.readouterr().out == f"plan       {why.text}\n" and why.text.startswith(shown)
    small = StudyConfig(preset="small")
    assert on_this_card(small) == (small, None)
