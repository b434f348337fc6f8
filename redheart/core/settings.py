"""Every setting of a study with its docstring and default, as a commented TOML file, and where a value came from.

Read from the dataclasses of `redheart.core.config` and their source, so that nothing here can be out of date.
"""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path

from redheart.core.config import StudyConfig
from redheart.core.text import read_text

_LINE_CHARS = 100


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of the configuration."""

    name: str
    """Dotted, as in `train.learning_rate`."""
    default: object
    doc: str
    """Its docstring, empty where it has none."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A resolved value and where it came from."""

    name: str
    value: object
    origin: str
    """`default`, `FILE:LINE`, `command line`, or `derived` for a value that was left to be chosen."""


@cache
def settings() -> tuple[Setting, ...]:
    """All settings, those of a section behind each other, in the order of their definition."""
    return tuple(_fields(StudyConfig(), ""))


def default_toml() -> str:
    """A configuration file that says what the defaults say, every setting with its docstring above it."""
    lines = ["# A study's settings: `redheart run --config THIS_FILE`. What is left out keeps the value given here."]
    section = ""
    for setting in settings():
        table, _, key = setting.name.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{table}]", *_comment(inspect.getdoc(type(getattr(StudyConfig(), table))) or "")]
        lines += ["", *_comment(setting.doc)]
        lines.append(f"# {key} = " if setting.default is None else f"{key} = {_toml(setting.default)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def origins(
    config: StudyConfig, *, before: StudyConfig, file: Path | None = None, arguments: Sequence[str] = ()
) -> list[Origin]:
    """Where every value of a resolved configuration came from.

    Args:
        config: the resolved configuration.
        before: the same, before values that depend on others were filled in.
        file: the configuration file that it was read from.
        arguments: the command line's overrides.
    """
    lines = key_lines(read_text(file)) if file else {}
    overridden = _overridden(arguments)
    found = []
    for setting in settings():
        name, read = setting.name, attrgetter(setting.name)
        origin = "default"
        if name in overridden:
            origin = "command line"
        elif (line := _line_of(name, lines)) is not None:
            origin = f"{file}:{line}"
        if read(config) != read(before):
            origin = f"derived ({origin}: {read(before)})"
        found.append(Origin(name, read(config), origin))
    return found


def key_lines(text: str) -> dict[str, int]:
    """The line (from 1) of every key and table header of a TOML document, by dotted name."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), start=1):
        header = re.match(r"\s*\[([^\[\]]+)\]", line)
        key = re.match(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=", line)
        if header:
            table = _plain(header[1]) + "."
            lines.setdefault(table.removesuffix("."), number)
        elif key:
            lines.setdefault(table + _plain(key[1]), number)
    return lines


def _plain(name: str) -> str:
    return re.sub(r"[\s\"']", "", name)


def _line_of(name: str, lines: Mapping[str, int]) -> int | None:
    """The line of a key, or of the inline table that it stands in; a `[table]` header alone does not set it."""
    if name in lines:
        return lines[name]
    table = name.rpartition(".")[0]
    is_header = any(key.startswith(f"{table}.") for key in lines)
    return lines.get(table) if table and not is_header else None


def _overridden(arguments: Sequence[str]) -> set[str]:
    names = {setting.name for setting in settings()}
    found = set()
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            table, _, key = name.rpartition(".")
            positive = f"{table}.{key.removeprefix('no_')}".removeprefix(".")
            found |= {name, positive} & names
    return found


def _fields(section: object, prefix: str) -> Iterator[Setting]:
    docs = _docstrings(type(section))
    nested = []
    for item in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            nested.append((item.name, value))
        else:
            yield Setting(f"{prefix}{item.name}", value, docs.get(item.name, ""))
    # Behind the plain ones: in TOML a key below a table's header belongs to that table.
    for name, value in nested:
        yield from _fields(value, f"{prefix}{name}.")


def _docstrings(kind: type) -> dict[str, str]:
    """The string that stands below each field; Python itself does not keep it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for item, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[item.target.id] = inspect.cleandoc(below.value.value)
    return found


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _LINE_CHARS, initial_indent="# ", subsequent_indent="# ")


def _toml(value: object) -> str:
    """A value of a setting in TOML, which for these types is JSON but for tuples and paths."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
