"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redheart.core.errors import BadInput
from redheart.core.files import disk_errors


@contextmanager
def folder_lock(folder: Path, *, name: str, wait: bool) -> Iterator[None]:
    """Hold the lock called `name` of a folder; it ends with the process, however that ends.

    Raises:
        BadInput: another process holds it and `wait` is False; its process number is named. Or the file system has no
            locks.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".redheart-{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            raise BadInput(
                "another process works in this folder",
                where=folder,
                got=f"process {holder}",
                hint="wait for it, stop it, or choose another --out",
            ) from None
        except OSError as error:
            raise BadInput(
                "the file system cannot lock a folder",
                where=folder,
                got=error.strerror,
                hint="choose another --out, or mount it with locks (NFS: with its lock daemon)",
            ) from error
        os.ftruncate(descriptor, 0)
        owner = os.getpid()
        os.pwrite(descriptor, str(owner).encode(), 0)
        try:
            yield
        finally:
            # A process that was forked meanwhile has the descriptor too, and does not let go for this one.
            if os.getpid() == owner:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
