"""Folders of this user for what can be made again: below `XDG_CACHE_HOME` or `~/.cache`, or below the temporary one.

What is loaded as code must not have been put there by another user, so such a folder is this user's alone: nobody else
may write into it, and it does not lie where anybody could put another in its place.
"""

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path

_TEMPORARY = ("TMPDIR", "TEMP", "TMP")


def cache_folder() -> Path | None:
    """Where caches lie; None where neither the variable nor a home says. A relative path says nothing (XDG 0.8)."""
    home = "" if os.environ.get("HOME") == "" else os.path.expanduser("~/.cache")
    for text in (os.environ.get("XDG_CACHE_HOME", ""), home):
        if os.path.isabs(text):
            return Path(text) / "redheart"
    return None


def private_folder(path: Path) -> Path:
    """A folder that is there, and in which only this user and the system's own may write.

    Raises:
        OSError: it cannot be made, or others may write or have written into it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    real = path.resolve()
    status = real.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o022:
        real.chmod(0o700)
    elif not _is_trusted(status):
        raise PermissionError(1, "others may write into it", str(path))
    for parent in real.parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise PermissionError(1, "others may put another folder in its place", str(parent))
    return real


def temporary_private_folder() -> Path:
    """The same below the temporary folder: kept for the next start, or made for this one where the name is taken.

    Raises:
        OSError: there is no temporary folder that can be written.
    """
    folder = tempfile.gettempdir()
    if folder == os.getcwd() and folder not in (*map(os.environ.get, _TEMPORARY), "/tmp", "/var/tmp", "/usr/tmp"):
        # Python's last resort is the folder that the user works in.
        raise FileNotFoundError(2, "no temporary folder can be written", folder)
    kept = Path(folder) / f"redheart-{os.geteuid()}"
    try:
        if kept.is_symlink():
            raise PermissionError(1, "others may have put it there", str(kept))
        return private_folder(kept)
    except OSError:
        made = Path(tempfile.mkdtemp(prefix="redheart-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        return made


def is_writable(path: Path) -> bool:
    """Whether a folder can be written, or made if it is not there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def is_trusted_file(path: Path) -> bool:
    """Whether a file is a plain one that only this user or the system's own may have written."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and _is_trusted(status)


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022
