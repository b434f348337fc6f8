"""Files that are either whole or not there: temp, fsync, rename, fsync of the folder, SHA-256.

A crash at any instant leaves either the old content or the new one under the final name, and at most a hidden
`.NAME.….partial` beside it. What a run's results rest on is sealed: its last line is the digest of all before it.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from redheart.core.errors import BadInput, CorruptFile, DiskError

T = TypeVar("T")
PARTIAL = ".partial"
_DIGEST_BYTES = hashlib.sha256().digest_size
_SEAL = ',\n "sha256": "{}"\n}}\n'
_SEAL_BYTES = len(_SEAL.format("0" * 64))

_DISK_ERRNOS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write here",
    errno.EPERM: "no permission to write here",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while writing under `path` into one `DiskError`."""
    try:
        yield
    except OSError as error:
        # Some libraries raise an OSError of their own, which no call of the system stands behind.
        if error.errno is None:
            raise
        raise DiskError(
            f"cannot write: {_DISK_ERRNOS.get(error.errno, str(error.strerror).lower())}",
            where=path,
            mend="free some space or choose another folder, then run the same command again; nothing was lost",
        ) from error


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        DiskError: the content could not be written; an older file is untouched.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def write_checked(path: Path, content: bytes) -> None:
    """Write a whole file atomically, its SHA-256 behind its content, to be read by `read_checked`."""
    write_bytes(path, content + hashlib.sha256(content).digest())


def read_checked(path: Path) -> bytes | None:
    """The content of a file of `write_checked`; None where there is none, or where it has changed since."""
    if not path.is_file():
        return None
    everything = path.read_bytes()
    content, found = everything[:-_DIGEST_BYTES], everything[-_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == found else None


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces; dataclasses and msgspec structs allowed."""
    return json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _indented(value: object) -> str:
    return json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; keys keep their order so that people can read it."""
    write_bytes(path, _indented(value).encode() + b"\n")


def write_sealed(path: Path, value: object) -> None:
    """Write an object as `write_json` does, with a last key `sha256`: the digest of the bytes before it.

    A flipped digit in plain JSON reads as another number; here every changed byte is found by `read_sealed`.
    """
    text = _indented(value)
    assert text.endswith("\n}"), "an object with at least one key"
    body = text.removesuffix("\n}").encode()
    write_bytes(path, body + _SEAL.format(hashlib.sha256(body).hexdigest()).encode())


def read_sealed(path: Path, kind: type[T]) -> T:
    """Read what `write_sealed` wrote.

    Raises:
        BadInput: there is no such file, or its content is not a `kind`, as of another version.
        CorruptFile: its bytes are not those that were written.
    """
    content = _content(path)
    body, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    found = hashlib.sha256(body).hexdigest()
    if seal != _SEAL.format(found).encode():
        raise CorruptFile(
            "the file was changed or cut since it was written",
            where=path,
            got=f"SHA-256 {found}",
            expected=seal.decode(errors="replace").strip(",\n }"),
            mend="restore it from a copy, or make it again",
        )
    return _decoded(path, body + b"\n}", kind)


def read_json(path: Path, kind: type[T]) -> T:
    """Read JSON into a dataclass, struct or builtin type.

    Raises:
        BadInput: there is no such file, or its content is not a `kind`.
    """
    return _decoded(path, _content(path), kind)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(
            "file not found", where=path, mend="check the path; a run's files are made by `redheart run`"
        ) from None
    except OSError as error:
        raise BadInput("the file cannot be read", where=path, got=error.strerror) from error


def _decoded(path: Path, content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    # msgspec's own errors are ValueErrors, as is invalid UTF-8.
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "file is not readable as JSON of the expected form",
            where=path,
            got=error,
            expected=getattr(kind, "__name__", str(kind)),
            mend="the file was changed or cut, or is of another version; make it again or restore it",
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the `.partial` files and folders that killed processes left in a folder.

    The caller holds the lock under which they are written: what another process is still writing looks the same.
    """
    with disk_errors(folder):
        for item in folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(item) if item.is_dir() else item.unlink()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its final name only when the block has ended without an error.

    Yields the name of a sibling to write to, which must not be there yet. An existing file at `path` is replaced.

    Raises:
        BadInput: a folder stands at `path`.
        DiskError: the disk is full, read-only or over its quota.
    """
    if path.is_dir():
        raise BadInput("a folder stands where a file was to be written", where=path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
        try:
            yield temporary
            fsync_path(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its final name only when the block has ended without an error.

    Yields a temporary sibling. On success every file in it is flushed and the folder renamed;
    on any error it is removed. An existing folder at `path` is replaced.

    Raises:
        DiskError: the disk is full, read-only or over its quota.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
        try:
            temporary.chmod(0o755)
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                fsync_path(entry)
            fsync_path(temporary)
            replaced = None
            if path.exists():
                replaced = temporary.with_name(temporary.name.removesuffix(PARTIAL) + ".replaced" + PARTIAL)
                path.rename(replaced)
            temporary.rename(path)
            fsync_path(path.parent)
            if replaced is not None:
                shutil.rmtree(replaced)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
