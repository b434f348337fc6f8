"""Is this machine fit for a run: versions, compiler, card, memory, disk, WSL; each with a verdict and a mend."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import msgspec

GIB = 1 << 30
WANTED = {"torch": (2, 9), "deepspeed": (0, 19, 8), "accelerate": (1, 10), "bitsandbytes": (0, 50)}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `verdict` is `ok`, `note` (a run works, with a limit) or `bad`."""

    name: str
    verdict: str
    found: str
    mend: str | None = None


def examine(folder: Path) -> list[Finding]:
    """Look at everything; nothing is changed and nothing large is allocated."""
    return [_python(), *_packages(), _compiler(), *_gpu(), _memory(), _disk(folder), _wsl(), _shm()]


def _python() -> Finding:
    good = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11)
    return Finding(
        "python", "ok" if good else "bad", platform.python_version(), None if good else "install 3.11 or newer"
    )


def _packages() -> list[Finding]:
    findings = []
    for name, wanted in WANTED.items():
        least = ".".join(map(str, wanted))
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "bad", "not installed", f"pip install '{name}>={least}'"))
            continue
        numbers = tuple(int(part) for part in found.partition("+")[0].split(".")[: len(wanted)] if part.isdigit())
        good = numbers >= wanted
        findings.append(
            Finding(name, "ok" if good else "bad", found, None if good else f"pip install '{name}>={least}'")
        )
    return findings


def _compiler() -> Finding:
    path = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        mend = "install g++ or clang++ (apt install g++); without one the slow optimizer in plain torch is used"
        return Finding("C++ compiler", "note", "none", mend)
    text = _output([path, "--version"])
    return Finding("C++ compiler", "ok", text.splitlines()[0] if text else path)


def _gpu() -> list[Finding]:
    import torch

    driver = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not torch.cuda.is_available():
        if driver:
            mend = f"this torch ({torch.__version__}) has no CUDA or not this driver's: install a CUDA build"
            return [Finding("GPU", "bad", driver.splitlines()[0], mend)]
        return [Finding("GPU", "note", "none", "everything runs on the CPU; `full` wants a CUDA device of 8 GiB")]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        version = driver.rpartition(",")[2].strip() or "unknown"
        found = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, driver {version}"
        if not bf16:
            findings.append(Finding(f"GPU {index}", "note", found, "no bf16 units before Ampere: slower than planned"))
        elif free < 0.8 * total:
            findings.append(Finding(f"GPU {index}", "note", found, "other processes hold memory: see nvidia-smi"))
        else:
            findings.append(Finding(f"GPU {index}", "ok", found))
    return findings


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    good = memory.available > 12 * GIB
    mend = (
        None if good else "`full` wants about 11 GiB of host memory: close other programs, or `redheart plan` another"
    )
    return Finding("host memory", "ok" if good else "note", found, mend)


def _disk(folder: Path) -> Finding:
    from redheart.study.planning import free_disk_bytes

    free = free_disk_bytes(folder.resolve())
    good = free > 60 * GIB
    mend = (
        None if good else "`full` with 60 epochs wants about 55 GiB: another --out, or a larger --train.snapshot-every"
    )
    return Finding("disk", "ok" if good else "note", f"{free / GIB:.1f} GiB free at {folder}", mend)


def _wsl() -> Finding:
    release = platform.release().lower()
    if "microsoft" not in release:
        return Finding("WSL", "ok", "no")
    mend = (
        "Windows spills a full card into host memory without an error, and a run becomes much slower: in the NVIDIA "
        "control panel set `CUDA - Sysmem Fallback Policy` to `Prefer No Sysmem Fallback`; see `memory=` in .wslconfig"
    )
    return Finding("WSL", "note", platform.release(), mend)


def _shm() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("/dev/shm", "note", "none", "several ranks on one host use sockets instead: slower")
    free = shutil.disk_usage(path).free
    good = free >= GIB // 4
    mend = None if good else "several ranks want 256 MiB: in a container `--shm-size 1g`"
    return Finding("/dev/shm", "ok" if good else "note", f"{free / GIB:.2f} GiB free", mend)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
