"""Measured peaks of this process: the device's allocator, the whole process on the card, resident host memory."""

import os
import subprocess
from pathlib import Path

import msgspec


class Peaks(msgspec.Struct, frozen=True):
    """What was measured; null where it cannot be on this machine."""

    device_allocated_bytes: int | None
    device_reserved_bytes: int | None
    device_process_bytes: int | None
    """Of this process as the driver counts it now, context and workspaces included."""
    device_used_bytes: int | None
    """Of the whole device now, other processes and the driver's own share included."""
    host_rss_bytes: int | None


def measure() -> Peaks:
    """Peaks since the process began."""
    import torch

    host = _status_bytes("VmHWM")
    if not torch.cuda.is_available():
        return Peaks(None, None, None, None, host)
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Peaks(allocated, reserved, _driver_bytes(), total - free, host)


def _status_bytes(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _driver_bytes() -> int | None:
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in done.stdout.splitlines():
        pid, _, used = line.partition(",")
        if pid.strip() == str(os.getpid()) and used.strip().isdigit():
            return int(used) << 20
    return None
