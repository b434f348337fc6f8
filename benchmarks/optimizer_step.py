"""One optimizer step on the host: the fused 8-bit kernel beside what one would take otherwise.

All ways step in turn in one process, round after round, so that a noisy machine is noisy for all; a figure is the
median over the rounds, a ratio the median of the rounds' ratios. What a user waits for is the whole path: clipping the
gradient, the update, and the bf16 copy of the weights.

`--path avx2` is for a machine that has more: the kernel, DeepSpeed's and torch's operators are held to AVX2, as they
would be on a processor without AVX-512. bitsandbytes chooses for itself.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from record import write_result

from redheart.cli import set_environment

set_environment()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from redheart.core.cache import cache_folder, private_folder  # noqa: E402
from redheart.kernel.bindings import Kernel, compiled_kernels  # noqa: E402
from redheart.optim.host_adamw8bit import HostAdamW8bit  # noqa: E402

CLIP_FACTOR = 0.5
PLAIN_PASS = "plain pass"
PASS_BYTES = 8
KERNEL_BYTES = 16
"""Traffic per parameter: gradient 2, master 4 + 4, codes 2 + 2, bf16 copy 2."""

Build = Callable[[torch.nn.Parameter, Tensor], tuple[Callable[[], None], object]]


class Way:
    """A way to step: `prepare` allocates, `step` makes one whole step."""

    def __init__(self, name: str, params: int, build: Build):
        self.name, self.params = name, params
        generator = torch.Generator().manual_seed(0)
        self.master = torch.nn.Parameter(torch.randn(params, generator=generator))
        self.grad = torch.randn(params, generator=generator) * 1e-3
        self.step, self.optimizer = build(self.master, self.grad)
        self.seconds: list[float] = []
        self.transient_bytes = 0

    def run(self) -> None:
        start_s = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start_s)

    def state_bytes(self) -> float:
        """Bytes of optimizer state per parameter."""
        state = self.optimizer.state[self.master] if hasattr(self.optimizer, "state") else {}
        return sum(_nbytes(value) for value in state.values()) / self.params


def _nbytes(value: object) -> int:
    if not isinstance(value, Tensor) or value.numel() < 2:
        return 0
    inner = [getattr(value, name) for name in ("codes", "scale", "qmap") if hasattr(value, name)]
    return sum(item.nbytes for item in inner) if inner else value.nbytes


def fused(kernel: Kernel, dtype: torch.dtype) -> Build:
    """A gradient of this type through this path of the kernel."""

    def build(master: torch.nn.Parameter, grad: Tensor) -> tuple[Callable[[], None], object]:
        optimizer = HostAdamW8bit([master], lr=1e-4, kernel=kernel)
        out = torch.empty(master.numel(), dtype=torch.bfloat16)
        gradient = grad.to(dtype)
        group = optimizer.param_groups[0]
        return lambda: optimizer.update(group, master, gradient, grad_scale=CLIP_FACTOR, out_bf16=out), optimizer

    return build


def whole_path(optimizer: torch.optim.Optimizer, master: Tensor, grad: Tensor) -> Callable[[], None]:
    """What DeepSpeed does around a client optimizer: clip in place, step, copy to bf16."""
    out = torch.empty(master.numel(), dtype=torch.bfloat16)
    master.grad = grad

    def step() -> None:
        grad.mul_(CLIP_FACTOR)
        optimizer.step()
        out.copy_(master.detach())

    return step


def deepspeed_adam(master: Tensor, grad: Tensor) -> tuple[Callable[[], None], object]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = DeepSpeedCPUAdam([master], lr=1e-4, adamw_mode=True)
    return whole_path(optimizer, master, grad), optimizer


def torch_fused(master: Tensor, grad: Tensor) -> tuple[Callable[[], None], object]:
    optimizer = torch.optim.AdamW([master], lr=1e-4, fused=True)
    return whole_path(optimizer, master, grad), optimizer


def bitsandbytes_8bit(master: Tensor, grad: Tensor) -> tuple[Callable[[], None], object]:
    from bitsandbytes.optim import AdamW8bit

    optimizer = AdamW8bit([master], lr=1e-4)
    return whole_path(optimizer, master, grad), optimizer


def torchao_8bit(master: Tensor, grad: Tensor) -> tuple[Callable[[], None], object]:
    sys.path.append(str(Path(sys.prefix) / "bench"))  # where the Makefile puts it
    from torchao.optim import AdamW8bit

    optimizer = AdamW8bit([master], lr=1e-4)
    return whole_path(optimizer, master, grad), optimizer


def transient_bytes(way: Way) -> int:
    """Growth of the process's peak resident set during one step beyond what it held before."""
    process = psutil.Process()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = process.memory_info().rss
    way.step()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return max(0, peak - before)


def plain_pass(master: Tensor, grad: Tensor) -> tuple[Callable[[], None], object]:
    """What memory gives: every weight read, changed and written in place, half of the kernel's traffic."""
    return lambda: master.data.mul_(1.0), None


def hold_to_avx2() -> None:
    """Compile DeepSpeed's Adam, and let torch choose its operators, as where there is no AVX-512."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"  # read at the first operator
    caches = cache_folder() or Path(tempfile.gettempdir())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(private_folder(caches / "deepspeed-avx2"))
    OpBuilder.cpu_arch = lambda _: "-march=haswell"
    OpBuilder.simd_width = lambda _: "-D__AVX256__"
    assert torch.backends.cpu.get_cpu_capability() == "AVX2", "an operator ran before this"


def measure(params: int, rounds: int, kernel: Kernel) -> dict[str, object]:
    """Time all ways that are installed."""
    builds = [
        (PLAIN_PASS, params, plain_pass),
        ("fused 8-bit, bf16 gradient", params, fused(kernel, torch.bfloat16)),
        ("fused 8-bit, fp32 gradient", params, fused(kernel, torch.float32)),
        ("DeepSpeedCPUAdam, whole path", params, deepspeed_adam),
        ("torch AdamW(fused=True), whole path", params, torch_fused),
        ("bitsandbytes AdamW8bit, whole path", params, bitsandbytes_8bit),
        ("torchao AdamW8bit, whole path", params, torchao_8bit),
    ]
    ways, absent = [], {}
    for name, number, build in builds:
        try:
            way = Way(name, number, build)
            way.step()
        except ImportError as error:
            absent[name] = str(error)
            continue
        ways.append(way)
    for way in ways[1:]:
        way.transient_bytes = transient_bytes(way)
    for _ in range(rounds):
        for way in ways:
            way.run()
    plain, ours = ways[0], ways[1]
    pass_ns = KERNEL_BYTES / PASS_BYTES * min(plain.seconds) / params * 1e9  # best against best: noise has no floor
    rows = {}
    for way in ways[1:]:
        per_param = [seconds / way.params * 1e9 for seconds in way.seconds]
        of_ours = [seconds / ours.params * 1e9 for seconds in ours.seconds]
        rows[way.name] = {
            "params": way.params,
            "ns_per_param": round(statistics.median(per_param), 4),
            "ns_per_param_best": round(min(per_param), 4),
            "times_the_kernel": round(statistics.median(a / b for a, b in zip(per_param, of_ours, strict=True)), 2),
            "times_the_kernel_best": round(min(per_param) / min(of_ours), 2),
            "state_bytes_per_param": round(way.state_bytes(), 4),
            "transient_bytes": way.transient_bytes,
            "transient_bytes_per_param": round(way.transient_bytes / way.params, 3),
        }
    return {
        "path": kernel.name,
        "aten": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "ways": rows,
        "not_installed": absent,
        "plain_pass_gb_per_s": round(KERNEL_BYTES / pass_ns, 2),
        "plain_pass_ns_per_param": round(pass_ns, 4),
        "share_of_plain_pass_speed": round(pass_ns / rows[ours.name]["ns_per_param_best"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=int, default=1 << 27)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--path", choices=("avx2",), help="hold all to this instruction set")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/optimizer_step[_avx2].json")
    options = parser.parse_args()
    # Without it DeepSpeed says on standard output that it found no other device.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if options.path:
        hold_to_avx2()
    kernel = next(kernel for kernel in reversed(compiled_kernels()) if options.path in (None, kernel.name))
    result = measure(options.params, options.rounds, kernel)
    if options.write:
        settings = {"params": options.params, "rounds": options.rounds}
        if options.path:
            settings["path"] = options.path
        write_result("_".join(["optimizer_step", *filter(None, [options.path])]), result, settings=settings)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
