"""Folders that this program makes, replaces and removes; nobody else's are touched.

One rule: what is replaced or removed holds nothing but what this program wrote into it for the same purpose, by the
manifest that lies there. Everything else is refused before work starts, with the names of what is in the way.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redheart.core.errors import BadInput, CorruptFile, names_text
from redheart.core.files import PARTIAL, disk_errors, fsync_path, is_sealed, real_path, temporary_path

REPLACED = f".replaced{PARTIAL}"
"""How the name of a folder ends while another one takes its place."""
_LONGEST_NAME = 255
Contents = Callable[[Path], Collection[str]]
"""From a folder to the names of what this program wrote into it, as its manifest there says; it raises `BadInput` or
`CorruptFile` where there is no manifest of this purpose."""


def refuse_foreign(path: Path, contents: Contents | None) -> None:
    """Refuse a place that a folder must not be written to; one with these `contents` it may take the place of.

    Raises:
        BadInput: a file stands there, or a folder with anything in it that this program did not write for this
            purpose; or a file system is mounted there, which no other folder can take the place of; or it is the
            current folder or above it, which the shell would be left without.
        CorruptFile: this program's own manifest there was changed.
    """
    with disk_errors(path):
        if not path.exists():
            return
    if not path.is_dir():
        raise BadInput("a file stands where a folder is to be written", where=path, hint="choose another name")
    if found := foreign_names(path, contents):
        what, others = "holds what this program did not write there", ", or one that the same command made"
        if contents is None:
            what, others = "is there already", ""
        raise BadInput(
            f"the folder {what}",
            where=path,
            got=names_text(found),
            expected=f"a new or empty folder{others}",
            hint="choose another one, or move these files elsewhere",
        )
    hint = f"give a folder in it, for example {path / 'out'}"
    if os.path.ismount(path):
        raise BadInput("a file system is mounted at this folder, which so cannot be replaced", where=path, hint=hint)
    if _holds_current_folder(path):
        raise BadInput("the current folder cannot be replaced, and none above it", where=path, hint=hint)


def _holds_current_folder(path: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(real_path(path))
    except FileNotFoundError:
        # It was removed, and no path can hold it.
        return False


def foreign_names(folder: Path, contents: Contents | None) -> list[str]:
    """What lies in a folder and is not among its contents, sorted; all of it where there is no manifest."""
    ours: Collection[str] = ()
    try:
        ours = contents(folder) if contents else ()
    except CorruptFile as error:
        # Ours, and damaged: that is another message. Another program's manifest has no seal.
        if is_sealed(Path(str(error.where))):
            raise
    except BadInput:
        pass
    with disk_errors(folder):
        return sorted(name for name in os.listdir(folder) if name not in ours and not name.endswith(PARTIAL))


def refuse_taken(folder: Path, names: Iterable[str], *, what: str) -> None:
    """Refuse a folder, which may hold anything else, if one of these names is taken; an empty folder's is free.

    Raises:
        BadInput: names are taken; they are listed.
    """
    with disk_errors(folder):
        there = [name for name in names if (folder / name).exists()]
        taken = [name for name in there if not (folder / name).is_dir() or any((folder / name).iterdir())]
    if taken:
        raise BadInput(
            f"the folder holds other files where {what} is to be written",
            where=folder,
            got=names_text(taken),
            hint="choose another folder, for example a new one in it",
        )


@contextmanager
def new_folder(path: Path, contents: Contents | None) -> Iterator[Path]:
    """A folder that appears under its final name only when the block has ended without an error.

    Yields a temporary sibling. On success every file in it is flushed and the folder renamed; on any error it is
    removed. A folder at `path` that holds nothing but its `contents` is replaced. A link is followed.

    Raises:
        BadInput: something stands there that is not to be replaced; see `refuse_foreign`.
        DiskError: the disk is full, read-only or over its quota.
    """
    path = real_path(path)
    with disk_errors(path):
        _put_back(_replaced_path(path), path)
    refuse_foreign(path, contents)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        temporary.mkdir()
        try:
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                fsync_path(entry)
            fsync_path(temporary)
            # What came while it was written stays as well.
            refuse_foreign(path, contents)
            if path.exists():
                shutil.copymode(path, temporary)
            take_place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def take_place(made: Path, path: Path) -> None:
    """Give a folder that is whole its name; what had the name is removed, and has it again if this is cut off.

    The caller has made sure that nothing but this program's own is there.
    """
    replaced = _replaced_path(path)
    names: tuple[str, ...] = ()
    if path.exists():
        names = tuple(os.listdir(path))
        if replaced.exists():
            # A killed removal's.
            shutil.rmtree(replaced)
        path.rename(replaced)
    try:
        made.rename(path)
    except BaseException:
        _put_back(replaced, path)
        raise
    fsync_path(path.parent)
    if replaced.exists():
        # Half removed it must not come back.
        removed = replaced.rename(temporary_path(path))
        remove_leftovers(removed)
        remove_names(removed, names)


def _replaced_path(path: Path) -> Path:
    name = f".{path.name}{REPLACED}"
    # Where that is longer than a name can be, a folder does not come back after a kill.
    return path.with_name(name) if len(os.fsencode(name)) <= _LONGEST_NAME else temporary_path(path)


def _put_back(replaced: Path, path: Path) -> None:
    """Give a folder its name again whose place another one was about to take and did not."""
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def remove_names(folder: Path, names: Iterable[str]) -> None:
    """Remove files from a folder by name, and then the folder if nothing else is in it."""
    with disk_errors(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def remove_leftovers(folder: Path, names: Iterable[str] = ("*",)) -> None:
    """Remove the unfinished files and folders that killed processes left in a folder; one that was about to be replaced
    is put back.

    The caller holds the lock under which they are written: what another process is still writing looks the same.
    `names` are of those that are written under it, where others are not.
    """
    with disk_errors(folder):
        for replaced in [item for name in names for item in folder.glob(f".{name}{REPLACED}")]:
            _put_back(replaced, folder / replaced.name.removeprefix(".").removesuffix(REPLACED))
        endings = (PARTIAL, f".{'[0-9a-f]' * 8}{PARTIAL}")
        for item in {item for name in names for ending in endings for item in folder.glob(f".{name}{ending}")}:
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def seen_from(folder: Path, typed: str) -> str | None:
    """The way from a folder to what was typed, None where nothing is there.

    Kept beside the path itself, it finds a file again after both were moved together, and does not tell where on a
    machine they lay.
    """
    path = Path(typed)
    return os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else None


def found_again(typed: str, folder: Path, place: str | None) -> str:
    """Where it lies now: where it was, seen from the folder, if something is there, else as it was typed."""
    if place is not None and (there := folder.resolve() / place).exists():
        return str(Path(os.path.normpath(there)))
    return typed


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
