"""The configuration of a study: frozen dataclasses, read from TOML, overridden by `--a.b value`.

Nothing heavy is imported here, so that `redheart --help` answers at once.
"""

import dataclasses
import hashlib
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Literal

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import canonical_json
from redheart.core.text import read_text

Preset = Literal["tiny", "small", "full"]
GENERATED = "generated"
"""The value of `StudyConfig.data` that stands for the built-in generator."""


@dataclass(frozen=True)
class PrepareConfig:
    """From a file of records to a split data set."""

    duplicate_similarity: float = 0.92
    """Two records whose title, action and start of the text, as the encoder reads them, have at least this normalised
    Indel similarity are near-duplicates; case, accents and spacing do not count. 0 keeps everything."""
    keep_duplicates: bool = False
    """Keep near-duplicates (a cluster never crosses the split) instead of dropping all but the first."""
    skip_invalid: bool = False
    """Drop malformed records into `invalid.jsonl` instead of refusing the file."""
    num_generated: int = 600
    """Number of records that the generator makes when no file is given."""


BUILT_IN_ENCODERS = ("minilm", "hash")
"""Encoders that are known by a name, wherever their files lie."""


@dataclass(frozen=True)
class FeatureConfig:
    """Frozen token features of a sentence encoder."""

    encoder: str = "minilm"
    """`minilm`, `hash`, or the hub id or folder of a Hugging Face encoder of hidden size 768."""
    seq_len_tokens: int = 128
    """Longest token sequence that the model reads; longer ones are averaged down to it."""
    text_chars: int = 1500
    """Characters of the text that are read, after the title and the action."""


@dataclass(frozen=True)
class TrainConfig:
    """The main run; the sweep uses the same batch and precision."""

    strategy: str = "zero2_offload_adam8bit"
    """A file name in `ds_configs/`, or `plain` for one process without DeepSpeed."""
    learning_rate: float | None = None
    """Peak learning rate; empty takes the sweep's."""
    effective_batch: int = 64
    """Records per optimizer step over all ranks."""
    micro_batch: int = 0
    """Records per forward pass and rank; 0 takes the whole effective batch for the small presets, 16 for `full`."""
    weight_decay: float = 0.01
    """Decoupled weight decay; never on norms, biases and learned queries."""
    beta1: float = 0.9
    """Decay of the first moment per step."""
    beta2: float = 0.999
    """Decay of the second moment per step."""
    dropout: float = 0.0
    """Share of a layer's additions to the residual stream that is dropped in training."""
    feature_dropout: float = 0.0
    """Share of the 768 input channels that a record is read without in training, other ones at every reading."""
    value_weight: float = 1.0
    """Weight of the tasks in 0-1 beside the emotion in the loss."""
    clip_norm: float = 1.0
    """Largest gradient norm of a step."""
    eta_min: float = 1e-6
    """Learning rate at the end of a cosine cycle."""
    cycle_epochs: int = 20
    """Epochs of the first cosine cycle (T_0)."""
    cycle_growth: int = 2
    """Each cycle is this many times longer than the one before (T_mult)."""
    snapshot_every: int = 2
    """Epochs between module snapshots."""
    compress_snapshots: bool = False
    """Keep all snapshots but the newest as lossless differences, about 30 % of their bytes, made beside training."""
    state_every_steps: int = 0
    """Optimizer steps between resume states; 0 writes one per epoch."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: bool = True
    """On a CUDA device, the same bits at every run; without it attention's backward pass may be faster there."""
    compute_type: Literal["auto", "bf16", "fp32"] = "auto"
    """On the CPU, what the strategies with DeepSpeed compute in; `auto` takes bf16 where the processor has units for
    it and fp32 where it has none. A CUDA device computes in bf16, and `plain` in fp32."""
    num_threads: int = 0
    """CPU threads per rank; 0 takes the physical cores over the ranks of this host, and one for a model whose
    operators are too small for two."""
    wandb: Literal["auto", "off", "offline", "online"] = "auto"
    """Weights & Biases: `offline` keeps its files in the run's folder, `online` sends. `auto` does what WANDB_MODE
    says, is online in a trial that `wandb agent` started, and off otherwise."""
    progress: Literal["bar", "json", "off"] = "bar"
    """What standard output shows: a bar for people, one JSON object per event for machines, or nothing."""
    sample_every_s: float = 30.0
    """Seconds between samples of memory and load in `samples.jsonl`; 0 takes none."""


RUNTIME_FIELDS = (
    *("compute_type", "num_threads", "deterministic", "state_every_steps", "checkpointing", "micro_batch"),
    *("compress_snapshots", "wandb", "progress", "sample_every_s"),
)
"""Settings of `train` that say how a run is made and watched; they do not decide what comes out.

Another micro-batch changes sums in the last bits, another compute type every bit behind the third digit; either may be
the only way to go on.
"""


@dataclass(frozen=True)
class SweepConfig:
    """The search for the learning rate."""

    rates: tuple[float, ...] = (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
    """Peak learning rates to try."""
    epochs: int = 5
    """Epochs of a trial."""
    score_epochs: int = 3
    """The score is the mean validation loss of this many last epochs."""
    gap_weight: float = 0.0
    """Weight of |train - validation| in the score (the original design used 0.1)."""
    range_test_steps: int = 0
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
    passes: int = 2
    """How often `coordinate` and `window` go through all groups."""
    min_z: float = 0.0
    """They keep a change only if its gain is more than this many of its standard errors."""
    budget_share: float = 0.05
    """Their work, as a share of evaluating every candidate of every group and pass as a whole model..."""
    budget_evaluations: int = 24
    """...or this many full-model evaluations, where that is more."""
    last_k: int = 3
    """Snapshots that `last-k` averages."""
    cache_mib: int = 1536
    """Memory for results and weights that are kept between evaluations."""
    map_epochs: int = 5
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
    epochs: int = 60
    """Epochs of the main run."""
    seed: int = 0
    """The one seed that every random stream derives from."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    select: SelectConfig = field(default_factory=SelectConfig)


_MANY = 10**9
"""Above every number of records, epochs, steps or tokens that is meant."""

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, _MANY),
    "seed": (-(2**62), 2**62),
    "prepare.duplicate_similarity": (0, 1),
    "prepare.num_generated": (1, _MANY),
    "features.seq_len_tokens": (1, _MANY),
    "features.text_chars": (1, _MANY),
    "train.effective_batch": (1, _MANY),
    "train.micro_batch": (0, _MANY),
    "train.dropout": (0, 0.9),
    "train.feature_dropout": (0, 0.9),
    "train.value_weight": (1e-3, 1e3),
    "train.weight_decay": (0, 1e9),
    "train.beta1": (0, 1 - 1e-9),
    "train.beta2": (0, 1 - 1e-9),
    "train.clip_norm": (1e-9, 1e9),
    "train.eta_min": (0, 1e9),
    "train.cycle_epochs": (1, _MANY),
    "train.cycle_growth": (1, _MANY),
    "train.snapshot_every": (1, _MANY),
    "train.state_every_steps": (0, _MANY),
    "train.sample_every_s": (0, _MANY),
    "train.num_threads": (0, 1024),
    "sweep.epochs": (1, _MANY),
    "sweep.score_epochs": (1, _MANY),
    "sweep.gap_weight": (0, 1e9),
    "sweep.range_test_steps": (0, _MANY),
    "select.passes": (1, 10),
    "select.min_z": (0, 100),
    "select.budget_share": (0, 1),
    "select.budget_evaluations": (1, _MANY),
    "select.last_k": (1, 1000),
    "select.cache_mib": (1, _MANY),
    "select.map_epochs": (0, 1000),
}
_RATES = (1e-12, 1e3)


def resolved(config: StudyConfig) -> StudyConfig:
    """The configuration with every value that depends on others filled in.

    Raises:
        BadInput: a number is out of its range or a path cannot be a path; all of them are named.
    """
    wrong = [
        f"{name} = {value}, expected {low:g} to {high:g}"
        for name, (low, high) in _RANGES.items()
        # NaN is in no range.
        if not low <= (value := attrgetter(name)(config)) <= high
    ]
    rates = {f"sweep.rates[{index}]": rate for index, rate in enumerate(config.sweep.rates)}
    if config.train.learning_rate is not None:
        rates["train.learning_rate"] = config.train.learning_rate
    low, high = _RATES
    wrong += [
        f"{name} = {rate}, expected {low:g} to {high:g}" for name, rate in rates.items() if not low <= rate <= high
    ]
    if not config.sweep.rates or len(set(config.sweep.rates)) < len(config.sweep.rates):
        wrong.append("sweep.rates, expected one or more different rates")
    paths = {"data": config.data, "out": str(config.out), "features.encoder": config.features.encoder}
    wrong += [f"{name} = {value!r}, expected a path in UTF-8" for name, value in paths.items() if not _is_path(value)]
    if wrong:
        raise BadInput("settings out of range", where="; ".join(wrong), hint="`redheart run --help` lists all settings")
    micro_batch = config.train.micro_batch or (16 if config.preset == "full" else config.train.effective_batch)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=micro_batch))


def _is_path(text: str) -> bool:
    """Whether the system could open it and a run's JSON files could hold it."""
    try:
        return bool(text) and b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def decisive(train: TrainConfig) -> dict[str, object]:
    """The settings of training that decide its result."""
    return {name: value for name, value in dataclasses.asdict(train).items() if name not in RUNTIME_FIELDS}


def digest(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def load_toml(path: Path) -> StudyConfig:
    """Read a configuration file; keys that are absent keep their defaults.

    Raises:
        BadInput: no such file, not TOML, an unknown key (the nearest is named) or a value of the wrong type.
    """
    text = read_text(path, what="configuration file")
    try:
        raw = tomllib.loads(text)
    # Numbers of thousands of digits are ValueErrors too.
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise BadInput("configuration file is not TOML", where=path, got=error) from error
    _refuse_unknown_keys(raw, StudyConfig, path, prefix="")
    try:
        return msgspec.convert(raw, StudyConfig, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise BadInput("configuration value has the wrong type", where=path, got=error) from error


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected a path in quotes, got {value!r}")


def _refuse_unknown_keys(raw: dict[str, object], kind: type, path: Path, *, prefix: str) -> None:
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in known:
            # A key may also stand in the wrong section.
            near = get_close_matches(key, known, n=1) or [
                f"[{item.name}] {key}"
                for item in dataclasses.fields(StudyConfig)
                if key in getattr(item.type, "__dataclass_fields__", ())
            ]
            raise BadInput(
                "unknown configuration key",
                where=f"{path}: {prefix}{key}",
                expected=", ".join(known),
                hint=f"did you mean `{near[0]}`?" if near else "remove it",
            )
        section = known[key].type
        if dataclasses.is_dataclass(section) and isinstance(section, type) and isinstance(value, dict):
            _refuse_unknown_keys(value, section, path, prefix=f"{prefix}{key}.")
