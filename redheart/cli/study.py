"""`run`, `prepare`, `sweep`, `train`, `trial`: the phases that make snapshots."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro

from redheart.cli.options import Flag, answer, display_of, parse, refuse_among_own_files, spelled_out
from redheart.core.config import GENERATED, RECIPE, PrepareConfig, Preset, StudyConfig, configured, read_toml, resolved
from redheart.core.errors import BadInput
from redheart.core.progress import Display, note
from redheart.core.ranks import launched
from redheart.core.recipes import MEASURED, defaults_of

if TYPE_CHECKING:
    from redheart.train.settings import Chosen


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


def run(arguments: Sequence[str]) -> None:
    _note_ranks("run")
    config, chosen = _checked_study(arguments, "run")

    from redheart.study.pipeline import run_study

    run_study(config, chosen)


def prepare(arguments: Sequence[str]) -> None:
    options = parse(PrepareOptions, arguments, "prepare")

    from redheart.core.config import FeatureConfig
    from redheart.data.prepare import prepare as run_prepare
    from redheart.data.scripts import warn_unread

    # What was trained on a run's records is judged by them.
    refuse_among_own_files(options.out)
    resolved(StudyConfig(data=str(options.file), out=options.out, seed=options.seed, prepare=options.prepare))
    with display_of(options.json).working("prepare"):
        manifest = run_prepare(options.file, out=options.out, config=options.prepare, seed=options.seed)
    answer(manifest, f"{options.out}: {manifest.text}", as_json=options.json)
    warn_unread(manifest.scripts, manifest.num_records, encoder=FeatureConfig.encoder)


def sweep(arguments: Sequence[str]) -> None:
    _note_ranks("sweep")
    config, _ = _checked_study(arguments, "sweep")

    from redheart.study import phases, run_folder
    from redheart.study.sweep import run_sweep

    if config.train.learning_rate is not None:
        # As `redheart run` has it. The trials would be started for a run without a rate, which this one is not.
        phases.say(config, "sweep", f"learning rate {config.train.learning_rate} is given: nothing to search for")
        return
    with run_folder.claimed(config, decides=_typed(arguments)) as folder:
        _say_source(config)
        study = phases.open_study(config, folder, display=Display(config.train.progress))
        phases.say(config, "sweep", f"learning rate {run_sweep(study).best_rate}")


def train(arguments: Sequence[str]) -> None:
    from redheart.train.ranks.peers import together

    _note_ranks()
    with together():
        config, chosen = _checked_study(arguments, "train")

        from redheart.study import phases, run_folder

        if config.train.learning_rate is None:
            # Before minutes of features, and before a folder is given these settings.
            phases.best_rate(run_folder.RunFolder(config.out))
        with run_folder.claimed(config, decides=("epochs", *_typed(arguments))) as folder:
            _say_source(config)
            study = phases.open_study(config, folder, display=Display(config.train.progress))
            phases.run_training(study, chosen=chosen)


def _say_source(config: StudyConfig) -> None:
    """Who forgot --data would take made-up records for their own; machines find it in the configuration."""
    from redheart.study.phases import say

    if config.data == GENERATED and config.train.progress == "bar" and launched().is_first:
        say(config, "prepare", "no --data is given: the records are generated")


def _typed(arguments: Sequence[str]) -> list[str]:
    """What a run that is there takes from these arguments, because it stands in them."""
    options = [item.removeprefix("--") for item in arguments if item.startswith("--")]
    names = [item.partition("=")[0].partition(".")[0] for item in options]
    return ["epochs", "select"] if "config" in names else [name for name in ("epochs", "select") if name in names]


def trial(arguments: Sequence[str]) -> None:
    """One trial of a sweep, or the range test before it, into the folder of the run that it is for."""
    from redheart.train.interrupt import stop_with_parent
    from redheart.train.ranks.peers import together

    stop_with_parent()
    with together():
        is_range_test = "--range-test" in arguments
        config = resolved(_study([item for item in arguments if item != "--range-test"], "trial"))

        from redheart.study import phases, range_test, run_folder
        from redheart.study.sweep import run_trial

        rate = config.train.learning_rate
        if rate is None and not is_range_test:
            raise BadInput(
                "a trial needs its rate", where="--train.learning-rate", hint="give --train.learning-rate 1e-4"
            )
        # The run that the sweep is for has no rate yet.
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=None))
        folder = run_folder.start(config)
        study = phases.open_study(config, folder, display=Display(config.train.progress))
        if rate is None or is_range_test:
            range_test.train_ramp(study)
        else:
            run_trial(study, rate)


def _note_ranks(alone: str | None = None) -> None:
    """Say that what is left of a launcher's environment is passed over; refuse a command that works `alone`."""
    ranks = launched()
    if alone and ranks.world_size > 1:
        raise BadInput(
            f"`redheart {alone}` works in one process",
            got=f"rank {ranks.rank} of {ranks.world_size}",
            hint="start it without a launcher; `launch/train.py` trains in several (docs/several-devices.md)",
        )
    if ranks.leftovers:
        note(
            f"{', '.join(ranks.leftovers)} without the rest of a launcher's variables means nothing; this is a run of "
            "one process (for several see docs/several-devices.md)"
        )


def _checked_study(arguments: Sequence[str], command: str) -> "tuple[StudyConfig, Chosen | None]":
    """What a card takes best and why, and the planner's verdict before anything is allocated, if not with `--force`."""
    asked = _study([item for item in arguments if item != "--force"], command)

    from redheart.select.strategies import strategy_named
    from redheart.study.outlook import plan_output, planning
    from redheart.study.phases import say
    from redheart.study.preflight import check_run

    strategy_named(asked.select.strategy)
    taken, found = plan_output.on_this_card(asked)
    config = resolved(taken)
    if found:
        say(config, "plan", found.text)
        for other in found.others:
            say(config, "plan", f"next: {other}")
    if "--force" not in arguments and launched().is_first:
        config, line = check_run(config)
        say(config, "plan", line)
    planning.forget_traces()
    return config, found


def _study(arguments: Sequence[str], command: str) -> StudyConfig:
    """The study's configuration: defaults, then the file of `--config` or the run of `--run`, then the options."""
    # Launchers add it and set the environment too.
    rest, run = _taken([item for item in arguments if not item.startswith("--local_rank")], "--run")
    for option in ("--recipe", "--config"):
        if run and any(item.partition("=")[0] == option for item in arguments):
            raise BadInput("a run that is there has its settings", where=option, hint=f"leave {option} out")
    default, _, rest, _ = study_defaults(rest)
    if run:
        from redheart.study.run_folder import load

        default = load(Path(run))[1]
    also = (
        "--config FILE, a TOML file as `redheart init` writes it; --run RUN, the settings of a run that is there; "
        "--recipe measured or design: decay, feature dropout, the weight of values beside the emotion and cycles, "
        "where nothing else gives them, are the best that is known for the preset (measured, the default) or the "
        "original design's; --force, to run without asking whether it fits"
    )
    return parse(StudyConfig, rest, command, default, also=also)


def study_defaults(arguments: Sequence[str]) -> tuple[StudyConfig, Path | None, list[str], dict[str, Any]]:
    """What the recipe and the file of `--config` say, that file, the other arguments, and the file's tables."""
    rest, file = _taken(spelled_out(arguments, StudyConfig), "--config")
    rest, recipe = _taken(rest, "--recipe")
    path = Path(file) if file else None
    # Once: it may be a pipe.
    said = read_toml(path) if path else {}
    named = _taken(rest, "--preset")[1] or said.get("preset")
    meant: Preset = next((name for name in get_args(Preset) if name == named), StudyConfig().preset)
    default = defaults_of(recipe or str(said.get(RECIPE, MEASURED)), meant)
    return configured(said, default, path=path) if path else default, path, rest, said


def _taken(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without an option and its value, and the value, the last where it is given more than once."""
    rest: list[str] = []
    found = None
    items = iter(arguments)
    for item in items:
        name, is_pair, value = item.partition("=")
        if name != option:
            rest.append(item)
            continue
        found = value if is_pair else next(items, "")
        # Empty is what a shell makes of a variable that is not set.
        if not found:
            raise BadInput(f"{option} needs a value")
    return rest, found
