"""`status`, `sweet-spot`, `crossover`, `evaluate`, `calibrate`, `report`: what is asked of a run that is there."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from redheart.cli.options import DeviceChoice, EncoderPath, RunOptions, answer, display_of, parse
from redheart.core.config import SelectConfig, resolved
from redheart.core.progress import note, warn


@dataclass(frozen=True)
class SweetSpotOptions(RunOptions):
    """Choose the best epochs of every module group."""

    strategy: str | None = None
    """Short for `--select.strategy`."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """What is not given is as the run was started with."""
    device: DeviceChoice = "auto"


@dataclass(frozen=True)
class CrossoverOptions(RunOptions):
    """Assemble the chosen model and compare it with the best single snapshot."""

    mergekit: Path | None = None
    """Also write the merge as a mergekit YAML, with the tensors that it needs in a folder beside it."""
    device: DeviceChoice = "auto"


@dataclass(frozen=True)
class EvaluateOptions(RunOptions):
    """Evaluate the final model on the run's test split, or on another labelled file."""

    data: Path | None = None
    """A labelled file that the run has never seen."""
    encoder: EncoderPath = None
    device: DeviceChoice = "auto"


@dataclass(frozen=True)
class CalibrateOptions(RunOptions):
    """Calibrate the model that a run recommends; kept only where that helps."""

    device: DeviceChoice = "auto"


def status(arguments: Sequence[str]) -> None:
    options = parse(RunOptions, arguments, "status")

    from redheart.study.outlook.status import status_lines, status_of

    found = status_of(options.run)
    answer(found, "\n".join(status_lines(found)), as_json=options.json)


def sweet_spot(arguments: Sequence[str]) -> None:
    options = parse(SweetSpotOptions, arguments, "sweet-spot")

    from redheart.report.best_epochs import best_epochs_text
    from redheart.report.selection_section import sweet_spot_text
    from redheart.select.strategies import strategy_named
    from redheart.study import phases, run_folder
    from redheart.study.selecting import run_sweet_spot

    with run_folder.opened(options.run, device=options.device) as (folder, config):
        # Once more, now that the run's own settings are known: what is not given is theirs.
        options = parse(SweetSpotOptions, arguments, "sweet-spot", SweetSpotOptions(options.run, select=config.select))
        settings = options.select
        if options.strategy is not None:
            settings = replace(settings, strategy=options.strategy)
        config = resolved(replace(config, select=settings))
        strategy_named(settings.strategy)
        study = phases.load_study(config, folder, display=display_of(options.json))
        with run_folder.reading_snapshots(folder):
            spot = run_sweet_spot(study, display=display_of(options.json))
            bests = best_epochs_text(folder.root)
    text = f"{sweet_spot_text(spot, bests=bests)}\n\nWhat it is worth on records that it has not seen: "
    answer(spot, f"{text}`redheart crossover RUN`.", as_json=options.json)


def crossover(arguments: Sequence[str]) -> None:
    options = parse(CrossoverOptions, arguments, "crossover")

    from redheart.report.selection_section import crossover_section
    from redheart.snapshots.mergekit import tensors_folder
    from redheart.study import phases, run_folder
    from redheart.study.recombining import run_crossover, write_mergekit

    if options.mergekit:
        tensors_folder(options.mergekit)
    with run_folder.opened(options.run, device=options.device) as (folder, config):
        study = phases.load_study(config, folder, display=display_of(options.json))
        with run_folder.reading_snapshots(folder):
            with display_of(options.json).working("crossover"):
                result = run_crossover(study)
            if options.mergekit:
                write_mergekit(study, result, options.mergekit)
    text = f"{crossover_section(result)}\n\nFinal model: {result.recommended}, in `select/final`."
    answer(result, text, as_json=options.json)


def evaluate(arguments: Sequence[str]) -> None:
    options = parse(EvaluateOptions, arguments, "evaluate")

    from redheart.evaluate.evaluation import Evaluation
    from redheart.report.tables import comparison_table
    from redheart.study import evaluating, phases, run_folder

    if options.data is None:
        with run_folder.opened(options.run, encoder=options.encoder, device=options.device) as (folder, config):
            study = phases.load_study(config, folder, display=display_of(options.json))
            with display_of(options.json).working("evaluate"):
                result = evaluating.run_evaluation(study)
        text = comparison_table({**result.models, **result.baselines}) + f"\n\nrecommended: {result.recommended}"
        answer(result, text, as_json=options.json)
    else:
        folder, config = run_folder.load(options.run, encoder=options.encoder, device=options.device)
        found = evaluating.evaluate_file(config, folder, options.data, display=display_of(options.json))
        if warning := evaluating.seen_text(found.seen, num_records=found.num_records):
            warn(warning)
        if found.is_before_calibration:
            note("the figures are of the model before its calibration")
        text = comparison_table({f"{found.num_records:,} records": Evaluation(found.num_records, found.tasks)})
        answer(found, text, as_json=options.json)


def calibrate(arguments: Sequence[str]) -> None:
    options = parse(CalibrateOptions, arguments, "calibrate")

    from redheart.report.calibration_section import calibration_text
    from redheart.study import phases, run_folder
    from redheart.study.calibrating import run_calibration

    with run_folder.opened(options.run, device=options.device) as (folder, config):
        study = phases.load_study(config, folder, display=display_of(options.json))
        with display_of(options.json).working("calibrate"):
            result = run_calibration(study)
    answer(result, calibration_text(result), as_json=options.json)
    if not options.json:
        print(folder.calibration / "reliability.png")


def report(arguments: Sequence[str]) -> None:
    options = parse(RunOptions, arguments, "report")

    from redheart.report.report import make_report
    from redheart.study import run_folder

    folder, _ = run_folder.load(options.run)
    with run_folder.reporting(folder):
        path = make_report(folder.root)
    found = {"report": str(path), "html": str(path.with_suffix(".html"))}
    answer(found, "\n".join(found.values()), as_json=options.json)
