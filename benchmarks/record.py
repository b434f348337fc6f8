"""What every benchmark result carries: the machine, the versions, the commit and the digest of its settings.

A result without these cannot be compared with another one. Results lie in `benchmarks/results/NAME.json`.
"""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from redheart.core.config import digest
from redheart.core.errors import BadInput
from redheart.core.files import write_json

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent

VERSIONED = (
    "torch",
    "deepspeed",
    "bitsandbytes",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "rapidfuzz",
    "mergekit",
)
"""Distributions whose version can move a figure; absent ones are left out."""


def machine_facts() -> dict[str, object]:
    """The machine that a figure was taken on: processor, cores, memory, graphics card and load.

    Sizes are in bytes. The load average tells a reader whether the machine was quiet.
    """
    return {
        "cpu": _cpu_name(),
        "cpu_physical_cores": psutil.cpu_count(logical=False),
        "cpu_usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "gpu": _gpu_name(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions(names: Sequence[str] = VERSIONED) -> dict[str, str]:
    """The installed version of Python and of each distribution in `names`."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, object]:
    """The commit of the checkout, null outside of one, and whether tracked files differ from it."""
    head = _output(["git", "rev-parse", "HEAD"])
    if head is None:
        return {"commit": None, "modified": None}
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"])
    # A result file that is being rewritten does not change what was measured.
    paths = [line[3:] for line in (changed or "").splitlines() if not line[3:].startswith("benchmarks/results/")]
    return {"commit": head, "modified": bool(paths)}


def result_record(name: str, payload: dict[str, object], *, settings: object = None) -> dict[str, object]:
    """The full record of a benchmark: facts of the run first, then what was measured.

    Args:
        name: name of the benchmark; also of its file.
        payload: what was measured, with units in its keys.
        settings: what the benchmark was called with; its digest tells runs of other settings apart.
    """
    return {
        "benchmark": name,
        "taken_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **commit(),
        "config_digest": digest(settings),
        "settings": settings,
        "machine": machine_facts(),
        "versions": versions(),
        "result": payload,
    }


def write_result(name: str, payload: dict[str, object], *, settings: object = None, folder: Path = RESULTS) -> Path:
    """Write `NAME.json` atomically into the results and return its path.

    Raises:
        BadInput: the name is not a plain file name.
        DiskError: the result could not be written.
    """
    if not name or Path(name).name != name:
        raise BadInput("a benchmark's name must be a plain file name", got=name)
    path = folder / f"{name}.json"
    write_json(path, result_record(name, payload, settings=settings))
    return path


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    # The driver's tool instead of torch: a benchmark that needs no torch does not load it to describe the machine.
    return _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]) or None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()
