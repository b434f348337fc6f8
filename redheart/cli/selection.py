"""`sweet-spot`, `crossover`, `evaluate`, `report`: what a finished run is turned into."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from redheart.cli.options import EncoderPath, Flag, RunOptions, RunPath, display_of, parse, print_json
from redheart.core.config import SelectConfig, resolved


@dataclass(frozen=True)
class SweetSpotOptions:
    """Choose the best epochs of every module group."""

    run: RunPath
    """Folder of the run."""
    strategy: str | None = None
    """Short for `--select.strategy`."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """What is not given is as the run was started with."""
    json: Flag = False


@dataclass(frozen=True)
class CrossoverOptions:
    """Assemble the chosen model and compare it with the best single snapshot."""

    run: RunPath
    """Folder of the run."""
    mergekit: Path | None = None
    """Also write the merge as a mergekit YAML, with the tensors that it needs in a folder beside it."""
    json: Flag = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the final model on the run's test split, or on another labelled file."""

    run: RunPath
    """Folder of the run."""
    data: Path | None = None
    """A labelled file that the run has never seen."""
    encoder: EncoderPath = None
    json: Flag = False


def sweet_spot(arguments: Sequence[str]) -> None:
    from redheart.select.strategies import strategy_named
    from redheart.study import phases, run_folder, selection, selection_text

    options = parse(SweetSpotOptions, arguments, "sweet-spot")
    with run_folder.opened(options.run) as (folder, config):
        # Once more, now that the run's own settings are known: what is not given is theirs.
        options = parse(SweetSpotOptions, arguments, "sweet-spot", SweetSpotOptions(options.run, select=config.select))
        settings = options.select
        if options.strategy is not None:
            settings = replace(settings, strategy=options.strategy)
        resolved(replace(config, select=settings))
        strategy_named(settings.strategy)
        data = phases.load_data(config, folder, display=display_of(options))
        spot = selection.run_sweet_spot(config, folder, data, settings=settings, display=display_of(options))
    _print(spot, selection_text.sweet_spot_lines(spot), options.json)


def crossover(arguments: Sequence[str]) -> None:
    from redheart.snapshots.mergekit import tensors_folder
    from redheart.study import crossover, phases, run_folder, selection_text

    options = parse(CrossoverOptions, arguments, "crossover")
    if options.mergekit:
        tensors_folder(options.mergekit)
    with run_folder.opened(options.run) as (folder, config):
        data = phases.load_data(config, folder, display=display_of(options))
        with display_of(options).working("crossover"):
            result = crossover.run_crossover(config, folder, data)
        if options.mergekit:
            crossover.write_mergekit(config, folder, data, result, options.mergekit)
    _print(result, selection_text.crossover_lines(result), options.json)


def evaluate(arguments: Sequence[str]) -> None:
    from redheart.study import evaluation, phases, run_folder

    options = parse(EvaluateOptions, arguments, "evaluate")
    if options.data is None:
        with run_folder.opened(options.run) as (folder, config):
            data = phases.load_data(config, folder, display=display_of(options))
            with display_of(options).working("evaluate"):
                result = evaluation.run_evaluation(config, folder, data)
        print_json(result, options.json)
    else:
        folder, config = run_folder.load(options.run, encoder=options.encoder)
        inventory = evaluation.inventory_of(folder)
        found = evaluation.evaluate_file(config, folder, inventory, options.data, display=display_of(options))
        if warning := evaluation.seen_text(found.seen, num_records=found.num_records):
            print(f"warning: {warning}", file=sys.stderr)
        print_json(found, options.json)


def report(arguments: Sequence[str]) -> None:
    from redheart.study import pipeline, run_folder

    options = parse(RunOptions, arguments, "report")
    folder, config = run_folder.load(options.run)
    path = pipeline.make_report(config, folder)
    print(path)
    print(path.with_suffix(".html"))


def _print(result: object, lines: list[str], as_json: bool) -> None:
    if as_json:
        print_json(result, True)
    else:
        print("\n".join(lines))
