"""`model`, `plan`, `doctor`: what can be answered before a run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from redheart.cli.options import Flag, answer, parse, print_json
from redheart.core.config import FeatureConfig, Preset, StudyConfig, TrainConfig, resolved

if TYPE_CHECKING:
    from redheart.memory.cards import Card
    from redheart.train.choice import Choice


@dataclass(frozen=True)
class ModelOptions:
    """Print the parameter ledger of a preset; `full` is held against the design's table."""

    preset: Preset = "full"
    json: Flag = False


@dataclass(frozen=True)
class PlanOptions:
    """Does a run fit, and how long does it take: device memory by moment, host, disk, time; no GPU is needed."""

    vram: str | None = None
    """Memory of the card; 8GiB, or what `--card` has."""
    card: str | None = None
    """Name of a card, as `RTX 3070`: its memory and its time."""
    reserve: str = "0GiB"
    """What a desktop and other programs keep of the card's memory."""
    strategy: str | None = None
    """A file name in `ds_configs/`, or `auto` for the cheapest that fits; without it the default one."""
    preset: Preset = "full"
    """Size of the emotion model."""
    data: Path | None = None
    """A file of records, or the folder of prepared ones, for disk, time and whether the encoder knows their script;
    without one, 8,858 records."""
    encoder: str = FeatureConfig.encoder
    """The encoder that the run will have; without --model."""
    model: str | None = None
    """A Hugging Face model instead of a preset: a folder with its config.json, or a hub id; weights are not read."""
    freeze: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """With --model: a parameter or module that is not trained, or a pattern as `*.layers.?.*`; may be repeated."""
    seq_len_tokens: Annotated[int, tyro.conf.arg(aliases=["--seq-len"])] = 128
    """Token sequence length."""
    micro_batch: int = 0
    """Records per forward pass; 0 chooses."""
    effective_batch: int = 64
    """Records of an optimizer step."""
    epochs: int = 60
    """For the time of all steps and the disk of the snapshots."""
    checkpointing: Flag = False
    """Recompute activations in the backward pass; without a --micro-batch both ways are tried."""
    card_share: float | Literal["auto"] = 0.0
    """Share of the optimizer on the card, 0 to 1; `auto` takes what there is room for. No card has run it yet."""
    pipeline: Annotated[Flag, tyro.conf.arg(aliases=["--train.pipeline"])] = False
    """The step as a pipeline. Not measured on a card."""
    graphs: Annotated[Flag, tyro.conf.arg(aliases=["--train.graphs"])] = False
    """Passes as CUDA graphs. Not measured on a card."""
    ranks: int = 1
    """Devices, for the strategies that divide the work."""
    figure: Path | None = None
    """Draw the memory of one step, stacked by category, into this PNG."""
    json: Flag = False
    """For machines."""


@dataclass(frozen=True)
class DoctorOptions:
    """Examine this machine: versions, compiler, GPU and driver, memory, disk, WSL, /dev/shm."""

    out: Path = Path(".")
    """Folder that runs will be written to."""
    measure: Flag = False
    """Measure what the host does beside a card, in seconds, and keep it for `plan --card`."""
    json: Flag = False


def model(arguments: Sequence[str]) -> None:
    options = parse(ModelOptions, arguments, "model")

    from redheart.model.ledger import ledger_text

    print(ledger_text(options.preset, as_json=options.json))


def plan(arguments: Sequence[str]) -> None:
    options = parse(PlanOptions, arguments, "plan")

    from redheart.core.errors import BadInput
    from redheart.memory import cards
    from redheart.memory.plan import COMFORT_SHARE
    from redheart.study.outlook import plan_output, planning

    if options.ranks < 1:
        raise BadInput("out of range", where="--ranks", got=options.ranks, expected="1 or more")
    card = cards.find(options.card) if options.card is not None else None
    vram_bytes = planning.parse_bytes(options.vram) if options.vram else card.memory_bytes if card else 8 << 30
    reserve_bytes = planning.parse_bytes(options.reserve, least_bytes=0)
    if reserve_bytes >= vram_bytes:
        raise BadInput(
            "nothing is left of the card", where="--reserve", got=options.reserve, expected="less than its memory"
        )
    train = TrainConfig(
        strategy=options.strategy or TrainConfig().strategy,
        effective_batch=options.effective_batch,
        micro_batch=options.micro_batch,
        checkpointing=options.checkpointing,
        card_share=0.0 if options.card_share == "auto" else options.card_share,
        pipeline=options.pipeline,
        graphs=options.graphs,
    )
    # A model of Hugging Face's may take more tokens than a preset.
    length = options.seq_len_tokens if options.model is None else FeatureConfig.seq_len_tokens
    features = FeatureConfig(encoder=options.encoder, seq_len_tokens=length)
    config = StudyConfig(preset=options.preset, epochs=options.epochs, features=features, train=train)
    # What is out of range is refused for either.
    resolved(config)
    limits: dict[str, Any] = {
        "vram_bytes": vram_bytes - reserve_bytes,
        "ranks": options.ranks,
        # Who says what others keep needs no room beside that.
        "comfort_share": 1.0 if reserve_bytes else COMFORT_SHARE,
        "shares": options.card_share == "auto",
    }
    choice, line, besides = (_of_preset if options.model is None else _of_pretrained)(options, config, card, limits)
    if options.figure:
        plan_output.draw_step(choice.replay, options.figure)
    if options.json:
        print_json(besides | plan_output.plan_fields(choice))
    else:
        print(line)
        plan_output.print_plan(choice)
    planning.refuse_unless_fits(choice, prefix="--")


def _of_preset(
    options: PlanOptions, config: StudyConfig, card: "Card | None", limits: dict[str, Any]
) -> "tuple[Choice, str, dict[str, object]]":
    """The plan of the emotion model, a line on what it is of, and what JSON has besides."""
    from redheart.study.outlook import planning

    num_records, warning = planning.NUM_RECORDS, None
    if options.data:
        num_records, warning = _records_in(options.data, config.features)
    choice = planning.answer(config, micro_batch=options.micro_batch, card=card, num_records=num_records, **limits)
    line = f"{options.epochs} epochs of {num_records:,} records"
    return choice, line, {"records": num_records, "warning": warning}


def _of_pretrained(
    options: PlanOptions, config: StudyConfig, card: "Card | None", limits: dict[str, Any]
) -> "tuple[Choice, str, dict[str, object]]":
    """As `_of_preset`, of a model of Hugging Face's."""
    from redheart.custom.pretrained import facts_line, plan_pretrained
    from redheart.memory.step_time import CardClock
    from redheart.study.outlook import planning, timings

    length, epochs = options.seq_len_tokens, options.epochs
    choice, model = plan_pretrained(
        str(options.model), config.train, seq_len_tokens=length, epochs=epochs, freeze=options.freeze, **limits
    )
    if card and options.ranks == 1:
        clock = CardClock(card, choice.planner, timings.recall_host())
        choice = replace(choice, on_card=planning.step_alone(clock, choice.plan, choice.sizes))
    return choice, facts_line(model, choice.plan), {"model": model}


def _records_in(data: Path, features: FeatureConfig) -> tuple[int, str | None]:
    """How many records a file or a folder of prepared ones has; what there is to say, and is said, of the encoder."""
    from redheart.core.config import BUILT_IN_ENCODERS
    from redheart.core.files import read_sealed
    from redheart.data.input_text import input_text
    from redheart.data.prepare import Manifest
    from redheart.data.scripts import counted, foreign_script, warn_unread
    from redheart.predict.texts import read_texts

    if data.is_dir():
        manifest = read_sealed(data / "manifest.json", Manifest)
        count, scripts = manifest.num_records, manifest.scripts
    else:
        records = read_texts(data)
        count = len(records)
        scripts = counted(foreign_script(input_text(record, text_chars=features.text_chars)) for record in records)
    # What another encoder's tokenizer makes of them is seen when a run opens it.
    known = features.encoder in BUILT_IN_ENCODERS
    return count, warn_unread(scripts, count, encoder=features.encoder) if known else None


def doctor(arguments: Sequence[str]) -> None:
    options = parse(DoctorOptions, arguments, "doctor")

    from redheart.study.outlook.doctor import examine

    findings = examine(options.out, measures=options.measure)
    lines = [
        f"{item.verdict:<5}{item.name:<15}{item.found}" + (f"\n{'':<20}-> {item.hint}" if item.hint else "")
        for item in findings
    ]
    answer(findings, "\n".join(lines), as_json=options.json)
    if any(item.verdict == "bad" for item in findings):
        sys.exit(2)
