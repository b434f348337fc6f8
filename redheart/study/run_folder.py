"""Where a run keeps what, and what its folder was started with."""

import dataclasses
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from redheart.core.config import BUILT_IN_ENCODERS, GENERATED, Device, StudyConfig, digest, fingerprint
from redheart.core.errors import BadInput
from redheart.core.files import is_sealed, read_sealed, write_sealed
from redheart.core.folders import folder_lock, found_again, refuse_taken, remove_leftovers, seen_from
from redheart.core.ranks import launched
from redheart.evaluate.holdout_log import OPENINGS
from redheart.snapshots.manifests import newest_progress, snapshot_epoch, snapshot_folders

DATA, ENCODER = "data", "features.encoder"
"""What a run is made from and may lie elsewhere later."""
_OPEN = ("epochs", "select")
"""What may be another in a run that is there."""
FIRST_RANK_S = 600
"""Seconds that other ranks wait for the first one, which asks the planner before it starts a run."""


class SavedConfig(msgspec.Struct, frozen=True):
    """The resolved configuration of a run, as written beside its results."""

    key: str
    config: dict[str, object]
    places: dict[str, str] = {}
    """Where the records and an encoder of one's own lay, seen from the run's folder."""


class RunFolder:
    """Paths below a run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"
        self.data = root / "data"
        self.features = root / "features"
        self.summary_fit = self.features / "summary_fit.safetensors"
        self.sweep = root / "sweep"
        self.range_test = self.sweep / "range_test"
        self.train = root / "train"
        self.snapshots = self.train / "snapshots"
        self.states = self.train / "states"
        self.select = root / "select"
        self.evaluation = root / "evaluation"
        self.holdout_log = root / OPENINGS
        self.report = root / "report"
        self.calibration = root / "calibration"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of everything that a run writes in its folder, but for hidden files."""
        kept = (self.config, self.data, self.features, self.sweep, self.train, self.select, self.evaluation)
        return tuple(path.name for path in (*kept, self.holdout_log, self.report, self.calibration))

    def trial(self, rate: float) -> Path:
        """Where the sweep's trial of a rate lies."""
        return self.sweep / f"rate_{rate}"


@contextmanager
def claimed(config: StudyConfig, *, decides: Collection[str] = _OPEN) -> Iterator[RunFolder]:
    """A run's folder, started with a configuration or recognised as this configuration's, for this run alone.

    The first rank holds the folder's lock inside the block, for the others of its run. `decides` is as in `start`.

    Raises:
        BadInput: another run works in the folder, it was started with other settings, which are named, or it holds
            other people's files where the run would write.
    """
    if not launched().is_first:
        yield _started_by_first_rank(RunFolder(config.out))
        return
    # Before the lock, which is a file too.
    check(config, decides=decides)
    with folder_lock(config.out, name="run", wait=False):
        folder = start(config, decides=decides)
        for part in (folder.sweep, folder.select, folder.evaluation):
            remove_leftovers(part)
        # `redheart report` tells of a run at work too.
        with reporting(folder):
            remove_leftovers(folder.report)
        yield folder


@contextmanager
def opened(
    root: Path, *, encoder: str | None = None, device: Device = "auto"
) -> Iterator[tuple[RunFolder, StudyConfig]]:
    """A run's folder and configuration, as `load` gives them, for one process that writes results into it.

    Raises:
        BadInput: there is no run in this folder, or another process works in it.
    """
    folder, config = load(root, encoder=encoder, device=device)
    with folder_lock(root, name="run", wait=False):
        yield folder, config


def reporting(folder: RunFolder) -> AbstractContextManager[None]:
    """For one process at a time that writes the run's report, whether another one works in the folder or not."""
    return folder_lock(folder.root, name="report", wait=True)


def reading_snapshots(folder: RunFolder) -> AbstractContextManager[None]:
    """Around what reads a run's snapshots for long: no other process removes or rewrites one meanwhile."""
    return folder_lock(folder.train, name="snapshots", wait=True)


def check(config: StudyConfig, *, decides: Collection[str] = _OPEN) -> SavedConfig | None:
    """Whether a run of this configuration may work in its folder; what was saved there before, None in a new one.

    Raises:
        BadInput: the folder was started with other settings, which are named; it has trained more epochs than are
            asked for; or it holds other people's files where the run would write.
    """
    folder = RunFolder(config.out)
    if config.out.exists() and not config.out.is_dir():
        raise BadInput("a file stands where the run's folder is to be", where=config.out, hint="choose another --out")
    if not is_sealed(folder.config):
        refuse_taken(folder.root, folder.parts, what="a run")
        return None
    old = read_sealed(folder.config, SavedConfig)
    before = _decoded(old)
    changed = _differences(_fingerprint(before), _fingerprint(config))
    if changed:
        raise BadInput(
            "this folder holds a run with other settings",
            where=folder.root,
            got="; ".join(changed),
            hint="choose another --out, or repeat the settings that the run was started with, as "
            f"--run {folder.root} does",
        )
    done = _epochs_begun(folder, asked=config.epochs, before=before.epochs)
    if done > config.epochs and "epochs" in decides:
        raise BadInput(
            "the run has trained more epochs already",
            where=folder.root,
            got=f"--epochs {config.epochs}",
            expected=f"{done} or more",
            hint="give that many, or choose another --out for a shorter run",
        )
    return old


def _epochs_begun(folder: RunFolder, *, asked: int, before: int) -> int:
    """Epochs that a run has trained or begun, the snapshots behind its newest state among them.

    One that was as good as done with so many as are asked for now has no snapshot of the last of them where more were
    asked for before: it counts one more.
    """
    progress = newest_progress(folder.states)
    kept = [snapshot_epoch(item) for item in snapshot_folders(folder.snapshots)]
    trained = progress.epoch + (progress.step_in_epoch > 0) if progress else 0
    if progress and progress.epoch == asked < before and asked not in kept:
        trained = asked + 1
    return max([trained, *kept])


def start(config: StudyConfig, *, decides: Collection[str] = ()) -> RunFolder:
    """Write the resolved configuration into a run's folder, or recognise it as this configuration's.

    Of `epochs` and `select` a run that is there takes what `decides` names from this; else it keeps its own. Raises as
    `check`.
    """
    folder = RunFolder(config.out)
    old = check(config, decides=decides)
    if old:
        before = _decoded(old)
        kept = {name: getattr(before, name) for name in _OPEN if name not in decides}
        config = dataclasses.replace(config, **kept)  # type: ignore[arg-type]
    saved = _saved(config, folder, old)
    # Another trial that opens its data removes what looks like a killed process's leftovers.
    with folder_lock(folder.root, name="data", wait=True):
        write_sealed(folder.config, saved)
    return folder


def load(root: Path, *, encoder: str | None = None, device: Device = "auto") -> tuple[RunFolder, StudyConfig]:
    """A run's folder and the configuration that it was started with.

    `encoder` says where its encoder lies now, if that is not where it was, and `device` where to compute: another
    machine's is nothing to go by.

    Raises:
        BadInput: there is no run in this folder, or no such device.
    """
    if device == "cuda":
        # Torch takes seconds, which who asks for a run's status need not wait.
        from redheart.core.device import chosen_device

        # Before anything is read; `auto` is asked for where something is computed.
        chosen_device(device)
    folder = RunFolder(root)
    if not is_sealed(folder.config):
        raise BadInput(
            "there is no run in this folder",
            where=root,
            got="another program's config.json, or one that was cut" if folder.config.exists() else None,
            hint="make one with `redheart run --out FOLDER`",
        )
    saved = read_sealed(folder.config, SavedConfig)
    config = _decoded(saved)
    features = dataclasses.replace(
        config.features,
        encoder=encoder or found_again(config.features.encoder, root, saved.places.get(ENCODER)),
    )
    data = found_again(config.data, root, saved.places.get(DATA))
    return folder, dataclasses.replace(config, out=root, data=data, features=features, device=device)


def _started_by_first_rank(folder: RunFolder) -> RunFolder:
    """The folder once the first rank has found it free: what another rank wrote before would be in its way."""
    deadline = time.monotonic() + FIRST_RANK_S
    while not is_sealed(folder.config):
        if time.monotonic() > deadline:
            raise BadInput("the first rank has not started the run", where=folder.root, hint="see its own message")
        time.sleep(0.05)
    return folder


def _saved(config: StudyConfig, folder: RunFolder, old: SavedConfig | None) -> SavedConfig:
    """What is kept of a configuration: paths as they were typed, and where they lead seen from the folder."""
    places, features = dict(old.places) if old else {}, config.features
    typed = {DATA: config.data, ENCODER: features.encoder}
    before = _decoded(old) if old else None
    known = {DATA: before.data, ENCODER: before.features.encoder} if before else {}
    for name, path in typed.items():
        if path == GENERATED or (name == ENCODER and path in BUILT_IN_ENCODERS):
            continue
        if name in known and path == found_again(known[name], folder.root, places.get(name)):
            # Not typed now, but read from here.
            typed[name] = known[name]
        elif (place := seen_from(folder.root, path)) is not None:
            if name == ENCODER and old:
                _check_encoder(folder, path)
            places[name] = place
    config = dataclasses.replace(
        config, data=typed[DATA], features=dataclasses.replace(features, encoder=typed[ENCODER])
    )
    return SavedConfig(digest(_fingerprint(config)), _plain(config), places)


def _check_encoder(folder: RunFolder, path: str) -> None:
    """Another path may be another encoder, which must not go on with the features of the first."""
    from redheart.data.encoders import open_encoder
    from redheart.data.features import known_manifest

    known = known_manifest(folder.features)
    if known:
        open_encoder(path, identity=known.encoder)


def _decoded(saved: SavedConfig) -> StudyConfig:
    def decode(kind: type, value: object) -> object:
        return Path(str(value)) if kind is Path else value

    # Runs of before the setting was there read no words.
    features = {"words": False, **cast(dict[str, object], saved.config["features"])}
    return msgspec.convert({**saved.config, "features": features}, StudyConfig, dec_hook=decode)


def _plain(config: StudyConfig) -> dict[str, object]:
    """The configuration as JSON has it: lists for tuples, text for paths."""
    # Of a configuration that was read, msgspec writes no field that was not in the file.
    return dict(msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(config), enc_hook=str)))


def _fingerprint(config: StudyConfig) -> dict[str, object]:
    """The settings that decide what lies in the folder; where it lies, and where and how fast it is made, do not.

    Neither does the number of epochs: a finished run may be continued with more. Nor does how snapshots are chosen
    from: that may be done again in any way. Records and encoder are told by their digests, not by where they lie; see
    `prepare` and `make_features`.
    """
    values: dict[str, Any] = _plain(config)
    del values["out"], values["epochs"], values["select"], values["data"], values["device"]
    values["train"] = {name: values["train"][name] for name in fingerprint(config.train)}
    if config.features.encoder not in BUILT_IN_ENCODERS:
        values["features"]["encoder"] = "one of its own"
    return values


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differences(before, value, f"{prefix}{key}.")
        elif before != value:
            found.append(f"{prefix}{key} was {before}, is {value}")
    return found
