"""A run that cannot fit is refused before anything is allocated, with what would fit."""

import dataclasses
import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from redheart.cli.study import _checked_study
from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
from redheart.core.errors import DoesNotFit
from redheart.core.ranks import Ranks
from redheart.core.units import GIB
from redheart.data.features import record_bytes
from redheart.memory import host_disk
from redheart.memory.host import HostMemory
from redheart.memory.host_disk import disk_parts
from redheart.memory.ledger import ledger
from redheart.snapshots import compress
from redheart.snapshots.prune import disk_bytes
from redheart.study import phases, preflight, run_folder
from redheart.study.outlook import planning
from redheart.study.outlook.plan_output import on_this_card
from redheart.study.preflight import check_run

Card = namedtuple("Card", "total_memory")


def config(out: Path, **train: object) -> StudyConfig:
    return resolved(
        StudyConfig(preset="tiny", out=out, features=FeatureConfig(seq_len_tokens=8), train=TrainConfig(**train))  # type: ignore[arg-type]
    )


def test_a_run_that_fits_says_what_it_takes(tmp_path: Path) -> None:
    settings, line = check_run(config(tmp_path / "run"))
    assert settings == config(tmp_path / "run")
    memory, micro_batch, disk = line.split("; ")
    assert "GiB of host memory" in memory and micro_batch.startswith("micro-batch 64 as the settings have it")
    assert "GiB of disk (resume states" in disk and disk.endswith("GiB free")


def predicted_bytes(config: StudyConfig) -> float:
    return float(check_run(config)[1].split()[1]) * GIB


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
    monkeypatch.setattr(preflight, "host_memory", lambda processes: memory)
    with pytest.raises(DoesNotFit, match="too little host memory") as refusal:
        check_run(config(tmp_path / "run"))
    assert refusal.value.exit_code == 3 and "--force" in str(refusal.value)
    assert "0.25 of 1.00 GiB available, limited by RLIMIT_AS" in str(refusal.value.got)
    assert float(str(refusal.value.expected).split()[0]) > 0.25


def test_the_ranks_of_a_host_are_counted_together_each_with_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(config(tmp_path / "run", strategy="zero2_offload_multi"), preset="small")
    alone, part = (sum(preflight._on_cpu(settings, ranks=ranks, num_records=60)[0].values()) for ranks in (1, 4))
    assert part < alone
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: 1 << 50)
    monkeypatch.setattr(preflight, "launched", lambda: Ranks(world_size=4, local_world_size=2))
    monkeypatch.setattr(preflight, "host_memory", lambda processes: HostMemory(processes * part, 1 << 50))
    assert check_run(settings)[1].startswith(f"predicted {2 * part / GIB:.2f} GiB of host memory")
    monkeypatch.setattr(preflight, "host_memory", lambda processes: HostMemory(processes * part - 1, 1 << 50))
    with pytest.raises(DoesNotFit, match="too little host memory"):
        check_run(settings)


def test_a_state_that_is_larger_than_a_file_may_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "max_file_bytes", lambda: 1 << 20)
    with pytest.raises(DoesNotFit, match=r"resume state\n.*ulimit -f"):
        check_run(config(tmp_path / "run"))
    monkeypatch.setattr(preflight, "max_file_bytes", lambda: GIB)
    # As good as not set.
    monkeypatch.setenv("WORLD_SIZE", "")
    check_run(config(tmp_path / "run"))


def test_too_little_disk_is_refused_and_what_the_run_holds_already_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run")
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: 0)
    with pytest.raises(DoesNotFit, match="too little disk") as refusal:
        check_run(settings)
    wanted_gib = float(str(refusal.value.expected).split()[0])
    (settings.out / "train").mkdir(parents=True)
    for place in (settings.out, settings.out / "train"):
        # Things of others beside the run, and a second name of one file.
        with (place / "states.bin").open("wb") as file:
            file.truncate(int((wanted_gib / 2 + 0.01) * GIB))
        (place / "again.bin").hardlink_to(place / "states.bin")
        with pytest.raises(DoesNotFit, match="too little disk"):
            check_run(settings)
    with (settings.out / "train" / "states.bin").open("ab") as file:
        file.truncate(int((wanted_gib + 0.01) * GIB))
    check_run(settings)


def test_the_disk_is_that_which_snapshots_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "run")
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: path.is_relative_to(tmp_path / "disk") << 50)
    with pytest.raises(DoesNotFit, match="too little disk"):
        check_run(settings)
    settings.out.mkdir()
    (settings.out / "train").symlink_to(tmp_path / "disk")
    # Features stay in the run's own folder.
    with pytest.raises(DoesNotFit, match="disk for features"):
        check_run(settings)
    features = planning.cpu_workload(settings, num_records=settings.prepare.num_generated).feature_bytes
    monkeypatch.setattr(
        planning, "free_disk_bytes", lambda path: 1 << 50 if path.is_relative_to(tmp_path / "disk") else features
    )
    check_run(settings)


def test_snapshots_are_compressed_where_only_so_they_fit_unless_that_is_ruled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, no, yes = (config(tmp_path / "run", compress_snapshots=wish) for wish in (None, False, True))
    parts = {kind: disk_of(open_, compressed=kind) for kind in (False, True)}
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: parts[False])
    assert check_run(open_)[0] == open_ and check_run(no)[0] == no and check_run(yes)[0] == yes
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: parts[False] - 1)
    decided, line = check_run(open_)
    assert decided == yes and check_run(yes) == (decided, line)
    assert f"; snapshots compressed: {parts[True] / GIB:.2f} GiB of disk, {parts[False] / GIB:.2f} without" in line
    with pytest.raises(DoesNotFit, match="too little disk") as refusal:
        check_run(no)
    assert "--train.compress-snapshots takes at most" in str(refusal.value.hint)
    monkeypatch.setattr(planning, "free_disk_bytes", lambda path: parts[True] - 1)
    for settings in (open_, no, yes):
        with pytest.raises(DoesNotFit) as refusal:
            check_run(settings)
        least = parts[settings.train.compress_snapshots is not False]
        assert refusal.value.expected == f"{least / GIB:.2f} GiB"


def disk_of(settings: StudyConfig, *, compressed: bool, num_records: int = 0) -> int:
    work = planning.cpu_workload(settings, num_records=num_records or settings.prepare.num_generated)
    sizes = planning.cpu_sizes(settings)
    entries = ledger(work.sizes, sizes, accumulates=False)
    return sum(disk_parts(work, sizes, entries, compressed=compressed).values())


def test_features_are_counted_for_the_records_that_a_run_is_known_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run")
    unread = tmp_path / "unread.jsonl"
    unread.write_text('{"id": "a", "text": "b"}\n' * 200_000)
    said = {}
    for data in ("generated", str(unread)):
        with monkeypatch.context() as patched, pytest.raises(DoesNotFit) as refusal:
            patched.setattr(planning, "free_disk_bytes", lambda path: 0)
            check_run(dataclasses.replace(settings, data=data))
        said[data] = float(str(refusal.value.expected).split()[0]) * GIB
    more = disk_of(settings, compressed=True, num_records=200_000) - disk_of(settings, compressed=True)
    assert more > (200_000 - settings.prepare.num_generated) * record_bytes(settings.features)
    assert said[str(unread)] - said["generated"] == pytest.approx(more, abs=0.01 * GIB)
    settings = dataclasses.replace(settings, prepare=PrepareConfig(num_generated=60))
    hashed = dataclasses.replace(settings, features=FeatureConfig("hash", 8))
    prepared = phases.open_study(hashed, run_folder.start(settings)).prepared
    read = dataclasses.replace(settings, data=str(unread))
    assert preflight._num_records(read) == len(prepared.records) <= 60


def test_a_card_that_is_too_small_is_refused_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(GIB // 2))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "half a card")
    with pytest.raises(DoesNotFit, match="device memory"):
        check_run(config(tmp_path / "run"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(4 * GIB))
    assert "predicted" in check_run(dataclasses.replace(config(tmp_path / "run"), epochs=2))[1]


def test_a_card_that_is_large_enough_for_a_part_is_enough_for_several_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run", strategy="zero2_offload_multi")
    divided = planning.answer(settings, vram_bytes=8 * GIB, micro_batch=64, ranks=4).plan
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card(divided.upper_bytes))
    with pytest.raises(DoesNotFit, match="device memory"):
        check_run(settings)
    monkeypatch.setattr(preflight, "launched", lambda: Ranks(world_size=4, local_world_size=4))
    monkeypatch.setattr(preflight, "host_memory", lambda processes: HostMemory(1 << 50, 1 << 50))
    assert check_run(settings)[1].startswith(f"predicted {divided.peak_bytes / GIB:.2f} GiB")


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
    shown = "chosen by the planner: zero2_offload_adam8bit, 64 x 1, checkpointing, within a tenth of the fastest that"
    assert capsys.readouterr().out == f"plan       {why.text}\n" and why.text.startswith(shown)
    small = StudyConfig(preset="small")
    assert on_this_card(small) == (small, None)


@pytest.fixture
def most_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of a run's training before whatever is written takes its name: the new lies beside the old."""
    found: list[int] = []

    def watched(move: Callable[..., None]) -> Callable[..., None]:
        def note(source: Path, target: Path) -> None:
            found.append(disk_bytes(tmp_path / "run" / "train"))
            move(source, target)

        return note

    monkeypatch.setattr(os, "rename", watched(os.rename))
    monkeypatch.setattr(os, "replace", watched(os.replace))
    return found


@pytest.mark.parametrize("compressed", [False, True])
def test_a_run_keeps_within_the_disk_that_it_was_planned_with(
    compressed: bool, most_bytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        config(
            tmp_path / "run",
            strategy="plain",
            learning_rate=1e-3,
            effective_batch=16,
            snapshot_every=1,
            state_every_minutes=0.0,
            compress_snapshots=compressed,
        ),
        epochs=5,
        prepare=PrepareConfig(num_generated=60),
        features=FeatureConfig(encoder="hash", seq_len_tokens=8),
    )
    folder = run_folder.start(settings)
    study = phases.open_study(settings, folder)
    del most_bytes[:]
    phases.run_training(study)
    features = settings.prepare.num_generated * record_bytes(settings.features)
    stated = disk_of(settings, compressed=compressed) - features
    # What the plan counts besides is the write of a snapshot again, after a kill.
    assert 0.85 * stated < max(most_bytes) < stated


def test_the_plan_counts_the_snapshots_that_compression_leaves_whole() -> None:
    assert host_disk.COMPRESSION_WINDOW == compress.WINDOW
