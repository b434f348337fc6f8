"""Compiling the kernel on first use, and where it is kept: the user's cache, or else a temporary folder of this user's.

The library appears under its final name by a rename, so that a killed compiler leaves nothing that a later start
would wait for (torch's own extension builder leaves a lock and waits for ever) or load half-written. What can go wrong
with a cache goes wrong somewhere: no home, a read-only one, a full disk, a mount from which nothing may be loaded, a
file that was damaged or is of another machine. None of it ends a run; the next place is tried.
"""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from redheart.core.cache import cache_folder, is_trusted_file, private_folder, temporary_private_folder
from redheart.core.files import sha256_file

SOURCES = Path(__file__).parent / "csrc"
# No contraction: fused multiply-adds are written out, so that every instruction set gives the same bits. CXXFLAGS are
# not added for the same reason.
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-w")
TIMEOUT_S = 300.0
"""It takes 3 s on two free cores and half a minute on busy ones."""


class NoKernel(Exception):
    """Why there is no compiled kernel, for a person to read."""


def libraries(failures: list[str]) -> Iterator[Path]:
    """Compiled kernels to try, one after the other: made before, or compiled when they are asked for.

    `failures` is told why a place or a compiler gave none, in the order in which they were tried.
    """
    found = compilers()
    if not found:
        failures.append("no C++ compiler was found: install g++ or clang++")
    folders = list(usable_folders(failures))
    for compiler, folder in product((None, *found), folders):
        try:
            yield from [compile_in(folder, compiler)] if compiler else compiled_in(folder)
        except NoKernel as failure:
            failures.append(str(failure))
        except OSError as error:
            failures.append(_not_kept(error))


def usable_folders(failures: list[str]) -> Iterator[Path]:
    """The folders in which a kernel may lie, each made if it is not there; `failures` is told what is wrong."""
    cache = cache_folder()
    makers: list[Callable[[], Path]] = [temporary_private_folder]
    if cache is None:
        failures.append("there is no home folder to keep a compiled kernel in")
    else:
        makers.insert(0, partial(private_folder, cache))
    for make in makers:
        try:
            yield make()
        except OSError as error:
            failures.append(_not_kept(error))


def _not_kept(error: OSError) -> str:
    return f"no compiled kernel can be kept: {error.strerror}: {error.filename}"


def compilers() -> list[tuple[str, ...]]:
    """Commands that may compile the kernel, the one to try first in front: that of `CXX`, then those on the path.

    `CXX` may hold arguments, as `ccache g++` or `g++ -m64`. One that names no program counts as not set.
    """
    named = named_compiler()
    found = [named] if named else []
    for name in ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path and os.path.realpath(path) not in {os.path.realpath(other[0]) for other in found if len(other) == 1}:
            found.append((path,))
    return found


def named_compiler() -> tuple[str, ...] | None:
    """The command of `CXX`; None where it is not set, blank, or the program is not there."""
    text = os.environ.get("CXX", "").strip()
    if not text:
        return None
    try:
        # A path may have blanks in it.
        words = [text] if shutil.which(text) else shlex.split(text)
    except ValueError:
        return None
    program = shutil.which(words[0]) if words else None
    return (program, *words[1:]) if program else None


def compile_in(folder: Path, compiler: Sequence[str], extra_flags: Sequence[str] = ()) -> Path:
    """Compile the kernel into a folder, where it then lies whole under a name of its content, or not at all.

    Raises:
        NoKernel: the compiler fails, is killed or does not end; with the first line that it says.
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-", ignore_cleanup_errors=True) as build:
        built = Path(build) / "kernel.so"
        command = [*compiler, *FLAGS, *extra_flags, "-o", str(built), *map(str, sorted(SOURCES.glob("*.cpp")))]
        _run(command, Path(build), name=shlex.join(compiler))
        built.chmod(0o755)
        path = folder / f"{_sources_stem()}-{_content_digest(built)}.so"
        built.replace(path)
    return path


def compiled_in(folder: Path) -> list[Path]:
    """Libraries of these sources in a folder that are as they were written, by whichever compiler: all give the same.

    A library that was cut would end the process when it is loaded, not raise.
    """
    return [
        path
        for path in sorted(folder.glob(f"{_sources_stem()}-*.so"))
        if is_trusted_file(path) and path.stem.endswith(f"-{_content_digest(path)}")
    ]


def _run(command: Sequence[str], folder: Path, *, name: str) -> None:
    """Run a compiler to its end, its temporary files in `folder`, and none of its processes left behind."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        raise NoKernel(f"the C++ compiler {name} does not start: {error.strerror}") from error
    with process:
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NoKernel(f"the C++ compiler {name} did not end within {TIMEOUT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        code = process.returncode
        end = f"was killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise NoKernel(f"the C++ compiler {name} fails: {next(iter(said.strip().splitlines()), end)}")


def _sources_stem() -> str:
    """A library's name up to the digest of its content."""
    content = hashlib.sha256("\n".join((sys.platform, platform.machine(), *FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.read_bytes())
    return f"kernel-{content.hexdigest()[:16]}"


def _content_digest(path: Path) -> str:
    return sha256_file(path)[:16]
