"""Who has looked at records that decide nothing but a verdict: a sealed list in the run."""

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from redheart.core.errors import CorruptFile
from redheart.core.files import read_sealed, shown, write_sealed
from redheart.core.folders import folder_lock
from redheart.core.ranks import launched
from redheart.data.split import TEST

if TYPE_CHECKING:
    from redheart.data.prepare import Prepared

SELECT, CONFIRM = "val_select", "val_confirm"
RECORDS = "data/records.jsonl.gz"
"""Where a run keeps its records."""
OPENINGS = "openings.json"
"""The list's name."""


class Opening(msgspec.Struct, frozen=True):
    """One look at a part of the records."""

    part: str
    """`test`, `val_confirm`, or `file` for a labelled file from outside; its records of the two are looks at them."""
    file: str
    num_records: int
    time_utc: str
    command: str
    """`RUN` stands for the folder of the run; other absolute paths by their last part."""
    models: dict[str, str]
    """Digests of the models that were judged, by name."""


class _Openings(msgspec.Struct, frozen=True):
    openings: list[Opening]


def record_opening(
    root: Path, *, part: str, file: Path, num_records: int, models: Mapping[str, str], command: str | None = None
) -> list[Opening]:
    """Append to the run's log, before anything is looked at; all openings so far, this one last."""
    opening = Opening(
        part=part,
        file=shown(file.relative_to(root) if file.is_relative_to(root) else file.name),
        num_records=num_records,
        time_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=shown(command or shlex.join(["redheart", *(_placeless(argument, root) for argument in sys.argv[1:])])),
        models=dict(models),
    )
    # A labelled file may be judged while the run itself goes on.
    with folder_lock(root, name="openings", wait=True):
        openings = [*read_openings(root), opening]
        write_sealed(root / OPENINGS, _Openings(openings))
    return openings


def _placeless(argument: str, root: Path) -> str:
    """A run may be given away, and where it lay on this machine is nobody's business."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if not value:
        return argument
    path = Path(value)
    if path.resolve() == root.resolve():
        value = "RUN"
    elif path.is_absolute():
        value = path.name
    return f"{option}{equals}{value}"


def read_openings(root: Path) -> list[Opening]:
    """All openings of a run, in their order.

    Raises:
        CorruptFile: the list was changed since it was written, or is gone although the test split was opened.
    """
    path = root / OPENINGS
    if path.is_file():
        return read_sealed(path, _Openings).openings
    if (root / "evaluation" / "evaluation.json").is_file():
        raise CorruptFile(
            "the list of openings is gone",
            where=path,
            hint="restore it from a copy; without it nobody knows how often the test split was looked at",
        )
    return []


def open_test(root: Path, prepared: "Prepared", *, models: Mapping[str, str]) -> "Prepared":
    """The data set with its test split open; that is logged first. The only way to its labels."""
    split = prepared.split.opened()
    record_opening(root, part=TEST, file=root / RECORDS, num_records=len(split[TEST]), models=models)
    return replace(prepared, split=split)


def rows_by_part(prepared: "Prepared") -> Mapping[str, np.ndarray]:
    """Rows of all parts, the test split's too: by these its texts are recognised in a file; labels are not read."""
    return prepared.split.opened()


def confirm_place(
    root: Path,
    *,
    judged: str,
    models: Mapping[str, str],
    num_records: int,
    file: Path | None = None,
    command: str | None = None,
) -> int:
    """The place of a choice among those that the confirm records have judged, from 1.

    A new one is logged before anything is looked at; one that comes again keeps its place, and so its verdict. A model
    beside itself, as the best single snapshot, needs no judge.

    Args:
        judged: which of `models` is the choice; those that were judged under this name are counted.
        models: digests of all that the records are shown to, by name.
        file: where the records lie, by default the run's own.
        command: what was started; by default this program with its arguments.
    """
    if not _is_choice(models):
        return 1
    openings = [opening.models for opening in read_openings(root) if opening.part == CONFIRM]
    choices = list(dict.fromkeys(shown[judged] for shown in openings if judged in shown and _is_choice(shown)))
    if models[judged] not in choices:
        choices.append(models[judged])
        if launched().is_first:
            file = file or root / RECORDS
            record_opening(root, part=CONFIRM, file=file, num_records=num_records, models=models, command=command)
    return choices.index(models[judged]) + 1


def _is_choice(models: Mapping[str, str]) -> bool:
    """Whether these are not one model under several names."""
    return len(models) == 1 or len(set(models.values())) > 1
