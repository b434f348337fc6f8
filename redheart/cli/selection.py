"""`sweet-spot`, `crossover`, `evaluate`, `report`: what a finished run is turned into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redheart.cli.options import Flag, RunOptions, RunPath, parse, print_json


@dataclass(frozen=True)
class SweetSpotOptions:
    """Choose the best epochs of every module group."""

    run: RunPath
    """Folder of the run."""
    strategy: str | None = None
    """Selection strategy; empty takes the run's."""
    json: Flag = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the final model on the run's test split, or on another labelled file."""

    run: RunPath
    """Folder of the run."""
    data: Path | None = None
    """A labelled file that the run has never seen."""
    json: Flag = False


def sweet_spot(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = parse(SweetSpotOptions, arguments, "sweet-spot")
    with run_folder.opened(options.run) as (folder, config):
        data = phases.load_data(config, folder, show_progress=True)
        spot = selection.run_sweet_spot(folder, data, strategy=options.strategy or config.select.strategy)
    print_json(spot, options.json)


def crossover(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = parse(RunOptions, arguments, "crossover")
    with run_folder.opened(options.run) as (folder, config):
        data = phases.load_data(config, folder, show_progress=True)
        print_json(selection.run_crossover(config, folder, data), options.json)


def evaluate(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = parse(EvaluateOptions, arguments, "evaluate")
    if options.data is None:
        with run_folder.opened(options.run) as (folder, config):
            data = phases.load_data(config, folder, show_progress=True)
            print_json(selection.run_evaluation(config, folder, data), options.json)
    else:
        folder, config = run_folder.load(options.run)
        inventory = selection.inventory_of(folder)
        print_json(selection.evaluate_file(config, folder, inventory, options.data), options.json)


def report(arguments: Sequence[str]) -> None:
    from redheart.study import pipeline, run_folder

    options = parse(RunOptions, arguments, "report")
    folder, config = run_folder.load(options.run)
    path = pipeline.make_report(config, folder)
    print(path)
    print(path.with_suffix(".html"))
