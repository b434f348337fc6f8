"""Python processes that are forked from one that has the libraries imported already.

A Python process imports torch, DeepSpeed, accelerate and bitsandbytes for 4 to 14 seconds before it does anything; most
tests want what comes after. The server (`multiprocessing`'s) imports them once and runs nothing of them, so that no
thread of OpenMP is there to be lost by a fork. What starts for real, with its launcher, is said in `launching`.
"""

import atexit
import io
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preloaded"])
_TESTS = Path(__file__).parent
REAL_TRIALS = "REDHEART_TESTS_REAL_TRIALS"
"""A variable of a process whose sweep starts its trials as it does for users."""


class Forked:
    """A process that runs what `python ARGUMENTS` would; the part of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str], cwd: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="redheart-forked-")
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._process = _CONTEXT.Process(
            target=_run, args=(list(arguments), dict(environment), str(cwd), *map(str, self._outputs))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        # Until it leads a group of its own it cannot be signalled as one.
        with suppress(ProcessLookupError):
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)
        self.args = list(arguments)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def stdout(self) -> io.BytesIO:
        """What it has written to standard output until now."""
        return io.BytesIO(self._outputs[0].read_bytes())

    @property
    def stderr(self) -> io.BytesIO:
        """What it has written to standard error until now."""
        return io.BytesIO(self._outputs[1].read_bytes())

    def poll(self) -> int | None:
        self._process.join(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run what `python ARGUMENTS` would to its end."""
    process = Forked(arguments, environment=environment, cwd=cwd)
    try:
        out, errors = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), out.decode(), errors.decode())


def _run(arguments: list[str], environment: dict[str, str], cwd: str, stdout: str, stderr: str) -> None:
    """What `python ARGUMENTS` does: a script or, behind `-m`, a module, as the main program."""
    assert "preloaded" in sys.modules, "the server has not imported what it should"
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), descriptor)

    if REAL_TRIALS not in environment:
        import redheart.study.sweep

        # The server that this process is from is there, though it is no child of it.
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None
        redheart.study.sweep.start = lambda words: _Trial(words[words.index("-m") :], stdout, stderr)
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).absolute().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        # A forked process of `multiprocessing` leaves them out.
        atexit._run_exitfuncs()


class _Trial:
    """The process of a sweep's trial, from the same server: the part of `subprocess.Popen` that a sweep uses."""

    def __init__(self, arguments: Sequence[str], stdout: str, stderr: str) -> None:
        self._process = _CONTEXT.Process(
            target=_run, args=(list(arguments), dict(os.environ), os.getcwd(), stdout, stderr)
        )
        self._process.start()

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a trial", timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def start_server() -> None:
    """Start the server; what it imports takes a while, and nobody waits for it before the first process."""
    # It finds what it imports by its environment alone.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
