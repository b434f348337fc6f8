"""Who has looked at records that decide nothing but a verdict: a sealed list in the run."""

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from redheart.core.errors import CorruptFile
from redheart.core.files import read_sealed, write_sealed
from redheart.data.prepare import Prepared
from redheart.data.split import TEST
from redheart.study.run_folder import RunFolder

CONFIRM = "val_confirm"


class Opening(msgspec.Struct, frozen=True):
    """One look at a part of the records."""

    part: str
    """`test`, `val_confirm`, or `file` for a labelled file from outside."""
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
    folder: RunFolder, *, part: str, file: Path, num_records: int, models: Mapping[str, str]
) -> list[Opening]:
    """Append to the run's log, before anything is looked at; all openings so far, this one last."""
    opening = Opening(
        part=part,
        file=str(file.relative_to(folder.root) if file.is_relative_to(folder.root) else file),
        num_records=num_records,
        time_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=shlex.join(["redheart", *(_shown(argument, folder) for argument in sys.argv[1:])]),
        models=dict(models),
    )
    write_sealed(folder.openings, _Openings([*read_openings(folder), opening]))
    return read_openings(folder)


def _shown(argument: str, folder: RunFolder) -> str:
    """A run may be given away, and where it lay on this machine is nobody's business."""
    path = Path(argument)
    if path.resolve() == folder.root.resolve():
        return "RUN"
    return path.name if path.is_absolute() else argument


def read_openings(folder: RunFolder) -> list[Opening]:
    """All openings of a run, in their order.

    Raises:
        CorruptFile: the list was changed since it was written, or is gone although the test split was opened.
    """
    if folder.openings.is_file():
        return read_sealed(folder.openings, _Openings).openings
    if (folder.evaluation / "evaluation.json").is_file():
        raise CorruptFile(
            "the list of openings is gone",
            where=folder.openings,
            hint="restore it from a copy; without it nobody knows how often the test split was looked at",
        )
    return []


def open_test(folder: RunFolder, prepared: Prepared, *, models: Mapping[str, str]) -> Prepared:
    """The data set with its test split open; that is logged first. The only way to the test split of a run."""
    split = prepared.split.opened()
    source = folder.data / "records.jsonl.gz"
    record_opening(folder, part=TEST, file=source, num_records=len(split[TEST]), models=models)
    return replace(prepared, split=split)
