"""`run`, `prepare`, `sweep`, `train`, `trial`: the phases that make snapshots."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from redheart.cli.options import Flag, RunPath, parse, print_json
from redheart.core.config import PrepareConfig, StudyConfig, load_toml, resolved
from redheart.core.errors import BadInput


@dataclass(frozen=True)
class PrepareOptions:
    """Validate, de-duplicate and split a file of records."""

    file: Annotated[Path, tyro.conf.Positional]
    """Records: .json, .jsonl or .tsv, plain or .gz."""
    out: Path
    """Folder to write."""
    seed: int = 0
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    json: Flag = False


@dataclass(frozen=True)
class TrialOptions:
    """One trial of the sweep, in a process of its own."""

    run: RunPath
    rate: Annotated[float, tyro.conf.Positional]


def run(arguments: Sequence[str]) -> None:
    from redheart.study.pipeline import run_study

    rest, force = _without_force(arguments)
    config = _study(rest, "run")
    _check(config, force)
    run_study(config)


def prepare(arguments: Sequence[str]) -> None:
    from redheart.data.prepare import prepare as run_prepare

    options = parse(PrepareOptions, arguments, "prepare")
    resolved(StudyConfig(data=str(options.file), out=options.out, seed=options.seed, prepare=options.prepare))
    print_json(run_prepare(options.file, out=options.out, config=options.prepare, seed=options.seed), options.json)


def sweep(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder

    config = _study(arguments, "sweep")
    with run_folder.claimed(config) as folder:
        phases.open_data(config, folder, show_progress=True)
        print(f"learning rate {phases.run_sweep(config, folder).best_rate:g}")


def train(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder

    rest, force = _without_force([item for item in arguments if not item.startswith("--local_rank")])
    config = _study(rest, "train")
    _check(config, force)
    with run_folder.claimed(config) as folder:
        data = phases.open_data(config, folder, show_progress=True)
        phases.run_training(config, folder, data, show_progress=True)


def trial(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder
    from redheart.train.interrupt import stop_with_parent

    options = parse(TrialOptions, arguments, "trial")
    stop_with_parent()
    folder, config = run_folder.load(options.run)
    phases.run_trial(config, folder, phases.open_data(config, folder, show_progress=False), options.rate)


def _without_force(arguments: Sequence[str]) -> tuple[list[str], bool]:
    return [item for item in arguments if item != "--force"], "--force" in arguments


def _check(config: StudyConfig, force: bool) -> None:
    """The planner's verdict before anything is allocated; `--force` goes on without asking."""
    if not force and os.environ.get("RANK", "0") == "0":
        from redheart.study.preflight import check_run

        print(f"plan       {check_run(config)}", flush=True)


def _study(arguments: Sequence[str], command: str) -> StudyConfig:
    """The study's configuration: defaults, then the file of `--config`, then the other options."""
    default, _, rest = study_defaults(arguments)
    also = "--config FILE, a TOML file as `redheart init` writes it"
    if command != "sweep":
        also += "; --force, to run without asking whether it fits"
    return resolved(parse(StudyConfig, rest, command, default, also=also))


def study_defaults(arguments: Sequence[str]) -> tuple[StudyConfig, Path | None, list[str]]:
    """What the file of `--config` says, that file, and the other arguments."""
    rest = list(arguments)
    for position, argument in enumerate(rest):
        if argument == "--config":
            if position + 1 == len(rest):
                raise BadInput("--config needs a file")
            file = Path(rest[position + 1])
            return load_toml(file), file, rest[:position] + rest[position + 2 :]
        if argument.startswith("--config="):
            file = Path(argument.removeprefix("--config="))
            return load_toml(file), file, rest[:position] + rest[position + 1 :]
    return StudyConfig(), None, rest
