"""Before a run allocates anything: device memory where there is a card, host memory and disk everywhere."""

import dataclasses
from pathlib import Path

import torch

from redheart.core.config import GENERATED, StudyConfig
from redheart.core.errors import DoesNotFit
from redheart.core.files import read_sealed, real_path
from redheart.core.ranks import launched
from redheart.core.units import GIB
from redheart.data.prepare import Manifest
from redheart.data.records import count_records
from redheart.memory.host import host_memory, max_file_bytes
from redheart.memory.host_disk import cpu_host_parts, disk_parts, host_parts
from redheart.memory.ledger import ledger
from redheart.memory.plan import Planner
from redheart.snapshots.prune import disk_bytes
from redheart.study.outlook import planning
from redheart.study.outlook.plan_output import parts_text
from redheart.study.run_folder import RunFolder

TRACED_FROM = 100_000_000
"""Parameters from which a pass is traced: it takes 3 s, and the pass of a smaller model less than the process."""


def check_run(config: StudyConfig) -> tuple[StudyConfig, str]:
    """The study, its snapshots compressed where that was left open and the disk wants it; a line on what it will take.

    Raises:
        DoesNotFit: device, host memory or disk are too small; the message names what fits.
    """
    num_records, ranks = _num_records(config), launched()
    if torch.cuda.is_available():
        found = planning.answer(
            config,
            vram_bytes=torch.cuda.get_device_properties(0).total_memory,
            micro_batch=config.train.micro_batch,
            ranks=ranks.world_size,
            num_records=num_records,
        )
        planning.refuse_unless_fits(found)
        plan = found.plan
        host, disk, compressed_bytes = plan.host_parts, plan.disk_parts, plan.compressed_disk_bytes
        line = f"predicted {plan.peak_bytes / GIB:.2f} GiB of {plan.vram_bytes / GIB:.2f} GiB, at {plan.peak_moment}"
    else:
        host, disk, compressed_bytes = _on_cpu(config, ranks=ranks.world_size, num_records=num_records)
        line = (
            f"predicted {ranks.local_world_size * sum(host.values()) / GIB:.2f} GiB of host memory; "
            f"micro-batch {config.train.micro_batch} as the settings have it, without a card there is no choice"
        )
    host_bytes = ranks.local_world_size * sum(host.values())
    memory = host_memory(processes=ranks.local_world_size)
    hint = "raise the limit or use a smaller --preset" if memory.limited_by else "use a smaller --preset"
    _refuse("host memory", host_bytes, memory.available_bytes, str(memory), hint=hint)
    folder = RunFolder(config.out)
    # What a run that goes on has on disk already is part of what it was planned to take.
    written = [folder.root / name for name in folder.parts]
    # Snapshots and states may go to a larger disk, where a link in the run's folder leads; features stay in it.
    if folder.train.is_symlink():
        features_bytes = disk.pop("features")
        compressed_bytes -= features_bytes
        there_bytes = planning.free_disk_bytes(config.out) + disk_bytes(folder.features)
        there = f"{there_bytes / GIB:.2f} GiB free"
        _refuse("disk for features", features_bytes, there_bytes, there, hint="free some space")
        written = [folder.train]
    free_bytes = planning.free_disk_bytes(real_path(folder.train)) + disk_bytes(*written)
    config, disk_text = _on_disk(config, disk, compressed_bytes, free_bytes)
    allowed_bytes = max_file_bytes()
    if allowed_bytes is not None:
        # Two states and one being written are planned; each has a file of every rank.
        _refuse(
            "room in a file for a resume state",
            disk["resume states"] // 3 // ranks.world_size,
            allowed_bytes,
            f"{allowed_bytes / GIB:.2f} GiB a file, limited by RLIMIT_FSIZE (ulimit -f)",
            hint="raise the limit or use a smaller --preset",
        )
    return config, f"{line}; {disk_text}"


def _on_disk(
    config: StudyConfig, parts: dict[str, int], compressed_bytes: int, free_bytes: int
) -> tuple[StudyConfig, str]:
    """The study with its snapshots compressed where only so they fit, unless that was ruled out; words on the disk."""
    whole_bytes, wish = sum(parts.values()), config.train.compress_snapshots
    there = f"{free_bytes / GIB:.2f} GiB free"
    hint = "free some space, choose another --out or a larger --train.snapshot-every"
    if wish is False and compressed_bytes <= free_bytes:
        hint = f"--train.compress-snapshots takes at most {compressed_bytes / GIB:.2f} GiB; or {hint}"
    compresses = whole_bytes > free_bytes if wish is None else wish
    _refuse("disk", compressed_bytes if compresses else whole_bytes, free_bytes, there, hint=hint)
    if not compresses:
        return config, f"at most {whole_bytes / GIB:.2f} GiB of disk ({parts_text(parts)}), {there}"
    text = f"snapshots compressed: {compressed_bytes / GIB:.2f} GiB of disk, {whole_bytes / GIB:.2f} without, {there}"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, compress_snapshots=True)), text


def _on_cpu(config: StudyConfig, *, ranks: int, num_records: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Host memory of a rank and disk by part, and disk with compressed snapshots, where there is no card.

    Its share lies in host memory too.
    """
    work, sizes = planning.cpu_workload(config, num_records=num_records), planning.cpu_sizes(config, ranks=ranks)
    entries = ledger(work.sizes, sizes, accumulates=ranks * config.train.micro_batch < config.train.effective_batch)
    disk = disk_parts(work, sizes, entries)
    compressed_bytes = sum(disk_parts(work, sizes, entries, compressed=True).values())
    if work.sizes.total >= TRACED_FROM:
        pass_bytes = Planner(work).pass_bytes(config.train.micro_batch, checkpointing=config.train.checkpointing)
        return cpu_host_parts(work, entries, pass_bytes=pass_bytes), disk, compressed_bytes
    on_device = [entry for entry in entries if entry.where == "device" and entry.life == "always"]
    weights = {"weights and buffers": sum(entry.total_bytes for entry in on_device)}
    return host_parts(work, entries, has_device=False) | weights, disk, compressed_bytes


def _num_records(config: StudyConfig) -> int:
    """Records of the run, as far as that is known before they are prepared."""
    if config.data == GENERATED:
        return config.prepare.num_generated
    manifest = RunFolder(config.out).data / "manifest.json"
    return read_sealed(manifest, Manifest).num_records if manifest.is_file() else count_records(Path(config.data))


def _refuse(what: str, wanted_bytes: int, there_bytes: int, there: str, *, hint: str) -> None:
    if wanted_bytes > there_bytes:
        raise DoesNotFit(
            f"the run does not fit: too little {what}",
            got=there,
            expected=f"{wanted_bytes / GIB:.2f} GiB",
            hint=f"{hint}; --force runs all the same",
        )
