"""What this process may have of the host: memory, cores and file size, by the machine, its control groups and limits.

A container's limit is that of a control group: the process is killed at it, whatever the machine has free. Both
versions are read, and all groups above the process's own, for each can have a limit
(https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html).
"""

import os
import re
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from redheart.core.units import GIB

ROOT = Path("/")
UNLIMITED = 1 << 60
"""Version 1 writes no limit as the largest multiple of a page."""


@dataclass(frozen=True)
class HostMemory:
    """Memory that a process may still take, and what bounds it."""

    available_bytes: int
    total_bytes: int
    """All that there would be if nothing were taken."""
    limited_by: str = ""
    """Empty where it is the machine itself."""

    def __str__(self) -> str:
        text = f"{self.available_bytes / GIB:.2f} of {self.total_bytes / GIB:.2f} GiB available"
        return f"{text}, limited by {self.limited_by}" if self.limited_by else text


def host_memory(root: Path = ROOT, *, processes: int = 1) -> HostMemory:
    """The tightest of all bounds on the memory of so many processes like this, by `proc` and `sys` below a folder."""
    machine = psutil.virtual_memory()
    bounds = [HostMemory(machine.available, machine.total), *_group_bounds(root), *_process_bounds(processes)]
    return min(bounds, key=lambda bound: bound.available_bytes)


def available_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: those it may run on, and whole ones of its control groups' quota.

    A thread beyond the quota does not run slower, all of them are stopped until the next period, most of them while
    others wait for them at a barrier.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in group_folders(root, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def max_file_bytes() -> int | None:
    """The largest file that this process may write (`ulimit -f`); None where there is no bound."""
    return _soft_limit(resource.RLIMIT_FSIZE)


def group_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group for a controller and of all groups above it, in both versions."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        names, _, path = line.partition(":")[2].partition(":")
        groups |= dict.fromkeys(names.split(",") if path else (), path)
    for line in _lines(root / "proc/self/mountinfo"):
        found = re.fullmatch(r"\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)", line)
        # Version 2's hierarchy is the one without a controller.
        name = "" if found and found[3] == "cgroup2" else controller
        if not found or name not in groups or (name and name not in found[4].split(",")):
            continue
        mounted, mount = PurePosixPath(_unescaped(found[1])), root / _unescaped(found[2]).lstrip("/")
        # Where a container sees the host's path of its group, its own folder is what is mounted.
        group = PurePosixPath(groups[name])
        parts = group.relative_to(mounted).parts if group.is_relative_to(mounted) else ()
        if ".." not in parts:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _group_bounds(root: Path) -> Iterator[HostMemory]:
    for folder in group_folders(root, "memory"):
        statistics = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
        for limit_name, usage_name, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.high", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit, usage = _number(folder / limit_name), _number(folder / usage_name)
            if limit is None or usage is None or limit >= UNLIMITED:
                continue
            # What was read from files counts as used and is given up before anything is killed.
            names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
            reclaimable = sum(_as_number(statistics.get(name, "")) or 0 for name in names)
            taken = max(0, usage - reclaimable)
            yield HostMemory(max(0, limit - taken), limit, f"the control group's {limit_name}")


def _process_bounds(processes: int) -> Iterator[HostMemory]:
    """Limits that each of so many processes has for itself, taken together."""
    held = psutil.Process().memory_info()
    # `data` is Linux's own, as is the bound on private memory that is no file's.
    for name, option, taken in (
        ("RLIMIT_AS", "ulimit -v", held.vms),
        ("RLIMIT_DATA", "ulimit -d", getattr(held, "data", 0)),
    ):
        limit = _soft_limit(getattr(resource, name))
        if limit is not None:
            yield HostMemory(processes * max(0, limit - taken), processes * limit, f"{name} ({option})")


def _soft_limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY or soft >= UNLIMITED else soft


def _quota(folder: Path) -> tuple[int, int]:
    """Microseconds of processor time and of the period that they are for; zeros where there is no quota."""
    words = (_lines(folder / "cpu.max") or [""])[0].split()
    if len(words) == 2:
        return _as_number(words[0]) or 0, _as_number(words[1]) or 0
    return _number(folder / "cpu.cfs_quota_us") or 0, _number(folder / "cpu.cfs_period_us") or 0


def _number(path: Path) -> int | None:
    return _as_number(next(iter(_lines(path)), ""))


def _as_number(text: str) -> int | None:
    """A number of no sign; None of `max`, of -1 and of anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _lines(path: Path) -> Sequence[str]:
    """Lines of a file of the kernel; none where it cannot be read, as where another system has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return []


def _unescaped(text: str) -> str:
    """A path of mountinfo, in which blanks are octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
