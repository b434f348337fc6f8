"""What the commands share: option types, parsing, printing."""

import ast
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from redheart.core.config import Device, Rate
from redheart.core.errors import BadInput
from redheart.core.progress import Display

if TYPE_CHECKING:
    from redheart.study.run_folder import RunFolder

T = TypeVar("T")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
RunPath = Annotated[Path, tyro.conf.Positional]
EncoderPath = Annotated[
    str | None, tyro.conf.arg(help="Where the run's encoder lies now, if it is one of its own and was moved.")
]

DeviceChoice = Annotated[
    Device,
    tyro.conf.arg(
        help="Where to compute; on `cuda` in bf16. `auto` predicts on a CUDA device where there is one, and searches "
        "and evaluates on the CPU: these have not run on a CUDA device yet."
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """Work on a run that is there."""

    run: RunPath
    """Folder of the run."""
    json: Flag = False


def parse(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    default: T | None = None,
    *,
    about: str | None = None,
    also: str | None = None,
) -> T:
    """The options of a command from its arguments; a wrong one ends the process with a usage message.

    Args:
        about: what its help says that it does, if that is not the docstring of `kind`.
        also: options that the command reads by itself, to be named in its help.
    """
    _tell_help(kind)
    description = f"{kind.__doc__}\n\nAlso: {also}." if also else about
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=list(arguments), prog=f"redheart {command}", description=description, **given)


def field_docs(kind: type) -> dict[str, str]:
    """The string that stands below each field, as one paragraph; Python itself does not keep it."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for pair in pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _tell_help(kind: type) -> None:
    """Give tyro the docstrings below fields as paragraphs: by itself it breaks their lines where the source does."""
    docs = field_docs(kind)
    for item in dataclasses.fields(kind):
        item.metadata = MappingProxyType({"help": docs.get(item.name)})
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            _tell_help(item.type)


def spelled_out(arguments: Sequence[str], kind: type) -> list[str]:
    """Arguments in which `--a.b True` and `--a.b=False`, as W&B and our own advice have it, are flags.

    That is `--a.b` and `--a.no-b`; both also of a switch that is empty until somebody decides, which takes a value.
    A list as W&B has it, `--a.b=[1, 2]`, is `--a.b 1 2`. Everything else stays as it is.
    """
    types = dict(_option_types(kind, "--"))
    found: list[str] = []
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        name, is_pair, value = item.partition("=")
        flag = name.replace("_", "-")
        switch = flag.replace(".no-", ".")
        asked = types.get(switch)
        if asked == tuple[Rate, ...] and value.startswith("["):
            found += [flag, *value.strip("[]").replace(",", " ").split()]
        elif asked in (bool, bool | None) and (switch == flag or not is_pair):
            flags = {"true": switch, "false": switch.replace(".", ".no-")}
            if not is_pair:
                words = flags if asked is bool else (*flags, "none")
                has_value = switch == flag and rest and rest[0].lower() in words
                value = rest.pop(0) if has_value else str(switch == flag)
            found.append(flags.get(value.lower(), item) if asked is bool else f"{switch}={value.capitalize()}")
        else:
            found.append(item)
    return found


def _option_types(kind: type, prefix: str) -> Iterator[tuple[str, object]]:
    for item in dataclasses.fields(kind):
        name = f"{prefix}{item.name.replace('_', '-')}"
        yield name, item.type
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from _option_types(item.type, f"{name}.")


def display_of(as_json: bool) -> Display:
    """Where a command tells how far it is: beside a result for machines, on standard error."""
    return Display("bar", on_stderr=as_json)


def refuse_own_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse to put a result in the place of what it is made from, by its name or a link."""
    from redheart.core.files import is_stream

    if not output.exists() or is_stream(output):
        return
    for path in inputs:
        if path.exists() and output.samefile(path):
            raise BadInput("the output is the input", where=output, got=path, hint="give the output another name")


def refuse_among_own_files(out: Path, *also: "RunFolder") -> None:
    """Refuse an output among the files of a run in whose folder it would lie, or of one that is named."""
    from redheart.core.files import is_sealed, real_path
    from redheart.study.run_folder import RunFolder

    place = real_path(out)
    around = [RunFolder(folder) for folder in dict.fromkeys((*out.absolute().parents, *place.parents))]
    for run in (*also, *(run for run in around if is_sealed(run.config))):
        if any(place.is_relative_to(real_path(run.root / part)) for part in run.parts):
            raise BadInput(
                "the output would lie among the run's own files",
                where=out,
                hint=f"give a place that is none of theirs: {', '.join(run.parts)}",
            )


def answer(result: object, text: str, *, as_json: bool) -> None:
    """Print a result as text for people, or as JSON on one line."""
    if as_json:
        print_json(result)
    else:
        print(text)


def print_json(value: object) -> None:
    """Print a result as JSON on one line, in ASCII: escapes for what an encoding lacks would not be JSON's."""
    import json

    import msgspec

    print(json.dumps(msgspec.to_builtins(value)))
