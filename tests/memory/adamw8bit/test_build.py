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
    assert build.compile_to(path, str(COMPILER))
    assert path.stat().st_size > 10_000
    assert [item.name for item in tmp_path.iterdir() if item.name != ".build-killed"] == ["kernel.so"]


@needs_compiler
def test_a_failing_compiler_is_no_kernel(tmp_path: Path) -> None:
    assert not build.compile_to(tmp_path / "kernel.so", str(COMPILER), ("-no-such-flag",))
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_step_works_and_says_so_once(tmp_path: Path) -> None:
    script = (
        "import torch; from redheart.memory.adamw8bit.optimizer import HostAdamW8bit\n"
        "for _ in range(2):\n"
        "    p = torch.nn.Parameter(torch.ones(5000)); p.grad = torch.ones(5000)\n"
        "    HostAdamW8bit([p], lr=0.1, weight_decay=0.0).step()\n"
        "print(round(p[0].item(), 4))\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "0.9"
    assert done.stderr.count("no C++ compiler was found") == 1
