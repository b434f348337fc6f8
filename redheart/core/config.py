"""The configuration of a study: frozen dataclasses with their ranges, read from TOML, overridden by `--a.b value`.

Nothing heavy is imported here, so that `redheart --help` answers at once.
"""

import dataclasses
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from redheart.core.errors import BadInput
from redheart.core.files import canonical_json
from redheart.core.text import is_unicode, read_text

# A billion is above every number of records, epochs, steps or tokens that is meant.
Count = Annotated[int, Meta(ge=1, le=10**9)]
CountOrZero = Annotated[int, Meta(ge=0, le=10**9)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, le=1 - 1e-9)]
Rate = Annotated[float, Meta(ge=1e-12, le=1e3)]
Preset = Literal["tiny", "small", "full"]
Device = Literal["auto", "cpu", "cuda"]
RECIPE = "recipe"
"""The key of a configuration file that names a recipe."""
GENERATED = "generated"
"""The value of `StudyConfig.data` that stands for the built-in generator."""


@dataclass(frozen=True)
class PrepareConfig:
    """From a file of records to a split data set."""

    duplicate_similarity: Share = 0.92
    """Two records whose title, action and start of the text, as the encoder reads them, have at least this normalised
    Indel similarity are near-duplicates; case, accents and spacing do not count. 0 keeps everything."""
    keep_duplicates: bool = False
    """Keep near-duplicates (a cluster never crosses the split) instead of dropping all but the first."""
    skip_invalid: bool = False
    """Drop malformed records instead of refusing the file; `invalid.jsonl` says what is wrong with each."""
    num_generated: Count = 600
    """Number of records that the generator makes when no file is given."""


BUILT_IN_ENCODERS = ("minilm", "hash")
"""Encoders that are known by a name, wherever their files lie."""
FEATURE_WIDTH = 768
"""Of a token's features, which are all that the model knows of an encoder."""


@dataclass(frozen=True)
class FeatureConfig:
    """Frozen token features of a sentence encoder."""

    encoder: str = "minilm"
    """`minilm` (trained on English), `hash`, or the hub id or folder of a Hugging Face encoder of hidden size 768."""
    seq_len_tokens: Annotated[int, Meta(ge=1, le=512)] = 128
    """Longest token sequence that the model reads; longer ones are averaged down to it."""
    text_chars: Count = 1500
    """Characters of the text that are read, after the title and the action."""
    words: bool = True
    """Whether `minilm`'s features hold what the words of a text say of its targets: a ridge's predictions."""


@dataclass(frozen=True)
class TrainConfig:
    """The main run; the sweep uses the same batch and precision."""

    strategy: str = "zero2_offload_adam8bit"
    """A file name in `ds_configs/`, or `plain` for one process without DeepSpeed."""
    learning_rate: Rate | None = None
    """Peak learning rate; empty takes the sweep's."""
    effective_batch: Count = 64
    """Records per optimizer step over all ranks."""
    micro_batch: CountOrZero = 0
    """Records per forward pass and rank; 0 takes the whole effective batch for the small presets, 16 for `full`."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay; never on norms, biases and learned queries. A study takes its recipe's."""
    beta1: Decay = 0.9
    """Decay of the first moment per step."""
    beta2: Decay = 0.999
    """Decay of the second moment per step."""
    dropout: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    """Share of a layer's additions to the residual stream that is dropped in training."""
    feature_dropout: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    """Share of the 768 input channels that a record is read without in training, other ones at every reading. A
    study takes its recipe's."""
    value_weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    """Weight of the tasks in 0-1 beside the emotion in the loss. A study takes its recipe's."""
    clip_norm: Annotated[float, Meta(ge=1e-9, le=1e9)] = 1.0
    """Largest gradient norm of a step."""
    eta_min: NotNegative = 1e-6
    """Learning rate at the end of a cosine cycle."""
    cycle_epochs: Count = 20
    """Epochs of the first cosine cycle (T_0). A study takes its recipe's."""
    cycle_growth: Count = 2
    """Each cycle is this many times longer than the one before (T_mult). A study takes its recipe's."""
    snapshot_every: Count = 2
    """Epochs between module snapshots."""
    compress_snapshots: bool | None = None
    """Keep all snapshots but the newest as lossless differences, a third to two thirds of their bytes, made beside
    training; empty does so where the disk is too small without it."""
    state_every_minutes: NotNegative = 10.0
    """Minutes between resume states: so much work a kill may cost. The end of a run and a stop on request always
    leave one; 0 writes one per epoch."""
    state_every_steps: CountOrZero = 0
    """Optimizer steps between further resume states, for states at exact points; 0 writes none of these."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: bool = True
    """On a CUDA device, the same bits at every run; without it attention's backward pass may be faster there."""
    card_share: Share = 0.0
    """Share of the optimizer that lies and is updated on the card, with `zero2_offload_adam8bit`: 8 bytes a parameter
    of device memory for less work of the host and the bus."""
    pipeline: bool = False
    """The step of `zero2_offload_adam8bit` as a pipeline: gradients leave, weights are updated and return beside the
    passes. Not measured on a CUDA device yet; on the CPU the same bits, and nothing is faster."""
    graphs: bool = False
    """On a CUDA device, passes as CUDA graphs, texts padded to a few lengths. Not measured yet; each of two shapes
    holds 2 bytes per parameter more."""
    compute_type: Literal["auto", "bf16", "fp32"] = "auto"
    """On the CPU, what the strategies with DeepSpeed compute in; `auto` takes bf16 where the processor has units for
    it and fp32 where it has none. A CUDA device computes in bf16, and `plain` in fp32."""
    num_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """CPU threads per rank; 0 takes the usable cores over the ranks of this host, and one within an operator where
    operators are too small for two. Two threads compute half of a batch each where that is faster, but not with 1."""
    wandb: Literal["auto", "off", "offline", "online"] = "auto"
    """Weights & Biases: `offline` keeps its files in the run's folder, `online` sends. `auto` does what WANDB_MODE
    says, is online in a trial that `wandb agent` started, and off otherwise."""
    progress: Literal["bar", "json", "off"] = "bar"
    """What standard output shows: a bar for people, one JSON object per event for machines, or nothing."""
    sample_every_s: NotNegative = 30.0
    """Seconds between samples of memory and load in `samples.jsonl`; 0 takes none."""


RUNTIME_FIELDS = (
    *("compute_type", "num_threads", "deterministic", "checkpointing", "micro_batch", "card_share", "pipeline"),
    *("graphs", "state_every_minutes", "state_every_steps", "compress_snapshots", "wandb", "progress"),
    "sample_every_s",
)
"""Settings of `train` that say how a run is made and watched; they do not decide what comes out.

Another micro-batch changes sums in the last bits and what is drawn for dropout, another compute type every bit behind
the third digit; either may be the only way to go on.
"""


@dataclass(frozen=True)
class SweepConfig:
    """The search for the learning rate."""

    rates: tuple[Rate, ...] = (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
    """Peak learning rates to try."""
    epochs: Count = 5
    """Epochs of a trial."""
    score_epochs: Count = 3
    """The score is the mean validation loss of this many last epochs."""
    gap_weight: NotNegative = 0.0
    """Weight of |train - validation| in the score (the original design used 0.1)."""
    range_test_steps: CountOrZero = 0
    """Steps of a learning-rate range test before the trials, for example 100; 0 makes none."""


@dataclass(frozen=True)
class SelectConfig:
    """Sweet spot and crossover."""

    strategy: str = "coordinate"
    """How epochs are chosen; a wrong name lists all."""
    level: Literal["group", "module"] = "group"
    """Choose for the design's module groups, or for every module on its own."""
    anchor: Literal["single", "average"] = "single"
    """What `coordinate` and `window` start from: the best single snapshot, or the best average if that is better."""
    passes: Annotated[int, Meta(ge=1, le=10)] = 2
    """How often `coordinate` and `window` go through all groups."""
    min_z: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """They keep a change only if its gain is more than this many of its standard errors."""
    budget_share: Share = 0.05
    """Their work, as a share of evaluating every candidate of every group and pass as a whole model..."""
    budget_evaluations: Count = 24
    """...or this many full-model evaluations, where that is more."""
    last_k: Annotated[int, Meta(ge=1, le=1000)] = 3
    """Snapshots that `last-k` averages."""
    cache_mib: CountOrZero = 0
    """Memory, where the search computes, for results and weights that are kept between evaluations; 0 takes 1536 on the
    CPU and half of what is free on a card."""
    map_epochs: Annotated[int, Meta(ge=0, le=1000)] = 5
    """Snapshots in the transplant matrix and on the interpolation lines; 0 leaves both out."""


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides the result of a study."""

    data: str = GENERATED
    """File of records, or `generated`."""
    out: Path = Path("runs/demo")
    """Folder of the run."""
    preset: Preset = "tiny"
    """Size of the model: tiny, small or full (730,466,848 parameters)."""
    epochs: Count = 60
    """Epochs of the main run."""
    seed: Annotated[int, Meta(ge=-(2**62), le=2**62)] = 0
    """The one seed that every random stream derives from."""
    device: Device = "auto"
    """Where the phases after training compute; on `cuda` in bf16. `auto` is the CPU: they have not run on a CUDA device
    yet. The encoder and training take one where there is one; `cpu` keeps the encoder off it."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    select: SelectConfig = field(default_factory=SelectConfig)


def resolved(config: StudyConfig) -> StudyConfig:
    """The configuration with every value that depends on others filled in.

    Raises:
        BadInput: a value is out of its range or a path cannot be a path; all of them are named.
    """
    wrong = out_of_range(config)
    if not config.sweep.rates or len(set(config.sweep.rates)) < len(config.sweep.rates):
        wrong.append("sweep.rates, expected one or more different rates")
    paths = {"data": config.data, "out": str(config.out), "features.encoder": config.features.encoder}
    for name, path in paths.items():
        # What the system can open and a run's JSON files can hold.
        if not path or "\0" in path or not is_unicode(path):
            wrong.append(f"{name} = {path!r}, expected a path in UTF-8")
    if wrong:
        raise BadInput("settings out of range", where="; ".join(wrong), hint="`redheart run --help` lists all settings")
    micro_batch = config.train.micro_batch or (16 if config.preset == "full" else config.train.effective_batch)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=micro_batch))


def out_of_range(config: StudyConfig | TrainConfig) -> list[str]:
    """What is wrong with values that no file or command line has checked: by name, with what is expected."""
    return list(_problems(dataclasses.asdict(config), type(config), ""))


def fingerprint(train: TrainConfig) -> dict[str, object]:
    """The settings of training that decide its result."""
    return {name: value for name, value in dataclasses.asdict(train).items() if name not in RUNTIME_FIELDS}


def digest(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def load_toml(path: Path) -> StudyConfig:
    """Read a configuration file; raises as `read_toml` and `configured`."""
    return configured(read_toml(path), StudyConfig(), path=path)


def configured(tables: Mapping[str, Any], default: StudyConfig, *, path: Path) -> StudyConfig:
    """What a configuration file's tables say; keys that are absent keep the values of `default`.

    Its `recipe` is not a setting: it says which defaults are meant (`redheart.core.recipes`), and is passed over here.

    Raises:
        BadInput: unknown keys (the nearest are named), values of the wrong type or out of range: all are named.
    """
    raw = {name: value for name, value in tables.items() if name != RECIPE}
    if wrong := list(_problems(raw, StudyConfig, "")):
        raise BadInput(
            "settings unknown, of the wrong type or out of range",
            where=path,
            got="; ".join(wrong),
            hint="`redheart init FILE` writes a file with all settings",
        )
    values = dataclasses.asdict(default)
    for name, value in raw.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return msgspec.convert(values, StudyConfig, dec_hook=_decode_path)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a configuration file as they stand.

    Raises:
        BadInput: no such file, or not TOML.
    """
    text = read_text(path, what="configuration file")
    try:
        return tomllib.loads(text)
    # Numbers of thousands of digits are ValueErrors too.
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise BadInput("configuration file is not TOML", where=path, got=error) from error


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError("expected a path in quotes")


def _problems(value: object, kind: Any, name: str) -> Iterator[str]:
    """What is wrong with a value of this type or, for a section, with its tables and keys."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        known: dict[str, Any] = {item.name: item.type for item in dataclasses.fields(kind)}
        for key, item in value.items():
            below = f"{name}.{key}".removeprefix(".")
            if key in known:
                yield from _problems(item, known[key], below)
            else:
                near = _nearest(key, known)
                yield f"unknown key {below}, " + (f"did you mean `{near}`?" if near else f"known: {', '.join(known)}")
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, get_args(kind)[0], f"{name}[{index}]")
    else:
        try:
            msgspec.convert(value, kind, dec_hook=_decode_path)
        except msgspec.ValidationError as error:
            yield f"{name} = {value!r}, {str(error)[0].lower()}{str(error)[1:]}"


def _nearest(key: str, known: dict[str, Any]) -> str | None:
    """A known key that was meant; it may also stand in another section."""
    sections = {item.name: getattr(item.type, "__dataclass_fields__", ()) for item in dataclasses.fields(StudyConfig)}
    near = get_close_matches(key, known, n=1) + [f"[{name}] {key}" for name, keys in sections.items() if key in keys]
    return near[0] if near else None
