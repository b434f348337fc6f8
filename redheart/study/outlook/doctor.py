"""Is this machine fit for a run: versions, compiler, card, memory, disk, WSL; each with a verdict and a hint."""

import logging
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import torch
from packaging.requirements import Requirement
from torch import nn

from redheart.core.errors import RedHeartError
from redheart.core.units import GIB
from redheart.kernel.build import compiled_in, compilers, named_compiler, usable_folders
from redheart.memory.host import host_memory
from redheart.memory.step_time import HostSpeed
from redheart.memory.trace import trace_pass
from redheart.optim.host_adamw8bit import HostAdamW8bit
from redheart.study.outlook.planning import free_disk_bytes
from redheart.study.outlook.timings import remember_host
from redheart.train.device import compute_type

ELEMENTS = 1 << 25
"""Of a parameter: far more than caches hold, .3 GiB with its gradient and states."""
ROUNDS = 5
LAYERS, WIDTH = 64, 64
PACKAGES = ("torch", "deepspeed", "accelerate", "bitsandbytes")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `verdict` is `ok`, `note` (a run works, with a limit) or `bad`."""

    name: str
    verdict: str
    found: str
    hint: str | None = None


def _finding(name: str, found: str, hint: str | None = None) -> Finding:
    """A note where there is something to say."""
    return Finding(name, "ok" if hint is None else "note", found, hint)


def examine(folder: Path, *, measures: bool = False) -> list[Finding]:
    """Look at everything; nothing is changed and nothing large is allocated, unless the host is to be measured."""
    machine = [arithmetic(), *_gpu(), _memory(), _disk(folder), _wsl(), _shm(), *([_host_speed()] if measures else [])]
    python = _finding("python", platform.python_version())
    return [python, *_packages(), _compiler(), _kernel(), *machine]


def _packages() -> list[Finding]:
    """What training rests on, held against this program's own requirements."""
    findings = []
    for wanted in map(Requirement, metadata.requires("redheart") or ()):
        if wanted.name in PACKAGES:
            found = next((item.version for item in metadata.distributions(name=wanted.name)), "not installed")
            good = found != "not installed" and wanted.specifier.contains(found, prereleases=True)
            hint = None if good else f"pip install '{wanted}'"
            findings.append(Finding(wanted.name, "ok" if good else "bad", found, hint))
    return findings


def _compiler() -> Finding:
    """The compiler that the first start of a run takes, by the function that it asks."""
    found = compilers()
    if not found:
        missing = "install g++ or clang++ (apt install g++); without one the slow optimizer in plain torch is used"
        return _finding("C++ compiler", "none", missing)
    command = shlex.join(found[0])
    text = _output([*found[0], "--version"])
    line = f"{command}: {text.splitlines()[0]}" if text else command
    is_missing = os.environ.get("CXX", "").strip() and not named_compiler()
    hint = f"CXX names no program that is there: {os.environ['CXX']}" if is_missing else None
    return _finding("C++ compiler", line, hint)


def _kernel() -> Finding:
    """Where the compiled kernel lies or will lie; the folder is made as a run makes it."""
    failures: list[str] = []
    folders = list(usable_folders(failures))
    if not folders:
        hint = f"{'; '.join(failures)}: set XDG_CACHE_HOME; the slow optimizer in plain torch is used"
        return _finding("kernel", "nowhere to keep it", hint)
    kept = [path for folder in folders for path in compiled_in(folder)]
    text = f"compiled: {kept[0]}" if kept else f"compiled at the first start, in {folders[0]}"
    return _finding("kernel", text, f"{'; '.join(failures)}: set XDG_CACHE_HOME" if failures else None)


def arithmetic() -> Finding:
    """What oneDNN says of the processor, held against the speed of a few products."""
    bf16, fp32 = (compute_type.product_gflops(dtype) for dtype in (torch.bfloat16, torch.float32))
    taken = "bf16" if compute_type.has_bf16_units() else "fp32"
    faster = "bf16" if bf16 > fp32 else "fp32"
    found = f"bf16 {bf16:.0f}, float32 {fp32:.0f} GFLOPS a core; a run on the CPU takes {taken}"
    hint = f"oneDNN says otherwise: once nothing else runs, look again, or run with --train.compute-type {faster}"
    return _finding("CPU arithmetic", found, None if taken == faster else hint)


def _gpu() -> list[Finding]:
    driver = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not torch.cuda.is_available():
        if driver:
            wrong = f"this torch ({torch.__version__}) has no CUDA or not this driver's: install a CUDA build"
            return [Finding("GPU", "bad", driver.splitlines()[0], wrong)]
        return [_finding("GPU", "none", "everything runs on the CPU; `full` wants a CUDA device of 8 GiB")]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        version = driver.rpartition(",")[2].strip() or "unknown"
        found = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, driver {version}"
        hint = "other processes hold memory: see nvidia-smi" if free < 0.8 * total else None
        if torch.cuda.get_device_capability(index) < (8, 0):
            hint = "no bf16 units before Ampere: slower than planned"
        findings.append(_finding(f"GPU {index}", found, hint))
    return findings


def _host_speed() -> Finding:
    """Measured, and kept for plans."""
    found = measure()
    text = f"update {1e9 * found.update_s:.2f} and sum {1e9 * found.add_s:.2f} ns/param"
    text += f", copies {found.copy_bytes_s / 1e9:.1f} GB/s"
    if found.launch_s is not None and found.bus_bytes_s is not None:
        text += f", launches {1e6 * found.launch_s:.0f} us, bus {found.bus_bytes_s / 1e9:.1f} GB/s"
    try:
        path = remember_host(found)
    except RedHeartError as error:
        return _finding("host speed", text, f"not kept: {error.what}")
    return _finding("host speed", f"{text}; kept {f'in {path}' if path else 'nowhere'}")


def _memory() -> Finding:
    memory = host_memory()
    close = "raise the limit" if memory.limited_by else "close other programs"
    hint = f"`full` wants about 11 GiB of host memory: {close}, or `redheart plan` another"
    return _finding("host memory", str(memory), None if memory.available_bytes > 12 * GIB else hint)


def _disk(folder: Path) -> Finding:
    free = free_disk_bytes(folder.resolve())
    hint = "`full` with 60 epochs wants about 55 GiB: another --out, or a larger --train.snapshot-every"
    return _finding("disk", f"{free / GIB:.1f} GiB free at {folder}", None if free > 60 * GIB else hint)


def _wsl() -> Finding:
    release = platform.release().lower()
    if "microsoft" not in release:
        return _finding("WSL", "no")
    hint = (
        "Windows spills a full card into host memory without an error, and a run becomes much slower: in the NVIDIA "
        "control panel set `CUDA - Sysmem Fallback Policy` to `Prefer No Sysmem Fallback`; see `memory=` in .wslconfig"
    )
    return _finding("WSL", platform.release(), hint)


def _shm() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return _finding("/dev/shm", "none", "several ranks on one host use sockets instead: slower")
    free = free_disk_bytes(path)
    hint = None if free >= GIB // 4 else "several ranks want 256 MiB: in a container `--shm-size 1g`"
    return _finding("/dev/shm", f"{free / GIB:.2f} GiB free", hint)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def measure(*, elements: int = ELEMENTS) -> HostSpeed:
    """What this host does beside a card: `redheart plan --card` takes it in place of any host's.

    The fastest of a few rounds: what else runs is not the host's. Launches and the bus need a card.
    """
    # It warns of kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    master = nn.Parameter(torch.zeros(elements))
    optimizer = HostAdamW8bit([master])
    gradient, weights = (torch.full((elements,), 1e-3, dtype=torch.bfloat16) for _ in range(2))
    (group,) = optimizer.param_groups
    update_s = _least_s(lambda: optimizer.update(group, master, gradient, out_bf16=weights))
    total = torch.zeros(elements)
    add_s = _least_s(lambda: optimizer.add(total, gradient))
    copy_s = _least_s(lambda: weights.copy_(gradient))
    has_card = torch.cuda.is_available()
    return HostSpeed(
        update_s / elements,
        add_s / elements,
        weights.nbytes / copy_s,
        launch_s=launch_s(torch.device("cuda")) if has_card else None,
        bus_bytes_s=_bus_bytes_s(gradient) if has_card else None,
    )


def launch_s(device: torch.device) -> float:
    """Seconds of an operator in a pass of operators too small to compute for long."""

    def build(where: torch.device | str) -> tuple[nn.Module, torch.Tensor]:
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, device=where), nn.GELU())]
        return nn.Sequential(*layers).bfloat16(), torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16, device=where)

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = module(batch).float().sum()
        return total

    counted = trace_pass(*build("meta"), loss)
    module, batch = build(device)

    def run() -> None:
        loss(module, batch).backward()  # type: ignore[no-untyped-call]
        module.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _least_s(run) / (counted.forward.operators + counted.backward.operators)


def _bus_bytes_s(tensor: torch.Tensor) -> float:
    """Page-locked, the slower way."""
    locked, there = tensor.pin_memory(), tensor.cuda()

    def run(target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return tensor.nbytes / max(_least_s(lambda: run(there, locked)), _least_s(lambda: run(locked, there)))


def _least_s(run: Callable[[], object]) -> float:
    """Of a few calls, after one that warms up."""
    run()
    times = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return min(times)
