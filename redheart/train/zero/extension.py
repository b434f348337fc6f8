"""Loading an operator that torch compiles at its first use, without its lock being waited for in vain.

Torch's lock is a file that its owner removes at the end. A killed owner does not, and every later start waits for ever
and says nothing (`torch.utils.file_baton`). Here a lock of the system's is held around a build, which ends with its
process, so torch's belongs to another program or to none: to none where no process has it open and no compiler
works in the folder of the build, as one that outlived its owner does until it is done.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from redheart.core.cache import cache_folder, temporary_private_folder
from redheart.core.lock import folder_lock
from redheart.memory.adamw8bit.build import compilers

SAY_AFTER_S = 3.0
"""What takes less is no compilation: an operator that was compiled before is loaded in half a second."""
POLL_S = 0.5
SHARED_AGE_S = 600.0
"""On a file system that other machines see, their processes are not seen: a lock counts as left after this time."""
_COMPILING = ("ninja", "cc1plus", "++", "clang", "collect2", "nvcc", "cicc", "ptxas")
_SHARED = frozenset(("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"))


@contextmanager
def building(name: str) -> Iterator[None]:
    """Around the load of an operator: one process of ours at a time, torch's lock free unless another program builds.

    Raises:
        DiskError: the folder for compiled operators cannot be written, nor can a temporary one.
    """
    _choose_folder()
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(name, False)).resolve()
    with (
        _saying(f"note: waiting for another process that compiles {name}", after_s=SAY_AFTER_S) as wait,
        folder_lock(folder, name="redheart", wait=True),
    ):
        wait.cancel()
        clear_left_lock(folder / "lock", name=name)
        is_new = not any(folder.glob(f"{name}*.so"))
        said = _saying(f"note: compiling {name}, about a minute, once", after_s=0.0 if is_new else SAY_AFTER_S)
        with said, _compiler_for_torch():
            yield


def clear_left_lock(lock: Path, *, name: str) -> None:
    """Wait for whoever builds in a lock's folder, and remove the lock if its owner is gone."""
    is_told = is_free = False
    while lock.exists():
        owners = builders(lock)
        # Torch closes the file before it removes it: only what nobody holds for a while is left.
        was_free, is_free = is_free, not owners and not _may_be_elsewhere(lock)
        if is_free and was_free:
            print(f"note: removed a lock that a killed compilation of {name} left: {lock}", file=sys.stderr, flush=True)
            lock.unlink(missing_ok=True)
            return
        if not is_free and not is_told:
            who = f"process {', '.join(map(str, owners))}" if owners else "another machine"
            print(f"note: waiting for {who}, which compiles {name}: {lock}", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(POLL_S)


def builders(lock: Path) -> list[int]:
    """Other processes that hold a lock's file open, as its owner does, or compile in its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            compiles = process.cwd() == str(lock.parent) and any(word in process.name() for word in _COMPILING)
            if compiles or any(item.path == str(lock) for item in process.open_files()):
                found.append(process.pid)
        # Gone meanwhile, or another user's, who has folders of his own.
        except (psutil.Error, OSError):
            continue
    return found


def _may_be_elsewhere(lock: Path) -> bool:
    """Whether a process of another machine may be building: its folder is shared and something changed in it lately."""
    mounts = [item for item in psutil.disk_partitions(all=True) if lock.is_relative_to(item.mountpoint)]
    kind = max(mounts, key=lambda item: len(item.mountpoint)).fstype if mounts else ""
    if kind not in _SHARED:
        return False
    changed = [path.stat().st_mtime for path in (lock, *lock.parent.glob("*")) if path.exists()]
    return time.time() - max(changed, default=0.0) < SHARED_AGE_S


def _choose_folder() -> None:
    """Let torch build where it would, or in a temporary folder of this user's where it could not write."""
    named, cache = os.environ.get("TORCH_EXTENSIONS_DIR"), cache_folder()
    root = Path(named) if named else cache.parent / "torch_extensions" if cache else None
    try:
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
            if os.access(root, os.W_OK | os.X_OK):
                # Torch takes a relative XDG_CACHE_HOME at its word and builds in the folder that the user works in.
                if not named and not os.path.isabs(os.environ.get("XDG_CACHE_HOME") or "/"):
                    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
                return
    except OSError:
        pass
    os.environ["TORCH_EXTENSIONS_DIR"] = str(temporary_private_folder() / "torch_extensions")


@contextmanager
def _compiler_for_torch() -> Iterator[None]:
    """A compiler that torch can start: it takes all of `CXX` for the name of one program, and `c++` without it."""
    named = os.environ.get("CXX")
    usable = [command[0] for command in compilers() if len(command) == 1]
    if shutil.which("c++" if named is None else named) or not usable:
        yield
        return
    os.environ["CXX"] = usable[0]
    try:
        yield
    finally:
        if named is None:
            del os.environ["CXX"]
        else:
            os.environ["CXX"] = named


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
