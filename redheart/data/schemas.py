"""The accepted schemas: how a raw row becomes a record, and everything that can be wrong with one.

Nothing is repaired or defaulted: an absent target is masked, a malformed one is a problem.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.data.inventory import BENTHAM, EMOTIONS, SURD, Inventory, make_inventory
from redheart.data.records import Record, RepeatedKeys, Row

# Seven numbers rounded to two places may miss 1 by 0.035; anything further was not meant as a distribution.
SUM_TOLERANCE = 0.036
_TARGETS = {"label", "emotions", "regret_factor", "bentham_scores", "surd_metrics"}


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with one field of one record."""

    where: str
    id: str
    field: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where} (id {self.id}): {self.field}: got {self.got}, expected {self.expected}"


class Parsed(msgspec.Struct, frozen=True):
    """All records of a file that are well formed, and the problems of the others."""

    schema: str
    inventory: Inventory
    records: list[Record]
    problems: list[Problem]
    num_invalid: int


class _Fields:
    """Reads the fields of one row and collects what is wrong with them."""

    def __init__(self, row: Row, value: dict[str, object]):
        self._where, self._value = row.where, value
        self.id = value["id"] if isinstance(value.get("id"), str) else "?"
        self.problems: list[Problem] = []

    def wrong(self, field: str, got: object, expected: str) -> None:
        text = repr(got)
        shown = text if len(text) <= 60 else text[:57] + "..."
        self.problems.append(Problem(self._where, _encodable(str(self.id)), _encodable(field), shown, expected))

    def text(self, field: str, *, required: bool = False) -> str:
        value = self._value.get(field, None if required else "")
        if isinstance(value, str) and (value.strip() or not required):
            if _encodable(value) != value:
                self.wrong(field, value, "text in Unicode; half of a surrogate pair stands alone")
            return value
        self.wrong(field, value, "a non-empty string" if required else "a string")
        return ""

    def optional_text(self, field: str) -> str | None:
        return None if self._value.get(field) is None else self.text(field)

    def number(self, field: str, value: object) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN compares as false, and so is refused here too.
        if isinstance(value, int | float) and is_number and 0 <= value <= 1:
            return float(value)
        self.wrong(field, value, "a number from 0 to 1")
        return None

    def named_numbers(self, field: str, names: Sequence[str]) -> tuple[float | None, ...]:
        value = self._value.get(field)
        if value is None:
            return (None,) * len(names)
        if not isinstance(value, dict):
            self.wrong(field, value, "an object of numbers")
            return (None,) * len(names)
        for key in value:
            if key not in names:
                self.wrong(f"{field}.{key}", key, "one of " + ", ".join(names))
        return tuple(self.number(f"{field}.{name}", value.get(name)) for name in names)

    def listed_numbers(self, field: str, length: int) -> tuple[float | None, ...]:
        value = self._value.get(field)
        if value is None:
            return (None,) * length
        if not isinstance(value, list) or len(value) != length:
            self.wrong(field, value, f"a list of {length} numbers")
            return (None,) * length
        return tuple(self.number(f"{field}[{index}]", item) for index, item in enumerate(value))

    def timestamp(self) -> str | None:
        value = self.optional_text("timestamp")
        if value:
            try:
                datetime.fromisoformat(value)
            except ValueError:
                self.wrong("timestamp", value, "ISO 8601")
        return value


def parse_rows(path: Path, kind: str, rows: list[Row]) -> Parsed:
    """Recognise the schema of a file and turn its rows into records.

    Raises:
        BadInput: the schema is not one of the known ones.
    """
    if kind == "tsv":
        classes = _goemotions_classes(path)
        return _collect("goemotions", make_inventory(emotions=classes), rows, lambda row: _goemotions(row, classes))
    objects = [row.value for row in rows if isinstance(row.value, dict)]
    if any(isinstance(value.get("emotions"), list) for value in objects):
        surd = next((tuple(value["surd_metrics"]) for value in objects if _is_surd(value.get("surd_metrics"))), SURD)
        return _collect("distribution", make_inventory(surd=surd), rows, lambda row: _distribution(row, surd))
    if any(_TARGETS & value.keys() for value in objects):
        return _collect("documented", make_inventory(), rows, _documented)
    first = rows[0].value
    raise BadInput(
        "no known schema fits the records",
        where=path,
        got=", ".join(map(str, first)) if isinstance(first, dict) else type(first).__name__,
        expected="records with `id`, `text` and at least one of " + ", ".join(f"`{name}`" for name in sorted(_TARGETS)),
        mend="see the README's section on data",
    )


def _is_surd(value: object) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(_encodable(name) == name for name in value)


def _encodable(text: str) -> str:
    """The text, with halves of surrogate pairs, as an escape in JSON can give, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _collect(
    schema: str, inventory: Inventory, rows: list[Row], convert: Callable[[Row], tuple[Record | None, list[Problem]]]
) -> Parsed:
    records: list[Record] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    num_invalid = 0
    for row in rows:
        record, found = convert(row)
        if record is not None and record.id in first_seen:
            expected = f"an id of its own (first at {first_seen[record.id]})"
            found = [*found, Problem(row.where, record.id, "id", repr(record.id), expected)]
        elif record is not None:
            first_seen[record.id] = row.where
        if found or record is None:
            problems += found
            num_invalid += 1
        else:
            records.append(record)
    return Parsed(schema, inventory, records, problems, num_invalid)


def _open(row: Row) -> tuple[_Fields | None, list[Problem]]:
    if not isinstance(row.value, dict):
        return None, [Problem(row.where, "?", "record", type(row.value).__name__, "an object")]
    fields = _Fields(row, row.value)
    fields.text("id", required=True)
    for name, value in (("record", row.value), *row.value.items()):
        if isinstance(value, RepeatedKeys):
            fields.wrong(name, "a key that stands twice", "every key once")
    return fields, fields.problems


def _documented(row: Row) -> tuple[Record | None, list[Problem]]:
    fields, problems = _open(row)
    if fields is None:
        return None, problems
    assert isinstance(row.value, dict)
    label = row.value.get("label")
    emotion: tuple[float | None, ...] = (None,) * len(EMOTIONS)
    if label is not None:
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(EMOTIONS):
            fields.wrong("label", label, f"an integer from 0 to {len(EMOTIONS) - 1}")
        else:
            emotion = tuple(float(index == label) for index in range(len(EMOTIONS)))
    _check_named_emotions(fields, row.value.get("emotions"), label)
    return Record(
        id=str(fields.id),
        text=fields.text("text", required=True),
        title=fields.text("title"),
        action=fields.text("action"),
        targets={
            "emotion": emotion,
            "bentham": fields.listed_numbers("bentham_scores", len(BENTHAM)),
            "regret": (fields.number("regret_factor", row.value.get("regret_factor")),),
            "surd": fields.named_numbers("surd_metrics", SURD),
        },
        timestamp=fields.timestamp(),
    ), fields.problems


def _check_named_emotions(fields: _Fields, value: object, label: object) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        fields.wrong("emotions", value, "an object with primary, secondary, intensity")
        return
    fields.number("emotions.intensity", value.get("intensity"))
    for key in ("primary", "secondary"):
        name = value.get(key)
        if name not in (None, "") and (not isinstance(name, str) or name.lower() not in EMOTIONS):
            fields.wrong(f"emotions.{key}", name, "one of " + ", ".join(EMOTIONS))
        elif (
            key == "primary"
            and isinstance(name, str)
            and name
            and isinstance(label, int)
            and 0 <= label < len(EMOTIONS)
            and name.lower() != EMOTIONS[label]
        ):
            fields.wrong("emotions.primary", name, f"`{EMOTIONS[label]}`, which is label {label}")


def _distribution(row: Row, surd: tuple[str, ...]) -> tuple[Record | None, list[Problem]]:
    fields, problems = _open(row)
    if fields is None:
        return None, problems
    assert isinstance(row.value, dict)
    emotion = fields.listed_numbers("emotions", len(EMOTIONS))
    present = [value for value in emotion if value is not None]
    if present and not fields.problems:
        if len(present) < len(emotion):
            fields.wrong("emotions", emotion, "all seven numbers, or none")
        elif abs(sum(present) - 1) > SUM_TOLERANCE:
            fields.wrong("emotions", round(sum(present), 6), "numbers that sum to 1")
    return Record(
        id=str(fields.id),
        # `text` may be cut; the labels were made from the whole post.
        text=fields.text("text_full" if "text_full" in row.value else "text", required=True),
        title=fields.text("title"),
        action=fields.text("action"),
        targets={
            "emotion": emotion,
            "bentham": fields.named_numbers("bentham_scores", BENTHAM),
            "regret": (fields.number("regret_factor", row.value.get("regret_factor")),),
            "surd": fields.named_numbers("surd_metrics", surd),
        },
        verdict=fields.optional_text("label"),
        timestamp=fields.timestamp(),
    ), fields.problems


def _goemotions_classes(path: Path) -> tuple[str, ...]:
    labels = path.with_name("labels.txt")
    if not labels.is_file():
        raise BadInput(
            "a .tsv file needs its class names beside it",
            where=labels,
            got="no such file",
            expected="one class name a line",
        )
    try:
        classes = tuple(labels.read_text(encoding="utf-8").split())
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput("the class names cannot be read", where=labels, got=error) from error
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise BadInput(
            "the class names are not a list of classes",
            where=labels,
            got=", ".join(classes) or "nothing",
            expected="two or more different names, one a line",
        )
    return classes


def _goemotions(row: Row, classes: tuple[str, ...]) -> tuple[Record | None, list[Problem]]:
    cells = row.value
    assert isinstance(cells, list)
    if len(cells) != 3:
        return None, [Problem(row.where, "?", "record", f"{len(cells)} columns", "text, class ids, id")]
    text, ids, name = cells
    chosen = ids.split(",")
    # Python refuses to read numbers of thousands of digits.
    if not all(item.isdecimal() and len(item) < 10 and int(item) < len(classes) for item in chosen):
        return None, [Problem(row.where, name, "class ids", repr(ids), f"numbers from 0 to {len(classes) - 1}")]
    if not text.strip() or not name.strip():
        return None, [Problem(row.where, name or "?", "text or id", "empty", "a non-empty string")]
    members = {int(item) for item in chosen}
    share = 1 / len(members)
    return Record(
        id=name,
        text=text,
        title="",
        action="",
        targets={
            "emotion": tuple(share if index in members else 0.0 for index in range(len(classes))),
            "bentham": (None,) * len(BENTHAM),
            "regret": (None,),
            "surd": (None,) * len(SURD),
        },
    ), []
