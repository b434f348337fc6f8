"""Compiling the kernel: sanitizers, a compiler that is killed, and none at all."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from stub_programs import program

from redheart.kernel import build

COMPILER = shutil.which("g++")
DIGEST = "a0c2522b385ed85c"
"""Of all that the kernel computes for the numbers of every_function.cpp, by x86 and ARM, portable and vectorised."""
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++")


def every_function(compiler: str, program: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile the program that calls every function."""
    source = Path(__file__).with_name("every_function.cpp")
    kept = [flag for flag in build.FLAGS if flag not in ("-shared", "-O3")]
    command = [compiler, *kept, *flags, "-o", str(program), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_compiler
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_no_access_outside_the_arrays_and_no_race(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "sanitize"
    compiled = every_function(str(COMPILER), program, "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    if re.search(r"(-l|lib)(a|ub|t)san", compiled.stderr):
        pytest.skip(f"this compiler has no such sanitizer: {sanitizer}")
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel's random addresses")
    assert done.returncode == 0, done.stderr[-3000:]
    calls, digest = done.stdout.split()
    assert int(calls) >= 280 and digest == DIGEST


@pytest.mark.long
@needs_compiler
def test_other_processors_give_the_same_bits(tmp_path: Path) -> None:
    others: list[tuple[str, tuple[str, ...]]] = [(str(COMPILER), ())]
    if (cross := shutil.which("aarch64-linux-gnu-g++")) and (emulator := shutil.which("qemu-aarch64")):
        others.append((cross, (emulator,)))
    for index, (compiler, run) in enumerate(others):
        program = tmp_path / str(index)
        compiled = every_function(compiler, program, "-O3", "-static")
        assert compiled.returncode == 0, compiled.stderr[-3000:]
        done = subprocess.run([*run, program], capture_output=True, text=True, check=True)
        assert done.stdout.split()[1] == DIGEST, compiler


@needs_compiler
def test_a_killed_compiler_leaves_nothing_that_blocks(tmp_path: Path) -> None:
    # What a compiler killed half-way leaves: its private folder.
    (tmp_path / ".build-killed").mkdir(parents=True)
    (tmp_path / ".build-killed" / "kernel.so").write_bytes(b"half")
    path = build.compile_in(tmp_path, [str(COMPILER)])
    assert path.stat().st_size > 10_000
    assert [item.name for item in tmp_path.iterdir() if item.name != ".build-killed"] == [path.name]
    assert build.compiled_in(tmp_path) == [path]


@needs_compiler
def test_a_failing_compiler_is_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(build.NoKernel, match="-no-such-flag"):
        build.compile_in(tmp_path, [str(COMPILER)], ("-no-such-flag",))
    with pytest.raises(build.NoKernel, match="does not start"):
        build.compile_in(tmp_path, [str(tmp_path / "no-such-compiler")])
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TIMEOUT_S", 0.5)
    places = tmp_path / "places"
    places.mkdir()
    hanging = program(tmp_path / "hanging", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(build.NoKernel, match="did not end within"):
        build.compile_in(places, [str(hanging)])
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(places.iterdir()) == []


def test_a_compiler_that_is_killed_says_so(tmp_path: Path) -> None:
    killed = program(tmp_path / "killed", "kill -9 $$")
    with pytest.raises(build.NoKernel, match="was killed by signal 9"):
        build.compile_in(tmp_path, [str(killed)])


def test_a_compiler_has_its_temporary_files_where_the_library_will_lie(tmp_path: Path) -> None:
    places = tmp_path / "places"
    places.mkdir()
    program(tmp_path / "telling", f'echo "$TMPDIR" > {tmp_path}/told; exit 1')
    with pytest.raises(build.NoKernel, match="exit code 1"):
        build.compile_in(places, [str(tmp_path / "telling")])
    assert Path((tmp_path / "told").read_text().strip()).parent == places


@pytest.mark.parametrize(
    ("cxx", "expected"),
    [
        ("tool", ["{0}/tool"]),
        ("tool g++-99 -m64", ["{0}/tool", "g++-99", "-m64"]),
        ("  tool\t-m64 ", ["{0}/tool", "-m64"]),
        ("tool '-I/a b'", ["{0}/tool", "-I/a b"]),
        ("{0}/a tool", ["{0}/a tool"]),
        ("'{0}/a tool' -O1", ["{0}/a tool", "-O1"]),
        ("missing", None),
        ("missing -m64", None),
        ("tool 'unbalanced", None),
        ("", None),
        (" \t", None),
        (None, None),
    ],
)
def test_the_compiler_that_is_named_may_have_arguments(
    cxx: str | None, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tool", "a tool", "g++", "c++"):
        program(tmp_path / name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx.format(tmp_path))
    named = None if expected is None else tuple(item.format(tmp_path) for item in expected)
    assert build.named_compiler() == named
    others = [(f"{tmp_path}/g++",), (f"{tmp_path}/c++",)]
    assert build.compilers() == ([named, *others] if named else others)


def test_one_compiler_under_two_names_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "g++", "exit 0")
    (tmp_path / "c++").symlink_to("g++")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "c++")
    assert build.compilers() == [(f"{tmp_path}/c++",)]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert build.compilers() == []


def without_a_compiler(folder: Path) -> dict[str, str]:
    """The environment of a machine on which no compiler is installed and nothing is cached."""
    environment = {**os.environ, "PATH": str(folder), "XDG_CACHE_HOME": str(folder), "TMPDIR": str(folder)}
    environment.pop("CXX", None)
    return environment


def run_script(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_without_a_compiler_the_step_works_and_says_so_once(tmp_path: Path) -> None:
    script = (
        "import torch; from redheart.optim.host_adamw8bit import HostAdamW8bit\n"
        "for _ in range(2):\n"
        "    p = torch.nn.Parameter(torch.ones(5000)); p.grad = torch.ones(5000)\n"
        "    HostAdamW8bit([p], lr=0.1, weight_decay=0.0).step()\n"
        "print(round(p[0].item(), 4))\n"
    )
    done = run_script(script, without_a_compiler(tmp_path))
    assert done.stdout.strip() == "0.9"
    assert done.stderr.count("no C++ compiler was found") == 1


@pytest.mark.long
@needs_compiler
def test_without_a_compiler_memory_stays_within_a_tenth_of_the_kernels(tmp_path: Path) -> None:
    script = (
        "import resource, torch; from redheart.optim.host_adamw8bit import HostAdamW8bit, backend\n"
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
