"""The command line: one sub-command per phase. Every error ends in one message and its exit code.

Heavy libraries are imported inside the commands, so that `redheart --help` answers at once.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from redheart.core.config import PrepareConfig, Preset, StudyConfig, load_toml, resolved
from redheart.core.errors import BadInput, RedHeartError

T = TypeVar("T")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
RunPath = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class ModelOptions:
    """Print the parameter ledger of a preset; `full` is held against the design's table."""

    preset: Preset = "full"
    json: Flag = False


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
class RunOptions:
    """Work on a run that is there."""

    run: RunPath
    """Folder of the run."""
    json: Flag = False


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


@dataclass(frozen=True)
class PlanOptions:
    """Does a run fit: device memory by moment, host memory, disk; nothing is allocated and no GPU is needed."""

    vram: str = "8GiB"
    """Memory of the card."""
    strategy: str | None = None
    """A file name in `ds_configs/`, or `auto` for the cheapest that fits; empty takes the default."""
    preset: Preset = "full"
    seq_len_tokens: int = 128
    """Token sequence length."""
    micro_batch: int = 0
    """Records per forward pass; 0 chooses."""
    effective_batch: int = 64
    epochs: int = 60
    checkpointing: Flag = False
    ranks: int = 1
    """Devices, for the strategies that divide the work."""
    figure: Path | None = None
    """Draw the memory of one step, stacked by category, into this PNG."""
    json: Flag = False


@dataclass(frozen=True)
class DoctorOptions:
    """Examine this machine: versions, compiler, GPU and driver, memory, disk, WSL, /dev/shm."""

    out: Path = Path(".")
    """Folder that runs will be written to."""
    json: Flag = False


@dataclass(frozen=True)
class TrialOptions:
    """One trial of the sweep, in a process of its own."""

    run: RunPath
    rate: Annotated[float, tyro.conf.Positional]


def model(arguments: Sequence[str]) -> None:
    from redheart.model.ledger import ledger_text

    options = _parse(ModelOptions, arguments, "model")
    print(ledger_text(options.preset, as_json=options.json))


def plan(arguments: Sequence[str]) -> None:
    from redheart.core.config import FeatureConfig, TrainConfig
    from redheart.study import plan_output, planning

    options = _parse(PlanOptions, arguments, "plan")
    config = StudyConfig(
        preset=options.preset,
        epochs=options.epochs,
        features=FeatureConfig(seq_len_tokens=options.seq_len_tokens),
        train=TrainConfig(effective_batch=options.effective_batch, checkpointing=options.checkpointing),
    )
    answer = planning.answer(
        resolved(config),
        vram_bytes=planning.parse_bytes(options.vram),
        strategy=options.strategy,
        micro_batch=options.micro_batch or None,
        ranks=options.ranks,
    )
    if options.figure:
        plan_output.draw_step(answer.replay, options.figure)
    if options.json:
        _print(plan_output.plan_fields(answer), True)
    else:
        plan_output.print_plan(answer)
    planning.refuse_unless_fits(answer)


def doctor(arguments: Sequence[str]) -> None:
    from redheart.study.doctor import examine

    options = _parse(DoctorOptions, arguments, "doctor")
    findings = examine(options.out)
    if options.json:
        _print(findings, True)
    else:
        for item in findings:
            print(f"{item.verdict:<5}{item.name:<14}{item.found}" + (f"\n{'':<19}-> {item.mend}" if item.mend else ""))
    if any(item.verdict == "bad" for item in findings):
        sys.exit(2)


def prepare(arguments: Sequence[str]) -> None:
    from redheart.data.prepare import prepare as run_prepare

    options = _parse(PrepareOptions, arguments, "prepare")
    _print(run_prepare(options.file, out=options.out, config=options.prepare, seed=options.seed), options.json)


def run(arguments: Sequence[str]) -> None:
    from redheart.study.pipeline import run_study

    rest, force = _without_force(arguments)
    config = _study(rest, "run")
    _check(config, force)
    run_study(config)


def sweep(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder

    config = _study(arguments, "sweep")
    folder = run_folder.start(config)
    phases.open_data(config, folder, show_progress=True)
    print(f"learning rate {phases.run_sweep(config, folder).best_rate:g}")


def train(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder

    rest, force = _without_force([item for item in arguments if not item.startswith("--local_rank")])
    config = _study(rest, "train")
    _check(config, force)
    folder = run_folder.start(config)
    data = phases.open_data(config, folder, show_progress=True)
    phases.run_training(config, folder, data, show_progress=True)


def trial(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder

    options = _parse(TrialOptions, arguments, "trial")
    folder, config = run_folder.load(options.run)
    phases.run_trial(config, folder, phases.open_data(config, folder, show_progress=False), options.rate)


def sweet_spot(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = _parse(SweetSpotOptions, arguments, "sweet-spot")
    folder, config = run_folder.load(options.run)
    data = phases.open_data(config, folder, show_progress=True)
    _print(selection.run_sweet_spot(folder, data, strategy=options.strategy or config.select.strategy), options.json)


def crossover(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = _parse(RunOptions, arguments, "crossover")
    folder, config = run_folder.load(options.run)
    data = phases.open_data(config, folder, show_progress=True)
    _print(selection.run_crossover(config, folder, data), options.json)


def evaluate(arguments: Sequence[str]) -> None:
    from redheart.study import phases, run_folder, selection

    options = _parse(EvaluateOptions, arguments, "evaluate")
    folder, config = run_folder.load(options.run)
    if options.data is None:
        data = phases.open_data(config, folder, show_progress=True)
        _print(selection.run_evaluation(config, folder, data), options.json)
    else:
        inventory = selection.inventory_of(folder)
        _print(selection.evaluate_file(config, folder, inventory, options.data), options.json)


def report(arguments: Sequence[str]) -> None:
    from redheart.study import pipeline, run_folder

    options = _parse(RunOptions, arguments, "report")
    folder, config = run_folder.load(options.run)
    print(pipeline.make_report(config, folder))


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "run": (run, "the whole study: all phases below, or what is left of them"),
    "model": (model, "the parameter ledger of a preset"),
    "doctor": (doctor, "is this machine fit for a run"),
    "plan": (plan, "does a run fit into memory; needs no GPU"),
    "prepare": (prepare, "validate, de-duplicate and split a file of records"),
    "sweep": (sweep, "find the learning rate"),
    "train": (train, "the main run, with snapshots; goes on where it stopped"),
    "trial": (trial, "one trial of the sweep"),
    "sweet-spot": (sweet_spot, "the best epochs of every module group"),
    "crossover": (crossover, "assemble the chosen model and compare it"),
    "evaluate": (evaluate, "test split or another labelled file, beside baselines"),
    "report": (report, "write the report from the files of a run"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `redheart`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_environment()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_help())
        elif arguments[0] == "--version":
            from redheart import __version__

            print(__version__)
        elif arguments[0] in COMMANDS:
            COMMANDS[arguments[0]][0](arguments[1:])
        else:
            raise BadInput("unknown command", got=arguments[0], expected=", ".join(COMMANDS))
    except RedHeartError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(75)


def _help() -> str:
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: redheart COMMAND [OPTIONS]",
            "",
            "Train a 730-million-parameter model, all parameters, on an 8 GB card.",
            "",
            *lines,
            "",
            "`redheart COMMAND --help` lists a command's options.",
        ]
    )


def _parse(kind: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    prog = f"redheart {command}"
    if default is None:
        return tyro.cli(kind, args=list(arguments), prog=prog)
    return tyro.cli(kind, args=list(arguments), prog=prog, default=default)


def _without_force(arguments: Sequence[str]) -> tuple[list[str], bool]:
    return [item for item in arguments if item != "--force"], "--force" in arguments


def _check(config: StudyConfig, force: bool) -> None:
    """The planner's verdict before anything is allocated; `--force` goes on without asking."""
    if not force and os.environ.get("RANK", "0") == "0":
        from redheart.study.preflight import check_run

        print(f"plan       {check_run(config)}", flush=True)


def _study(arguments: Sequence[str], command: str) -> StudyConfig:
    """The study's configuration: defaults, then the file of `--config`, then the other options."""
    rest = list(arguments)
    default = StudyConfig()
    if "--config" in rest:
        position = rest.index("--config")
        if position + 1 == len(rest):
            raise BadInput("--config needs a file")
        default = load_toml(Path(rest[position + 1]))
        del rest[position : position + 2]
    return resolved(_parse(StudyConfig, rest, command, default))


def _print(value: object, as_json: bool) -> None:
    import json

    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=None if as_json else 1, ensure_ascii=False))


def set_environment() -> None:
    """What must be set before torch and the other libraries are loaded; what is set already stays."""
    # What libraries print that a user can do nothing about.
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    # OpenMP's threads spin at every barrier, by default far longer than a barrier of ours takes. With two busy
    # processes on two cores a step of `small` took 23 s; with a short spin it takes 1.7 s there, and 0.47 s alone as
    # before (0.77 s if they never spin).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


if __name__ == "__main__":
    main()
