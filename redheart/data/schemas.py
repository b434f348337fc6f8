"""The accepted schemas: how a raw row becomes a record, and everything that can be wrong with one.

Nothing is repaired or defaulted: an absent target is masked, a malformed one is a problem.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from redheart.core.errors import BadInput
from redheart.core.text import read_text
from redheart.data.inventory import BENTHAM, EMOTIONS, SURD, Inventory, make_inventory
from redheart.data.records import Malformed, Record, RepeatedKeys, Row, shown

# Seven numbers rounded to two places may miss 1 by 0.035; anything further was not meant as a distribution.
SUM_TOLERANCE = 0.036
_TARGETS = {"label", "emotions", "regret_factor", "bentham_scores", "surd_metrics"}
Schema = Literal["documented", "distribution"]


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
        # Without one it is called by its place.
        given = row.where if value.get("id") is None else value["id"]
        self.id = given if isinstance(given, str) else "?"
        self.problems: list[Problem] = []

    def wrong(self, field: str, got: object, expected: str) -> None:
        self.problems.append(Problem(self._where, _encodable(self.id), _encodable(field), shown(got), expected))

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
        # NaN compares as false, and so is refused here too.
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        self.wrong(field, value, "a number from 0 to 1")
        return None

    def named_numbers(self, field: str, names: Sequence[str]) -> tuple[float | None, ...]:
        value = self._value.get(field)
        if not isinstance(value, dict):
            if value is not None:
                self.wrong(field, value, "an object of numbers")
            return (None,) * len(names)
        for key in value:
            if key not in names:
                self.wrong(f"{field}.{key}", key, "one of " + ", ".join(names))
        return tuple(self.number(f"{field}.{name}", value.get(name)) for name in names)

    def listed_numbers(self, field: str, length: int) -> tuple[float | None, ...]:
        value = self._value.get(field)
        if not isinstance(value, list) or len(value) != length:
            if value is not None:
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
    """Turn the rows of a file into records, each by the schema that it shows.

    A record shows it by its `emotions`, `bentham_scores` and `label`; where they show none or both it goes with most of
    its file. The SURD metrics are those of all well-formed records together, in the order in which the file first names
    them; a record that lacks one has it masked.

    Raises:
        BadInput: the schema is not one of the known ones.
    """
    if kind == "tsv":
        classes = _goemotions_classes(path)
        return _collect("goemotions", make_inventory(emotions=classes), rows, lambda row: _goemotions(row, classes))
    objects = [row.value for row in rows if isinstance(row.value, dict)]
    is_known = any(_TARGETS & value.keys() for value in objects)
    if not is_known and not any(isinstance(row.value, Malformed) for row in rows):
        first = rows[0].value
        known = ", ".join(f"`{name}`" for name in sorted(_TARGETS))
        raise BadInput(
            "no known schema fits the records",
            where=path,
            got=(", ".join(map(str, first)) or "no key") if isinstance(first, dict) else type(first).__name__,
            expected=f"records with `text` and at least one of {known}",
            hint="see the README's section on records",
        )
    schema_of = schema_finder(objects)
    shapes: dict[str, tuple[Schema, tuple[str, ...]]] = {}

    def convert(row: Row) -> tuple[Record | None, list[Problem]]:
        value = row.value if isinstance(row.value, dict) else {}
        schema = schema_of(value)
        metrics = value.get("surd_metrics")
        own = tuple(metrics) if isinstance(metrics, dict) else ()
        surd = SURD if schema == "documented" else own
        record, problems = _object(row, schema, surd)
        if record is not None and not problems:
            shapes.setdefault(record.id, (schema, surd))
        return record, problems

    parsed = _collect("documented", make_inventory(), rows, convert)
    used = [shapes[record.id] for record in parsed.records]
    if all(schema == "documented" for schema, _ in used):
        return parsed
    surd = tuple(dict.fromkeys(name for _, names in used for name in names)) or SURD
    records = []
    for record, (_, names) in zip(parsed.records, used, strict=True):
        by_name = dict(zip(names, record.targets["surd"], strict=True))
        targets = {**record.targets, "surd": tuple(by_name.get(name) for name in surd)}
        records.append(msgspec.structs.replace(record, targets=targets))
    return msgspec.structs.replace(parsed, schema="distribution", inventory=make_inventory(surd=surd), records=records)


def schema_finder(values: Sequence[dict[str, object]]) -> Callable[[dict[str, object]], Schema]:
    """What tells the schema of a record among these of its file; see `parse_rows`."""
    marks = Counter(mark for value in values for mark in _marks(value))
    is_labelled = any(value.get(name) is not None for value in values for name in _TARGETS)
    # Of texts without labels, to be predicted, the whole is meant.
    is_documented = is_labelled and marks["distribution"] < max(1, marks["documented"])
    usual: Schema = "documented" if is_documented else "distribution"
    return lambda value: found.pop() if len(found := set(_marks(value))) == 1 else usual


def text_field(value: dict[str, object], schema: Schema) -> str:
    """Where a record's text stands: `text` may be cut, the labels of one schema were made from the whole post."""
    return "text_full" if schema == "distribution" and value.get("text_full") is not None else "text"


def _marks(value: dict[str, object]) -> Iterator[Schema]:
    """The schemas that the fields of a record show."""
    for field, documented, distribution in (("emotions", dict, list), ("bentham_scores", list, dict)):
        if isinstance(value.get(field), documented):
            yield "documented"
        elif isinstance(value.get(field), distribution):
            yield "distribution"
    # In the other schema it is a word about the post, which a misspelt class looks like.
    if isinstance(value.get("label"), int):
        yield "documented"


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
        if not isinstance(row.value, Malformed):
            record, found = convert(row)
        else:
            record, found = None, [Problem(row.where, "?", "record", row.value.got, row.value.expected)]
        if record is not None and record.id in first_seen and not any(problem.field == "id" for problem in found):
            expected = f"an id of its own (first at {first_seen[record.id]})"
            found = [*found, Problem(row.where, record.id, "id", repr(record.id), expected)]
        if record is None or found:
            problems += found
            num_invalid += 1
        else:
            first_seen[record.id] = row.where
            records.append(record)
    return Parsed(schema, inventory, records, problems, num_invalid)


def _object(row: Row, schema: Schema, surd: tuple[str, ...]) -> tuple[Record | None, list[Problem]]:
    """The record that a JSON object is by a schema; `surd` are the metrics that it has."""
    if not isinstance(row.value, dict):
        return None, [Problem(row.where, "?", "record", type(row.value).__name__, "an object")]
    value, fields = row.value, _Fields(row, row.value)
    if value.get("id") is not None:
        fields.text("id", required=True)
    for name, item in (("record", value), *value.items()):
        if isinstance(item, RepeatedKeys):
            fields.wrong(name, "a key that stands twice", "every key once")
    is_documented = schema == "documented"
    emotion = _labelled(fields, value) if is_documented else _shares(fields, surd)
    return Record(
        id=fields.id,
        text=fields.text(text_field(value, schema), required=True),
        title=fields.text("title"),
        action=fields.text("action"),
        targets={
            "emotion": emotion,
            "bentham": (
                fields.listed_numbers("bentham_scores", len(BENTHAM))
                if is_documented
                else fields.named_numbers("bentham_scores", BENTHAM)
            ),
            "regret": (fields.number("regret_factor", value.get("regret_factor")),),
            "surd": fields.named_numbers("surd_metrics", surd),
        },
        verdict=None if is_documented else fields.optional_text("label"),
        timestamp=fields.timestamp(),
    ), fields.problems


def _labelled(fields: _Fields, value: dict[str, object]) -> tuple[float | None, ...]:
    """The emotion that `label` says; `emotions` must not contradict it."""
    label, named = value.get("label"), value.get("emotions")
    is_class = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(EMOTIONS)
    emotion = int(label) if isinstance(label, int) and is_class else None
    if label is not None and emotion is None:
        fields.wrong("label", label, f"an integer from 0 to {len(EMOTIONS) - 1}")
    if isinstance(named, dict):
        fields.number("emotions.intensity", named.get("intensity"))
        if shares := [key for key in named if str(key).lower() in EMOTIONS]:
            order = ", ".join(EMOTIONS)
            fields.wrong("emotions", ", ".join(shares), f"as a distribution a list of seven shares: {order}")
        for key in ("primary", "secondary"):
            name = named.get(key)
            if name in (None, ""):
                continue
            if not isinstance(name, str) or name.lower() not in EMOTIONS:
                fields.wrong(f"emotions.{key}", name, "one of " + ", ".join(EMOTIONS))
            elif key == "primary" and emotion is not None and name.lower() != EMOTIONS[emotion]:
                fields.wrong("emotions.primary", name, f"`{EMOTIONS[emotion]}`, which is label {label}")
    elif named is not None:
        fields.wrong("emotions", named, "an object with primary, secondary, intensity")
    return tuple(None if emotion is None else float(index == emotion) for index in range(len(EMOTIONS)))


def _shares(fields: _Fields, surd: tuple[str, ...]) -> tuple[float | None, ...]:
    """The shares of the emotions, which sum to 1."""
    for name in surd:
        if not name.strip() or _encodable(name) != name:
            fields.wrong(f"surd_metrics.{name}", name, "a name in Unicode that is not empty")
    num_before = len(fields.problems)
    emotion = fields.listed_numbers("emotions", len(EMOTIONS))
    present = [value for value in emotion if value is not None]
    if present and len(fields.problems) == num_before:
        if len(present) < len(emotion):
            fields.wrong("emotions", emotion, "all seven numbers, or none")
        elif abs(sum(present) - 1) > SUM_TOLERANCE:
            fields.wrong("emotions", round(sum(present), 6), "numbers that sum to 1")
    return emotion


def class_names_path(path: Path) -> Path:
    """The file with the class names of a GoEmotions file."""
    return path.with_name("labels.txt")


def _goemotions_classes(path: Path) -> tuple[str, ...]:
    labels = class_names_path(path)
    if not labels.is_file():
        raise BadInput(
            "a .tsv file needs its class names beside it",
            where=labels,
            got="no such file",
            expected="one class name a line",
        )
    # A name may hold blanks. An empty line among them would give all that follow another number.
    classes = tuple(line.strip() for line in read_text(labels).rstrip().split("\n"))
    if len(classes) < 2 or len(set(classes)) < len(classes) or "" in classes:
        raise BadInput(
            "the class names are not a list of classes",
            where=f"{labels}: line {classes.index('') + 1}" if "" in classes else labels,
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
        return None, [Problem(row.where, name, "class ids", shown(ids), f"numbers from 0 to {len(classes) - 1}")]
    if not text.strip() or not name.strip():
        return None, [Problem(row.where, name or "?", "text or id", "empty", "a non-empty string")]
    members = {int(item) for item in chosen}
    share = 1 / len(members)
    return Record(
        id=name,
        text=text,
        targets={
            "emotion": tuple(share if index in members else 0.0 for index in range(len(classes))),
            "bentham": (None,) * len(BENTHAM),
            "regret": (None,),
            "surd": (None,) * len(SURD),
        },
    ), []
