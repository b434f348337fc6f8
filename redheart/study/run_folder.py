"""Where a run keeps what, and what its folder was started with."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from redheart.core.config import GENERATED, HOW_ONLY, StudyConfig, decisive, digest
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, remove_leftovers, write_sealed
from redheart.core.lock import folder_lock


class SavedConfig(msgspec.Struct, frozen=True):
    """The resolved configuration of a run, as written beside its results."""

    key: str
    config: dict[str, object]


@dataclass(frozen=True)
class RunFolder:
    """Paths below a run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def summary_fit(self) -> Path:
        return self.features / "summary_fit.safetensors"

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def snapshots(self) -> Path:
        return self.train / "snapshots"

    @property
    def states(self) -> Path:
        return self.train / "states"

    @property
    def select(self) -> Path:
        return self.root / "select"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def openings(self) -> Path:
        return self.root / "openings.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"


@contextmanager
def claimed(config: StudyConfig) -> Iterator[RunFolder]:
    """A run's folder, started with a configuration or recognised as this configuration's, for this run alone.

    The first rank holds the folder's lock inside the block, for the others of its run.

    Raises:
        BadInput: another run works in the folder, or it was started with other settings; they are named.
    """
    if os.environ.get("RANK", "0") != "0":
        yield RunFolder(config.out)
        return
    with folder_lock(config.out, name="run", wait=False):
        yield start(config)


@contextmanager
def opened(root: Path) -> Iterator[tuple[RunFolder, StudyConfig]]:
    """A run's folder and configuration, as `load` gives them, for one process that writes results into it.

    Raises:
        BadInput: there is no run in this folder, or another process works in it.
    """
    folder, config = load(root)
    with folder_lock(root, name="run", wait=False):
        yield folder, config


def start(config: StudyConfig) -> RunFolder:
    """Write the configuration into a run's folder, or recognise it as this configuration's.

    Raises:
        BadInput: the folder was started with other settings; they are named.
    """
    folder = RunFolder(config.out)
    for part in (folder.sweep, folder.select, folder.evaluation, folder.report):
        remove_leftovers(part)
    saved = SavedConfig(digest(_decisive(config)), msgspec.to_builtins(config, enc_hook=str))
    if folder.config.exists():
        old = read_sealed(folder.config, SavedConfig)
        if old.key != saved.key:
            changed = _differences(old.config, saved.config)
            raise BadInput(
                "this folder holds a run with other settings",
                where=folder.root,
                got="; ".join(changed),
                mend="choose another --out, or repeat the settings that the run was started with",
            )
    write_sealed(folder.config, saved)
    return folder


def load(root: Path) -> tuple[RunFolder, StudyConfig]:
    """A run's folder and the configuration that it was started with.

    Raises:
        BadInput: there is no run in this folder.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise BadInput("there is no run in this folder", where=root, mend="make one with `redheart run --out FOLDER`")
    saved = read_sealed(folder.config, SavedConfig)

    def decode(kind: type, value: object) -> object:
        return Path(str(value)) if kind is Path else value

    config = msgspec.convert(saved.config, StudyConfig, dec_hook=decode)
    return folder, dataclasses.replace(config, out=root)


def source_path(config: StudyConfig) -> Path | None:
    """The file of records, None for generated ones."""
    return None if config.data == GENERATED else Path(config.data)


def _decisive(config: StudyConfig) -> dict[str, object]:
    """The settings that decide what lies in the folder; where it lies and how fast it is made do not.

    Neither does the number of epochs: a finished run may be continued with more. Nor does how snapshots are chosen
    from: that may be done again in any way.
    """
    values = msgspec.to_builtins(config, enc_hook=str)
    del values["out"], values["epochs"], values["select"]
    values["train"] = decisive(config.train)
    return dict(values)


def _differences(old: dict[str, object], new: dict[str, object], prefix: str = "") -> list[str]:
    found = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differences(before, value, f"{prefix}{key}.")
        elif before != value and key not in ("out", "epochs", "select", *HOW_ONLY):
            found.append(f"{prefix}{key} was {before}, is {value}")
    return found
