"""Compiling the kernel on first use.

The library appears under its final name by a rename, so that a killed compiler leaves nothing that a later start
would wait for (torch's own extension builder leaves a lock and waits for ever) or load half-written.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
# No contraction: fused multiply-adds are written out, so that every instruction set gives the same bits.
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-w")


class NoKernel(Exception):
    """Why there is no compiled kernel, for a person to read."""


def library_path() -> Path:
    """The compiled kernel, compiling it if it is not in the cache.

    Raises:
        NoKernel: no compiler is found, or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise NoKernel("no C++ compiler was found: install g++ or clang++")
    path = cache_folder() / f"adamw8bit-{_digest(compiler)}.so"
    if not path.exists():
        compile_to(path, compiler)
    return path


def cache_folder() -> Path:
    """Where compiled kernels lie: below `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redheart"


def compile_to(path: Path, compiler: str, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile the kernel to a path that then holds a whole library or nothing.

    Raises:
        NoKernel: the compiler fails, with the first line that it says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, *extra_flags, "-o", str(built), str(SOURCES / "adamw8bit.cpp")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NoKernel(f"the C++ compiler {compiler} does not start: {error.strerror}") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise NoKernel(f"the C++ compiler {compiler} fails: {lines[0]}")
        built.replace(path)


def _digest(compiler: str) -> str:
    content = hashlib.sha256("\n".join((compiler, sys.platform, *FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.read_bytes())
    return content.hexdigest()[:16]
