"""Weights & Biases as a sink of the event log. It is told what the log is told; no failure of it reaches the run.

Offline its files lie in the run's folder and nothing is sent (`wandb sync` sends them later). A server that cannot be
reached at the start makes the run offline; one that is lost later is waited for at most `FINISH_TIMEOUT_S` at the end.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from redheart.core.cache import cache_folder, is_writable, temporary_private_folder
from redheart.core.errors import BadInput, extra, one_line
from redheart.core.files import read_json, write_json
from redheart.core.progress import warn
from redheart.core.units import GIB
from redheart.snapshots.manifests import newest_progress
from redheart.train.log.events import events_behind

Mode = Literal["off", "offline", "online"]
PROJECT = "redheart"
RUN_ID = "wandb.json"
"""File of a run's folder that names its W&B run."""
FINISH_TIMEOUT_S = 60
_ENVIRONMENT = {
    # It prints about itself otherwise, over our own lines.
    "WANDB_SILENT": "true",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": str(FINISH_TIMEOUT_S),
}
"""What is set where the user has not set it."""


class RunId(msgspec.Struct, frozen=True):
    """The W&B run that a folder's events were told to last; a resume goes on with it."""

    id: str


def wandb_mode(setting: str, environment: Mapping[str, str]) -> Mode:
    """What `--train.wandb` means here.

    `auto` sends nothing unless the environment asks for it: WANDB_MODE, or a sweep that an agent works on.

    Raises:
        BadInput: WANDB_MODE is none of W&B's modes.
    """
    name = environment.get("WANDB_MODE") if setting == "auto" else setting
    if not name:
        return "online" if environment.get("WANDB_SWEEP_ID") else "off"
    if name not in _MODES:
        raise BadInput("unknown mode", where="WANDB_MODE", got=name, expected=", ".join(_MODES))
    return _MODES[name]


_MODES: dict[str, Mode] = {
    "off": "off",
    "disabled": "off",
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
}


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event under the names that W&B shows them by; empty for events that are no curve."""
    if event["event"] == "step":
        names = {"loss": "step/loss", "grad_norm": "step/grad_norm", "learning_rate": "lr", "step_s": "step/seconds"}
        found = {shown: event.get(name) for name, shown in names.items()}
    elif event["event"] == "epoch":
        found = {"epoch": event["epoch"], "lr": event.get("learning_rate")}
        for part in ("train", "val"):
            found[f"{part}/loss"] = event.get(f"{part}_loss")
            for kind in ("task", "module"):
                losses = event.get(f"{part}_{kind}_loss") or {}
                found |= {f"{part}/{kind}/{name}": value for name, value in losses.items()}
        found |= {f"val/{name}": value for name, value in (event.get("val_metrics") or {}).items()}
        found |= {name: event.get(name) for name in ("grad_norm", "samples_per_s", "time_left_s")}
        for name in ("host_rss_peak_bytes", "device_peak_bytes"):
            size = event.get(name)
            found[f"memory/{name.removesuffix('_bytes')}_gib"] = None if size is None else size / GIB
    else:
        return {}
    return {"step": event["step"], **{name: value for name, value in found.items() if value is not None}}


class WandbSink:
    def __init__(self, run: Any, *, wants_past: bool, where: str = ""):
        self._run = run
        self.wants_past = wants_past
        self.where = where
        """Where a person finds it: an address, or the command that sends it later."""

    def write(self, event: Mapping[str, Any]) -> None:
        metrics = metrics_of(event)
        if metrics:
            self._try(lambda run: run.log(metrics))

    def close(self, *, exit_code: int) -> None:
        self._try(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        # Whatever their client, its service process or the server fails with, hours of training must not end by it.
        except Exception as error:
            self._run = None
            warn(f"W&B failed and is told nothing more: {one_line(error)}")


def open_wandb(mode: Mode, *, folder: Path, name: str, config: Mapping[str, object], epochs: int) -> WandbSink | None:
    """Start or go on with the W&B run of a folder; None where W&B is off or cannot even be started.

    W&B's files go into `folder/wandb`. Behind the end of a training's `epochs` nothing follows, and a W&B run that was
    told everything is left alone.

    Raises:
        BadInput: it is not installed, or online without a key; said at once instead of after the run.
    """
    if mode == "off":
        return None
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    cache = cache_folder()
    if cache is None or not is_writable(cache.with_name("wandb")):
        # It would write its log of the service to standard error.
        with suppress(OSError):
            os.environ.setdefault("WANDB_CACHE_DIR", str(temporary_private_folder() / "wandb"))
    with extra("wandb", library="wandb", purpose="Weights & Biases"):
        import wandb

    path = folder / RUN_ID
    known = read_json(path, RunId).id if path.is_file() else None
    # An agent gives every trial its id, which W&B reads itself.
    given = os.environ.get("WANDB_RUN_ID")
    if known and given in (None, known):
        # By its newest state, from which the training would go on, or by its log.
        progress = newest_progress(folder / "states")
        logged = [] if progress else [event["event"] for event in events_behind(folder / "events.jsonl")]
        if (progress.epoch if progress else logged.count("epoch")) >= epochs:
            return None
    folder.mkdir(parents=True, exist_ok=True)

    def start(mode: Mode) -> Any:
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=given or known,
            name=name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )

    try:
        run = start(mode)
    except wandb.errors.UsageError as error:
        raise BadInput(
            "W&B cannot be used online",
            got=one_line(error),
            hint="`wandb login`, set WANDB_API_KEY, or take --train.wandb offline",
        ) from error
    # As above: at the start too, W&B is not worth a run.
    except Exception as error:
        warn(f"W&B cannot be reached ({one_line(error)}); offline, `wandb sync` sends {folder / 'wandb'} later")
        wandb.teardown()
        try:
            mode = "offline"
            run = start(mode)
        except Exception as again:
            warn(f"W&B cannot be started: {one_line(again)}")
            return None
    run.define_metric("*", step_metric="step")
    write_json(path, RunId(run.id))
    where = run.url if mode == "online" and run.url else f"offline; `wandb sync {Path(run.dir).parent}` sends it"
    return WandbSink(run, wants_past=run.id != known, where=where)
