"""Records, and the raw rows of any accepted file: JSON array, JSON lines or GoEmotions TSV, plain or gzip."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.core.text import decode, read_content

MAX_LINE_CHARS = 1 << 24
SUFFIXES = (".json", ".jsonl", ".tsv")
_SHOWN_CHARS = 60
_MARK = "\ufeff"


class Record(msgspec.Struct, frozen=True):
    """One text with its labels, if any. A target that is None is absent: masked out of losses and metrics."""

    id: str
    text: str
    title: str = ""
    action: str = ""
    targets: dict[str, tuple[float | None, ...]] = {}
    verdict: str | None = None
    timestamp: str | None = None


class RepeatedKeys(dict[str, object]):
    """An object of a file in which a key stands twice; which of its values was meant nobody knows."""


class Malformed(msgspec.Struct, frozen=True):
    """Stands where a line could not be read."""

    got: str
    expected: str


class Row(msgspec.Struct, frozen=True):
    """A record as it stands in its file."""

    where: str
    """`record 3` (from 0) of an array, `line 4` (from 1) of a line-based file."""
    value: object


def read_rows(path: Path) -> tuple[str, list[Row]]:
    """Read a file's rows and its format, `json` or `tsv`; a line that is none is a `Malformed` row among the others.

    Raises:
        BadInput: no such file, unknown suffix, cut gzip, too large, or empty; or an array that is no JSON in UTF-8.
    """
    suffix = known_suffix(path, SUFFIXES)
    content = read_content(path)
    if not content.strip():
        raise BadInput("the file is empty", where=path, expected="at least one record")
    if suffix == ".json":
        rows = _array(path, decode(content, path))
    else:
        rows = [Row(where, _value(line, suffix)) for where, line in text_lines(content)]
    if not rows:
        raise BadInput("the file holds no record", where=path, expected="at least one record")
    return suffix.removeprefix(".").removesuffix("l"), rows


def count_records(path: Path) -> int:
    """About how many records a file has, without reading them one by one: lines of a table, else keys called `text`.

    Raises:
        BadInput: no such file, unknown suffix, cut gzip, or too large.
    """
    suffix, content = known_suffix(path, SUFFIXES), read_content(path)
    if suffix == ".tsv":
        return content.count(b"\n") + 1
    return content.count(b'"text"')


def known_suffix(path: Path, known: Sequence[str]) -> str:
    """The suffix of a file, in small letters and without `.gz`.

    Raises:
        BadInput: it is not one of the known ones.
    """
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if path.is_dir():
        raise BadInput("a folder stands where a file is read", where=path, hint="give the file that lies in it")
    if suffix not in known:
        raise BadInput(
            "unknown kind of file",
            where=path,
            got=suffix or "no suffix",
            expected=", ".join(f"{item}[.gz]" for item in known),
            hint="convert it; a `.jsonl` has one object a line",
        )
    return suffix


def shown(value: object) -> str:
    """A value as messages show it."""
    try:
        text = repr(value)
    except RecursionError:
        return "a value nested too deeply"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def text_lines(content: bytes) -> Iterator[tuple[str, str | Malformed]]:
    """What stands in the lines that are not blank, each behind its place, `line 4` (from 1)."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            # A file that was put together of several has their byte order marks inside.
            text = line.decode().removeprefix(_MARK)
        except UnicodeDecodeError as error:
            yield f"line {number}", Malformed(f"the byte {hex(line[error.start])}", "text in UTF-8")
            continue
        # What UTF-16 without a byte order mark looks like.
        if "\0" in text:
            yield f"line {number}", Malformed("a zero byte", "text in UTF-8")
        elif text.strip():
            yield f"line {number}", text


def _array(path: Path, text: str) -> list[Row]:
    try:
        value = _parse(text)
    except ValueError as error:
        hint = "correct it; a file with one object a line is called .jsonl"
        raise BadInput("not valid JSON", where=path, got=error, hint=hint) from error
    if not isinstance(value, list):
        raise BadInput("not a JSON array", where=path, got=type(value).__name__, expected="an array of records")
    return [Row(f"record {index}", item) for index, item in enumerate(value)]


def _value(line: str | Malformed, suffix: str) -> object:
    if isinstance(line, Malformed):
        return line
    if suffix == ".tsv":
        return line.split("\t")
    if len(line) > MAX_LINE_CHARS:
        return Malformed(f"{len(line)} characters", f"at most {MAX_LINE_CHARS} of them, one record a line")
    try:
        return _parse(line)
    except ValueError as error:
        return Malformed(f"{shown(line)} ({error})", "valid JSON")


def _parse(text: str) -> object:
    """The value of a JSON text; a ValueError says what is wrong with it."""
    try:
        return json.loads(text, object_pairs_hook=_keyed)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{error.msg}: {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError("a number of thousands of digits, which Python refuses to read") from error


def _keyed(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else RepeatedKeys(pairs)
