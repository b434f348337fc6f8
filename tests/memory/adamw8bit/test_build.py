"""Compiling the kernel: sanitizers, a compiler that is killed, and none at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redheart.memory.adamw8bit import build

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++")


@needs_compiler
def test_no_access_outside_the_arrays(tmp_path: Path) -> None:
    program = tmp_path / "sanitize"
    source = Path(__file__).with_name("sanitize.cpp")
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-O3")]
    compiled = subprocess.run(
        [
            str(COMPILER),
            *flags,
            "-O1",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-o",
            program,
            source,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in compiled.stderr or "libasan" in compiled.stderr:
        pytest.skip("this compiler has no address sanitizer")
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 220


@needs_compiler
def test_a_killed_compiler_leaves_nothing_that_blocks(tmp_path: Path) -> None:
    # What a compiler killed half-way leaves: its private folder.
    (tmp_path / ".build-killed").mkdir(parents=True)
    (tmp_path / ".build-killed" / "kernel.so").write_bytes(b"half")
    path = tmp_path / "kernel.so"
    build.compile_to(path, str(COMPILER))
    assert path.stat().st_size > 10_000
    assert [item.name for item in tmp_path.iterdir() if item.name != ".build-killed"] == ["kernel.so"]


@needs_compiler
def test_a_failing_compiler_is_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(build.NoKernel, match="-no-such-flag"):
        build.compile_to(tmp_path / "kernel.so", str(COMPILER), ("-no-such-flag",))
    with pytest.raises(build.NoKernel, match="does not start"):
        build.compile_to(tmp_path / "kernel.so", str(tmp_path / "no-such-compiler"))
    assert list(tmp_path.iterdir()) == []


def without_a_compiler(folder: Path) -> dict[str, str]:
    """The environment of a machine on which no compiler is installed and nothing is cached."""
    environment = {**os.environ, "PATH": str(folder), "XDG_CACHE_HOME": str(folder)}
    environment.pop("CXX", None)
    return environment


def run_script(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_without_a_compiler_the_step_works_and_says_so_once(tmp_path: Path) -> None:
    script = (
        "import torch; from redheart.memory.adamw8bit.optimizer import HostAdamW8bit\n"
        "for _ in range(2):\n"
        "    p = torch.nn.Parameter(torch.ones(5000)); p.grad = torch.ones(5000)\n"
        "    HostAdamW8bit([p], lr=0.1, weight_decay=0.0).step()\n"
        "print(round(p[0].item(), 4))\n"
    )
    done = run_script(script, without_a_compiler(tmp_path))
    assert done.stdout.strip() == "0.9"
    assert done.stderr.count("no C++ compiler was found") == 1


@needs_compiler
def test_without_a_compiler_memory_stays_within_a_tenth_of_the_kernels(tmp_path: Path) -> None:
    script = (
        "import resource, torch; from redheart.memory.adamw8bit.optimizer import HostAdamW8bit, backend\n"
        "n = 1 << 24\n"
        "p = torch.nn.Parameter(torch.ones(n)); p.grad = torch.ones(n)\n"
        "HostAdamW8bit([p], lr=0.1).step()\n"
        "print(backend().name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    (with_path, with_peak), (without_path, without_peak) = (
        run_script(script, environment).stdout.split()
        for environment in (dict(os.environ), without_a_compiler(tmp_path))
    )
    assert (with_path, without_path) != ("torch", "torch") and without_path == "torch"
    assert int(without_peak) < 1.1 * int(with_peak)
