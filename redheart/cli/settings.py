"""`init`, `config`: a configuration file with every setting explained, and where what it comes to is from.

Read from the dataclasses of `redheart.core.config` and their docstrings, so that nothing here can be out of date.
"""

import inspect
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import tyro

from redheart.cli.options import field_docs, parse, print_json
from redheart.cli.study import study_defaults
from redheart.core.config import RECIPE, StudyConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.files import is_stream, write_bytes
from redheart.core.recipes import MEASURED, OF_RECIPES

_LINE_CHARS = 100


@dataclass(frozen=True)
class InitOptions:
    """Write a configuration file with every setting, its meaning and its default, for `redheart run` to read."""

    file: Annotated[Path, tyro.conf.Positional] = Path("study.toml")
    """File to write; it must not be there yet."""


def init(arguments: Sequence[str]) -> None:
    options = parse(InitOptions, arguments, "init")
    if options.file.exists() and not is_stream(options.file):
        raise BadInput("the file is there already", where=options.file, hint="choose another name, or remove it")
    write_bytes(options.file, default_toml().encode())
    # A stream may be standard output itself.
    print(options.file, file=sys.stderr if is_stream(options.file) else None)


def config(arguments: Sequence[str]) -> None:
    rest = [item for item in arguments if item != "--json"]
    default, file, overrides, tables = study_defaults(rest)
    before = parse(StudyConfig, overrides, "config", default, also="--config FILE, --json")
    after = resolved(before)
    values = {name: _plain(attrgetter(name)(after)) for name in settings()}
    found = origins(after, before=before, file=file, tables=tables, arguments=overrides)
    if "--json" in arguments:
        print_json({name: {"value": value, "origin": found[name]} for name, value in values.items()})
        return
    name_chars, value_chars = max(map(len, values)), max(len(str(value)) for value in values.values())
    for name, value in values.items():
        print(f"{name:<{name_chars}}  {value!s:<{value_chars}}  {found[name]}")


def settings(kind: Any = StudyConfig, prefix: str = "") -> dict[str, str]:
    """The docstrings of all settings by dotted name, those of a section behind each other."""
    docs = field_docs(kind)
    found = {f"{prefix}{item.name}": docs.get(item.name, "") for item in fields(kind) if not is_dataclass(item.type)}
    # Behind the plain ones: in TOML a key below a table's header belongs to that table.
    for item in fields(kind):
        if is_dataclass(item.type):
            found |= settings(item.type, f"{prefix}{item.name}.")
    return found


def default_toml() -> str:
    """A configuration file that says what the defaults say, every setting with its docstring above it."""
    lines = [
        "# A study's settings: `redheart run --config THIS_FILE`. What is left out keeps the value given here.",
        "",
        "# Where settings that a recipe decides are from: `measured`, the best known for the preset, or `design`.",
        f"# {RECIPE} = {json.dumps(MEASURED)}",
    ]
    section, defaults = "", StudyConfig()
    for name, doc in settings().items():
        table, _, key = name.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{table}]", *_comment(inspect.getdoc(getattr(defaults, table)) or "")]
        lines += ["", *_comment(doc)]
        value = attrgetter(name)(defaults)
        is_empty = value is None or name in OF_RECIPES
        # In TOML these types are written as in JSON.
        lines.append(f"# {key} = " if is_empty else f"{key} = {json.dumps(_plain(value), ensure_ascii=False)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def origins(
    config: StudyConfig,
    *,
    before: StudyConfig,
    file: Path | None,
    tables: Mapping[str, Any],
    arguments: Sequence[str],
) -> dict[str, str]:
    """Where every value of a resolved configuration came from.

    That is `default`, `recipe`, the file (what stands in its `tables`), `command line` (what stands in `arguments`), or
    `derived` where it was another one in `before`, when values that depend on others were not filled in.
    """
    overridden = {
        item.partition("=")[0].removeprefix("--").replace("-", "_").replace(".no_", ".")
        for item in arguments
        if item.startswith("--")
    }
    found = {}
    for name in settings():
        section, _, key = name.rpartition(".")
        table = tables.get(section, {}) if section else tables
        otherwise = "recipe" if name in OF_RECIPES else "default"
        origin = "command line" if name in overridden else str(file) if key in table else otherwise
        given, read = attrgetter(name)(before), attrgetter(name)(config)
        found[name] = origin if given == read else f"derived ({origin}: {given})"
    return found


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _LINE_CHARS, initial_indent="# ", subsequent_indent="# ")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
