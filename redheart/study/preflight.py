"""Before a run allocates anything: device memory where there is a card, host memory and disk everywhere."""

import os
from contextlib import suppress

from redheart.core.config import StudyConfig
from redheart.core.errors import DoesNotFit
from redheart.memory.host import host_memory, max_file_bytes
from redheart.memory.ledger import ledger
from redheart.memory.plan import GIB, disk_parts, host_parts
from redheart.study import planning
from redheart.study.plan_output import summary


def check_run(config: StudyConfig) -> str:
    """One line on what the run will take.

    Raises:
        DoesNotFit: device, host memory or disk are too small; the message names what fits.
    """
    import torch

    if torch.cuda.is_available():
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        found = planning.answer(config, vram_bytes=total_bytes, micro_batch=config.train.micro_batch)
        planning.refuse_unless_fits(found)
        host, disk, line = found.plan.host_parts, found.plan.disk_parts, summary(found.plan)
    else:
        work = planning.workload(config)
        sizes = planning.sizes_of(config, config.train.strategy)
        entries = ledger(work.sizes, sizes, accumulates=config.train.micro_batch < config.train.effective_batch)
        host, disk = host_parts(work, entries, has_device=False), disk_parts(work, sizes, entries)
        # Without a card its share lies in host memory too.
        on_device = [entry for entry in entries if entry.where == "device" and entry.life == "always"]
        host |= {"weights and buffers": sum(entry.total_bytes for entry in on_device)}
        line = (
            f"predicted {sum(host.values()) / GIB:.2f} GiB of host memory, {sum(disk.values()) / GIB:.2f} GiB of disk"
        )
    memory = host_memory()
    mend = "raise the limit or use a smaller --preset" if memory.limited_by else "use a smaller --preset"
    _refuse("host memory", sum(host.values()), memory.available_bytes, str(memory), mend=mend)
    free_bytes = planning.free_disk_bytes(config.out) + _already_written(config)
    _refuse(
        "disk",
        sum(disk.values()),
        free_bytes,
        f"{free_bytes / GIB:.2f} GiB free",
        mend="free some space, choose another --out or a larger --train.snapshot-every",
    )
    allowed_bytes = max_file_bytes()
    if allowed_bytes is not None:
        # Two states and one being written are planned; each has a file of every rank.
        _refuse(
            "room in a file for a resume state",
            disk["resume states"] // 3 // int(os.environ.get("WORLD_SIZE", "1")),
            allowed_bytes,
            f"{allowed_bytes / GIB:.2f} GiB a file, limited by RLIMIT_FSIZE (ulimit -f)",
            mend="raise the limit or use a smaller --preset",
        )
    return line


def _already_written(config: StudyConfig) -> int:
    """What a run that goes on has on disk already is part of what it was planned to take."""
    size = 0
    for folder, _, names in os.walk(config.out):
        for name in names:
            # Another process may be at work here; it is refused at the lock, not here.
            with suppress(OSError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size


def _refuse(what: str, wanted_bytes: int, there_bytes: int, there: str, *, mend: str) -> None:
    if wanted_bytes > there_bytes:
        raise DoesNotFit(
            f"the run does not fit: too little {what}",
            got=there,
            expected=f"{wanted_bytes / GIB:.2f} GiB",
            mend=f"{mend}; --force runs all the same",
        )
