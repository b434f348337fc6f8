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


def library_path() -> Path | None:
    """The compiled kernel, compiling it if it is not in the cache; None where no compiler is found or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        return None
    path = cache_folder() / f"adamw8bit-{_digest(compiler)}.so"
    return path if path.exists() or compile_to(path, compiler) else None


def cache_folder() -> Path:
    """Where compiled kernels lie: below `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redheart"


def compile_to(path: Path, compiler: str, extra_flags: tuple[str, ...] = ()) -> bool:
    """Compile the kernel to a path that then holds a whole library or nothing; whether it worked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, *extra_flags, "-o", str(built), str(SOURCES / "adamw8bit.cpp")]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
        built.replace(path)
    return True


def _digest(compiler: str) -> str:
    content = hashlib.sha256("\n".join((compiler, sys.platform, *FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.read_bytes())
    return content.hexdigest()[:16]
