"""Texts to predict, from a file: one a line (`.txt`), or records (`.json`, `.jsonl`, `.tsv`), plain or gzip."""

from pathlib import Path

from redheart.core.errors import BadInput
from redheart.data.records import SUFFIXES, Record, RepeatedKeys, Row, read_rows, read_text
from redheart.predict.predictor import as_record

_SHOWN_PROBLEMS = 100


def read_texts(path: Path) -> list[Record]:
    """Read texts; labels, where there are any, are left aside. A text without an id is called by its place.

    Raises:
        BadInput: the file cannot be read, or texts are missing or malformed; all of them are named.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in (".txt", *SUFFIXES):
        raise BadInput(
            "unknown kind of file",
            where=path,
            got=suffix or "no suffix",
            expected=", ".join(f"{item}[.gz]" for item in (".txt", *SUFFIXES)),
        )
    if suffix == ".txt":
        lines = enumerate(read_text(path).splitlines(), start=1)
        records = [as_record(line, f"line {number}") for number, line in lines if line.strip()]
        if not records:
            raise BadInput("the file is empty", where=path, expected="at least one line of text")
        return records
    _, rows = read_rows(path)
    problems: list[str] = []
    records = [_record(row, problems) for row in rows]
    if problems:
        more = f"\n    and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        listing = "\n".join(f"    {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        raise BadInput(f"{len(problems)} problems\n{listing}{more}", where=path, mend="correct or remove these")
    return records


def _record(row: Row, problems: list[str]) -> Record:
    if isinstance(row.value, str):
        return _checked(row, {"text": row.value}, problems)
    if isinstance(row.value, list):
        # GoEmotions: text, class ids, id.
        cells = row.value
        return _checked(row, {"text": cells[0], "id": cells[2] if len(cells) == 3 else None}, problems)
    if isinstance(row.value, dict) and not isinstance(row.value, RepeatedKeys):
        return _checked(row, row.value, problems)
    got = "a key that stands twice" if isinstance(row.value, dict) else type(row.value).__name__
    problems.append(f"{row.where}: got {got}, expected an object with `text`, or a string")
    return as_record("", row.where)


def _checked(row: Row, value: dict[str, object], problems: list[str]) -> Record:
    found = {}
    # `text` may be cut where there is a `text_full`; the whole is what was trained on.
    text_field = "text_full" if "text_full" in value else "text"
    for name, field in (("text", text_field), ("title", "title"), ("action", "action"), ("id", "id")):
        item = value.get(field)
        if item is None and name != "text":
            item = row.where if name == "id" else ""
        if name == "id" and isinstance(item, int):
            item = str(item)
        if not isinstance(item, str) or (name == "text" and not item.strip()) or not _is_unicode(item):
            expected = "text that is not empty" if name == "text" else "text"
            problems.append(f"{row.where}: {field}: got {item!r:.60}, expected {expected}")
            item = ""
        found[name] = item
    return as_record(found["text"], found["id"], title=found["title"], action=found["action"])


def _is_unicode(text: str) -> bool:
    """Half of a surrogate pair can stand in JSON, and can be neither encoded nor written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
