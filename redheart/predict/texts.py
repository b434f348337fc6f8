"""Texts to predict, from a file: one a line (`.txt`), or records (`.json`, `.jsonl`, `.tsv`), plain or gzip."""

from collections.abc import Callable
from pathlib import Path

from redheart.core.errors import BadInput, listed
from redheart.core.text import is_unicode, read_content
from redheart.data.records import (
    SUFFIXES,
    Malformed,
    Record,
    RepeatedKeys,
    Row,
    known_suffix,
    read_rows,
    shown,
    text_lines,
)
from redheart.data.schemas import Schema, schema_finder, text_field


def read_texts(path: Path) -> list[Record]:
    """Read texts; labels, where there are any, are left aside. A text without an id is called by its place.

    Raises:
        BadInput: the file cannot be read, or texts are missing or malformed; all of them are named.
    """
    if known_suffix(path, (".txt", *SUFFIXES)) == ".txt":
        kind, rows = "txt", [Row(where, line) for where, line in text_lines(read_content(path))]
        if not rows:
            raise BadInput("the file is empty", where=path, expected="at least one line of text")
    else:
        kind, rows = read_rows(path)
    problems: list[str] = []
    schema_of = schema_finder([row.value for row in rows if isinstance(row.value, dict)])
    records = [_record(kind, row, schema_of, problems) for row in rows]
    if problems:
        raise BadInput(f"{len(problems)} problems{listed(problems)}", where=path, hint="correct or remove these")
    return records


def _record(kind: str, row: Row, schema_of: Callable[[dict[str, object]], Schema], problems: list[str]) -> Record:
    value = row.value
    if isinstance(value, str):
        value = {"text": value}
    elif kind == "tsv" and isinstance(value, list):
        # GoEmotions: text, class ids, id.
        value = {"text": value[0], "id": value[2] if len(value) == 3 else None}
    if isinstance(value, Malformed):
        problems.append(f"{row.where}: got {value.got}, expected {value.expected}")
        return Record(row.where, "")
    if not isinstance(value, dict) or isinstance(value, RepeatedKeys):
        got = "a key that stands twice" if isinstance(value, dict) else type(value).__name__
        problems.append(f"{row.where}: got {got}, expected an object with `text`, or a string")
        return Record(row.where, "")
    found: list[str] = []
    defaults = {text_field(value, schema_of(value)): None, "title": "", "action": "", "id": row.where}
    for field, default in defaults.items():
        item = value.get(field)
        if item is None:
            item = default
        elif field == "id" and isinstance(item, int):
            item = str(item)
        if not isinstance(item, str) or (default is None and not item.strip()) or not is_unicode(item):
            expected = "text that is not empty" if default is None else "text"
            problems.append(f"{row.where}: {field}: got {shown(item)}, expected {expected}")
            item = ""
        found.append(item)
    text, title, action, name = found
    return Record(name, text, title, action)
