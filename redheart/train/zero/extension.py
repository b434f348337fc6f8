"""Loading an operator that torch compiles at its first use, without its lock being waited for in vain.

Torch's lock is a file that its owner removes at the end. A killed owner does not, and every later start waits for ever
and says nothing (`torch.utils.file_baton`). So operators are compiled in a folder of ours, where a lock of the system's
is held around a build, which ends with its process: a lock of torch's that is found there belongs to nobody.
"""

import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from redheart.core.cache import cache_folder, private_folder, temporary_private_folder
from redheart.core.folders import folder_lock
from redheart.kernel.build import compilers

SAY_AFTER_S = 3.0
"""What takes less is no compilation: an operator that was compiled before is loaded in half a second."""


@contextmanager
def building(name: str) -> Iterator[None]:
    """Around the load of an operator: one process at a time.

    Raises:
        DiskError: the folder cannot be written.
        OSError: there is none for compiled operators, nor a temporary one.
    """
    folder = _folder()
    with (
        _saying(f"note: waiting for another process that compiles {name}", after_s=SAY_AFTER_S) as wait,
        folder_lock(folder, name=name, wait=True),
    ):
        wait.cancel()
        is_new, lock = not any((folder / name).glob("*.so")), folder / name / "lock"
        if lock.exists() and is_new:
            # A compiler that has outlived its owner goes on where it disturbs nobody.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".killed-", ignore_cleanup_errors=True) as gone:
                (folder / name).rename(Path(gone) / name)
        lock.unlink(missing_ok=True)
        said = _saying(f"note: compiling {name}, about a minute, once", after_s=0.0 if is_new else SAY_AFTER_S)
        with said, mock.patch.dict(os.environ, {"TORCH_EXTENSIONS_DIR": str(folder), **_compiler()}):
            yield


def _folder() -> Path:
    """Where the operators of this Python and this torch lie, or a temporary place if nothing can be written there."""
    named, cache = os.environ.get("TORCH_EXTENSIONS_DIR"), cache_folder()
    root = Path(named).absolute() / "redheart" if named else cache
    place = Path("operators", f"python-{platform.python_version()}-torch-{torch.__version__}")
    try:
        if root is not None and os.access(found := private_folder(root / place), os.W_OK | os.X_OK):
            return found
    except OSError:
        pass
    return private_folder(temporary_private_folder() / place)


def _compiler() -> dict[str, str]:
    """A compiler that torch can start: it takes all of `CXX` for the name of one program, and `c++` without it."""
    usable = [command[0] for command in compilers() if len(command) == 1]
    if shutil.which(os.environ.get("CXX", "c++")) or not usable:
        return {}
    return {"CXX": usable[0]}


@contextmanager
def _saying(text: str, *, after_s: float) -> Iterator[threading.Timer]:
    """Print a line if the block, or what comes before the timer is cancelled, takes longer."""
    timer = threading.Timer(after_s, print, (text,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()
