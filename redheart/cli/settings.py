"""`init`, `config`: a configuration file to start from, and what a configuration comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from redheart.cli.options import parse, print_json
from redheart.cli.study import study_defaults
from redheart.core.config import StudyConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.files import write_bytes
from redheart.core.settings import default_toml, origins


@dataclass(frozen=True)
class InitOptions:
    """Write a configuration file with every setting, its meaning and its default, for `redheart run` to read."""

    file: Annotated[Path, tyro.conf.Positional] = Path("study.toml")
    """File to write; it must not be there yet."""


def init(arguments: Sequence[str]) -> None:
    options = parse(InitOptions, arguments, "init")
    if options.file.exists():
        raise BadInput("the file is there already", where=options.file, hint="choose another name, or remove it")
    write_bytes(options.file, default_toml().encode())
    print(options.file)


def config(arguments: Sequence[str]) -> None:
    rest = [item for item in arguments if item != "--json"]
    default, file, overrides = study_defaults(rest)
    before = parse(StudyConfig, overrides, "config", default, also="--config FILE, --json")
    found = origins(resolved(before), before=before, file=file, arguments=overrides)
    if "--json" in arguments:
        print_json({item.name: {"value": _plain(item.value), "origin": item.origin} for item in found}, True)
        return
    names = max(len(item.name) for item in found)
    values = max(len(str(_plain(item.value))) for item in found)
    for item in found:
        print(f"{item.name:<{names}}  {_plain(item.value)!s:<{values}}  {item.origin}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
