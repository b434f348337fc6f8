"""What the commands share: option types, parsing, printing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
RunPath = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class RunOptions:
    """Work on a run that is there."""

    run: RunPath
    """Folder of the run."""
    json: Flag = False


def parse(
    kind: type[T], arguments: Sequence[str], command: str, default: T | None = None, *, also: str | None = None
) -> T:
    """The options of a command from its arguments; a wrong one ends the process with a usage message.

    Args:
        also: options that the command reads by itself, to be named in its help.
    """
    prog = f"redheart {command}"
    description = f"{kind.__doc__}\n\nAlso: {also}." if also else None
    if default is None:
        return tyro.cli(kind, args=list(arguments), prog=prog, description=description)
    return tyro.cli(kind, args=list(arguments), prog=prog, description=description, default=default)


def print_json(value: object, one_line: bool) -> None:
    """Print a result as JSON: on one line for machines, indented for people."""
    import json

    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=None if one_line else 1, ensure_ascii=False))
