"""Records, and the raw rows of any accepted file: JSON array, JSON lines or GoEmotions TSV, plain or gzip."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput

MAX_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 24
SUFFIXES = (".json", ".jsonl", ".tsv")


class Record(msgspec.Struct, frozen=True):
    """One labelled text. A target that is None is absent: masked out of losses and metrics."""

    id: str
    text: str
    title: str
    action: str
    targets: dict[str, tuple[float | None, ...]]
    verdict: str | None = None
    timestamp: str | None = None


class RepeatedKeys(dict[str, object]):
    """An object of a file in which a key stands twice; which of its values was meant nobody knows."""


class Row(msgspec.Struct, frozen=True):
    """A record as it stands in its file."""

    where: str
    """`record 3` (from 0) of an array, `line 4` (from 1) of a line-based file."""
    value: object


def read_rows(path: Path) -> tuple[str, list[Row]]:
    """Read a file's rows and its format, `json` or `tsv`.

    Raises:
        BadInput: no such file, unknown suffix, cut gzip, invalid UTF-8, invalid JSON, too large, or empty.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise BadInput(
            "unknown kind of file",
            where=path,
            got=suffix or "no suffix",
            expected=", ".join(f"{item}[.gz]" for item in SUFFIXES),
            mend="convert or rename the file",
        )
    text = read_text(path)
    if not text.strip():
        raise BadInput("the file is empty", where=path, expected="at least one record")
    rows = list({".json": _array, ".jsonl": _lines, ".tsv": _tsv}[suffix](path, text))
    if not rows:
        raise BadInput("the file holds no record", where=path, expected="at least one record")
    return suffix.removeprefix(".").removesuffix("l"), rows


def read_text(path: Path) -> str:
    """The text of a file, plain or gzip.

    Raises:
        BadInput: no such file, cut gzip, invalid UTF-8, or too large.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput("file not found", where=path, mend="check its path") from None
    except IsADirectoryError:
        raise BadInput("a folder stands where a file of records was expected", where=path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput("the gzip file is cut or damaged", where=path, got=error, mend="fetch it again") from error
    except OSError as error:
        raise BadInput("the file cannot be read", where=path, got=error.strerror) from error
    if len(content) > MAX_BYTES:
        raise BadInput(
            "the file is too large", where=path, expected=f"at most {MAX_BYTES} bytes unpacked", mend="split the file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(
            "the file is not UTF-8",
            where=f"{path}: line {line}, byte {error.start}",
            got=hex(content[error.start]),
            mend="convert it, for instance with `iconv -t utf-8`",
        ) from error


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadInput("not valid JSON", where=where, got=error, mend="correct or remove it") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else RepeatedKeys(pairs)


def _array(path: Path, text: str) -> Iterator[Row]:
    value = _parse(text, str(path))
    if not isinstance(value, list):
        raise BadInput("not a JSON array", where=path, got=type(value).__name__, expected="an array of records")
    return (Row(f"record {index}", item) for index, item in enumerate(value))


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise BadInput(
                "a line is too long",
                where=f"{path}: line {number}",
                got=f"{len(line)} characters",
                expected=f"at most {MAX_LINE_BYTES}",
                mend="a .jsonl file has one record a line; is this a .json array?",
            )
        if line.strip():
            yield Row(f"line {number}", _parse(line, f"{path}: line {number}"))


def _tsv(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Row(f"line {number}", line.rstrip("\r").split("\t"))
