"""A table of ratings or recordings from outside: who said or showed what about which text."""

import csv
import io
import math
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput, listed
from redheart.core.text import read_text

KEYS = ("id", "subject")


class RatingTable(msgspec.Struct, frozen=True):
    """Rows of a table, column by column."""

    ids: list[str]
    subjects: list[str]
    values: dict[str, list[float | None]]
    """By measure (`valence`, `arousal`, `faa`, or a target's name); None where a cell is empty."""


def read_ratings(path: Path) -> RatingTable:
    """Read a CSV with the columns `id`, `subject` and one or more measures; the first line names them.

    Raises:
        BadInput: the file cannot be read, lacks a column, or cells are malformed; all of them are named.
    """
    reader = csv.reader(io.StringIO(read_text(path)))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise BadInput("not a CSV file", where=f"{path}: line {reader.line_num}", got=error) from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    measures = [name for name in header if name not in KEYS]
    if not set(KEYS) <= set(header) or not measures or "" in header or len(set(header)) < len(header):
        raise BadInput(
            "the table lacks a column",
            where=f"{path}: line 1",
            got=", ".join(header) or "nothing",
            expected="id, subject, and one or more of valence, arousal, faa or a target's name, each once",
        )
    problems: list[str] = []
    table = RatingTable([], [], {name: [] for name in measures})
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            problems.append(f"line {line}: {len(row)} cells, expected {len(header)}")
            continue
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        key = (cells["id"], cells["subject"])
        if not all(key):
            problems.append(f"line {line}: id or subject is empty")
        elif key in seen:
            problems.append(f"line {line}: id {key[0]} and subject {key[1]} stand already at line {seen[key]}")
        seen.setdefault(key, line)
        table.ids.append(key[0])
        table.subjects.append(key[1])
        for name in measures:
            table.values[name].append(_number(cells[name], f"line {line}: {name}", problems))
    if not problems and not table.ids:
        problems.append("line 2: no row, expected one or more")
    if problems:
        what = f"{len(problems)} problems{listed(problems)}"
        raise BadInput(what, where=path, hint="correct or remove these rows")
    return table


def _number(text: str, where: str, problems: list[str]) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{where}: got {text!r:.60}, expected a number or nothing")
        return None
    return value
