"""Files that are either whole or not there: temp, fsync, rename, fsync of the folder, SHA-256.

A crash at any instant leaves either the old content or the new one under the final name, and at most a hidden
`.NAME.….redheart-partial` beside it. Links are followed; what is no regular file, a pipe or a device, is written
through. What a run's results rest on is sealed: its last line is the digest of all before it.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from redheart.core.errors import BadInput, CorruptFile, DiskError

T = TypeVar("T")
PARTIAL = ".redheart-partial"
"""How the names of unfinished files and folders end; nobody else's do, so that they may be removed."""
_OPEN_FILES = ("/dev/std", "/dev/fd/", "/proc/")
"""Where the system shows files that processes have open."""
_NAME_CHARS = 40
"""Of a final name in a temporary one: names may be 255 bytes long."""
_DIGEST_BYTES = hashlib.sha256().digest_size
_SEAL = ',\n "sha256": "{}"\n}}\n'
_SEAL_PATTERN = r',\n "sha256": "[0-9a-f]{64}"\n}\n'
_SEAL_BYTES = len(_SEAL.format("0" * 64))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while writing under `path` into one `DiskError`."""
    try:
        yield
    except OSError as error:
        # Some libraries raise an OSError of their own, which no call of the system stands behind.
        # And a reader that wants no more of a pipe is not a disk.
        if error.errno in (None, errno.EPIPE):
            raise
        room = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise DiskError(
            f"cannot write: {os.strerror(error.errno).lower()}",
            where=path,
            hint=f"{room}choose another folder, then run the same command again; nothing was lost",
        ) from error


def fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digests(folder: Path, digests: Mapping[str, str], *, what: str, hint: str) -> None:
    """Hold files of a folder against their SHA-256 by name.

    Raises:
        CorruptFile: one is missing or was changed.
    """
    for name, expected in digests.items():
        path = folder / name
        found = sha256_file(path) if path.is_file() else "no file"
        if found != expected:
            raise CorruptFile(what, where=path, got=found, expected=expected, hint=hint)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically, as `new_file` does."""
    with new_file(path) as temporary, open_output(temporary) as file:
        file.write(content)


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


def is_sealed(path: Path) -> bool:
    """Whether a file ends as `write_sealed` ends it; what is in it is for `read_sealed` to judge."""
    if not path.is_file():
        return False
    seal = _content(path)[-_SEAL_BYTES:].decode(errors="replace")
    return re.fullmatch(_SEAL_PATTERN, seal) is not None


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
            hint="restore it from a copy, or make it again",
        )
    return _decoded(path, body + b"\n}", kind)


def read_if_there(path: Path, kind: type[T]) -> T | None:
    """What `write_sealed` wrote, as `read_sealed`; None where there is no such file."""
    return read_sealed(path, kind) if path.is_file() else None


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
            "file not found", where=path, hint="check the path; a run's files are made by `redheart run`"
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
            hint="the file was changed or cut, or is of another version; make it again or restore it",
        ) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its final name only when the block has ended without an error.

    Yields the name of a sibling to write to, which is not there yet. An existing file at `path` is replaced and its
    permissions stay; a new one has those that the umask leaves. A link is followed. A stream (see `is_stream`) is
    yielded itself, for `open_output`: what is written there is gone at once, and nothing can appear whole.

    Raises:
        BadInput: a folder stands at `path`.
        DiskError: the disk is full, read-only or over its quota.
    """
    with disk_errors(path):
        if path.is_dir():
            raise BadInput("a folder stands where a file was to be written", where=path, hint="give the name of a file")
        if is_stream(path):
            yield path
            return
        path = real_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            yield temporary
            fsync_path(temporary)
            if path.exists():
                shutil.copymode(path, temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def is_stream(path: Path) -> bool:
    """Whether what is written to a path goes on at once: a pipe, a device, or a file that is open already.

    The last is what `/dev/stdout` is after `> FILE` and `>> FILE`; so a stream is only ever appended to.
    """
    if str(path.absolute()).startswith(_OPEN_FILES):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def open_output(path: Path) -> IO[bytes]:
    """Open a new file, or a stream at whatever stands in it already, for writing."""
    return path.open("ab" if is_stream(path) else "wb")


def to_disk(file: IO[bytes]) -> None:
    """Flush an open file to the disk; a stream has none."""
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())


def real_path(path: Path) -> Path:
    """Where a path leads once all links are followed, whether something is there or not.

    Raises:
        DiskError: links go round in a circle.
    """
    with disk_errors(path):
        try:
            return path.resolve()
        except RuntimeError as error:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def temporary_path(path: Path) -> Path:
    """A hidden sibling's name that is not taken, for what will be at `path`."""
    return path.with_name(f".{path.name[:_NAME_CHARS]}.{secrets.token_hex(4)}{PARTIAL}")


def shown(name: object) -> str:
    """A file's or folder's name as text that can be written anywhere; bytes that are no UTF-8 are spelled out."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
